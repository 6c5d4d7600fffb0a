"""Tasks on data: checking a dataset, sampling the mixture. Seconds on a CPU, no GPU slot."""

from prefect import task

from preftune.data import steps
from preftune.data.sources import Source
from preftune.models import StartingModel
from preftune.schema import Mixture, Recipe, Validation
from preftune.store import StepResult
from preftune.workspace import Workspace
from tasks.policy import STEP_CACHE, worth_a_retry


@task(
    name="source",
    task_run_name="check {source.entry.id}",
    cache_policy=STEP_CACHE,
    persist_result=True,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=worth_a_retry,
)
def check_dataset(key: str, workspace: Workspace, source: Source, validation: Validation, seed: int) -> StepResult:
    """Loads, converts and checks one dataset."""
    return steps.make_source(workspace, key, source, validation, seed)


@task(
    name="mixture",
    task_run_name="sample the mixture",
    cache_policy=STEP_CACHE,
    persist_result=True,
    retries=1,
    retry_condition_fn=worth_a_retry,
)
def sample_mixture(
    key: str, workspace: Workspace, sources: list[StepResult], mixture: Mixture, validation: Validation
) -> StepResult:
    """Samples the mixture, splits it by prompt group, and keeps what is held out out of training."""
    return steps.make_mixture(workspace, key, sources, mixture, validation)


@task(
    name="lengths",
    task_run_name="count tokens",
    cache_policy=STEP_CACHE,
    persist_result=True,
    retries=1,
    retry_condition_fn=worth_a_retry,
)
def count_tokens(
    key: str, workspace: Workspace, recipe: Recipe, model: StartingModel, mixture: StepResult
) -> StepResult:
    """Counts what max_length does to the pairs, before anything is trained on them."""
    return steps.make_lengths(workspace, recipe, model, mixture)
