"""Both ends of a child process: lines, logs, errors, signals, and no orphans."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from preftune import children
from preftune.children import ERROR_FILE, TELL, Tail, launch_command, read_json_lines, report_error, run_child
from preftune.errors import OutOfMemory, PreftuneError, StepError, UserError


def run(folder: Path, code: str, on_line: Any = lambda _: None, **env: str) -> str:
    """Runs Python code as a child; returns its log."""
    log = folder / "logs" / "child.log"
    run_child(
        [sys.executable, "-c", code],
        folder=folder,
        log=log,
        env={**os.environ, "FOLDER": str(folder), **env},
        on_line=on_line,
        what="training",
    )
    return log.read_text()


def gone(pid: int) -> bool:
    """No such process, or only its entry in the table (nobody has asked for its exit status yet)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def wait_for(condition: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


# --- lines and logs ---------------------------------------------------------------------------------------


def test_told_lines_are_passed_on_and_all_are_logged(tmp_path: Path) -> None:
    lines: list[str] = []
    code = (
        "import sys\nfrom preftune.children import tell\n"
        "print('noise'); tell('step 1/8'); print('to stderr', file=sys.stderr, flush=True); tell('step 2/8  ')"
    )
    log = run(tmp_path, code, lines.append)
    assert lines == ["step 1/8", "step 2/8"]
    assert all(text in log for text in ("noise", "step 1/8", "to stderr", "step 2/8"))


def test_lines_come_while_the_child_runs(tmp_path: Path) -> None:
    """The child waits for what the first line makes its parent do."""
    code = (
        "import os, time\nfrom pathlib import Path\nfrom preftune.children import tell\n"
        "tell('ready')\ngo = Path(os.environ['FOLDER']) / 'go'\n"
        "end = time.monotonic() + 20\n"
        "while not go.exists():\n    assert time.monotonic() < end\n    time.sleep(0.01)\n"
    )
    run(tmp_path, code, lambda _: (tmp_path / "go").touch())


def test_a_child_that_asks_a_question_gets_no_answer(tmp_path: Path) -> None:
    """It ends instead of waiting at the user's terminal."""
    log = run(tmp_path, "import sys; print('read', repr(sys.stdin.read()))")
    assert log == "read ''\n"


def test_the_log_grows_over_tries(tmp_path: Path) -> None:
    run(tmp_path, "print('first')")
    with pytest.raises(StepError):
        run(tmp_path, "print('second'); raise SystemExit(1)")
    assert (tmp_path / "logs" / "child.log").read_text() == "first\nsecond\n"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    log = run(tmp_path, "import sys; sys.stdout.buffer.write(b'a\\xff\\n')")
    assert log == "a\ufffd\n"


def test_the_environment_is_the_given_one(tmp_path: Path) -> None:
    assert run(tmp_path, "import os; print(os.environ['COLOUR'])", COLOUR="blue") == "blue\n"


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UserError, StepError, PreftuneError])
def test_a_reported_error_arrives_as_it_was(tmp_path: Path, kind: type[PreftuneError]) -> None:
    """Message, place, advice and kind: wrong input is never retried, a fault is."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom preftune import errors\n"
        "from preftune.children import report_error\n"
        f"report_error(Path(os.environ['FOLDER']), errors.{kind.__name__}('what – é', 'where', 'advice'))\n"
        "print('RuntimeError: out of memory'); sys.exit(1)"
    )
    with pytest.raises(PreftuneError) as e:
        run(tmp_path, code)
    assert type(e.value) is (UserError if kind is UserError else StepError)
    assert (e.value.error, e.value.where, e.value.advice) == ("what – é", "where", "advice")


def test_the_first_of_several_processes_is_the_cause(tmp_path: Path) -> None:
    """What the others report follows from it."""
    assert report_error(tmp_path, UserError("the cause", "row 3"))
    assert not report_error(tmp_path, StepError("connection closed by peer"), unexpected=True)
    told = json.loads((tmp_path / ERROR_FILE).read_text())
    assert (told["error"], told["where"], told["kind"], told["unexpected"]) == (
        "the cause",
        "row 3",
        "UserError",
        False,
    )


TOLD = (
    "import json, os, sys\nfrom pathlib import Path\nfrom preftune.children import child_main\n"
    "job = Path(os.environ['FOLDER']) / 'job.json'\njob.write_text(json.dumps({'folder': os.environ['FOLDER']}))\n"
    "sys.argv = ['child', str(job)]\n"
    "def work(job):\n    print(os.environ['SEEN'])\n    raise RuntimeError('connection closed\\nby peer')\n"
    "child_main(work)"
)


def test_a_library_s_error_is_told_and_not_the_signal_that_followed(tmp_path: Path) -> None:
    """The launcher ends the other processes: in its trace they died of SIGTERM, or of SIGKILL if they hung."""
    term = "traceback : Signal 15 (SIGTERM) received by PID 7"
    with pytest.raises(StepError, match=r"training failed .*: RuntimeError: connection closed\n"):
        run(tmp_path, TOLD, SEEN=term)
    hung = (
        "Unable to shutdown process 7 via SIGTERM, forcefully exiting via SIGKILL: Signal 9 (SIGKILL) received by PID 7"
    )
    with pytest.raises(StepError, match=r"RuntimeError: connection closed\n"):
        run(tmp_path, TOLD, SEEN=hung)


def test_the_kill_that_another_process_s_error_followed_from(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="ended by SIGKILL"):
        run(tmp_path, TOLD, SEEN="traceback : Signal 9 (SIGKILL) received by PID 7")


def test_an_old_error_is_not_believed(tmp_path: Path) -> None:
    """error.json of an earlier try does not outlive the next one."""
    report_error(tmp_path, UserError("old"))
    run(tmp_path, "pass")
    assert not (tmp_path / ERROR_FILE).exists()
    report_error(tmp_path, UserError("old"))
    with pytest.raises(StepError, match="training failed"):
        run(tmp_path, "raise SystemExit(3)")


def test_a_half_written_error_is_a_failure_like_any_other(tmp_path: Path) -> None:
    """Killed while it reported."""
    code = (
        "import os\nfrom pathlib import Path\n"
        "(Path(os.environ['FOLDER']) / 'error.json').write_text('{\"error\": \"no')\nos.kill(os.getpid(), 9)"
    )
    with pytest.raises(StepError, match="SIGKILL"):
        run(tmp_path, code)


def test_the_last_error_line_is_told(tmp_path: Path) -> None:
    """The child's own, not what its launcher says about it; and where the log is."""
    code = (
        "print('ValueError: the batch is odd')\nprint('more')\n"
        "print('subprocess.CalledProcessError: Command returned 1')\nraise SystemExit(7)"
    )
    with pytest.raises(StepError) as e:
        run(tmp_path, code)
    assert e.value.error == "training failed (exit code 7): ValueError: the batch is odd"
    assert e.value.where == str(tmp_path / "logs" / "child.log")
    assert "the batch is odd" in Path(e.value.where).read_text()


