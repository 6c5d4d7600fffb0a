"""A sweep as one HTML page, and all that stands beside it in the sweep's folder."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.digest import json_digest
from preftune.display import cell
from preftune.measure_table import measure_of
from preftune.pages import render
from preftune.plots import standalone_svg
from preftune.publish import publish
from preftune.schema import Recipe
from preftune.sweep_plot import parallel_coordinates
from preftune.sweep_ranking import best_of, best_recipe, csv_text, markdown_text, ranked
from preftune.sweep_schema import Range, Sweep
from preftune.sweep_space import shown, watched
from preftune.sweep_study import Trial
from preftune.workspace import Workspace


def _tried(wanted: Any) -> str:
    """What was tried of a key, in words."""
    if not isinstance(wanted, Range):
        return ", ".join(shown(v) for v in wanted)
    scale = " on a logarithmic scale" if wanted.log else f" in steps of {wanted.step:g}" if wanted.step else ""
    return f"{wanted.low:g} to {wanted.high:g}{scale}"


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    found: Any = (
        cell((row["value"], row["low"], row["high"]), measure_of(row["measure"])[1].unit) if row["rank"] else None
    )
    reasons = row.get("reasons") or [row["why"]]
    return {**row, "cell": found, "cells": [shown(v) for v in row["values"].values()], "reasons": reasons}


def render_sweep(
    recipe: Recipe, sweep: Sweep, measure: str, rows: Sequence[Mapping[str, Any]], notices: list[str]
) -> str:
    """The page: the best trial, the ranked table, the chart, and how the best one is confirmed.

    Args:
        recipe: The sweep's recipe.
        sweep: Its section.
        measure: What the trials are ranked by.
        rows: From `sweep_ranking.ranked`.
        notices: What is to be known of the comparison.

    Returns:
        One HTML document without any link or external reference.
    """
    best = best_of(rows)
    return render(
        "sweep.html.j2",
        name=recipe.name,
        best=_row(best) if best else None,
        measure=measure_of(measure)[1],
        search=sweep.search,
        seed=sweep.seed,
        tried=[(name, _tried(wanted)) for name, wanted in sweep.parameters.items()],
        keys=list(sweep.parameters),
        rows=[_row(row) for row in rows],
        done=sum(row["state"] == "done" for row in rows),
        stopped=sum(row["state"] == "stopped" for row in rows),
        watched=watched(sweep)[0],
        chart=parallel_coordinates(sweep, rows),
        notices=notices,
    )


def sweep_files(
    recipe: Recipe,
    overrides: Mapping[str, Any],
    sweep: Sweep,
    measure: str,
    rows: list[dict[str, Any]],
    notices: list[str],
) -> dict[str, str]:
    """Name → content of what stands in the sweep's folder: sweep.html, sweep.csv, the chart, and best.yaml if there is
    a best one."""
    best, chart = best_of(rows), parallel_coordinates(sweep, rows)
    files = {"sweep.html": render_sweep(recipe, sweep, measure, rows, notices), "sweep.csv": csv_text(rows)}
    if chart:
        files["parallel-coordinates.svg"] = standalone_svg(chart)
    if best:
        done = sum(row["state"] == "done" for row in rows)
        files["best.yaml"] = best_recipe(Path(recipe.path), overrides, best, done)
    return files


def _notices(trials: Sequence[Trial], baseline: str) -> list[str]:
    """What is to be known before the ranks are believed."""
    found = []
    if other := [str(t.number) for t in trials if t.state == "done" and t.found["baseline"] != baseline]:
        found.append(
            f"trial {', '.join(other)}: measured against another evaluation of the SFT model (other pairs, or another "
            "max_length), so not on the same items as the others"
        )
    if left := [str(t.number) for t in trials if t.state == "open"]:
        found.append(f"trial {', '.join(left)}: failed for a reason that may pass; the same command tries again")
    return found


def publish_sweep(
    workspace: Workspace,
    recipe: Recipe,
    overrides: Mapping[str, Any],
    sweep: Sweep,
    measure: str,
    trials: Sequence[Trial],
    baseline: str,
    target: Path,
) -> dict[str, Any]:
    """Ranks the trials and fills the sweep's folder, as a whole or not at all.

    Args:
        workspace: Where it is made.
        recipe: The sweep's recipe.
        overrides: The sweep's.
        sweep: The recipe's section.
        measure: What is ranked by.
        trials: All of them.
        baseline: Key of the baseline that the trials share.
        target: The folder.

    Returns:
        Of the sweep's summary: `measure`, `planned`, `trials`, `best`, `notices`, `folder`, `report`, `recipe`; and
        `files` (name → content), `table` (Markdown).
    """
    rows, notices = ranked(trials), _notices(trials, baseline)
    files = sweep_files(recipe, overrides, sweep, measure, rows, notices)
    with tempfile.TemporaryDirectory(dir=workspace.home) as scratch:
        for name, text in files.items():
            (Path(scratch) / name).write_text(text, encoding="utf-8")
        publish(target, json_digest(files), {"": Path(scratch)}, dict)
    best = best_of(rows)
    return {
        "measure": measure,
        "planned": sweep.planned,
        "trials": rows,
        "best": best,
        "notices": notices,
        "folder": str(target),
        "report": str(target / "sweep.html"),
        "recipe": str(target / "best.yaml") if best else None,
        "files": files,
        "table": markdown_text(rows, measure),
    }
