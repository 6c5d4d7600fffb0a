"""Tasks that load a model: each starts one child process and holds the GPU slot while it runs."""

from typing import Any

from prefect import get_run_logger, task

from preftune import steps, tracking
from preftune.children import Tail
from preftune.models import StartingModel, prepare_embedded
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace
from tasks.policy import STEP_CACHE, gpu_slot, worth_a_retry

_GPU_TASK: dict[str, Any] = {
    "cache_policy": STEP_CACHE,
    "persist_result": True,
    "retries": 2,
    "retry_delay_seconds": [2, 30],
    "retry_condition_fn": worth_a_retry,
}


@task(name="prepare-model", retries=2, retry_delay_seconds=5)
def prepare_model(workspace: Workspace) -> None:
    """Fetches and converts the embedded model, once per workspace."""
    prepare_embedded(workspace, get_run_logger().info)


@task(name="baseline", **_GPU_TASK)
def evaluate_baseline(
    key: str, workspace: Workspace, recipe: Recipe, model: StartingModel, mixture: StepResult, lengths: StepResult
) -> StepResult:
    """Evaluates the SFT model; also the check of the starting model."""
    with gpu_slot(workspace, "baseline", key):
        return steps.make_baseline(workspace, key, recipe, model, mixture, lengths, get_run_logger().info)


@task(name="train", **_GPU_TASK)
def train_policy(
    key: str,
    workspace: Workspace,
    recipe: Recipe,
    model: StartingModel,
    mixture: StepResult,
    lengths: StepResult,
    identity: str,
) -> StepResult:
    """Trains with DPO, and sends the training's metrics to MLflow while they come."""
    logger = get_run_logger()
    with gpu_slot(workspace, "train", key), _live_metrics(workspace, recipe, key, identity):
        return steps.make_train(workspace, key, recipe, model, mixture, lengths, logger.info)


@task(name="policy", **_GPU_TASK)
def evaluate_policy(
    key: str,
    workspace: Workspace,
    recipe: Recipe,
    model: StartingModel,
    mixture: StepResult,
    lengths: StepResult,
    train: StepResult,
) -> StepResult:
    """Evaluates the policy on what the baseline was evaluated on."""
    with gpu_slot(workspace, "policy", key):
        return steps.make_policy(workspace, key, recipe, model, mixture, lengths, train, get_run_logger().info)


def _live_metrics(workspace: Workspace, recipe: Recipe, key: str, identity: str) -> Any:
    sender: list[tracking.MetricSender] = []

    def send(rows: list[dict[str, Any]]) -> None:
        if not sender:  # in the tail's thread: importing mlflow takes seconds
            client = tracking.connect(workspace)
            experiment = tracking.experiment_id(client, workspace, recipe.experiment)
            run_id = tracking.open_run(
                client, experiment, identity, tracking.run_name(recipe, "dpo"), {"preftune.kind": "dpo"}
            )
            sender.append(tracking.MetricSender(client, run_id))
        sender[0].send(rows)

    logger = get_run_logger()
    return Tail(
        steps.train_folder(workspace, key) / "metrics.jsonl",
        send,
        lambda e: logger.warning("MLflow cannot be reached; metrics are sent at the end (%s)", type(e).__name__),
    )
