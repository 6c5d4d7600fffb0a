"""A real browser: the report without a network, and MLflow's compare page at the printed address."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import child_env, preftune

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]


def browse(url: str, folder: Path, wait_ms: int, *options: str) -> str:
    """What the page holds after its scripts ran."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder}", f"--virtual-time-budget={wait_ms}", *options, "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    make_project(folder)
    return folder


@pytest.fixture(scope="module")
def result(project: Path) -> dict[str, Any]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    done = preftune("run", "recipes/tiny/config.yaml", "--json", cwd=project, PREFTUNE_UI=f"http://127.0.0.1:{port}")
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "port": port}


@pytest.fixture(scope="module")
def ui(result: dict[str, Any], project: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "flows.cli", "ui", f"--port={result['port']}"]
    with (project / "ui.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=project, env=child_env(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://127.0.0.1:{result['port']}"
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
                assert answer.status == 200
                break
        except OSError:
            assert time.monotonic() < deadline, (project / "ui.log").read_text()[-3000:]
            time.sleep(0.5)
    yield address
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_report_is_whole_without_a_network(result: dict[str, Any], tmp_path: Path) -> None:
    page = browse(Path(result["report"]).as_uri(), tmp_path, 2000, "--host-resolver-rules=MAP * ~NOTFOUND")
    assert result["verdict"]["outcome"] in page.lower()
    assert page.count("<svg") >= 5
    assert "Side by side" in page


def test_compare_page_shows_both_runs(result: dict[str, Any], ui: str, tmp_path: Path) -> None:
    assert result["compare_url"].startswith(ui)
    page = browse(result["compare_url"], tmp_path, 30_000)
    assert "Comparing 2 Runs" in page
    for text in ("ranking_accuracy", "tiny dpo beta=0.1", "tiny-instruct sft"):  # long tables are drawn in part
        assert text in page, text
