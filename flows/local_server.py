"""A Prefect server for one command, where none is configured.

Prefect's own temporary server outlives a killed parent, forgets who holds the GPU slot when it ends, and starts
only when first asked. This one dies with the command, keeps leases on disk, and starts while Prefect is imported.
"""

import atexit
import fcntl
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path
from urllib.error import URLError

from preftune.children import die_with_parent
from preftune.errors import StepError
from preftune.workspace import Workspace

START_SECONDS = 180
# Nobody schedules, listens or polls here. What stays on: task-run records, and the repossessor, which frees the
# GPU slot of a run that was killed.
_IDLE_SERVICES = (
    "CANCELLATION_CLEANUP",
    "DB_VACUUM",
    "EVENT_LOGGER",
    "FOREMAN",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "SCHEDULER",
    "TRIGGERS",
)


def configured_api() -> str | None:
    """The Prefect server that the user chose: `PREFECT_API_URL`, or the active profile's."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return None
    name = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    return profiles.get("profiles", {}).get(name, {}).get("PREFECT_API_URL")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class LocalServer:
    """Starts at once; `wait` before the first use; ends with this process."""

    def __init__(self, workspace: Workspace) -> None:
        port = _free_port()
        self._health = f"http://127.0.0.1:{port}/api/health"
        self._log = workspace.logs / "prefect-server.log"
        # For this process and its children: set before prefect is imported.
        os.environ["PREFECT_HOME"] = str(workspace.prefect)
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
        os.environ["PREFTUNE_LOCAL_SERVER"] = "1"
        env = {
            **os.environ,
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
            "PREFECT_UI_ENABLED": "false",
            **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _IDLE_SERVICES},
        }
        app = ["--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(port)]
        # Two servers that start at once on a new database would both create its tables. The kernel frees the lock
        # with this process.
        self._starting = (workspace.prefect / "server-start.lock").open("w")
        fcntl.flock(self._starting, fcntl.LOCK_EX)
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", *app, "--log-level", "error", "--lifespan", "on"],
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the flow; the server must live to record it
                preexec_fn=die_with_parent,
            )
        # Registered before prefect is imported, so it runs after prefect has sent its last logs and events.
        atexit.register(self._stop)

    def wait(self) -> None:
        """Returns when the server answers.

        Raises:
            StepError: If it ends or stays silent.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(self._health, timeout=5) as answer:
                    if answer.status == 200:
                        self._starting.close()
                        return
            except (URLError, OSError):
                time.sleep(0.1)
        raise StepError("the local Prefect server did not start", str(self._log), "the log has the details")

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
