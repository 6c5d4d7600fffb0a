"""The processes that `preftune up` leaves in the background, and how they are found again.

A process id says little later on: it may belong to something else by then. So each process carries a mark in its
environment, and hands it to all that it starts, whoever their parent is when `preftune down` comes. What carries
the workspace's mark is ours; nothing else is ever touched.
"""

import json
import os
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from preftune.errors import StepError, UserError
from preftune.workspace import Workspace

MARK = "PREFTUNE_SERVICE"
START_SECONDS = 180
LOAD_SECONDS = 10


@dataclass(frozen=True)
class Service:
    """One of the background processes.

    Args:
        name: `prefect`, `mlflow` or `worker`.
        pid: Of the process that was started; what it started in its turn carries the same mark.
        port: On 127.0.0.1; None for the worker.
    """

    name: str
    pid: int
    port: int | None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def state_file(workspace: Workspace) -> Path:
    """Where it is written down what was started."""
    return workspace.home / "up.json"


def log_file(workspace: Workspace, name: str) -> Path:
    """Where a service's output goes."""
    return workspace.logs / f"up-{name}.log"


def _mark(workspace: Workspace, name: str) -> str:
    return f"{name}:{workspace.home}"


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):  # gone, a zombie, or another user's
        return False


def marked(workspace: Workspace, name: str) -> list[psutil.Process]:
    """All processes that live and carry the service's mark."""
    mark = _mark(workspace, name)
    return [p for p in psutil.process_iter() if p.pid != os.getpid() and _carries(p, mark)]


def running(workspace: Workspace) -> dict[str, Service]:
    """The services that live, by name; looks at no process but those written down."""
    try:
        known = [Service(**row) for row in json.loads(state_file(workspace).read_text())]
    except (OSError, ValueError, TypeError):
        return {}
    found = {}
    for service in known:
        with suppress(psutil.Error):
            if _carries(psutil.Process(service.pid), _mark(workspace, service.name)):
                found[service.name] = service
    return found


def prefect_api(workspace: Workspace) -> str | None:
    """The API of the Prefect server that `preftune up` started, while it lives."""
    server = running(workspace).get("prefect")
    return f"{server.address}/api" if server else None


def check_port(port: int, command: str, option: str) -> None:
    """Raises a UserError if something listens on the port of 127.0.0.1."""
    with socket.socket() as s:
        if s.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is taken", command, f"end what listens there, or --{option}={port + 1}")


def start(workspace: Workspace, name: str, command: list[str], env: dict[str, str], port: int | None) -> Service:
    """Starts a service in the project's folder, in a session of its own, and writes it down.

    Args:
        workspace: Whose service it is.
        name: The service's name.
        command: Program and arguments.
        env: Its environment, to which the mark is added.
        port: Where it will listen.
    """
    env = {**env, MARK: _mark(workspace, name)}
    with log_file(workspace, name).open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=workspace.project,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # closing the terminal, or Ctrl-C in it, does not reach it
        )
    # While the kernel replaces the program, its environment reads as empty: looked at then, it would pass for gone.
    deadline = time.monotonic() + LOAD_SECONDS  # one that hides its environment did not start, as far as we can tell
    while (
        process.poll() is None and not _carries(psutil.Process(process.pid), env[MARK]) and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    service = Service(name, process.pid, port)
    _write(workspace, {**running(workspace), name: service})
    return service


def _write(workspace: Workspace, services: dict[str, Service]) -> None:
    path = state_file(workspace)
    new = path.with_name(f".{path.name}")
    new.write_text(json.dumps([asdict(s) for s in services.values()], indent=1))
    new.replace(path)


def wait_healthy(workspace: Workspace, service: Service, path: str) -> None:
    """Returns when the server answers.

    Raises:
        StepError: If it ends or stays silent; it is stopped then.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and service.name in running(workspace):
        with suppress(OSError), urllib.request.urlopen(service.address + path, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise not_started(workspace, service.name)


def not_started(workspace: Workspace, name: str) -> StepError:
    """Stops a service that did not come up; returns what to raise."""
    stop(workspace, name, 5)
    log = log_file(workspace, name)
    lines = log.read_text(errors="replace").strip().splitlines()
    last = f": {lines[-1].strip()[:200]}" if lines else ""
    return StepError(f"{name} did not start{last}", str(log), "the log has the details; then run preftune up again")


def end_children(workspace: Workspace, name: str, seconds: float) -> None:
    """Asks what a service has started to end, and waits for it; the service lives on and records how it ended."""
    if service := running(workspace).get(name):
        children = psutil.Process(service.pid).children()
        for process in children:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(children, timeout=seconds)


def stop(workspace: Workspace, name: str, seconds: float) -> int:
    """Asks a service to end, and kills what is left of it after a while.

    Args:
        workspace: Whose service it is.
        name: The service's name.
        seconds: How long it may take to end by itself.

    Returns:
        How many processes it was.
    """
    ours = marked(workspace, name)
    pids = {p.pid for p in ours}
    for process in ours:
        with suppress(psutil.NoSuchProcess):
            if process.ppid() not in pids:  # the others are told by the one that started them
                process.terminate()
    psutil.wait_procs(ours, timeout=seconds)
    while rest := marked(workspace, name):  # again: what is being killed may have started another
        for process in rest:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(rest, timeout=5)
    left = running(workspace)
    left.pop(name, None)
    _write(workspace, left)
    if not left:
        state_file(workspace).unlink(missing_ok=True)
    return len(pids)
