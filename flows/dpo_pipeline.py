"""The flow `dpo-pipeline`: one recipe in, one verdict out.

data → mixture → baseline → train → policy → (judge) → verdict → MLflow, output folder, hub. Each step is a cached,
retryable task; what passes between them are names and numbers, never weights or tables.
"""

import time
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from flows.pipeline_steps import Pipeline, begin, finish, run_data, run_training, run_verdict
from flows.run_names import recipe_name, run_name
from preftune import keys
from preftune.hub_push import check_push
from preftune.publish import check_replaceable
from preftune.reporting import check_reporting
from preftune.workspace import find_workspace, output_folder
from tasks.policy import quiet_errors
from tasks.recipe import read_recipe
from tasks.results import merge_adapter, publish_result, push_result


def _run_name() -> str:
    given = flow_run.parameters or {}
    return run_name("dpo", recipe_name(given.get("recipe", "")), given.get("overrides"))


@flow(name="dpo-pipeline", flow_run_name=_run_name, persist_result=False)
def dpo_pipeline(
    recipe: Annotated[
        str, Field(description="The recipe's file, relative to the project.")
    ] = "recipes/starter/config_starter.yaml",
    overrides: Annotated[
        dict[str, Any] | None,
        Field(description='Recipe keys that win over the file, for example {"beta": 0.2, "max_steps": 10}.'),
    ] = None,
) -> dict[str, Any]:
    """Validates preference data, trains with DPO, and compares the result with the SFT model.

    Args:
        recipe: The recipe's file, relative to the project.
        overrides: Recipe keys that win over the file.

    Returns:
        The run's summary: run_id, verdict, metrics, steps, report, compare_url (docs/json.md).
    """
    quiet_errors()
    started = time.time()
    workspace = find_workspace(recipe=Path(recipe)).make()
    loaded = read_recipe(str(workspace.resolve(recipe)), overrides or {})
    check_reporting(loaded.training.get("report_to"))
    target = output_folder(workspace, loaded.output_dir)
    check_replaceable(target)
    repo = check_push(loaded, workspace)
    pipeline = begin(workspace, loaded)
    run_data(pipeline)
    identity = run_training(pipeline)
    runs = run_verdict(pipeline, identity)
    hub = _publish(pipeline, target, repo)
    found = finish(pipeline, runs, str(target / "report.html"))
    if hub:  # last: all else is done if it fails
        hub = push_result(loaded, target, hub, found["verdict"]["outcome"])
    return {**found, "output_dir": str(target), "hub": hub, "seconds": round(time.time() - started, 1)}


def _publish(pipeline: Pipeline, target: Path, repo: str | None) -> str | None:
    """Fills the output folder; returns the hub repository that it may be pushed to."""
    recipe, results = pipeline.recipe, pipeline.results
    if recipe.merge_adapter:
        key = keys.merged_key(recipe, pipeline.model, results["train"])
        merged = {"recipe": recipe, "model": pipeline.model, "train": results["train"]}
        results["merged"] = pipeline.run(merge_adapter, key, **merged)
    if repo and results["verdict"].info["outcome"] == "reject":
        get_run_logger().warning("not pushed to %s: the verdict is reject", repo)
        repo = None
    publish_result(pipeline.workspace, recipe, pipeline.model, target, results, repo)
    return repo
