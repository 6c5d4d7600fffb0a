"""The flow `retrain`: a new challenger when data, recipe or starting model changed; the champion if it wins.

Nothing changed: ends in seconds. Else the steps of `dpo-pipeline`, then the same measures and gate with the champion
in the SFT model's place. The champion is replaced only if both verdicts are `promote` (and a person agrees, where
that is asked for); whatever fails leaves it as it is.
"""

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from prefect.states import Completed
from pydantic import Field

from flows.pipeline_steps import Pipeline, begin, finish, origin, run_data, run_links, run_training, run_verdict
from preftune import keys
from preftune.champion import NOBODY, Decision, Registered, Version, look, model_name, only_one
from preftune.champion_verdict import champion_markdown, decision, measurable
from preftune.errors import UserError
from preftune.judges.find import find_judge
from preftune.lineage import lineage
from preftune.reporting import check_reporting
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.tracking import compare_url, connect, version_url
from preftune.workspace import Workspace, find_workspace
from tasks.champion import (
    compare_with_champion,
    decide,
    fetch_champion,
    mark_waiting,
    read_registry,
    record_comparison,
    register_challenger,
)
from tasks.gpu import evaluate_policy, judge_answers
from tasks.policy import quiet_errors
from tasks.recipe import read_recipe


class Approval(RunInput):
    """What a person answers before the alias moves."""

    approve: bool = Field(description="Make the challenger the champion.")
    note: str = Field("", description="Why, or who says so; written on the version.")


def _run_name() -> str:
    return f"retrain {Path((flow_run.parameters or {}).get('recipe', '')).parent.name}"


@flow(name="retrain", flow_run_name=_run_name, persist_result=False)
def retrain(
    recipe: Annotated[
        str, Field(description="The recipe's file, relative to the project.")
    ] = "recipes/starter/config_starter.yaml",
    overrides: Annotated[
        dict[str, Any] | None,
        Field(description='Recipe keys that win over the file, for example {"beta": 0.2}.'),
    ] = None,
    approval: Annotated[
        bool,
        Field(description="Wait on this page for a person's answer before the champion is replaced."),
    ] = False,
) -> Any:
    """Trains a challenger if anything changed, and makes it the champion if it is better.

    Args:
        recipe: The recipe's file, relative to the project.
        overrides: Recipe keys that win over the file.
        approval: Suspend the run for a person's answer before the champion is replaced.

    Returns:
        What was decided, and why (docs/json.md).
    """
    quiet_errors()
    started = time.time()
    workspace = find_workspace(recipe=Path(recipe)).make()
    if approval and deployment.id is None:
        raise UserError(
            "only a run of a deployment can wait for an answer", "approval", "preftune promote RUN is the way by hand"
        )
    loaded = read_recipe(str(workspace.resolve(recipe)), overrides or {})
    check_reporting(loaded.training.get("report_to"))
    name = model_name(loaded.experiment)
    # A run that goes on with a person's answer waits for its turn: the answer must not get lost.
    asked = approval and _waiting(read_registry(workspace, name)) is not None
    with only_one(workspace, name, wait=asked) as mine:
        if not mine:
            found = _told(workspace, "busy", f"another retraining of {name} is at work", name)
        else:
            try:
                registered = read_registry(workspace, name)
                found = _answered(workspace, registered) or _retrain(workspace, loaded, name, registered, approval)
            except Exception as e:
                _failed(workspace, name, e)
                raise
    found["seconds"] = round(time.time() - started, 1)
    if found["decision"] in ("busy", "nothing to do"):
        return Completed(name=found["decision"].capitalize(), message=found["reason"], data=found)
    return found


def _failed(workspace: Workspace, name: str, error: Exception) -> None:
    """Says on the flow run's page why, and who is champion."""
    with suppress(Exception):
        champion = look(connect(workspace), name).champion
        who = f"Version {champion.number} is the champion." if champion else "There is no champion."
        create_markdown_artifact(f"# failed\n\n{who}\n\n```\n{error}\n```\n", key="decision")


def _told(workspace: Workspace, what: str, reason: str, name: str, version: Version | None = None) -> dict[str, Any]:
    """Puts what was decided on the flow run's page; returns it as the summary's beginning."""
    get_run_logger().info("%s: %s", what, reason)
    text = f"# {what}\n\n{reason}\n"
    if version:
        url = version_url(workspace, name, version.number)
        text += f"\n[{name} version {version.number} in MLflow]({url})\n"
        create_link_artifact(url, link_text=f"{name} version {version.number} in MLflow", key="mlflow-model")
    create_markdown_artifact(text, key="decision")
    found = {"decision": what, "reason": reason, "model": name, "champion": None}
    return {**found, "version": version and version.number, "run_id": version and version.run_id}


def _waiting(registered: Registered) -> Version | None:
    """The version for which this run was suspended."""
    return next((v for v in registered.versions if v.tags.get("waits_in") == str(flow_run.id)), None)


def _answered(workspace: Workspace, registered: Registered) -> dict[str, Any] | None:
    """Takes up the answer that this run was suspended for. None if it was not, or another one became the champion
    since: then the challenger has to be compared with that one."""
    version = _waiting(registered)
    if version is None or version.tags["compared_with"] != _number(registered.champion):
        return None
    return _ask(workspace, version, registered.champion, version.tags["reason_to_promote"])


