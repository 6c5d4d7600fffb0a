"""The flow `build-pairs`: prompts in, a dataset of preference pairs out, from a model's own answers.

prompts → completions → scores → pairs → MLflow, the dataset's folder. Each step is a cached, retryable task; each
single answer and judgement is kept beside them, so that a step that was killed goes on where it was.
"""

import time
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.runtime import flow_run
from pydantic import Field

from flows.pipeline_steps import Steps, run_links
from flows.run_names import recipe_name, run_name
from preftune import tracking
from preftune.models import embedded_folder, find_model
from preftune.own_pairs import keys, steps
from preftune.pairs_schema import PeopleScorer
from preftune.publish import check_replaceable
from preftune.schema import EMBEDDED_MODEL
from preftune.tracking_address import check_tracking
from preftune.workspace import find_workspace
from tasks.gpu import prepare_model
from tasks.pairs import answer_prompts, choose_pairs, publish_pairs, read_prompts, record_pairs, score_answers
from tasks.policy import quiet_errors
from tasks.recipe import read_recipe


def _run_name() -> str:
    given = flow_run.parameters or {}
    return run_name("pairs", recipe_name(given.get("recipe", "")), given.get("overrides"))


@flow(name="build-pairs", flow_run_name=_run_name, persist_result=False)
def build_pairs(
    recipe: Annotated[str, Field(description="The recipe's file, relative to the project, with a section pairs.")],
    overrides: Annotated[
        dict[str, Any] | None, Field(description='Recipe keys that win over the file: {"pairs.completions": 8}.')
    ] = None,
) -> dict[str, Any]:
    """Makes preference pairs from a model's own answers.

    Args:
        recipe: The recipe's file, relative to the project.
        overrides: Recipe keys that win over the file.

    Returns:
        The summary: state, output, counts, steps, run_id (docs/json.md).
    """
    quiet_errors()
    started, logger = time.time(), get_run_logger()
    workspace = find_workspace(recipe=Path(recipe)).make()
    loaded = read_recipe(str(workspace.resolve(recipe)), overrides or {})
    check_replaceable(steps.dataset_folder(workspace, loaded))
    check_tracking(workspace)
    if loaded.model_name == EMBEDDED_MODEL and not embedded_folder(workspace).exists():
        prepare_model(workspace)
    plan = steps.make_plan(workspace, loaded, find_model(loaded, workspace))
    made = Steps(workspace)
    prompts = made.run(read_prompts, steps.prompts_step_key(plan), plan=plan)
    for notice in prompts.info["notices"]:
        logger.warning(notice)
    logger.info("prompts: %d of %d read", prompts.info["kept"], prompts.info["read"])
    key = steps.completions_step_key(plan, prompts)
    completions = made.run(answer_prompts, key, plan=plan, prompts=prompts)
    results = {"prompts": prompts, "completions": completions}
    summary: dict[str, Any] = {"output": str(plan.output), "prompts": prompts.info, "completions": completions.info}
    if isinstance(plan.settings.scorer, PeopleScorer) and not plan.scorer:
        tasks = len(steps.label_tasks(plan, prompts, completions))
        return {"state": "to_label", "tasks": tasks, **summary, "steps": made.done, "seconds": _since(started)}
    if plan.settings.scorer is not None:
        key = steps.scores_step_key(plan, prompts, completions)
        results["scores"] = made.run(score_answers, key, plan=plan, prompts=prompts, completions=completions)
        summary["scores"] = results["scores"].info
    scores = results.get("scores")
    key = keys.pairs_key(loaded, plan.settings, prompts, completions, scores)
    given = {"plan": plan, "prompts": prompts, "completions": completions, "scores": scores}
    results["pairs"] = made.run(choose_pairs, key, **given)
    publish_pairs(plan, results["pairs"])
    runs = record_pairs(plan, results, run_links(workspace))
    url = tracking.run_url(workspace, runs["experiment"], runs["run"])
    info = results["pairs"].info
    create_table_artifact(_table(info), key="pairs", description=f"pairs in {workspace.display(plan.output)}")
    create_link_artifact(url, link_text="The dataset in MLflow", key="mlflow-pairs")
    return {
        "state": "built",
        "run_id": runs["run"],
        **summary,
        "pairs": info,
        "steps": made.done,
        "mlflow_url": url,
        "seconds": _since(started),
    }


def _since(started: float) -> float:
    return round(time.time() - started, 1)


def _table(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for Prefect's page: what was made and what was left out."""
    made = [{"step": "pairs", "what": side, "rows": info[side]} for side in ("train", "test")]
    return made + [
        {"step": step, "what": reason, "rows": n}
        for step, found in info["left_out"].items()
        for reason, n in found.items()
    ]