@pytest.mark.parametrize("told", ["", "last"])
def test_a_failure_without_an_error_line(tmp_path: Path, told: str) -> None:
    with pytest.raises(StepError) as e:
        run(tmp_path, f"print('first\\n{told}'); raise SystemExit(2)")
    assert e.value.error == f"training failed (exit code 2): {told}"


@pytest.mark.parametrize("text", ["OutOfMemoryError: CUDA out of memory.", "RuntimeError: CUDA error: out of memory"])
def test_out_of_memory_has_its_advice(tmp_path: Path, text: str) -> None:
    """Also where the child could not report it."""
    with pytest.raises(OutOfMemory, match="training ran out of memory") as e:
        run(tmp_path, f"print({text!r}); raise SystemExit(1)")
    assert "halve per_device_train_batch_size and double gradient_accumulation_steps" in e.value.advice


def test_a_disk_too_full_for_a_report(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="the disk is full") as e:
        run(tmp_path, "raise OSError(28, 'No space left on device', 'x')")
    assert "same command again" in e.value.advice


MAIN = """
import os, sys
from pathlib import Path
from preftune.children import child_main
folder = Path(os.environ["FOLDER"])
(folder / "job.json").write_text('{"folder": "' + str(folder) + '"}')
sys.argv = ["child", str(folder / "job.json")]
def work(job):
    error = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\\nmore")
    error.add_note("after 7 of 12 steps")
    raise error
child_main(work)
"""


