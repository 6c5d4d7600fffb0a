"""The flow `dpo-pipeline`: one recipe in, one verdict out.

data → mixture → baseline → train → policy → verdict → MLflow, output folder, hub. Each step is a cached, retryable
task; what passes between them are names and numbers, never weights or tables.
"""

import os
import time
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import Field

from preftune import keys, store, summary, tracking
from preftune.data.decontamination import evaluation_sources
from preftune.data.sources import find_source
from preftune.digest import json_digest
from preftune.hub_push import check_push
from preftune.models import embedded_folder, find_model
from preftune.publish import check_replaceable, git_revision
from preftune.reporting import check_reporting
from preftune.schema import EMBEDDED_MODEL, Recipe
from preftune.workspace import Workspace, find_workspace, output_folder
from tasks.data import check_dataset, count_tokens, sample_mixture
from tasks.gpu import evaluate_baseline, evaluate_policy, prepare_model, train_policy
from tasks.policy import quiet_errors
from tasks.recipe import read_recipe
from tasks.results import merge_adapter, publish_result, push_result, reach_verdict, record_runs


class _Steps:
    """Runs step tasks and keeps which of them came from the cache."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.done: dict[str, str] = {}

    def run(self, task: Any, key: str, **parameters: Any) -> store.StepResult:
        """The step's result; Prefect's cache counts only while the store holds the files, whole."""
        whole = store.find(self.workspace, task.name, key) is not None
        if self.done.get(task.name) != "run":
            self.done[task.name] = "cached" if whole else "run"
        task.with_options(refresh_cache=not whole)(key=key, workspace=self.workspace, **parameters)
        result = store.find(self.workspace, task.name, key)
        assert result is not None, f"{task.name} is finished but not in the store"
        return result


def _run_name() -> str:
    return f"dpo {Path((flow_run.parameters or {}).get('recipe', '')).parent.name}"


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
    if loaded.model_name == EMBEDDED_MODEL and not embedded_folder(workspace).exists():
        prepare_model(workspace)
    return _run(workspace, loaded, target, repo, started)


def _run(workspace: Workspace, recipe: Recipe, target: Path, repo: str | None, started: float) -> dict[str, Any]:
    run = _Steps(workspace)
    model = find_model(recipe, workspace)
    results: dict[str, Any] = {"source": []}
    for source in [find_source(e, workspace) for e in recipe.mixture.datasets]:
        key = keys.source_key(source, recipe.validation, recipe.mixture.seed)
        checked = run.run(check_dataset, key, source=source, validation=recipe.validation, seed=recipe.mixture.seed)
        results["source"].append(checked)
    sources = results["source"]
    key = keys.mixture_key(sources, recipe.mixture, recipe.validation, evaluation_sources(recipe.validation, workspace))
    mixture = run.run(sample_mixture, key, sources=sources, mixture=recipe.mixture, validation=recipe.validation)
    key = keys.lengths_key(recipe, model, mixture)
    lengths = run.run(count_tokens, key, recipe=recipe, model=model, mixture=mixture)
    for notice in summary.data_notices(sources, mixture, lengths):
        get_run_logger().warning(notice)
    get_run_logger().info("mixture: %s", summary.mixture_line(mixture.info, lengths))

    shared = {"recipe": recipe, "model": model, "mixture": mixture, "lengths": lengths}
    baseline = run.run(evaluate_baseline, keys.baseline_key(recipe, model, mixture), **shared)
    for notice in baseline.info["notices"]:
        get_run_logger().warning(notice)
    key = keys.train_key(recipe, workspace, model, mixture)
    identity = keys.run_identity(recipe, baseline.key, key)
    train = run.run(train_policy, key, **shared, identity=identity)
    policy = run.run(evaluate_policy, keys.policy_key(recipe, model, mixture, train), **shared, train=train)
    results |= {"mixture": mixture, "lengths": lengths, "baseline": baseline, "train": train, "policy": policy}

    links = _links(workspace)
    verdict = run.run(
        reach_verdict,
        keys.verdict_key(recipe, baseline, train, policy),
        recipe=recipe,
        results=results,
        done={**run.done, "verdict": "run"},
        lineage=summary.lineage(recipe, model, results, links),
    )
    results["verdict"] = verdict
    tracked = json_digest([identity, verdict.key, recipe.experiment, recipe.tracking.tags])
    marker = workspace.home / "tracked" / tracked
    runs = summary.read_tracked(marker, workspace)
    if runs is None:
        runs = record_runs(workspace, recipe, results, identity, links)
        summary.write_tracked(marker, workspace, runs)
    if recipe.merge_adapter:
        key = keys.merged_key(recipe, model, train)
        results["merged"] = run.run(merge_adapter, key, recipe=recipe, model=model, train=train)
    outcome = verdict.info["outcome"]
    if repo and outcome == "reject":
        get_run_logger().warning("not pushed to %s: the verdict is reject", repo)
        repo = None
    publish_result(workspace, recipe, model, target, results, repo)
    url = tracking.compare_url(workspace, runs["experiment"], [runs["sft"], runs["policy"]])
    create_link_artifact(url, link_text="SFT against DPO in MLflow", key="mlflow-compare")
    create_markdown_artifact(summary.verdict_markdown(verdict.info), key="verdict")
    hub = push_result(recipe, target, repo, outcome) if repo else None  # last: all else is done if it fails
    return {
        "run_id": runs["policy"],
        "sft_run_id": runs["sft"],
        "verdict": {"outcome": verdict.info["outcome"], "reasons": verdict.info["reasons"]},
        "metrics": verdict.info["metrics"],
        "training_notes": verdict.info["training_notes"],
        "notices": [runs["notice"]] if "notice" in runs else [],
        "steps": run.done,
        "report": str(target / "report.html"),
        "output_dir": str(target),
        "hub": hub,
        "compare_url": url,
        "seconds": round(time.time() - started, 1),
    }


def _links(workspace: Workspace) -> dict[str, str]:
    found = {"git": git_revision(workspace.project), "prefect_flow_run": str(flow_run.id)}
    if flow_run.ui_url and not os.environ.get("PREFTUNE_LOCAL_SERVER"):  # the local one ends with the command
        found["prefect_ui"] = str(flow_run.ui_url)
    return found
