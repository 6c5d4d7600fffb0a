"""Tasks on the model registry: registering a challenger, comparing it with the champion, moving the alias."""

from pathlib import Path
from typing import Any

from prefect import task

from preftune import champion, champion_files, champion_verdict, tracking
from preftune.champion import ChampionChanged, Decision, Registered, Version
from preftune.errors import UserError
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace
from tasks.policy import STEP_CACHE, worth_a_retry


def _worth_a_retry(_task: Any, _run: Any, state: Any) -> bool:
    """As for the steps; and not where the comparison has to be made again."""
    try:
        state.result()
    except (UserError, ChampionChanged):
        return False
    except Exception:
        return True
    return True


_REGISTRY: dict[str, Any] = {"retries": 3, "retry_delay_seconds": [5, 20, 60], "retry_condition_fn": _worth_a_retry}


@task(name="registry", **_REGISTRY)
def read_registry(workspace: Workspace, name: str) -> Registered:
    """Reads which versions there are, and which one is the champion."""
    with tracking.mlflow_errors(workspace):
        return champion.look(tracking.connect(workspace), name)


@task(name="register", **_REGISTRY)
def register_challenger(workspace: Workspace, name: str, run_id: str, folder: Path, tags: dict[str, str]) -> Version:
    """Uploads the trained model and registers it as the challenger."""
    with tracking.mlflow_errors(workspace):
        return champion.register(tracking.connect(workspace), name, run_id, folder, tags)


@task(name="fetch-champion", **_REGISTRY)
def fetch_champion(workspace: Workspace, version: Version) -> Path:
    """The champion's files: from the store, else from the registry."""
    with tracking.mlflow_errors(workspace):
        client = tracking.connect(workspace)
        return champion_files.model_folder(client, workspace, version.run_id, version.tags.get("train"))


@task(name="champion", cache_policy=STEP_CACHE, persist_result=True, retries=1, retry_condition_fn=worth_a_retry)
def compare_with_champion(key: str, workspace: Workspace, recipe: Recipe, results: dict[str, Any]) -> StepResult:
    """Decides between challenger and champion, by the same measures and bars as against the SFT model."""
    return champion_verdict.make_champion_verdict(workspace, key, recipe, results)


@task(name="record-comparison", **_REGISTRY)
def record_comparison(workspace: Workspace, version: Version, over: Version, against: StepResult | None) -> None:
    """Writes the comparison with the champion on the challenger's version and MLflow run."""
    with tracking.mlflow_errors(workspace):
        champion_verdict.record_comparison(tracking.connect(workspace), workspace, version, over, against)


@task(name="wait-for-approval", **_REGISTRY)
def mark_waiting(workspace: Workspace, version: Version, flow_run: str, over: str, reason: str) -> None:
    """Writes on the version which flow run waits for a person's answer."""
    with tracking.mlflow_errors(workspace):
        tags = {"waits_in": flow_run, "compared_with": over, "reason_to_promote": reason}
        champion.tag(tracking.connect(workspace), version, tags)


@task(name="decide", **_REGISTRY)
def decide(workspace: Workspace, version: Version, decision: Decision, reason: str, over: str) -> None:
    """Moves the alias `champion` if the challenger is promoted, and writes down what was decided and why."""
    with tracking.mlflow_errors(workspace):
        client = tracking.connect(workspace)
        if decision == "promoted":
            champion.set_champion(client, workspace, version, over)
        champion.decide(client, version, decision, reason, by_hand=False)
