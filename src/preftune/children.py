"""Both ends of a child process: the parent starts it and reads its lines; the child reports and fails in one message.

A child dies with its parent (Linux parent-death signal), so that a killed flow leaves no orphan on the GPU.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from preftune import faults, ranks
from preftune.errors import OutOfMemory, PreftuneError, StepError, UserError

TELL = "preftune| "  # a child's line for the user; all others are only kept in its log
ERROR_FILE = "error.json"
# A training that is asked to end finishes its step and writes a checkpoint; a pre-empted machine gives 30 to 120 s.
GRACE_SECONDS = 60
_LAUNCHER = "accelerate.commands.accelerate_cli"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _to_parent(text: str) -> None:
    sys.stdout.write(f"{TELL}{text}\n")
    sys.stdout.flush()


listener: Callable[[str], None] = _to_parent


def tell(text: str) -> None:
    """Called in a child: one line for the user. The first of several processes speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        listener(text)


def report_error(folder: Path, error: PreftuneError, unexpected: bool = False) -> bool:
    """Called in a child: leaves the error where the parent looks for it.

    Of several processes the first to fail is the cause; what the others say follows from it and is dropped.

    Args:
        folder: Where the parent looks.
        error: What went wrong.
        unexpected: It is none of our own messages, but what a library raised.

    Returns:
        Whether this was the first.
    """
    try:
        with (folder / ERROR_FILE).open("x") as f:
            f.write(json.dumps({**error.as_json(), "kind": type(error).__name__, "unexpected": unexpected}))
    except FileExistsError:
        return False
    return True


def child_main(work: Callable[[dict[str, Any]], None]) -> None:
    """A child's entry: reads the job file named on the command line, works, and reports how it failed."""
    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["folder"])
    try:
        work(job)
    except PreftuneError as e:
        report_error(folder, e)
        ranks.end_process(1)
    except Exception as e:
        named = faults.named(e, folder)
        report_error(folder, named or StepError(one_line(e)), unexpected=named is None)
        traceback.print_exc()  # for the log
        ranks.end_process(1)
    ranks.end_process(0)


