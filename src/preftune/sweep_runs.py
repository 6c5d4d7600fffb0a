"""A sweep in MLflow: one run for the sweep, each trial a child of it.

A trial's run is its own, also where the very same run was made outside of the sweep: that one stays where it is, and
the trial's holds the same numbers. So a sweep takes nothing out of anybody's table. Steps are shared all the same.
"""

import tempfile
from pathlib import Path
from typing import Any

from preftune import tracking
from preftune.digest import json_digest
from preftune.schema import Recipe
from preftune.sweep_ranking import best_of, text_of
from preftune.sweep_schema import Sweep
from preftune.sweep_space import label
from preftune.workspace import Workspace

PARENT_TAG = "mlflow.parentRunId"
KIND = "sweep"


def sweep_key(recipe: Recipe, identity: str, place: str) -> str:
    """Key of a sweep: what its trials have in common, what is tried, and where it is recorded. Not how many trials:
    a sweep can be made longer.

    Args:
        recipe: The sweep's recipe, with its section.
        identity: `run_identity` of the recipe's own run.
        place: MLflow's address.
    """
    assert recipe.sweep is not None
    space = recipe.sweep.model_dump(mode="json", exclude={"trials", "stop_hopeless"})
    return json_digest({"sweep": space, "run": identity, "recorded": [place, recipe.experiment]})


def trial_identity(sweep_key: str, run_identity: str) -> str:
    """What makes a trial's MLflow run: the sweep, and the run that it would be on its own (`keys.run_identity`)."""
    return json_digest({"sweep": sweep_key, "run": run_identity})


def open_sweep(workspace: Workspace, recipe: Recipe, sweep: Sweep, key: str) -> dict[str, str]:
    """The sweep's run, made when missing: {"experiment": id, "run": id}."""
    client = tracking.connect(workspace)
    experiment = tracking.experiment_id(client, workspace, recipe.experiment)
    name = f"{recipe.name} sweep {' '.join(sweep.parameters)}"
    run = tracking.open_run(client, experiment, key, name[:250], {"preftune.kind": KIND, **recipe.tracking.tags})
    return {"experiment": experiment, "run": run}


def open_trial(workspace: Workspace, recipe: Recipe, identity: str, parent: str, number: int, values: Any) -> None:
    """Makes a trial's run below the sweep's, before its training sends anything to it."""
    client = tracking.connect(workspace)
    experiment = tracking.experiment_id(client, workspace, recipe.experiment)
    tags = {"preftune.kind": "dpo", PARENT_TAG: parent}
    tracking.open_run(client, experiment, identity, f"trial {number} {label(values)}"[:250], tags)


def adopt(workspace: Workspace, run: str, parent: str) -> None:
    """Puts a trial's run below the sweep's, should MLflow have been away when the trial began."""
    tracking.connect(workspace).set_tag(run, PARENT_TAG, parent)


def end_trial(workspace: Workspace, recipe: Recipe, identity: str, stopped: bool, why: str) -> None:
    """Marks the run of a trial that has no verdict: killed if it was stopped early, else failed; with the reason."""
    client = tracking.connect(workspace)
    experiment = tracking.experiment_id(client, workspace, recipe.experiment)
    run = tracking.open_run(client, experiment, identity, tracking.run_name(recipe, "dpo"), {"preftune.kind": "dpo"})
    client.set_tag(run, "mlflow.note.content", why)
    client.set_terminated(run, "KILLED" if stopped else "FAILED")


def record_sweep(
    workspace: Workspace,
    runs: dict[str, str],
    sweep: Sweep,
    rows: list[dict[str, Any]],
    files: dict[str, str],
    links: dict[str, str],
) -> None:
    """Completes the sweep's run: what was tried, the ranked table, the page, the best recipe.

    Args:
        workspace: Where MLflow is.
        runs: From `open_sweep`.
        sweep: The recipe's section.
        rows: From `sweep_ranking.ranked`.
        files: From `sweep_page.sweep_files`.
        links: Label → text, for the run's note.
    """
    best = best_of(rows)
    count = {state: sum(row["state"] == state for row in rows) for state in ("done", "stopped", "failed", "open")}
    metrics: dict[str, float | None] = {f"trials/{state}": float(n) for state, n in count.items()}
    note = "no trial without a reject" if best is None else f"best: {label(best['values'])}: {text_of(best)}"
    if best:
        metrics |= {
            f"best/{best['measure']}{end}": best[k] for k, end in (("value", ""), ("low", "_lo"), ("high", "_hi"))
        }
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in files.items():
            (Path(scratch) / name).write_text(text, encoding="utf-8")
        tracking.record(
            tracking.connect(workspace),
            runs["run"],
            content=json_digest(files),
            params={"sweep": sweep.model_dump(mode="json", exclude={"trials"})},
            metrics=metrics,
            curves=[],
            datasets=[],
            artifacts=[(Path(scratch) / name, "") for name in files],
            tags={"mlflow.note.content": f"**{note}**\n" + "".join(f"\n- {k}: {v}" for k, v in links.items())},
        )
