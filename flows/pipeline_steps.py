"""What the flows share: running cached steps, the data's part, and the part from two evaluated models to MLflow."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from flows.artifacts import show_data, show_verdict
from preftune import keys, store, summary
from preftune.data.decontamination import evaluation_sources
from preftune.data.sources import Source, find_source
from preftune.digest import json_digest
from preftune.judges.find import find_judge
from preftune.lineage import lineage
from preftune.models import StartingModel, embedded_folder, find_model
from preftune.policies import find_policy, read_policy
from preftune.preflight import check_built
from preftune.publish import git_revision
from preftune.schema import EMBEDDED_MODEL, Recipe
from preftune.tracking_address import check_tracking
from preftune.workspace import Workspace
from tasks.data import check_dataset, count_tokens, sample_mixture
from tasks.gpu import evaluate_baseline, evaluate_policy, judge_answers, prepare_model, train_policy
from tasks.policy import wait_for_server
from tasks.results import reach_verdict, record_runs


@dataclass
class Steps:
    """One run's cached steps.

    Args:
        workspace: Where the store stands.
        done: Step name → `cached` or `run`.
    """

    workspace: Workspace
    done: dict[str, str] = field(default_factory=dict, kw_only=True)

    def run(self, task: Any, key: str, **parameters: Any) -> store.StepResult:
        """The step's result; Prefect's cache counts only while the store holds the files, whole."""
        whole = store.find(self.workspace, task.name, key) is not None
        if self.done.get(task.name) != "run":
            self.done[task.name] = "cached" if whole else "run"
        task.with_options(refresh_cache=not whole)(key=key, workspace=self.workspace, **parameters)
        result = store.find(self.workspace, task.name, key)
        assert result is not None, f"{task.name} is finished but not in the store"
        return result


@dataclass
class Pipeline(Steps):
    """One run's steps: what they work on, and what came out.

    Args:
        recipe: The resolved recipe.
        model: The starting model.
        sources: The datasets as they are now.
        results: Step name → its result; `source` holds a list.
    """

    recipe: Recipe
    model: StartingModel
    sources: list[Source] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        """What every step that loads a model is given."""
        mixture, lengths = self.results["mixture"], self.results["lengths"]
        return {"recipe": self.recipe, "model": self.model, "mixture": mixture, "lengths": lengths}


def begin(workspace: Workspace, recipe: Recipe) -> Pipeline:
    """Checks what MLflow needs; finds the datasets and the starting model; fetches the embedded one when it is not
    there."""
    check_tracking(workspace)
    check_built(recipe, workspace)
    if recipe.model_name == EMBEDDED_MODEL and not embedded_folder(workspace).exists():
        prepare_model(workspace)
    sources = [find_source(e, workspace) for e in recipe.mixture.datasets]
    return Pipeline(workspace, recipe, find_model(recipe, workspace), sources)


def run_data(pipeline: Pipeline) -> None:
    """Checks the datasets, samples the mixture, counts its tokens, and measures the SFT model on what is held out."""
    run, recipe, workspace, model = pipeline.run, pipeline.recipe, pipeline.workspace, pipeline.model
    sources = []
    for source in pipeline.sources:
        key = keys.source_key(source, recipe.validation, recipe.mixture.seed)
        checked = run(check_dataset, key, source=source, validation=recipe.validation, seed=recipe.mixture.seed)
        sources.append(checked)
    key = keys.mixture_key(sources, recipe.mixture, recipe.validation, evaluation_sources(recipe.validation, workspace))
    mixture = run(sample_mixture, key, sources=sources, mixture=recipe.mixture, validation=recipe.validation)
    key = keys.lengths_key(recipe, model, mixture)
    lengths = run(count_tokens, key, recipe=recipe, model=model, mixture=mixture)
    pipeline.results |= {"source": sources, "mixture": mixture, "lengths": lengths}
    for notice in summary.data_notices(sources, mixture, lengths):
        get_run_logger().warning(notice)
    show_data(sources, mixture, lengths)
    get_run_logger().info("mixture: %s", summary.mixture_line(mixture.info, lengths))
    baseline = run(evaluate_baseline, keys.baseline_key(recipe, workspace, model, mixture), **pipeline.data)
    for notice in baseline.info["notices"]:
        get_run_logger().warning(notice)
    pipeline.results["baseline"] = baseline


def run_training(
    pipeline: Pipeline,
    identify: Callable[[str], str] | None = None,
    check: Callable[[Path], None] | None = None,
) -> str:
    """Trains and evaluates the policy; returns the identity of its MLflow run.

    Args:
        pipeline: With the data's part done.
        identify: Given the identity that a run of its own would have, returns the one to use; before the training.
        check: Given the file of metrics while it trains; what it raises ends the training.
    """
    run, recipe, results = pipeline.run, pipeline.recipe, pipeline.results
    workspace, model, mixture = pipeline.workspace, pipeline.model, results["mixture"]
    key = keys.train_key(recipe, workspace, model, mixture)
    identity = keys.run_identity(recipe, results["baseline"].key, key)
    if identify:
        identity = identify(identity)
    train = run(train_policy, key, **pipeline.data, identity=identity, check=check)
    trained = find_policy(str(train.folder(workspace) / "model"), workspace, model)
    key = keys.policy_key(recipe, workspace, model, mixture, trained.digest)
    policy = run(evaluate_policy, key, **pipeline.data, policy=trained.folder)
    results |= {"train": train, "policy": policy}
    return identity


def run_verdict(pipeline: Pipeline, identity: str) -> dict[str, str]:
    """Judges the answers where the recipe names a judge, decides, and records both models in MLflow.

    Args:
        pipeline: With the policy's evaluation; the training's result too, if it was trained here.
        identity: Of the policy's MLflow run, from `keys.run_identity`.

    Returns:
        {"experiment": id, "sft": run id, "policy": run id}, and "notice" if MLflow was away during training.
    """
    run, recipe, workspace, results = pipeline.run, pipeline.recipe, pipeline.workspace, pipeline.results
    if recipe.evaluation.judge is not None:
        judge = find_judge(recipe.evaluation.judge, workspace)
        judged = {"baseline": results["baseline"], "policy": results["policy"]}
        key = keys.judge_key(judge, workspace, **judged)
        results["judge"] = run(judge_answers, key, judge=judge, **judged)
    links = run_links(workspace)
    verdict = run(
        reach_verdict,
        keys.verdict_key(recipe, results),
        recipe=recipe,
        results=results,
        done={**pipeline.done, "verdict": "run"},
        lineage=summary.lineage(recipe, pipeline.model, results, links),
    )
    results["verdict"] = verdict
    tracked = json_digest([identity, verdict.key, recipe.experiment, recipe.tracking.tags])
    marker = workspace.home / "tracked" / tracked
    runs = summary.read_tracked(marker, workspace)
    if runs is None:
        runs = record_runs(workspace, recipe, results, identity, links, origin(pipeline))
        summary.write_tracked(marker, workspace, runs)
    return runs


def origin(pipeline: Pipeline) -> dict[str, str]:
    """What the policy is, as tags: `policy` (digest); where it was trained here its lineage, and `train` (key)."""
    workspace, results = pipeline.workspace, pipeline.results
    found = lineage(pipeline.recipe, workspace, pipeline.model, pipeline.sources)
    if train := results.get("train"):
        policy = read_policy(train.folder(workspace) / "model", workspace)
        return {**found, "policy": policy.digest, "train": train.key}
    return {n: found[n] for n in ("sft_model", "sft_weights")} | {"policy": results["evaluated"].digest}


def finish(pipeline: Pipeline, runs: dict[str, str], report: str) -> dict[str, Any]:
    """Puts the verdict and its links on the flow run's page, and tells Prefect's automations.

    Returns:
        What every run's summary holds (docs/json.md).
    """
    found = pipeline.results["verdict"].info
    wait_for_server()
    url = show_verdict(pipeline.workspace, pipeline.recipe, found, runs, report)
    return {
        "run_id": runs["policy"],
        "sft_run_id": runs["sft"],
        "verdict": {k: found[k] for k in ("outcome", "reasons", "advice")},
        "metrics": found["metrics"],
        "training_notes": found["training_notes"],
        "notices": [runs["notice"]] if "notice" in runs else [],
        "steps": pipeline.done,
        "report": report,
        "compare_url": url,
    }


def run_links(workspace: Workspace) -> dict[str, str]:
    """The git revision and this flow run, as label → text."""
    found = {"git": git_revision(workspace.project), "prefect_flow_run": str(flow_run.id)}
    page = url_for("flow-run", flow_run.id)  # runtime's ui_url is an address of older versions
    if page and not os.environ.get("PREFTUNE_LOCAL_SERVER"):  # the local one ends with the command
        found["prefect_ui"] = page
    return found
