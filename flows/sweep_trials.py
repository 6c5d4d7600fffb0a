"""A sweep's trials: one after another in the flow's process, or several at once, each in a Dask worker's.

A trial is a pipeline run with other values, without an output folder. What it comes to is written into the sweep's
study by the process that runs it.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.pipeline_steps import Pipeline, begin, run_data, run_training, run_verdict
from preftune import keys, store, sweep_runs, tracking
from preftune.children import one_line, read_json_lines
from preftune.errors import Hopeless, PreftuneError, StepError, UserError
from preftune.recipe import load_recipe
from preftune.schema import Recipe
from preftune.sweep_space import label
from preftune.sweep_study import Study, Watch, measured
from preftune.workspace import Workspace
from tasks.policy import quiet_errors


@dataclass(frozen=True)
class SweepJob:
    """What all trials of a sweep share.

    Args:
        workspace: Where the store stands.
        recipe: The sweep's recipe, as it is without a trial's values.
        overrides: The sweep's.
        results: The data's part and the baseline, for the trials that do not change them.
        study: Where the trials are kept.
        key: The sweep's.
        parent: The sweep's MLflow run.
        measure: What is ranked by.
        devices: `CUDA_VISIBLE_DEVICES` of each worker; empty where the trials run in the flow's process.
    """

    workspace: Workspace
    recipe: Recipe
    overrides: dict[str, Any]
    results: dict[str, Any]
    study: Study
    key: str
    parent: str
    measure: str
    devices: tuple[str | None, ...] = ()

    @property
    def watches(self) -> bool:
        return self.study.sweep.stop_hopeless and self.recipe.training.get("eval_strategy", "no") != "no"


def _pipeline(job: SweepJob, recipe: Recipe) -> Pipeline:
    """A trial's pipeline; with the sweep's data and baseline, unless its values change them."""
    pipeline = begin(job.workspace, recipe)
    mixture, model = job.results["mixture"], pipeline.model
    same = recipe.mixture == job.recipe.mixture and recipe.validation == job.recipe.validation
    if (
        same
        and keys.lengths_key(recipe, model, mixture) == job.results["lengths"].key
        and keys.baseline_key(recipe, job.workspace, model, mixture) == job.results["baseline"].key
    ):
        pipeline.results |= job.results
    else:
        run_data(pipeline)
    return pipeline


def _measure(job: SweepJob, number: int, values: dict[str, Any], opened: list[str]) -> None:
    """Runs a trial to its verdict; notes its MLflow identity in `opened` as soon as it is known."""
    workspace, logger = job.workspace, get_run_logger()
    recipe = load_recipe(Path(job.recipe.path), {**job.overrides, **values})
    pipeline = _pipeline(job, recipe)

    def identify(own: str) -> str:
        opened.append(sweep_runs.trial_identity(job.key, own))
        try:
            with tracking.mlflow_errors(workspace):
                sweep_runs.open_trial(workspace, recipe, opened[0], job.parent, number, values)
        except StepError as e:
            logger.warning("the trial's MLflow run is made later: %s", e.error)
        return opened[0]

    try:
        identity = run_training(pipeline, identify, Watch(job.study, number) if job.watches else None)
    except Hopeless:
        store.discard(
            workspace, "train", keys.train_key(recipe, workspace, pipeline.model, pipeline.results["mixture"])
        )
        raise
    runs = run_verdict(pipeline, identity)
    with tracking.mlflow_errors(workspace):
        sweep_runs.adopt(workspace, runs["policy"], job.parent)
    results, verdict = pipeline.results, pipeline.results["verdict"].info
    found = measured(verdict["metrics"]["policy"], job.measure)
    found |= {"outcome": verdict["outcome"], "reasons": verdict["reasons"], "run_id": runs["policy"]}
    found |= {step: results[step].key for step in ("train", "baseline")}
    job.study.finish(number, found, read_json_lines(results["train"].folder(workspace) / "metrics.jsonl"))
    logger.info("%s: %s %.4g, %s", label(values), job.measure, found["value"], found["outcome"])


def _close(job: SweepJob, values: dict[str, Any], opened: list[str], stopped: bool, why: str) -> None:
    """Ends the MLflow run of a trial without a verdict; MLflow may be away."""
    if opened:
        recipe = load_recipe(Path(job.recipe.path), {**job.overrides, **values})
        with suppress(StepError), tracking.mlflow_errors(job.workspace):
            sweep_runs.end_trial(job.workspace, recipe, opened[0], stopped, why)


@task(name="trial", task_run_name="trial {number}: {text}")
def run_trial(job: SweepJob, number: int, values: dict[str, Any], text: str) -> State[Any] | None:
    """Runs one trial and notes in the study what it came to.

    Args:
        job: What all trials share.
        number: The trial's.
        values: Recipe key → value.
        text: The values, for the task run's name.
    """
    quiet_errors()
    if job.devices:
        from distributed import get_worker

        share = job.devices[int(get_worker().name)]
        if share is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = share
    opened: list[str] = []
    try:
        _measure(job, number, values, opened)
    except Hopeless as e:
        job.study.stop(number, e.error)
        _close(job, values, opened, True, e.error)
        get_run_logger().info("%s: %s", text, e.error)
        return Completed(name="StoppedEarly", message=e.error)
    except PreftuneError as e:
        job.study.fail(number, e.error, again=not isinstance(e, UserError))
        _close(job, values, opened, False, e.error)
        raise
    except Exception as e:
        job.study.fail(number, one_line(e), again=True)
        raise


def run_trials(job: SweepJob, workers: int) -> None:
    """Runs the trials that are left, so many at once; one that fails does not stop the others."""
    if workers > 1:
        _in_workers(job, workers)
        return
    started: set[int] = set()
    while (found := job.study.next(started)) is not None:
        number, values = found
        started.add(number)
        get_run_logger().info("trial %d of %d: %s", number + 1, job.study.sweep.planned, label(values))
        run_trial(job, number, values, label(values), return_state=True)


def _in_workers(job: SweepJob, workers: int) -> None:
    """Each worker is a process of its own, with its own share of the devices; Dask listens on 127.0.0.1 only."""
    from prefect_dask import DaskTaskRunner

    cluster = {"n_workers": workers, "threads_per_worker": 1, "processes": True}
    cluster |= {"host": "127.0.0.1", "dashboard_address": None}
    started: set[int] = set()
    pending: list[Any] = []
    with DaskTaskRunner(cluster_kwargs=cluster) as runner:
        while True:
            while len(pending) < workers and (found := job.study.next(started)) is not None:
                number, values = found
                started.add(number)
                get_run_logger().info("trial %d of %d: %s", number + 1, job.study.sweep.planned, label(values))
                parameters = {"job": job, "number": number, "values": values, "text": label(values)}
                pending.append(runner.submit(run_trial, parameters=parameters))
            if not pending:
                return
            time.sleep(0.5)
            pending = [future for future in pending if not future.wrapped_future.done()]
