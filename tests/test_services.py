"""Background processes: found by their mark, stopped with all that they started; nothing else is touched."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from preftune import services
from preftune.errors import StepError, UserError
from preftune.workspace import Workspace

# A process that starts another one, which leads a session of its own and ignores SIGTERM.
PARENT = (
    "import subprocess, sys, time\n"
    "code = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);'\n"
    "code += 'print(1, flush=True); time.sleep(60)'\n"
    "child = subprocess.Popen([sys.executable, '-c', code], start_new_session=True)\n"
    "time.sleep(60)"
)
# `up` ends and leaves its processes; Python warns about that where the one that started them lives on.
pytestmark = pytest.mark.filterwarnings(
    "ignore:subprocess .* is still running", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    found = Workspace(tmp_path, tmp_path / ".preftune").make()
    yield found
    for name in ("prefect", "worker"):
        services.stop(found, name, 0)


def start(workspace: Workspace, code: str, name: str = "worker", port: int | None = None) -> services.Service:
    return services.start(workspace, name, [sys.executable, "-c", code], dict(os.environ), port)


def until(condition: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lives(process: psutil.Process) -> bool:
    """A zombie does not: whoever adopted it (process 1, for an orphan) has only not taken note of its end yet."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_service_is_found_again_and_ends_with_all_it_started(workspace: Workspace) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        service = start(workspace, PARENT)
        assert services.running(workspace) == {"worker": service}
        until(lambda: len(services.marked(workspace, "worker")) == 2)
        until(lambda: services.log_file(workspace, "worker").read_text() == "1\n")
        ours = services.marked(workspace, "worker")
        assert services.stop(workspace, "worker", 0.5) == 2
        assert not any(lives(p) for p in ours)
        assert services.running(workspace) == {} and not services.state_file(workspace).exists()
        assert services.stop(workspace, "worker", 0.5) == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_service_whose_program_is_being_loaded_is_waited_for(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux shows an empty environment between the old program and the new one."""
    real, looks = psutil.Process.environ, []

    def environ(process: psutil.Process) -> dict[str, str]:
        looks.append(process.pid)
        return {} if len(looks) <= 3 else real(process)

    monkeypatch.setattr(psutil.Process, "environ", environ)
    service = start(workspace, "import time; time.sleep(60)")
    assert len(looks) >= 4 and set(looks) == {service.pid}
    assert services.running(workspace) == {"worker": service}


def test_what_a_dead_service_left_is_stopped_too(workspace: Workspace) -> None:
    """Its children have another parent by now; no tree of processes shows whose they are."""
    service = start(workspace, PARENT)
    until(lambda: len(services.marked(workspace, "worker")) == 2)
    os.kill(service.pid, signal.SIGKILL)
    until(lambda: services.running(workspace) == {})
    (orphan,) = services.marked(workspace, "worker")
    assert services.stop(workspace, "worker", 0) == 1
    assert not lives(orphan)


def test_a_reused_process_id_is_not_ours(workspace: Workspace) -> None:
    """The one written down is another process now: it is neither running for us nor stopped."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        row = {"name": "worker", "pid": other.pid, "port": None}
        services.state_file(workspace).write_text(json.dumps([row]))
        assert services.running(workspace) == {}
        assert services.stop(workspace, "worker", 0) == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_another_workspace_is_left_alone(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(tmp_path, tmp_path / "other").make()
    service = start(workspace, "import time; time.sleep(60)")
    assert services.stop(other, "worker", 0) == 0
    assert services.running(workspace) == {"worker": service}


def test_the_address_is_known_while_the_server_lives(workspace: Workspace) -> None:
    assert services.prefect_api(workspace) is None
    start(workspace, "import time; time.sleep(60)", "prefect", 4299)
    assert services.prefect_api(workspace) == "http://127.0.0.1:4299/api"
    services.stop(workspace, "prefect", 1)
    assert services.prefect_api(workspace) is None


def test_a_server_that_ends_is_told_with_its_last_words(workspace: Workspace) -> None:
    service = start(workspace, "import sys; sys.exit('no such database')", "prefect", 4299)
    with pytest.raises(StepError) as e:
        services.wait_healthy(workspace, service, "/health")
    assert "prefect did not start: no such database" in str(e.value)
    assert e.value.where == str(services.log_file(workspace, "prefect"))


def test_a_server_that_answers_is_healthy_and_its_port_taken(workspace: Workspace) -> None:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    services.check_port(port, "preftune up", "prefect-port")
    code = f"import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).serve_forever()"
    services.wait_healthy(workspace, start(workspace, code, "prefect", port), "/")
    with pytest.raises(UserError, match=rf"port {port} is taken") as e:
        services.check_port(port, "preftune up", "prefect-port")
    assert e.value.advice == f"end what listens there, or --prefect-port={port + 1}"