def test_a_child_reports_out_of_memory_as_such(tmp_path: Path) -> None:
    """With the step; its trace stays in the log."""
    with pytest.raises(OutOfMemory) as e:
        run(tmp_path, MAIN)
    expected = "training ran out of memory after 7 of 12 steps: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert e.value.error == expected
    assert e.value.where.endswith("child.log") and "halve" in e.value.advice
    assert "Traceback" in Path(e.value.where).read_text()


def test_a_log_that_cannot_grow_does_not_end_the_child(tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "log").symlink_to("/dev/full")
    command = [sys.executable, "-c", f"print({TELL!r} + 'step 1/8'); print('noise' * 10000)"]
    env = dict(os.environ)
    run_child(command, folder=tmp_path, log=tmp_path / "log", env=env, on_line=lines.append, what="training")
    assert lines == ["step 1/8"]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV", "SIGABRT"])
def test_signals_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(StepError, match=f"the training process was ended by {name}") as e:
        run(tmp_path, f"import os, signal; os.kill(os.getpid(), signal.{name})")
    assert ("out of memory?" in e.value.error) is (name == "SIGKILL")


def test_a_signal_without_a_name(tmp_path: Path) -> None:
    """Real-time signals have a number only."""
    with pytest.raises(StepError, match="40"):
        run(tmp_path, "import os; os.kill(os.getpid(), 40)")


@pytest.mark.parametrize(
    "text",
    [
        "subprocess.CalledProcessError: Command '[...]' died with <Signals.SIGKILL: 9>.",
        "Root Cause: exitcode: -9, traceback: Signal 9 (SIGKILL) received by PID 4711",
    ],
)
def test_signals_are_read_from_the_launcher_s_trace(tmp_path: Path, text: str) -> None:
    """accelerate and torchrun end with 1 when their worker is killed."""
    with pytest.raises(StepError, match="SIGKILL"):
        run(tmp_path, f"print({text!r}); raise SystemExit(1)")


def test_a_child_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        run_child(
            ["/no/such/program"], folder=tmp_path, log=tmp_path / "x", env={}, on_line=lambda _: None, what="training"
        )


# --- no orphans -------------------------------------------------------------------------------------------

FAMILY = """
import os, subprocess, sys, time
from pathlib import Path
from preftune.children import tell
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
Path(os.environ["FOLDER"], "pids").write_text(f"{os.getpid()} {below.pid}")
tell("ready")
time.sleep(60)
"""


def test_a_cancelled_parent_ends_the_whole_group(tmp_path: Path) -> None:
    """The launcher and its worker; whatever the exception is, it passes on."""

    def cancel(_: str) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, FAMILY, cancel)
    assert time.monotonic() - began < 8
    pids = [int(p) for p in (tmp_path / "pids").read_text().split()]
    assert wait_for(lambda: all(gone(p) for p in pids), 3)


def test_a_cancelled_child_may_save_first(tmp_path: Path) -> None:
    """It is asked with SIGTERM before it is killed."""
    code = (
        "import os, signal, sys, time\nfrom pathlib import Path\nfrom preftune.children import tell\n"
        "def save(*_):\n    time.sleep(0.2)\n    Path(os.environ['FOLDER'], 'saved').touch()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\ntell('ready')\ntime.sleep(60)\n"
    )

    def cancel(_: str) -> None:
        raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        run(tmp_path, code, cancel)
    assert (tmp_path / "saved").exists()


LAUNCHER = """
import os, subprocess, sys, time
worker = '''
import os, signal, sys, time
from pathlib import Path
from preftune.children import tell
def save(*_):
    time.sleep(0.5)
    Path(os.environ["FOLDER"], "saved").touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
tell("ready")
time.sleep(60)
'''
sys.exit(subprocess.run([sys.executable, "-c", worker]).returncode)
"""


