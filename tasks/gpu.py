"""Tasks that load a model: each starts one child process and holds the GPU slot while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from preftune import evaluation_steps, tracking, training_step
from preftune.children import Tail
from preftune.evaluation_schema import RewardModelJudge
from preftune.judges.find import FoundJudge
from preftune.live_metrics import LiveMetrics, outage_note
from preftune.models import StartingModel, prepare_embedded
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace
from tasks import run_names
from tasks.policy import STEP_CACHE, gpu_slot, worth_a_retry
from tasks.progress import TrainingProgress

_GPU_TASK: dict[str, Any] = {
    "cache_policy": STEP_CACHE,
    "persist_result": True,
    "retries": 2,
    "retry_delay_seconds": [2, 30],
    "retry_condition_fn": worth_a_retry,
}


@task(name="prepare-model", task_run_name="prepare the embedded model", retries=2, retry_delay_seconds=5)
def prepare_model(workspace: Workspace) -> None:
    """Fetches and converts the embedded model, once per workspace."""
    prepare_embedded(workspace, get_run_logger().info)


@task(name="baseline", task_run_name=run_names.baseline, **_GPU_TASK)
def evaluate_baseline(
    key: str, workspace: Workspace, recipe: Recipe, model: StartingModel, mixture: StepResult, lengths: StepResult
) -> StepResult:
    """Evaluates the SFT model; also the check of the starting model."""
    with gpu_slot(workspace, "baseline", key):
        return evaluation_steps.make_baseline(workspace, key, recipe, model, mixture, lengths, get_run_logger().info)


@task(name="train", task_run_name=run_names.train, **_GPU_TASK)
def train_policy(
    key: str,
    workspace: Workspace,
    recipe: Recipe,
    model: StartingModel,
    mixture: StepResult,
    lengths: StepResult,
    identity: str,
    check: Callable[[Path], None] | None = None,
) -> StepResult:
    """Trains, shows how far it is, and sends the training's metrics to MLflow while they come."""
    logger = get_run_logger()
    watch = partial(_watched, workspace, recipe, identity)
    with gpu_slot(workspace, "train", key):
        return training_step.make_train(
            workspace, key, recipe, model, mixture, lengths, logger.info, watch, check=check
        )


@task(name="policy", task_run_name=run_names.policy, **_GPU_TASK)
def evaluate_policy(
    key: str,
    workspace: Workspace,
    recipe: Recipe,
    model: StartingModel,
    mixture: StepResult,
    lengths: StepResult,
    policy: Path,
) -> StepResult:
    """Evaluates a policy on what the baseline was evaluated on."""
    tell = get_run_logger().info
    with gpu_slot(workspace, "policy", key):
        return evaluation_steps.make_policy(workspace, key, recipe, model, mixture, lengths, policy, tell)


@task(name="judge", task_run_name="judge answers: {judge.settings.model}", **_GPU_TASK)
def judge_answers(
    key: str, workspace: Workspace, judge: FoundJudge, baseline: StepResult, policy: StepResult
) -> StepResult:
    """Has both models' answers compared; a reward model on this machine holds the GPU slot."""
    tell = get_run_logger().info
    local = isinstance(judge.settings, RewardModelJudge)
    with gpu_slot(workspace, "judge", key) if local else nullcontext():
        return evaluation_steps.make_judge(workspace, key, judge, baseline, policy, tell)


@contextmanager
def _watched(workspace: Workspace, recipe: Recipe, identity: str, metrics: Path) -> Iterator[None]:
    """Shows the training's progress and sends its metrics to MLflow, each in a thread of its own."""
    logger = get_run_logger()
    live = LiveMetrics(
        lambda: tracking.open_sender(workspace, recipe, identity), outage_note(workspace, identity), logger.warning
    )
    with (
        TrainingProgress(logger) as progress,
        Tail(metrics, progress.show, lambda e: logger.warning("the progress is not shown: %s", e)),
        Tail(metrics, live.send, live.failed),
    ):
        yield
