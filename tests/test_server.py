"""A real Prefect server and worker: the documented steps from nothing, the short form, and the GPU slot."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import psutil
import pytest
from conftest import ROOT, child_env

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process that we started and all that it started, at once."""
    with suppress(psutil.NoSuchProcess):
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait()


class Site:
    """A project folder with Prefect's server and a worker, as docs/deployments.md sets them up."""

    def __init__(self, folder: Path, **env: str) -> None:
        port = free_port()
        self.folder = folder
        self.api = f"http://127.0.0.1:{port}/api"
        self.env = child_env(
            PWD=str(folder),  # a shell sets it; prefect.yaml uses it
            PREFECT_HOME=str(folder / "prefect-home"),
            PREFECT_API_URL=self.api,
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE="prefect.server.concurrency.lease_storage.filesystem",
            **env,
        )
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start_server()

    def start_server(self) -> None:
        port = self.api.split(":")[2].split("/")[0]
        self.server = self.background("server", "start", "--host", "127.0.0.1", "--port", port)
        deadline = time.monotonic() + 180
        while not self.healthy():
            if time.monotonic() > deadline or self.server.poll() is not None:
                self.stop()
                raise AssertionError((self.folder / "server.log").read_text()[-3000:])
            time.sleep(0.5)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.api}/health", timeout=2) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False

    def background(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "prefect", *arguments]
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.processes.append(process)
        return process

    def prefect(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        for process in self.processes:
            kill_tree(process)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    make_project(folder)
    for name in ("prefect.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("flows", "tasks"):
        shutil.copytree(ROOT / name, folder / name)
    site = Site(folder)
    try:
        site.prefect("work-pool", "create", "local", "--type", "process")
        site.prefect("gcl", "create", "gpu", "--limit", "1")
        site.prefect("deploy", "--all")
        site.background("worker", "start", "--pool", "local")
        yield site
    finally:
        site.stop()


def launchers(folder: Path) -> int:
    """How many GPU children of this project are at work."""
    found = 0
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        found += "accelerate.commands.accelerate_cli" in line and str(folder) in " ".join(line)
    return found


def test_short_form_runs_and_a_second_run_waits_for_the_slot(site: Site) -> None:
    recipe = "recipe=recipes/tiny/config.yaml"
    commands = [
        ["deployment", "run", "dpo-pipeline", "-p", recipe, "--watch"],
        [
            *["deployment", "run", "dpo-pipeline/dpo-pipeline", "-p", recipe, "--watch"],
            *["-p", 'overrides={"beta": 0.3, "output_dir": "data/second", "evaluation.max_pairs": 10}'],
        ],
    ]
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "prefect", "--no-prompt", *command],
            cwd=site.folder,
            env=site.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    most = 0
    deadline = time.monotonic() + 700
    while any(r.poll() is None for r in runs):
        assert time.monotonic() < deadline, (site.folder / "worker.log").read_text()[-5000:]
        most = max(most, launchers(site.folder))
        time.sleep(0.2)
    output = [r.communicate()[0] for r in runs]
    assert [r.returncode for r in runs] == [0, 0], [*output, (site.folder / "worker.log").read_text()[-5000:]]
    assert most == 1, "two runs never share the device"
    for name in ("tiny", "second"):
        assert json.loads((site.folder / "data" / name / "verdict.json").read_text())["schema"] == 2
    waited = (site.folder / "worker.log").read_text()
    assert waited.count("holding the GPU slot") == 6, "three GPU steps in each run"


def test_same_run_again_is_cached_in_prefect(site: Site) -> None:
    site.prefect("deployment", "run", "dpo-pipeline", "-p", "recipe=recipes/tiny/config.yaml", "--watch")
    log = (site.folder / "worker.log").read_text()
    assert log.count("Finished in state Cached(type=COMPLETED)") >= 6


def test_wrong_input_fails_with_the_message_and_no_trace(site: Site) -> None:
    command = ["deployment", "run", "dpo-pipeline", "-p", "recipe=recipes/none.yaml", "--watch"]
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *command],
        cwd=site.folder,
        env=site.env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    log = (site.folder / "worker.log").read_text()
    assert "there is no such recipe" in log


def test_server_listens_on_this_machine_only(site: Site) -> None:
    port = int(site.api.split(":")[2].split("/")[0])
    listening = {
        c.laddr.ip
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == port and c.pid != os.getpid()
    }
    assert listening == {"127.0.0.1"}
