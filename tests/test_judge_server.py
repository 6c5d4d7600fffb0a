"""A judge behind a real OpenAI-compatible server on this machine: `transformers serve` with the embedded model.

SmolLM2-135M is a poor judge. What is tested is the conversation with the server: requests, counts, cache.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import child_env
from test_judges import answer, judged, lines, suite, write_answers

from preftune.errors import StepError, UserError
from preftune.evaluation_schema import OpenAIJudge
from preftune.models import prepare_embedded
from preftune.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("server")
    return prepare_embedded(Workspace(home, home / ".preftune").make(), print)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail("the server did not start")


@pytest.fixture(scope="module")
def serve_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server prints: a line for each request."""
    return tmp_path_factory.mktemp("log") / "serve.log"


@pytest.fixture(scope="module")
def server(model: Path, serve_log: Path) -> Iterator[str]:
    """The address of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with serve_log.open("wb") as log:
        process = subprocess.Popen(command, env=child_env(), stdout=log, stderr=log)
        try:
            _wait(process, port)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(timeout=30)


def test_a_run_with_a_real_server(server: str, model: Path, tmp_path: Path) -> None:
    for who, number in (("sft", "4"), ("policy", "5")):
        (tmp_path / who).mkdir()
        (tmp_path / who / "answers.jsonl").write_text(json.dumps(answer("h1", f"It is {number}.")) + "\n")
        asked = suite("mt_bench", "m1", f"2 + 2 is {number}.", reference=["4"])
        (tmp_path / who / "suite_answers.jsonl").write_text(json.dumps(asked) + "\n")
    told: list[str] = []
    settings = OpenAIJudge(kind="openai", model=str(model), base_url=server, concurrency=2, timeout=200, max_tokens=32)
    first = judged(settings, tmp_path, told.append)
    rows, grades = lines(tmp_path / "out/judgements.jsonl"), lines(tmp_path / "out/grades.jsonl")
    assert (len(rows), len(grades)) == (2, 2)
    opinions = [o for r in rows for o in r["orders"]]
    without = sum(o["winner"] is None for o in opinions) + sum(g["score"] is None for g in grades)
    assert all((o["winner"] is None) == (o["error"] == "malformed") for o in opinions)
    assert all((g["score"] is None) == (g["error"] == "malformed") for g in grades)
    assert first["errors"] == ({"malformed": without} if without else {})
    assert all(o["text"] for o in opinions)
    assert first["requests"] == 6 + first["asked_again"]
    assert (first["cached"], first["stopped"]) == (0, None)
    # each request holds our instruction and the texts, each reply at most max_tokens
    assert first["prompt_tokens"] > 200 * first["requests"]
    assert 0 < first["completion_tokens"] <= 32 * first["requests"]
    assert told[-1].startswith("graded answers: 2/2")
    print(json.dumps(first))

    again = judged(settings, tmp_path, told.append)
    assert (again["requests"], again["cached"]) == (0, first["requests"])
    assert again["errors"] == first["errors"]
    assert (lines(tmp_path / "out/judgements.jsonl"), lines(tmp_path / "out/grades.jsonl")) == (rows, grades)


def test_a_model_that_it_does_not_have(server: str, tmp_path: Path) -> None:
    write_answers(tmp_path)
    with pytest.raises(UserError, match="pinned to"):
        judged(OpenAIJudge(kind="openai", model="another", base_url=server), tmp_path)


def test_an_address_without_v1(server: str, model: Path, tmp_path: Path) -> None:
    write_answers(tmp_path)
    with pytest.raises(UserError, match="Not Found") as told:
        judged(OpenAIJudge(kind="openai", model=str(model), base_url=server.removesuffix("/v1")), tmp_path)
    assert "/v1" in told.value.advice


def test_a_port_where_nothing_listens(tmp_path: Path) -> None:
    write_answers(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(StepError, match="nothing answers"):
        judged(OpenAIJudge(kind="openai", model="m", base_url=url, retries=0), tmp_path)
