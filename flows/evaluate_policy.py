"""The flow `evaluate-policy`: any model or adapter on disk against a recipe's SFT model, without training."""

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from flows.pipeline_steps import begin, finish, run_data, run_verdict
from flows.run_names import run_name
from preftune import keys
from preftune.policies import find_policy
from preftune.workspace import find_workspace
from tasks.gpu import evaluate_policy as evaluate
from tasks.policy import quiet_errors
from tasks.recipe import read_recipe


def _run_name() -> str:
    given = flow_run.parameters or {}
    return run_name("evaluate", Path(given.get("policy", "")).name, given.get("overrides"))


@flow(name="evaluate-policy", flow_run_name=_run_name, persist_result=False)
def evaluate_policy(
    recipe: Annotated[str, Field(description="The recipe's file, relative to the project: data, SFT model, measures.")],
    policy: Annotated[str, Field(description="The folder of the model or adapter, relative to the project.")],
    overrides: Annotated[
        dict[str, Any] | None, Field(description='Recipe keys that win over the file: {"evaluation.preset": "full"}.')
    ] = None,
) -> dict[str, Any]:
    """Compares a model or adapter on disk with the recipe's SFT model, by the measures of a run.

    Args:
        recipe: The recipe's file, relative to the project.
        policy: The model's or adapter's folder, relative to the project.
        overrides: Recipe keys that win over the file.

    Returns:
        The run's summary, as of `dpo-pipeline`; `report` stands in the workspace (docs/json.md).
    """
    quiet_errors()
    started = time.time()
    workspace = find_workspace(recipe=Path(recipe)).make()
    loaded = read_recipe(str(workspace.resolve(recipe)), overrides or {})
    pipeline = begin(workspace, loaded)
    found = find_policy(policy, workspace, pipeline.model)
    run_data(pipeline)
    results = pipeline.results
    key = keys.policy_key(loaded, workspace, pipeline.model, results["mixture"], found.digest)
    results |= {"policy": pipeline.run(evaluate, key, **pipeline.data, policy=found.folder), "evaluated": found}
    identity = keys.run_identity(loaded, results["baseline"].key, found.digest)
    runs = run_verdict(pipeline, identity)
    report = workspace.home / "reports" / f"evaluate-{loaded.name}-{found.folder.name}-{runs['policy'][:8]}.html"
    report.parent.mkdir(exist_ok=True)
    shutil.copyfile(results["verdict"].folder(workspace) / "report.html", report)
    summary = finish(pipeline, runs, str(report))
    return {**summary, "policy": str(found.folder), "seconds": round(time.time() - started, 1)}
