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
        from preftune.report import render_report, report_charts
        from preftune.training_notes import notes_of
        from preftune.verdict import compare

        places = {n: r.folder(workspace) for n, r in results.items() if n not in ("source", "evaluated")}
        train = results.get("train")
        curves = read_json_lines(places["train"] / "metrics.jsonl") if train else []
        found = compare(
            places["baseline"],
            places["policy"],
            train.info if train else None,
            keys.beta(recipe),
            recipe.gate,
            folder,
            notes_of(curves, recipe) if train else (),
            places.get("judge"),
        )
        report = _report_input(recipe, results, places, folder, found, curves, steps, lineage)
        (folder / "report.html").write_text(render_report(report), encoding="utf-8")
        (folder / "plots").mkdir(exist_ok=True)
        for name, chart in report_charts(report).items():
            (folder / "plots" / f"{name}.svg").write_text(standalone_svg(chart), encoding="utf-8")
        return {k: found[k] for k in ("outcome", "reasons", "advice", "metrics", "training_notes")}

    return store.make(workspace, "verdict", key, build, volatile=("report.html", "plots/*"))


def _report_input(
    recipe: Recipe,
    results: dict[str, Any],
    places: dict[str, Path],
    folder: Path,
    verdict: dict[str, Any],
    curves: list[dict[str, Any]],
    steps: dict[str, str],
    lineage: dict[str, str],
) -> Any:
    from preftune.data.mixture import load_pairs
    from preftune.report_input import ReportInput

    mixture = results["mixture"].info

    def both(name: str) -> list[tuple[Any, Any]]:
        return list(zip(*(read_json_lines(places[s] / f"{name}.jsonl") for s in ("baseline", "policy")), strict=True))

    def judged(name: str) -> list[dict[str, Any]]:
        return read_json_lines(places["judge"] / f"{name}.jsonl") if "judge" in places else []

    return ReportInput(
        name=recipe.name,
        policy_name=recipe.method.upper() if "train" in results else "policy",
        verdict=verdict,
        curves=curves,
        comparison=read_json_lines(folder / "comparison.jsonl"),
        pairs=load_pairs(places["mixture"] / "test.jsonl"),
        answers=both("answers"),
        suite_answers=both("suite_answers"),
        judgements=judged("judgements"),
        grades=judged("grades"),
        sources=[s.info for s in results["source"]],
        mixture={**mixture, "notices": mixture["notices"] + length_notices(results["lengths"])},
        training=results["train"].info if "train" in results else None,
        recipe=recipe.resolved(),
        steps=steps,
        lineage=lineage,
    )
