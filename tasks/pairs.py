"""Tasks of `build-pairs`: prompts, answers, scores, the dataset."""

from contextlib import nullcontext
from typing import Any

from prefect import get_run_logger, task

from preftune import tracking
from preftune.own_pairs import record, steps
from preftune.own_pairs.origin import Plan
from preftune.pairs_schema import RewardModelScorer
from preftune.publish import publish
from preftune.store import StepResult
from preftune.workspace import Workspace
from tasks.policy import STEP_CACHE, gpu_slot, worth_a_retry

_STEP: dict[str, Any] = {
    "cache_policy": STEP_CACHE,
    "persist_result": True,
    "retry_condition_fn": worth_a_retry,
}


@task(name="prompts", task_run_name="read prompts: {plan.settings.prompts.id}", retries=1, **_STEP)
def read_prompts(key: str, workspace: Workspace, plan: Plan) -> StepResult:
    """Reads, checks and draws the prompts."""
    return steps.make_prompts(plan, key, get_run_logger().info)


@task(name="completions", task_run_name="answer prompts", retries=2, retry_delay_seconds=[2, 30], **_STEP)
def answer_prompts(key: str, workspace: Workspace, plan: Plan, prompts: StepResult) -> StepResult:
    """Has the prompts answered; a model on this machine holds the GPU slot."""
    local = plan.engine != "endpoint"
    with gpu_slot(workspace, "completions", key) if local else nullcontext():
        return steps.make_completions(plan, key, prompts, get_run_logger().info)


@task(name="scores", task_run_name="score answers", retries=2, retry_delay_seconds=[2, 30], **_STEP)
def score_answers(
    key: str, workspace: Workspace, plan: Plan, prompts: StepResult, completions: StepResult
) -> StepResult:
    """Has the answers scored; a reward model on this machine holds the GPU slot."""
    local = isinstance(plan.settings.scorer, RewardModelScorer)
    with gpu_slot(workspace, "scores", key) if local else nullcontext():
        return steps.make_scores(plan, key, prompts, completions, get_run_logger().info)


@task(name="pairs", task_run_name="choose pairs", retries=1, **_STEP)
def choose_pairs(
    key: str,
    workspace: Workspace,
    plan: Plan,
    prompts: StepResult,
    completions: StepResult,
    scores: StepResult | None,
) -> StepResult:
    """Chooses the pairs, writes the dataset and its card."""
    return steps.make_pairs(plan, key, prompts, completions, scores, get_run_logger().info)


@task(name="track-pairs", task_run_name="record in MLflow", retries=3, retry_delay_seconds=[5, 20, 60])
def record_pairs(plan: Plan, results: dict[str, StepResult], links: dict[str, str]) -> dict[str, str]:
    """Completes the MLflow run; returns {experiment, run}."""
    with tracking.mlflow_errors(plan.workspace):
        return record.record_pairs(plan, results, links)


@task(name="publish-pairs", task_run_name="publish the dataset", retries=1)
def publish_pairs(plan: Plan, pairs: StepResult) -> bool:
    """Fills the dataset's folder."""
    folders = {"": pairs.folder(plan.workspace) / "dataset"}
    return publish(plan.output, steps.published_key(pairs), folders, dict)
