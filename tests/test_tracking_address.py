"""MLflow's address: where artifacts go, what it needs, and no password where people see it."""

import importlib.util
import json
from pathlib import Path

import pytest

from preftune import summary, tracking
from preftune.errors import StepError, UserError
from preftune.tracking_address import artifact_root, check_tracking, is_database, without_password
from preftune.workspace import Workspace

SECRET = "postgresql+psycopg2://team:hunter2@db.example.com:5432/mlflow"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return Workspace(tmp_path, tmp_path / "home")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (SECRET, "postgresql+psycopg2://team:***@db.example.com:5432/mlflow"),
        (
            f"cannot open {SECRET}: refused",
            "cannot open postgresql+psycopg2://team:***@db.example.com:5432/mlflow: refused",
        ),
        ("https://team:hunter2@mlflow.example.com/", "https://team:***@mlflow.example.com/"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////home/a:b@c/mlflow.db", "sqlite:////home/a:b@c/mlflow.db"),
        ("postgresql://postgres@/mlflow?host=/run", "postgresql://postgres@/mlflow?host=/run"),
    ],
)
def test_a_password_is_not_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown


def test_a_password_is_in_no_message_and_no_file(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SECRET)
    with pytest.raises(StepError) as e, tracking.mlflow_errors(workspace):
        raise OSError(f"could not connect to {SECRET}")
    assert "hunter2" not in json.dumps(e.value.as_json())
    marker = workspace.home / "tracked" / "key"
    summary.write_tracked(marker, workspace, {"sft": "a", "policy": "b", "experiment": "1"})
    assert "hunter2" not in marker.read_text()
    found = summary.read_tracked(marker, workspace)
    assert found is not None and found["policy"] == "b"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SECRET.replace("/mlflow", "/other"))
    assert summary.read_tracked(marker, workspace) is None, "another database does not have these runs"


def test_artifacts_go_where_mlflow_s_own_variable_says(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert artifact_root(workspace) == workspace.mlflow_artifacts.as_uri()
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://bucket/runs")
    assert artifact_root(workspace) == "s3://bucket/runs"


def test_an_experiment_is_made_with_its_place(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never in the folder that the command happened to be started from."""
    client = tracking.connect(workspace.make())
    first = client.get_experiment(tracking.experiment_id(client, workspace, "a"))
    assert first.artifact_location == workspace.mlflow_artifacts.as_uri()
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://bucket/runs")
    second = client.get_experiment(tracking.experiment_id(client, workspace, "b"))
    assert second.artifact_location == "s3://bucket/runs"
    assert (
        client.get_experiment(tracking.experiment_id(client, workspace, "a")).artifact_location
        == first.artifact_location
    )


def test_addresses_of_servers_and_databases_are_told_apart() -> None:
    assert all(map(is_database, (SECRET, "postgresql://h/d", "sqlite:////x.db", "mysql+pymysql://h/d")))
    assert not any(map(is_database, ("http://h:5000", "https://h", "databricks")))


@pytest.mark.parametrize(
    ("address", "root", "missing"),
    [
        ("postgresql+psycopg2://h/d", None, "psycopg2"),
        ("postgresql://h/d", None, "psycopg"),
        ("sqlite:////x.db", "s3://bucket/runs", "boto3"),
    ],
)
def test_a_missing_package_is_told_before_anything_is_computed(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    root: str | None,
    missing: str,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    if root:
        monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", root)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(UserError) as e:
        check_tracking(workspace)
    assert missing in e.value.error and "pip install 'preftune[" in e.value.advice
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("json"))
    check_tracking(workspace)


def test_a_server_keeps_its_own_storage(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of a server needs neither the driver nor the storage's package."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://bucket/runs")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_tracking(workspace)