def _retrain(workspace: Workspace, recipe: Recipe, name: str, registered: Registered, approval: bool) -> dict[str, Any]:
    """Nothing, or a challenger and what is decided on it."""
    pipeline = begin(workspace, recipe)
    now = lineage(recipe, workspace, pipeline.model, pipeline.sources)["lineage"]
    if found := _nothing_to_do(workspace, name, registered, now):
        return found
    if recipe.hub.push_to_hub:
        get_run_logger().warning("a retraining pushes nothing to the hub: preftune run does")
    run_data(pipeline)
    runs = run_verdict(pipeline, run_training(pipeline))
    results = pipeline.results
    verdict, folder = results["verdict"], results["train"].folder(workspace) / "model"
    tags = {**origin(pipeline), **run_links(workspace), "verdict": verdict.info["outcome"]}
    challenger = register_challenger(workspace, name, runs["policy"], folder, tags)
    champion = read_registry(workspace, name).champion  # it may be another one by now
    against, why_not = _against_champion(pipeline, champion, challenger, [runs["experiment"], runs["sft"]])
    better, reason = decision(verdict.info, against and against.info, champion, challenger, why_not)
    report = workspace.home / "reports" / f"retrain-{name}-{runs['policy'][:8]}.html"
    report.parent.mkdir(exist_ok=True)
    shutil.copyfile(verdict.folder(workspace) / "report.html", report)
    summary = finish(pipeline, runs, str(report))
    if better and approval and _number(champion) != challenger.number:
        mark_waiting(workspace, challenger, str(flow_run.id), _number(champion), reason)
        decided = _ask(workspace, challenger, champion, reason)
    else:
        decided = _decide(workspace, challenger, "promoted" if better else "kept", reason, champion)
    return {**summary, **decided, "champion_verdict": against and against.info, "policy": str(folder)}


def _nothing_to_do(workspace: Workspace, name: str, registered: Registered, now: str) -> dict[str, Any] | None:
    """Told if the version that was weighed last came from the same, or one that waits for a person does."""
    last = registered.newest_weighed
    same = "came from the same data, recipe and starting model"
    if last and last.tags.get("lineage") == now:
        reason = f"version {last.number} {same}; {last.decision} on {last.tags['decided']}: {last.tags['reason']}"
    else:
        alike = (v for v in registered.versions if v.tags.get("lineage") == now and "waits_in" in v.tags)
        last = next((v for v in alike if _suspended(v.tags["waits_in"])), None)
        if last is None:
            return None
        reason = f"version {last.number} {same} and waits for an answer in flow run {last.tags['waits_in']}"
    champion = registered.champion and registered.champion.number
    return {**_told(workspace, "nothing to do", reason, name, last), "champion": champion}


def _suspended(run_id: str) -> bool:
    if run_id == str(flow_run.id):
        return False
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(run_id)).state
        except ObjectNotFound:
            return False
    return state is not None and state.is_paused()


def _against_champion(
    pipeline: Pipeline, champion: Version | None, challenger: Version, runs: list[str]
) -> tuple[StepResult | None, str | None]:
    """(the verdict against the champion, or why there is none); measured on the challenger's held-out pairs."""
    if champion is None or champion.tags.get("policy") == challenger.tags["policy"]:
        return None, None
    workspace, recipe, results = pipeline.workspace, pipeline.recipe, pipeline.results
    policy, why_not = measurable(champion, fetch_champion(workspace, champion), workspace, pipeline.model)
    against = None
    if policy is not None:
        key = keys.policy_key(recipe, workspace, pipeline.model, results["mixture"], policy.digest)
        measured = pipeline.run(evaluate_policy, key, **pipeline.data, policy=policy.folder)
        both = {"baseline": measured, "policy": results["policy"]}
        if recipe.evaluation.judge is not None:
            judge = find_judge(recipe.evaluation.judge, workspace)
            both["judge"] = pipeline.run(judge_answers, keys.judge_key(judge, workspace, **both), judge=judge, **both)
        both["train"] = results["train"]
        against = pipeline.run(compare_with_champion, keys.verdict_key(recipe, both), recipe=recipe, results=both)
        create_markdown_artifact(champion_markdown(against.info, champion, challenger), key="champion")
        experiment, sft = runs
        url = compare_url(workspace, experiment, [sft, champion.run_id, challenger.run_id])
        create_link_artifact(url, link_text="SFT, champion and challenger in MLflow", key="mlflow-champion")
    record_comparison(workspace, challenger, champion, against)
    return against, why_not


def _ask(workspace: Workspace, version: Version, champion: Version | None, reason: str) -> dict[str, Any]:
    """Suspends the run until a person answers, which ends this process; the run that goes on comes here again."""
    text = f"Make {version.model} version {version.number} the champion? {reason}"
    key = f"version-{version.number}-over-{_number(champion)}"
    answer = suspend_flow_run(wait_for_input=Approval.with_initial_data(description=text), key=key)
    note = f" ({answer.note})" if answer.note else ""
    if answer.approve:
        return _decide(workspace, version, "promoted", f"approved{note}: {reason}", champion)
    return _decide(workspace, version, "declined", f"a person declined it{note}", champion)


def _decide(
    workspace: Workspace, version: Version, what: Decision, reason: str, champion: Version | None
) -> dict[str, Any]:
    decide(workspace, version, what, reason, _number(champion))
    now = version.number if what == "promoted" else champion and champion.number
    return {**_told(workspace, what, reason, version.model, version), "champion": now}


def _number(version: Version | None) -> str:
    return version.number if version else NOBODY
