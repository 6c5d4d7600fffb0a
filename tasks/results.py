"""Tasks on results: the verdict, MLflow, the merged model, the output folder, the hub."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from preftune import tracking, training_step, verdict_runs, verdict_step
from preftune.hub_push import push
from preftune.models import StartingModel
from preftune.publish import publish_run
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace
from tasks import run_names
from tasks.policy import STEP_CACHE, worth_a_retry


@task(
    name="verdict",
    task_run_name=run_names.verdict,
    cache_policy=STEP_CACHE,
    persist_result=True,
    retries=1,
    retry_condition_fn=worth_a_retry,
)
def reach_verdict(
    key: str,
    workspace: Workspace,
    recipe: Recipe,
    results: dict[str, Any],
    done: dict[str, str],
    lineage: dict[str, str],
) -> StepResult:
    """Compares policy and SFT, decides, writes the report."""
    return verdict_step.make_verdict(workspace, key, recipe, results, done, lineage)


@task(name="track", task_run_name="record in MLflow: {recipe.experiment}", retries=3, retry_delay_seconds=[5, 20, 60])
def record_runs(
    workspace: Workspace,
    recipe: Recipe,
    results: dict[str, Any],
    identity: str,
    links: dict[str, str],
    origin: dict[str, str],
) -> dict[str, str]:
    """Completes both MLflow runs; returns {experiment, sft, policy}."""
    with tracking.mlflow_errors(workspace):
        return verdict_runs.record_both(workspace, recipe, results, identity, links, origin)


@task(
    name="merged",
    task_run_name=run_names.merge,
    cache_policy=STEP_CACHE,
    persist_result=True,
    retries=1,
    retry_condition_fn=worth_a_retry,
)
def merge_adapter(
    key: str, workspace: Workspace, recipe: Recipe, model: StartingModel, train: StepResult
) -> StepResult:
    """Merges the trained adapter into the starting model."""
    return training_step.make_merged(workspace, key, recipe, model, train, get_run_logger().info)


@task(name="publish", task_run_name=run_names.publish, retries=1)
def publish_result(
    workspace: Workspace, recipe: Recipe, model: StartingModel, target: Path, results: dict[str, Any], repo: str | None
) -> bool:
    """Fills the recipe's output folder."""
    return publish_run(workspace, recipe, model, target, results, repo)


# The hub's client tries each request five times.
@task(name="push", task_run_name="push to {repo}", retries=1, retry_delay_seconds=10)
def push_result(recipe: Recipe, target: Path, repo: str, outcome: str) -> str:
    """Uploads the output folder to the hub."""
    return push(
        target, repo, recipe.hub, f"{recipe.name}: {recipe.method.upper()} policy, verdict {outcome} (preftune)"
    )
