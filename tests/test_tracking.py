"""MLflow, for real, on SQLite: runs found by key, nothing sent twice, artifacts verified."""

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from preftune import tracking
from preftune.errors import StepError
from preftune.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workspace(tmp_path, tmp_path / ".preftune")


@pytest.fixture
def opened(workspace: Workspace) -> tuple[Any, str]:
    client = tracking.connect(workspace)
    experiment = tracking.experiment_id(client, workspace, "starter")
    return client, tracking.open_run(client, experiment, "key-1", "a run", {"preftune.kind": "dpo"})


ROWS = [{"step": s, "metrics": {"train/loss": 1 / s, "train/x": None}} for s in (1, 2, 3)]


def test_a_run_is_found_again_by_its_key(workspace: Workspace, opened: tuple[Any, str]) -> None:
    client, run_id = opened
    experiment = tracking.experiment_id(client, workspace, "starter")
    assert tracking.open_run(client, experiment, "key-1", "again", {}) == run_id
    assert tracking.open_run(client, experiment, "key-2", "other", {}) != run_id


def test_metrics_are_sent_once_also_by_a_new_process(opened: tuple[Any, str]) -> None:
    client, run_id = opened
    tracking.MetricSender(client, run_id).send(ROWS[:2])
    sender = tracking.MetricSender(client, run_id)  # as after a restart
    sender.send(ROWS)
    sender.send(ROWS)
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == [1, 2, 3]


def record(
    client: Any, run_id: str, artifacts: list[tuple[Path, str]], content: str = "v1", accuracy: float = 0.75
) -> None:
    tracking.record(
        client,
        run_id,
        content=content,
        params={"beta": 0.1, "mixture": {"datasets": [{"id": "x", "weight": 1.0}]}, "long": "y" * 7000},
        metrics={"reward_accuracy": accuracy, "kl_per_token": None},
        curves=ROWS,
        datasets=[{"name": "d", "digest": "0" * 64, "context": "training", "profile": {"pairs": 3}}],
        artifacts=artifacts,
        tags={"note": "n"},
    )


def test_a_recorded_run_is_complete_and_stays_as_it_is(opened: tuple[Any, str], tmp_path: Path) -> None:
    client, run_id = opened
    (tmp_path / "a.txt").write_text("hello")
    for _ in range(2):
        record(client, run_id, [(tmp_path / "a.txt", ""), (tmp_path / "a.txt", "sub")])
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["mixture.datasets.0.id"] == "x"
    assert len(run.data.params["long"]) == 6000
    assert run.data.metrics == {"reward_accuracy": 0.75, "train/loss": pytest.approx(1 / 3)}
    assert len(client.get_metric_history(run_id, "reward_accuracy")) == 1
    assert [i.dataset.digest for i in run.inputs.dataset_inputs] == ["0" * 36]


def test_another_verdict_of_the_same_run_replaces_its_measures_and_files(
    opened: tuple[Any, str], tmp_path: Path
) -> None:
    """A judge that could not be reached was asked again: the run shows the newest verdict; the curves stay once."""
    client, run_id = opened
    (tmp_path / "a.txt").write_text("hello")
    record(client, run_id, [(tmp_path / "a.txt", "")])
    (tmp_path / "a.txt").write_text("hello again")
    for _ in range(2):
        record(client, run_id, [(tmp_path / "a.txt", "")], content="v2", accuracy=0.5)
    run = client.get_run(run_id)
    assert run.data.metrics["reward_accuracy"] == 0.5 and run.data.tags[tracking.DONE_TAG] == "v2"
    assert Path(client.download_artifacts(run_id, "a.txt")).read_text() == "hello again"
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == [1, 2, 3]
    assert [m.value for m in client.get_metric_history(run_id, "reward_accuracy")] == [0.75, 0.5]


def test_an_artifact_that_did_not_arrive_is_told(
    opened: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = opened
    (tmp_path / "a.txt").write_text("hello")
    monkeypatch.setattr(type(client), "log_artifact", lambda *_: None)  # a full disk that says nothing
    with pytest.raises(StepError, match=r"a\.txt did not arrive"):
        record(client, run_id, [(tmp_path / "a.txt", "")])
    assert client.get_run(run_id).info.status == "RUNNING"
    assert tracking.DONE_TAG not in client.get_run(run_id).data.tags


def test_an_artifact_that_cannot_be_written_is_named_and_sent_by_the_next_try(
    opened: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = opened
    (tmp_path / "a.txt").write_text("hello")

    class S3UploadFailedError(Exception):
        """Each kind of storage has its own errors, which are neither MLflow's nor the system's."""

    def fails(*_: Any) -> None:
        raise S3UploadFailedError("Failed to upload a.txt: no such bucket\nmore")

    with (
        monkeypatch.context() as patched,
        pytest.raises(StepError, match=r"a\.txt could not be written: .*bucket\n.*nothing is lost"),
    ):
        patched.setattr(type(client), "log_artifact", fails)
        record(client, run_id, [(tmp_path / "a.txt", "")])
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING" and tracking.DONE_TAG not in run.data.tags
    record(client, run_id, [(tmp_path / "a.txt", "")])
    assert client.get_run(run_id).data.tags[tracking.DONE_TAG] == "v1"
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == [1, 2, 3], "sent before, not again"


def test_artifacts_stand_in_the_workspace_wherever_the_command_runs(
    workspace: Workspace, opened: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    client, run_id = opened
    (tmp_path / "a.txt").write_text("hello")
    record(client, run_id, [(tmp_path / "a.txt", "")])
    assert list(workspace.mlflow_artifacts.rglob("a.txt"))
    assert not list(elsewhere.iterdir())


def test_a_process_killed_while_it_makes_the_database_leaves_nothing_broken(workspace: Workspace) -> None:
    code = "import sys; from pathlib import Path; from preftune import tracking;"
    code += "from preftune.workspace import Workspace;"
    code += "tracking.connect(Workspace(Path(sys.argv[1]), Path(sys.argv[1], '.preftune')))"
    process = subprocess.Popen([sys.executable, "-c", code, str(workspace.project)])
    migrating = False
    while process.poll() is None and not migrating:
        files = list(workspace.home.glob("*mlflow.db*"))
        # The first migrations stand in the file, the last one does not.
        migrating = any(f.stat().st_size > 100_000 for f in files if f.exists() and not f.name.endswith("journal"))
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert migrating
    assert not (workspace.home / "mlflow.db").exists()
    assert tracking.experiment_id(tracking.connect(workspace), workspace, "starter")
    assert not list(workspace.home.glob(".mlflow.db.building*"))


def test_a_database_that_cannot_be_used_is_one_message(workspace: Workspace) -> None:
    workspace.home.mkdir()
    with sqlite3.connect(workspace.home / "mlflow.db") as half_made:
        half_made.execute("create table _alembic_tmp_model_version_tags (x int)")
    with pytest.raises(StepError, match="nothing is lost"), tracking.mlflow_errors(workspace):
        tracking.experiment_id(tracking.connect(workspace), workspace, "starter")


def test_an_unreachable_server_is_one_message(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StepError, match="nothing is lost"), tracking.mlflow_errors(workspace):
        tracking.experiment_id(tracking.connect(workspace), workspace, "starter")


def test_compare_address() -> None:
    workspace = Workspace(Path("/p"), Path("/p/.preftune"))
    url = tracking.compare_url(workspace, "1", ["a", "b"])
    assert url.endswith("/#/compare-runs?runs=%5B%22a%22%2C%22b%22%5D&experiments=%5B%221%22%5D")
    assert "127.0.0.1" in url