def one_line(error: Exception) -> str:
    """A library's error, without its stack trace."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _signal_name(text: str, code: int) -> str:
    """'SIGKILL' if the child, or what the launcher started, was ended by a signal."""
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:  # real-time signals have no name
            return f"signal {-code}"
    for name in ("SIGKILL", "SIGTERM", "SIGSEGV", "SIGABRT", "SIGBUS"):
        if f"Signals.{name}" in text or f"Signal {signal.Signals[name].value} ({name})" in text:
            return name
    return ""


def _stop(process: subprocess.Popen[str]) -> None:
    """Asks the child to end (SIGTERM), and kills what is left of its group after a while, or at a second Ctrl-C.

    A launcher is not asked: it would end at once, and what it started with it, before a checkpoint is saved. Nor are
    the data loader's processes, whose death would be an error in the middle of a step.
    """
    try:
        leader = psutil.Process(process.pid)
        for asked in (_LAUNCHER in leader.cmdline() and leader.children()) or [leader]:
            asked.terminate()
        process.wait(GRACE_SECONDS)
    except (psutil.NoSuchProcess, subprocess.TimeoutExpired):
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_child(
    command: list[str],
    *,
    folder: Path,
    log: Path,
    env: dict[str, str],
    on_line: Callable[[str], None],
    what: str,
) -> None:
    """Runs a child to its end, streaming its lines.

    Args:
        command: Program and arguments.
        folder: Where the child leaves `error.json` when it fails.
        log: Everything it prints goes here.
        env: Its whole environment.
        on_line: Called with each line that the child wrote with `tell`.
        what: Its name in messages, for example "training".

    Raises:
        UserError, StepError, OutOfMemory: As the child reported; or a StepError that names the signal or the log.
    """
    (folder / ERROR_FILE).unlink(missing_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: list[str] = []
    with log.open("ab", buffering=0) as out:  # nothing is held back that a full disk would refuse at the end
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,  # a child that asks a question would wait for ever
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=env,
            start_new_session=True,  # one group, so that a cancelled flow can end the launcher and its workers
            preexec_fn=die_with_parent,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if interrupted.is_set():
                    raise KeyboardInterrupt
                with suppress(OSError):  # a full disk; the child says so itself
                    out.write(line.encode(errors="replace"))
                tail = [*tail[-120:], line.rstrip()]
                if line.startswith(TELL):
                    on_line(line.removeprefix(TELL).rstrip())
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
        finally:
            process.stdout.close()
    if code == 0:
        return
    told = _told_error(folder)
    if told is not None and not told["unexpected"]:
        if told["kind"] == OutOfMemory.__name__:
            raise OutOfMemory(f"{what} {told['error']}", str(log), _LESS_AT_A_TIME.get(what, ""))
        kind = UserError if told["kind"] == UserError.__name__ else StepError
        raise kind(told["error"], told["where"], told["advice"])
    text = "\n".join(tail)
    name = _signal_name(text, code)
    # One of several processes fails, and the launcher ends the others: their signals are not the cause.
    if name and (told is None or (name != "SIGTERM" and "forcefully exiting via" not in text)):
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise StepError(f"the {what} process was ended by {name}{hint}", str(log), "run the same command again")
    if faults.speaks_of_disk(text):
        raise faults.disk_full(f"{what} could not write", log)
    if faults.speaks_of_memory(text):
        raise OutOfMemory(f"{what} ran out of memory", str(log), _LESS_AT_A_TIME.get(what, ""))
    last = next(
        (t for t in reversed(tail) if "Error" in t and "CalledProcessError" not in t and "ChildFailedError" not in t),
        tail[-1] if tail else "",
    )
    last = told["error"] if told else last
    raise StepError(f"{what} failed (exit code {code}): {last.strip()}", str(log), "the log has the details")


_LESS_AT_A_TIME = {
    "training": "halve per_device_train_batch_size and double gradient_accumulation_steps, or shorten max_length",
    "evaluation": "lower evaluation.batch_size, or shorten max_length",
}


def _told_error(folder: Path) -> dict[str, Any] | None:
    """What the child reported; None if nothing, or only half of it."""
    try:
        return json.loads((folder / ERROR_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None


def launch_command(module: str, job: Path, accelerate_config: Path, processes: int, on_cpu: bool = False) -> list[str]:
    """`accelerate launch` of one of our modules on a job file, in so many processes."""
    launcher = ["-m", _LAUNCHER, "launch", "--config_file", str(accelerate_config)]
    if processes > 1:
        launcher.append("--main_process_port=0")  # a free one
        if on_cpu:  # accelerate would start one process and leave the others to mpirun
            launcher.append("--multi_gpu")
    return [sys.executable, *launcher, f"--num_processes={processes}", "--module", module, str(job)]


# Ctrl-C was pressed. Python drops the exception of a signal that arrives in a destructor, a weak reference's callback
# or an event loop's hands: then the child would go on to its end as if nothing had been said.
interrupted = threading.Event()


def interrupt(*_: object) -> None:
    """The handler of SIGINT: remembers it, so that `run_child` ends its child also if the exception is lost."""
    interrupted.set()
    raise KeyboardInterrupt


class Tail:
    """Reads what is appended to a JSON-lines file, in a thread, while a child writes it.

    Args:
        path: The file; it may not be there yet.
        send: Called with the new lines, parsed; after a failure with the same ones again.
        on_error: Told of the first failure after a success; tailing goes on.
        seconds: Between two looks; ten times as long after a failure.
    """

    def __init__(
        self,
        path: Path,
        send: Callable[[list[dict[str, Any]]], None],
        on_error: Callable[[Exception], None],
        seconds: float = 2.0,
    ) -> None:
        self._path, self._send, self._on_error, self._seconds = path, send, on_error, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Tail":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        seen, failed = 0, False
        while True:
            last = self._stop.wait(self._seconds * (10 if failed else 1))
            if last and failed:  # whoever does not answer would hold up the end
                return
            try:
                rows = read_json_lines(self._path)
                if len(rows) < seen:  # a resumed child rewrote the file
                    seen = 0
                if rows[seen:]:
                    self._send(rows[seen:])
                    seen, failed = len(rows), False
            except Exception as e:
                if not failed:
                    self._on_error(e)
                failed = True
            if last:
                return


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; a line that is still being written is left for later."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line]