def test_a_launcher_s_worker_may_save_first(tmp_path: Path) -> None:
    """accelerate's launcher would end at once when asked, and its worker with it."""

    def cancel(_: str) -> None:
        raise KeyboardInterrupt

    command = [sys.executable, "-c", LAUNCHER, children._LAUNCHER]
    env = {**os.environ, "FOLDER": str(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        run_child(command, folder=tmp_path, log=tmp_path / "log", env=env, on_line=cancel, what="training")
    assert (tmp_path / "saved").exists()


def test_a_second_interrupt_ends_a_child_that_takes_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import signal, time\nfrom preftune.children import tell\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntell('ready')\ntime.sleep(60)\n"
    )
    began = time.monotonic()

    def interrupted(_: str) -> None:
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, code, interrupted)
    assert time.monotonic() - began < 10


def test_a_child_that_never_ends_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "GRACE_SECONDS", 0.5)
    code = "import signal, time\nfrom preftune.children import tell\n"
    code += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntell('ready')\ntime.sleep(60)\n"

    def cancel(_: str) -> None:
        raise RuntimeError("cancelled")

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="cancelled"):
        run(tmp_path, code, cancel)
    assert time.monotonic() - began < 10


PARENT = """
import os, sys
from pathlib import Path
from preftune.children import run_child
folder = Path(sys.argv[1])
code = "import os, time; open(os.environ['PID'], 'w').write(str(os.getpid())); time.sleep(60)"
env = {**os.environ, "PID": str(folder / "pid")}
run_child([sys.executable, "-c", code], folder=folder, log=folder / "log", env=env, on_line=print, what="training")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """The flow is killed hard: within five seconds nothing is left on the GPU."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    pid_file = tmp_path / "pid"
    try:
        assert wait_for(lambda: pid_file.exists() and pid_file.read_text(), 20)
        child = int(pid_file.read_text())
        assert not gone(child)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert wait_for(lambda: gone(child), 5)


def test_the_launcher_s_command(tmp_path: Path) -> None:
    command = launch_command("preftune.training", tmp_path / "job.json", tmp_path / "cpu.yaml", 2)
    assert command[0] == sys.executable and command[3] == "launch"
    assert command[command.index("--config_file") + 1] == str(tmp_path / "cpu.yaml")
    assert command[-4:] == ["--num_processes=2", "--module", "preftune.training", str(tmp_path / "job.json")]


def test_the_launcher_starts_several_processes_on_a_cpu(tmp_path: Path) -> None:
    """accelerate would start one, and leave the others to mpirun. The port is a free one."""
    command = launch_command("preftune.training", tmp_path / "job.json", tmp_path / "two.yaml", 2, on_cpu=True)
    assert {"--multi_gpu", "--main_process_port=0"} <= set(command)
    alone = launch_command("preftune.training", tmp_path / "job.json", tmp_path / "cpu.yaml", 1, on_cpu=True)
    assert "--multi_gpu" not in alone


