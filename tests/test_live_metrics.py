"""Metrics on their way to MLflow: an outage delays them, is told and noted; nothing is lost, nothing sent twice."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from conftest import child_env

from preftune import tracking
from preftune.children import Tail
from preftune.live_metrics import LiveMetrics, MetricSender, outage, outage_note
from preftune.workspace import Workspace


def rows(*steps: int) -> list[dict[str, Any]]:
    return [{"step": s, "metrics": {"train/loss": 1 / s, "train/rewards/margins": float(s)}} for s in steps]


class Server:
    """Counts what it was sent; can be away, and can take a batch without being able to say so."""

    def __init__(self) -> None:
        self.away, self.loses_answers = False, False
        self.got: list[tuple[str, int]] = []

    def get_metric_history(self, _: str, name: str) -> list[Any]:
        if self.away:
            raise ConnectionError("refused")
        return [type("Metric", (), {"step": s}) for n, s in self.got if n == name]

    def log_batch(self, _: str, metrics: list[Any]) -> None:
        if self.away:
            raise ConnectionError("refused")
        self.got += [(m.key, m.step) for m in metrics]
        if self.loses_answers:
            raise TimeoutError("no answer")


def test_a_batch_that_was_taken_without_an_answer_is_not_sent_twice() -> None:
    server = Server()
    sender = MetricSender(server, "run")
    sender.send(rows(1))
    server.loses_answers = True
    with pytest.raises(TimeoutError):
        sender.send(rows(1, 2))
    server.loses_answers = False
    sender.send(rows(1, 2, 3))
    assert sorted(server.got) == sorted((name, s) for name in rows(1)[0]["metrics"] for s in (1, 2, 3))


def test_an_outage_is_told_noted_and_made_up_for(tmp_path: Path) -> None:
    server, said = Server(), []
    note = tmp_path / "tracked" / "outage-x.json"
    live = LiveMetrics(lambda: MetricSender(server, "run"), note, said.append)
    live.send(rows(1))
    server.away = True
    with pytest.raises(ConnectionError) as raised:
        live.send(rows(2, 3))
    live.failed(raised.value)
    server.away = False
    live.send(rows(2, 3, 4))
    assert [s for n, s in server.got if n == "train/loss"] == [1, 2, 3, 4]
    assert said == [
        "MLflow cannot be reached (ConnectionError: refused): training goes on, its metrics from step 2 on are kept "
        "and sent later",
        "MLflow answers again: the metrics kept meanwhile are sent",
    ]
    assert outage(note) == (
        "MLflow could not be reached during training, from step 2 on (ConnectionError: refused): metrics were kept "
        "and sent later"
    )


def test_the_first_outage_is_the_one_noted(tmp_path: Path) -> None:
    live = LiveMetrics(lambda: MetricSender(Server(), "run"), tmp_path / "note", lambda _: None)
    live.send(rows(5))
    live.failed(ConnectionError("first"))
    live.send(rows(9))
    live.failed(ConnectionError("second"))
    assert "from step 5 on (ConnectionError: first)" in str(outage(tmp_path / "note"))


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_no_note_or_half_a_note_is_no_outage(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "note").write_text(content)
    assert outage(tmp_path / "note") is None


# --- a real server, killed in the middle ------------------------------------------------------------------


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


class MlflowServer:
    """`mlflow server` on a database of its own, which survives it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1", "--serve-artifacts"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=child_env(), stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self.healthy, 180)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        os.killpg(self.process.pid, 9)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    started = MlflowServer(tmp_path)
    started.start()
    yield started
    started.kill()


@pytest.mark.slow
def test_a_server_killed_in_the_middle_and_started_again(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 steps are written; the server is killed after the 20th and is back after the 40th. Then all is recorded."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    workspace = Workspace(tmp_path, tmp_path / ".preftune")
    client = tracking.connect(workspace)
    experiment = tracking.experiment_id(client, workspace, "starter")
    run_id = tracking.open_run(client, experiment, "identity", "a run", {"preftune.kind": "dpo"})
    note, said, path = outage_note(workspace, "identity"), [], tmp_path / "metrics.jsonl"
    live = LiveMetrics(lambda: MetricSender(tracking.connect(workspace), run_id), note, said.append)

    def train(first: int, last: int) -> None:
        with path.open("a") as f:
            f.write("".join(json.dumps(row) + "\n" for row in rows(*range(first, last + 1))))

    def steps() -> list[int]:
        return sorted(m.step for m in client.get_metric_history(run_id, "train/loss"))

    with Tail(path, live.send, live.failed, seconds=0.1):
        train(1, 20)
        wait_for(lambda: len(steps()) == 20, 60)
        server.kill()
        train(21, 40)
        wait_for(lambda: said, 60)
        server.start()
        train(41, 60)
        wait_for(lambda: len(steps()) == 60, 60)
    (tmp_path / "a.txt").write_text("hello")
    tracking.record(
        client,
        run_id,
        content="verdict",
        params={},
        metrics={},
        curves=rows(*range(1, 61)),
        datasets=[],
        artifacts=[(tmp_path / "a.txt", "")],
        tags={},
    )
    assert steps() == list(range(1, 61)), "complete, nothing twice"
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [text.split()[1] for text in said] == ["cannot", "answers"]
    assert "from step 21 on" in str(outage(note))
