"""The flow `sweep`: one recipe with many values in, a ranked table and the best recipe out.

Data, mixture, token ids, the reference's log-probabilities and the baseline are made once; each trial adds a training,
its evaluation and its verdict. A sweep that was killed goes on where it was.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import Field

from flows.pipeline_steps import Pipeline, begin, run_data, run_links
from flows.sweep_trials import SweepJob, run_trials
from preftune import keys, tracking
from preftune.accelerate_configs import gpu_shares
from preftune.errors import StepError
from preftune.packages import check_dask
from preftune.publish import check_replaceable
from preftune.reporting import check_reporting
from preftune.store import locked
from preftune.sweep_runs import sweep_key
from preftune.sweep_space import check_space, ranked_by, required_sweep
from preftune.sweep_study import Study, Trial
from preftune.workspace import find_workspace, output_folder
from tasks.policy import gpu_slots, quiet_errors
from tasks.recipe import read_recipe
from tasks.sweep import open_sweep, publish_sweep, record_sweep


def _run_name() -> str:
    return f"sweep {Path((flow_run.parameters or {}).get('recipe', '')).parent.name}"


@flow(name="sweep", flow_run_name=_run_name, persist_result=False)
def sweep(
    recipe: Annotated[str, Field(description="The recipe's file, relative to the project; it says what is tried.")],
    overrides: Annotated[
        dict[str, Any] | None,
        Field(description='Recipe keys that win over the file: {"sweep.parameters.beta": [0.05, 0.1]}.'),
    ] = None,
    workers: Annotated[
        int, Field(ge=1, le=64, description="Trials at once, each in a process with its own share of the GPUs (Dask).")
    ] = 1,
) -> dict[str, Any]:
    """Trains a recipe with many values and ranks the results by their verdicts.

    Args:
        recipe: The recipe's file, relative to the project.
        overrides: Recipe keys that win over the file.
        workers: Trials at once.

    Returns:
        The sweep's summary: run_id, measure, trials (ranked), best, folder (docs/json.md).
    """
    quiet_errors()
    started, logger = time.time(), get_run_logger()
    workspace = find_workspace(recipe=Path(recipe)).make()
    loaded = read_recipe(str(workspace.resolve(recipe)), overrides or {})
    space = required_sweep(loaded)
    check_dask(workers)
    check_reporting(loaded.training.get("report_to"))
    check_space(loaded.path, overrides or {}, space)
    target = output_folder(workspace, f"{loaded.output_dir}-sweep")
    check_replaceable(target)
    pipeline = begin(workspace, loaded)
    run_data(pipeline)
    key = _key(pipeline)
    study = Study(workspace.home / "sweeps" / f"{key}.db", space)
    waiting = "another process runs this sweep: waiting"
    with locked(study.path.with_suffix(".lock"), lambda: logger.info(waiting)), gpu_slots(workers):
        runs = open_sweep(workspace, loaded, space, key)
        _tell_plan(study, pipeline)
        job = SweepJob(
            *(workspace, loaded, overrides or {}, pipeline.results, study, key, runs["run"]), ranked_by(loaded, space)
        )
        run_trials(replace(job, devices=tuple(gpu_shares(workers)) if workers > 1 else ()), workers)
        trials = study.trials()
        found = publish_sweep(
            *(workspace, loaded, job.overrides, space, job.measure, trials), pipeline.results["baseline"].key, target
        )
        record_sweep(workspace, runs, space, found["trials"], found.pop("files"), run_links(workspace))
    if not any(trial.state == "done" for trial in trials):
        raise _nothing_measured(trials)
    url = tracking.run_url(workspace, runs["experiment"], runs["run"])
    create_link_artifact(url, link_text="The sweep in MLflow", key="mlflow-sweep")
    create_markdown_artifact(found.pop("table"), key="sweep")
    return {"run_id": runs["run"], **found, "mlflow_url": url, "seconds": round(time.time() - started, 1)}


def _key(pipeline: Pipeline) -> str:
    """The sweep's, from what its recipe's own run would be."""
    recipe, workspace, results = pipeline.recipe, pipeline.workspace, pipeline.results
    train = keys.train_key(recipe, workspace, pipeline.model, results["mixture"])
    return sweep_key(recipe, keys.run_identity(recipe, results["baseline"].key, train), workspace.mlflow_uri)


def _tell_plan(study: Study, pipeline: Pipeline) -> None:
    """How many trainings, and what they share, before the first one starts."""
    there = study.trials()
    finished, left = sum(t.state != "open" for t in there), sum(t.state == "open" for t in there)
    space = study.sweep
    what = f"{space.search} over {', '.join(space.parameters)}"
    earlier = f" ({finished} finished earlier, {left} taken up again)" if there else ""
    get_run_logger().info(
        "sweep: %d trainings in all, %s%s; shared: data, token ids, reference log-probabilities, baseline (%s)",
        *(space.planned, what, earlier, ", ".join(f"{s} {how}" for s, how in pipeline.done.items())),
    )


def _nothing_measured(trials: list[Trial]) -> StepError:
    whys = list(dict.fromkeys(trial.why for trial in trials if trial.why))
    more = f" (and {len(whys) - 1} other reasons)" if len(whys) > 1 else ""
    return StepError(
        f"all {len(trials)} trials failed: {whys[0] if whys else 'no reason was given'}{more}",
        "sweep",
        "run the recipe alone (preftune run) to look into it",
    )
