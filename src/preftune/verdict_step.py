"""The step `verdict`: the comparison, the decision, the report."""

from pathlib import Path
from typing import Any

from preftune import keys, store
from preftune.children import read_json_lines
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.summary import length_notices
from preftune.workspace import Workspace


def make_verdict(
    workspace: Workspace,
    key: str,
    recipe: Recipe,
    results: dict[str, Any],
    steps: dict[str, str],
    lineage: dict[str, str],
) -> StepResult:
    """Compares, decides and writes the report.

    Args:
        workspace: Where the store stands.
        key: From `verdict_key`.
        recipe: The resolved recipe.
        results: Step name → its result; `source` holds a list.
        steps: Step name → `cached` or `run`.
        lineage: For the report: label → text.
    """

    def build(folder: Path) -> dict[str, Any]:
        from preftune.plots import standalone_svg
        from preftune.report import ReportInput, render_report, report_charts
        from preftune.training_notes import notes_of
        from preftune.verdict import compare

        places = {step: results[step].folder(workspace) for step in ("mixture", "baseline", "train", "policy")}
        curves = read_json_lines(places["train"] / "metrics.jsonl")
        found = compare(
            places["baseline"],
            places["policy"],
            results["train"].info,
            keys.beta(recipe),
            recipe.gate,
            folder,
            notes_of(curves, recipe),
        )
        mixture = results["mixture"].info
        answers = [read_json_lines(places[s] / "answers.jsonl") for s in ("baseline", "policy")]
        report = ReportInput(
            name=recipe.name,
            verdict=found,
            curves=curves,
            margins=[m for row in read_json_lines(folder / "comparison.jsonl") if (m := row["margin"]) is not None],
            answers=list(zip(*answers, strict=True)),
            sources=[s.info for s in results["source"]],
            mixture={**mixture, "notices": mixture["notices"] + length_notices(results["lengths"])},
            training=results["train"].info,
            recipe=recipe.resolved(),
            steps=steps,
            lineage=lineage,
        )
        (folder / "report.html").write_text(render_report(report), encoding="utf-8")
        (folder / "plots").mkdir(exist_ok=True)
        for name, chart in report_charts(report).items():
            (folder / "plots" / f"{name}.svg").write_text(standalone_svg(chart), encoding="utf-8")
        return {k: found[k] for k in ("outcome", "reasons", "metrics", "training_notes")}

    return store.make(workspace, "verdict", key, build, volatile=("report.html", "plots/*"))
