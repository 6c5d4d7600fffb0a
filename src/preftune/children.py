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
from pathlib import Path
from typing import Any

from preftune import ranks
from preftune.errors import PreftuneError, StepError, UserError

TELL = "preftune| "  # a child's line for the user; all others are only kept in its log
ERROR_FILE = "error.json"
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
            f.write(json.dumps({**error.as_json(), "exit_code": error.exit_code, "unexpected": unexpected}))
    except FileExistsError:
        return False
    return True


def child_main(work: Callable[[dict[str, Any]], None]) -> None:
    """A child's entry: reads the job file named on the command line, works, and reports how it failed."""
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        work(job)
    except PreftuneError as e:
        report_error(Path(job["folder"]), e)
        ranks.end_process(1)
    except Exception as e:
        report_error(Path(job["folder"]), StepError(one_line(e)), unexpected=True)
        traceback.print_exc()
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
    """SIGTERM to the whole group, and SIGKILL to what is left of it after ten seconds."""
    for sig, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, sig)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
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
        UserError, StepError: As the child reported; or a StepError that names the signal or the log.
    """
    (folder / ERROR_FILE).unlink(missing_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: list[str] = []
    with log.open("a") as out:
        process = subprocess.Popen(
            command,
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
                out.write(line)
                out.flush()
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
    if told is not None and not told.get("unexpected"):
        kind = UserError if told["exit_code"] == UserError.exit_code else StepError
        raise kind(told["error"], told["where"], told["advice"])
    text = "\n".join(tail)
    name = _signal_name(text, code)
    # One of several processes fails, and the launcher ends the others: their signals are not the cause.
    if name and (told is None or (name != "SIGTERM" and "forcefully exiting via" not in text)):
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise StepError(f"the {what} process was ended by {name}{hint}", str(log), "run the same command again")
    if "out of memory" in text.lower():
        raise StepError(
            f"{what} ran out of memory",
            str(log),
            "halve per_device_train_batch_size and double gradient_accumulation_steps, or shorten max_length",
        )
    last = next(
        (t for t in reversed(tail) if "Error" in t and "CalledProcessError" not in t and "ChildFailedError" not in t),
        tail[-1] if tail else "",
    )
    last = told["error"] if told else last
    raise StepError(f"{what} failed (exit code {code}): {last.strip()}", str(log), "the log has the details")


def _told_error(folder: Path) -> dict[str, Any] | None:
    """What the child reported; None if nothing, or only half of it."""
    try:
        return json.loads((folder / ERROR_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None


def launch_command(module: str, job: Path, accelerate_config: Path, processes: int, on_cpu: bool = False) -> list[str]:
    """`accelerate launch` of one of our modules on a job file, in so many processes."""
    launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(accelerate_config)]
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
        send: Called with the new lines, parsed; what it raises is given to `on_error` once.
        on_error: Told of the first failure; tailing goes on.
        seconds: Between two looks.
    """

    def __init__(
        self,
        path: Path,
        send: Callable[[list[dict[str, Any]]], None],
        on_error: Callable[[Exception], None],
        seconds: float = 2.0,
    ) -> None:
        self._path, self._send, self._on_error, self._seconds = path, send, on_error, seconds
        self._stop, self._failed = threading.Event(), False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Tail":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        seen = 0
        while True:
            last = self._stop.wait(self._seconds)
            try:
                rows = read_json_lines(self._path)
                if len(rows) < seen:  # a resumed child rewrote the file
                    seen = 0
                if rows[seen:]:
                    self._send(rows[seen:])
                    seen = len(rows)
            except Exception as e:
                if not self._failed:
                    self._on_error(e)
                self._failed = True
            if last:
                return


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; a line that is still being written is left for later."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line]
