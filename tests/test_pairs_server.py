"""Answers and judgements from a real server on this machine, killed half-way: nothing is asked twice.

`transformers serve` with the embedded model. SmolLM2-135M gives no readable verdict, so the last word is that; what is
tested are the requests.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import child_env, preftune
from test_judge_server import serve_log, server  # noqa: F401  (fixtures)

from preftune.models import prepare_embedded
from preftune.workspace import Workspace

pytestmark = pytest.mark.slow
PROMPTS = [f"Name {n} things that are {what}." for n, what in enumerate(("red", "old", "loud", "far", "new"), 2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model; the server draws at a temperature only where the model's settings say that it samples."""
    home = tmp_path_factory.mktemp("server")
    folder = prepare_embedded(Workspace(home, home / ".preftune").make(), print)
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "do_sample": True}))
    return folder


@pytest.fixture
def recipe(tmp_path: Path, model: Path, server: str) -> Path:  # noqa: F811
    endpoint = {"kind": "openai", "model": str(model), "base_url": server, "timeout": 200, "concurrency": 1}
    pairs = {
        "prompts": "prompts.txt",
        "generator": endpoint,
        "completions": 2,
        "temperatures": [1.0],
        "max_new_tokens": 12,
        "scorer": {**endpoint, "max_tokens": 8},
    }
    (tmp_path / "prompts.txt").write_text("".join(f"{p}\n" for p in PROMPTS))
    path = tmp_path / "recipes" / "own" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"model_name_or_path": str(model), "pairs": pairs}))
    return path


def kept(project: Path, what: str) -> int:
    file = project / f".preftune/{what}/{what}.sqlite"
    if not file.exists():
        return 0
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as rows:
        try:
            return rows.execute(f"SELECT count(*) FROM {what}").fetchone()[0]
        except sqlite3.OperationalError:  # the table is just being made
            return 0


def killed_when(project: Path, ready: Callable[[], bool]) -> None:
    """Runs the command and kills it, and all that it started, as soon as that much is there."""
    command = [sys.executable, "-m", "flows.cli", "pairs", "recipes/own/config.yaml"]
    with (project / "killed.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=project, env=child_env(), stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 300
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, (project / "killed.log").read_text()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_killed_twice_and_continued(recipe: Path, tmp_path: Path, serve_log: Path) -> None:  # noqa: F811
    def received() -> int:
        return serve_log.read_text(errors="replace").count("[Request received]")

    before = received()
    killed_when(tmp_path, lambda: kept(tmp_path, "completions") >= 4)
    answers = kept(tmp_path, "completions")
    assert 4 <= answers < 10
    killed_when(tmp_path, lambda: kept(tmp_path, "judgements") >= 4)
    judgements = kept(tmp_path, "judgements")
    assert judgements >= 4 and kept(tmp_path, "completions") == 10
    done = preftune("pairs", "recipes/own/config.yaml", "--json", cwd=tmp_path)
    told: dict[str, Any] = json.loads(done.stdout)
    unique = kept(tmp_path, "completions") + kept(tmp_path, "judgements")
    asked = received() - before
    print(f"{asked} requests for {unique} replies, killed at {answers} answers and {judgements} judgements")
    # each kill loses what was in flight: one request, and no more
    assert unique <= asked <= unique + 2
    # each of five pairs both ways round, once more where there was no verdict
    assert 10 < kept(tmp_path, "judgements") <= 20
    if done.returncode == 2:
        assert "no readable verdict in any of 5 comparisons" in told["error"]
    else:
        assert told["completions"]["answers"] == 10
    after = received()
    preftune("pairs", "recipes/own/config.yaml", "--json", cwd=tmp_path)
    assert received() == after, "a further run asks nothing"
