"""A built dataset in MLflow: one run of the kind `pairs`, with its card, its lineage and what was left out."""

from pathlib import Path
from typing import Any

from preftune import tracking
from preftune.own_pairs.origin import Plan
from preftune.store import StepResult

KIND = "pairs"


def record_pairs(plan: Plan, results: dict[str, StepResult], links: dict[str, str]) -> dict[str, str]:
    """Makes the run, or finds it: the same dataset is recorded once.

    Args:
        plan: What was made.
        results: Step → result: prompts, completions, scores (where there is a scorer), pairs.
        links: Label → text, for the run's note.

    Returns:
        {"experiment": id, "run": id}.
    """
    workspace, recipe, pairs = plan.workspace, plan.recipe, results["pairs"]
    client = tracking.connect(workspace)
    experiment = tracking.experiment_id(client, workspace, recipe.experiment)
    tags = {"preftune.kind": KIND, **recipe.tracking.tags}
    run = tracking.open_run(client, experiment, pairs.key, f"{recipe.name} pairs", tags)
    folder = pairs.folder(workspace) / "dataset"
    tracking.record(
        client,
        run,
        content=pairs.key,
        params={"pairs": plan.settings.model_dump(mode="json"), "model": plan.model.name},
        metrics=_metrics(results),
        curves=[],
        datasets=_datasets(plan, results),
        artifacts=[(path, _place(path, folder)) for path in sorted(folder.rglob("*")) if path.is_file()],
        tags={"mlflow.note.content": _note(plan, pairs, links)},
    )
    return {"experiment": experiment, "run": run}


def _place(path: Path, folder: Path) -> str:
    place = path.parent.relative_to(folder.parent)
    return str(place)


def _metrics(results: dict[str, StepResult]) -> dict[str, float | None]:
    pairs, prompts, completions = results["pairs"].info, results["prompts"].info, results["completions"].info
    left = sum(n for reasons in pairs["left_out"].values() for n in reasons.values())
    counts = {"pairs": pairs["train"] + pairs["test"], **{k: v for k, v in pairs.items() if k != "left_out"}}
    counts |= {"prompts": prompts["kept"], "answers": completions["answers"], "left_out": left}
    return {name: float(value) for name, value in counts.items()}


def _datasets(plan: Plan, results: dict[str, StepResult]) -> list[dict[str, Any]]:
    prompts, pairs = results["prompts"], results["pairs"]
    asked = {k: prompts.info[k] for k in ("read", "kept")}
    made = {k: pairs.info[k] for k in ("train", "test")}
    return [
        {"name": plan.settings.prompts.id, "digest": prompts.digest, "context": "prompts", "profile": asked},
        {"name": plan.output.name, "digest": pairs.digest, "context": "pairs", "profile": made},
    ]


def _note(plan: Plan, pairs: StepResult, links: dict[str, str]) -> str:
    total = pairs.info["train"] + pairs.info["test"]
    lines = {"folder": plan.workspace.display(plan.output), **links}
    return f"**{total} pairs**\n" + "".join(f"\n- {k}: {v}" for k, v in lines.items())
