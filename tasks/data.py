"""Tasks on data: checking a dataset, sampling the mixture. Seconds on a CPU, no GPU slot."""

from prefect import task

from preftune import steps
from preftune.schema import Mixture, Validation
from preftune.sources import Source
from preftune.store import StepResult
from preftune.workspace import Workspace
from tasks.policy import STEP_CACHE, worth_a_retry


@task(
    name="source",
    task_run_name="source {source.entry.id}",
    cache_policy=STEP_CACHE,
    persist_result=True,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=worth_a_retry,
)
def check_dataset(key: str, workspace: Workspace, source: Source, validation: Validation) -> StepResult:
    """Loads, converts and checks one dataset."""
    return steps.make_source(workspace, key, source, validation)


@task(name="mixture", cache_policy=STEP_CACHE, persist_result=True, retries=1, retry_condition_fn=worth_a_retry)
def sample_mixture(key: str, workspace: Workspace, sources: list[StepResult], mixture: Mixture) -> StepResult:
    """Samples the mixture and splits it by prompt group."""
    return steps.make_mixture(workspace, key, sources, mixture)
