"""Tasks on results: the verdict, MLflow, the output folder."""

from pathlib import Path
from typing import Any

from prefect import task

from preftune import steps, tracking
from preftune.digest import json_digest
from preftune.publish import publish
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace
from tasks.policy import STEP_CACHE, worth_a_retry


@task(name="verdict", cache_policy=STEP_CACHE, persist_result=True, retries=1, retry_condition_fn=worth_a_retry)
def reach_verdict(
    key: str,
    workspace: Workspace,
    recipe: Recipe,
    results: dict[str, Any],
    done: dict[str, str],
    lineage: dict[str, str],
) -> StepResult:
    """Compares policy and SFT, decides, writes the report."""
    return steps.make_verdict(workspace, key, recipe, results, done, lineage)


@task(name="track", retries=3, retry_delay_seconds=[5, 20, 60])
def record_runs(
    workspace: Workspace, recipe: Recipe, results: dict[str, Any], identity: str, links: dict[str, str]
) -> dict[str, str]:
    """Completes both MLflow runs; returns {experiment, sft, policy}."""
    with tracking.mlflow_errors(workspace):
        return tracking.record_both(workspace, recipe, results, identity, links)


@task(name="publish", retries=1)
def publish_result(workspace: Workspace, recipe: Recipe, target: Path, results: dict[str, Any]) -> bool:
    """Fills the recipe's output folder."""
    train, verdict = results["train"].folder(workspace), results["verdict"].folder(workspace)
    resolved = recipe.resolved()
    key = f"{results['train'].key}-{results['verdict'].key}-{json_digest(resolved)}"
    return publish(target, key, train / "model", train / "runs", verdict, resolved)
