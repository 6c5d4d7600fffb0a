"""MT-Bench scores (single-answer grading from 1 to 10, arXiv 2306.05685): per model, turn and category, in pairs."""

import math
from typing import Any

from preftune.comparison_inputs import Inputs
from preftune.measures import mean


def mt_bench_scores(inputs: Inputs) -> dict[str, Any] | None:
    """verdict.json's `mt_bench`; None without grades.

    Both models are averaged over the same answers: question and turn, where both have a grade. Turns of one question
    belong together in the intervals.
    """
    if not inputs.grades:
        return None
    grades: dict[str, dict[tuple[str, int], float]] = {"sft": {}, "policy": {}}
    category = {}
    for row in inputs.grades:
        category[row["id"]] = row["category"] or "other"
        if isinstance(row["score"], int | float) and math.isfinite(row["score"]):
            grades[row["who"]][row["id"], row["turn"]] = row["score"]
    places = sorted(grades["sft"].keys() & grades["policy"].keys())

    def of(who: str, at: list[tuple[str, int]]) -> list[float]:
        return list(mean([grades[who][p] for p in at], [p[0] for p in at]))

    def difference(at: list[tuple[str, int]]) -> list[float]:
        return list(mean([grades["policy"][p] - grades["sft"][p] for p in at], [p[0] for p in at]))

    turns = {f"turn_{turn}": [p for p in places if p[1] == turn] for turn in sorted({p[1] for p in places})}
    by_category = {name: [p for p in places if category[p[0]] == name] for name in sorted(set(category.values()))}
    return {
        "n": len(places),
        "missing": len({(r["id"], r["turn"]) for r in inputs.grades}) - len(places),
        **{
            who: {"score": of(who, places), **{name: of(who, at) for name, at in turns.items()}}
            for who in ("sft", "policy")
        },
        "difference": difference(places),
        "by_category": {
            name: {"n": len(at), "sft": of("sft", at), "policy": of("policy", at), "difference": difference(at)}
            for name, at in by_category.items()
            if at
        },
    }