def test_only_the_first_process_speaks(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "from preftune.children import tell; tell('step 1/8')"
    for rank in ("0", "1"):
        run(tmp_path, code, lines.append, RANK=rank)
    assert lines == ["step 1/8"]


# --- files that grow --------------------------------------------------------------------------------------


def test_read_json_lines_leaves_a_half_line_for_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_json_lines(path) == []
    path.write_text('{"step": 1}\n\n{"step": 2}\n{"st')
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert [r["step"] for r in read_json_lines(path)] == [1, 2, 3]


def test_an_interrupt_whose_exception_was_lost_still_ends_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python drops a KeyboardInterrupt that is raised in a destructor; the next line of the child ends it then."""
    flag = threading.Event()
    monkeypatch.setattr(children, "interrupted", flag)
    lines = []

    class Swallows:
        def __del__(self) -> None:
            children.interrupt()

    def on_line(line: str) -> None:
        lines.append(line)
        if line == "0":
            Swallows()  # Ctrl-C at the worst moment

    code = f"import time\nfor i in range(600):\n  print({TELL!r} + str(i), flush=True)\n  time.sleep(0.05)"
    began = time.monotonic()
    lost: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: lost.append(found.exc_type))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, code, on_line)
    assert lost == [KeyboardInterrupt]
    assert lines == ["0"] and time.monotonic() - began < 20


def test_read_json_lines_keeps_odd_line_ends_inside_a_text(tmp_path: Path) -> None:
    """U+2028, U+0085 and a half-written letter at the end."""
    path = tmp_path / "answers.jsonl"
    path.write_bytes('{"text": "a\u2028b\x85c"}\n{"text": "é'.encode()[:-1])
    assert read_json_lines(path) == [{"text": "a\u2028b\x85c"}]


class Sink:
    """Collects what a tail sends; fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.rows: list[int] = []
        self.failures, self.errors = failures, []

    def send(self, rows: list[dict[str, Any]]) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("away")
        self.rows += [r["step"] for r in rows]

    def tail(self, path: Path, seconds: float = 0.02) -> Tail:
        return Tail(path, self.send, self.errors.append, seconds)


def append(path: Path, *steps: int) -> None:
    with path.open("a") as f:
        f.write("".join(json.dumps({"step": s}) + "\n" for s in steps))


def test_tail_sends_each_line_once_and_in_order(tmp_path: Path) -> None:
    path, sink = tmp_path / "metrics.jsonl", Sink()
    with sink.tail(path):
        for step in range(1, 6):
            append(path, step)
            assert wait_for(lambda step=step: step in sink.rows, 5)
    assert sink.rows == [1, 2, 3, 4, 5] and not sink.errors


def test_tail_s_last_look_is_at_the_end(tmp_path: Path) -> None:
    """What was written just before the end is sent too, without waiting for the interval."""
    path, sink = tmp_path / "metrics.jsonl", Sink()
    began = time.monotonic()
    with sink.tail(path, seconds=60):
        append(path, 1, 2)
    assert sink.rows == [1, 2] and time.monotonic() - began < 5


def test_tail_goes_on_after_a_failure_and_tells_it_once(tmp_path: Path) -> None:
    """Nothing is lost, nothing is sent twice."""
    path, sink = tmp_path / "metrics.jsonl", Sink(failures=3)
    append(path, 1, 2)
    with sink.tail(path):
        assert wait_for(lambda: sink.rows, 5)
        append(path, 3)
    assert sink.rows == [1, 2, 3]
    assert [type(e) for e in sink.errors] == [ConnectionError]


def test_tail_does_not_wait_at_the_end_for_whoever_is_away(tmp_path: Path) -> None:
    """A last try would hold up the end of a training by as long as it takes to fail."""
    path, sink = tmp_path / "metrics.jsonl", Sink(failures=10)
    append(path, 1)
    with sink.tail(path, seconds=0.01):
        assert wait_for(lambda: sink.errors, 5)
        left = sink.failures
    assert sink.failures >= left - 1 and not sink.rows


def test_tail_tells_each_outage_once(tmp_path: Path) -> None:
    path, sink = tmp_path / "metrics.jsonl", Sink(failures=2)
    append(path, 1)
    with sink.tail(path, seconds=0.01):
        assert wait_for(lambda: sink.rows == [1], 5)
        sink.failures = 2
        append(path, 2)
        assert wait_for(lambda: sink.rows == [1, 2], 5)
    assert len(sink.errors) == 2


def test_tail_starts_again_when_the_file_was_rewritten(tmp_path: Path) -> None:
    """A resumed child takes back what it will write again; sending is idempotent by (key, step)."""
    path, sink = tmp_path / "metrics.jsonl", Sink()
    append(path, 1, 2, 3)
    with sink.tail(path):
        assert wait_for(lambda: len(sink.rows) == 3, 5)
        path.write_text(json.dumps({"step": 1}) + "\n")
        assert wait_for(lambda: len(sink.rows) == 4, 5)
        append(path, 2, 4)
    assert sink.rows == [1, 2, 3, 1, 2, 4]


def test_tail_ends_its_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with Sink().tail(tmp_path / "none"):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
