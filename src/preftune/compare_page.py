"""Runs side by side: a single HTML file like the report, for two or more runs."""

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from preftune.answer_view import SCROLLED, answer_text, mark_differences, messages, shown_text, start_of, within
from preftune.display import cell, judgement, triple, value_text
from preftune.measure_table import MEASURES, PRIMARY, measure_of, ordered
from preftune.pages import render
from preftune.run_comparison import (
    Compared,
    RunEvidence,
    answers_in_common,
    cautions,
    compare_runs,
    differing,
    pairs_in_common,
)

__all__ = ["RunEvidence", "render_compare"]

SEED, OPEN, ROOM = 0, 4, 900_000  # of the order of the prompts; prompts unfolded; bytes of the page
LONGEST_SETTING = 200  # characters
# What only each run's own verdict knows, for it is relative to the run's own SFT model or comes from a judge.
OF_VERDICTS = ("lc_win_rate", "win_rate", "mt_bench/score", "alpaca_eval/lc_win_rate", "alpaca_eval/win_rate")
OF_VERDICTS += ("reward_accuracy", "reward_margin", "kl_per_token")
Row = dict[str, Any]


def _run(run: RunEvidence, label: str) -> Row:
    verdict = run.verdict
    primary = verdict.get("primary")
    return {
        "label": label,
        "name": run.name,
        "run_id": run.run_id,
        "outcome": verdict.get("outcome", ""),
        "reasons": verdict.get("reasons", []),
        "primary": PRIMARY[primary["name"]] if primary else "",
        "value": cell([primary[k] for k in ("value", "low", "high")], "share") if primary else None,
    }


def _measure_row(found: Compared) -> Row:
    _, measure = measure_of(found.name)
    differences = [
        {**cell(d, measure.unit, signed=True), "judgement": judgement(d, measure.better)} for d in found.differences
    ]
    return {
        "label": measure.label,
        "name": found.name,
        "n": found.n,
        "values": [value_text(v, measure.unit) for v in found.values],
        "differences": differences,
    }


def _groups(found: Sequence[Compared]) -> dict[str, list[Row]]:
    by_name = {c.name: c for c in found}
    groups: dict[str, list[Row]] = {group: [] for group in MEASURES}
    for name in ordered(list(by_name)):
        groups[measure_of(name)[0]].append(_measure_row(by_name[name]))
    return {group: rows for group, rows in groups.items() if rows}


def _of_verdicts(runs: Sequence[RunEvidence]) -> list[Row]:
    """Measures that each run's verdict tells, without a paired difference."""
    metrics = [run.verdict.get("metrics", {}).get("policy", {}) for run in runs]
    return [
        {
            "label": measure_of(name)[1].label,
            "name": name,
            "cells": [cell(triple(found, name), measure_of(name)[1].unit) for found in metrics],
        }
        for name in OF_VERDICTS
        if any(found.get(name) is not None for found in metrics)
    ]


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_SETTING else f"{text[:LONGEST_SETTING]} …"


def _settings(found: Sequence[Row]) -> list[tuple[str, list[str]]]:
    return [(name, [_setting(v) for v in values]) for name, values in differing(found)]


def _articles(rows: Sequence[tuple[Row, ...]], labels: Sequence[str]) -> Iterator[Row]:
    """Prompts with each run's answer; the others' words that the first one's answer lacks are marked."""
    for answers in rows:
        first, *others = [
            answer_text(f"Run {label}", "dpo" if i else "sft", row)
            for i, (label, row) in enumerate(zip(labels, answers, strict=True))
        ]
        notes = []
        for label, other in zip(labels[1:], others, strict=True):
            against = first if len(others) == 1 else dict(first)  # marked itself only where one other is shown
            if note := mark_differences(against, other):
                notes.append(f"Runs 1 and {label}: {note}" if len(others) > 1 else note)
        chosen = shown_text("Chosen in the dataset", "chosen", answers[0]["chosen"])
        turn = {"prompt": messages(answers[0]["prompt"]), "texts": [first, *others, chosen], "note": " ".join(notes)}
        stopped = [f"run {label}" for label, row in zip(labels, answers, strict=True) if not row["stopped"]]
        yield {
            "id": answers[0]["row_id"],
            "why": "",
            "start": start_of(answers[0]["prompt"]),
            "cut": " and ".join(stopped),
            "turns": [{**turn, "judged": [], "graded": []}],
        }


def render_compare(runs: list[RunEvidence]) -> str:
    """Renders the comparison.

    Args:
        runs: Two or more; the first is the one that the others are compared with.

    Returns:
        One HTML document without any link or external reference; the same for the same runs.

    Raises:
        UserError: If there are fewer than two runs, or no held-out pair in common.
    """
    labels = [str(i) for i in range(1, len(runs) + 1)]
    pairs = pairs_in_common(runs)
    answers = answers_in_common(runs)
    shuffled = random.Random(SEED).sample(answers, len(answers))
    articles = within(_articles(shuffled, labels), ROOM)
    return render(
        "compare.html.j2",
        runs=[_run(run, label) for run, label in zip(runs, labels, strict=True)],
        pairs=len(pairs),
        measured=[(label, len(run.pairs)) for run, label in zip(runs, labels, strict=True)],
        cautions=cautions(runs),
        groups=_groups(compare_runs(runs)),
        of_verdicts=_of_verdicts(runs),
        recipe=_settings([run.recipe for run in runs]),
        lineage=_settings([run.lineage for run in runs]),
        articles=articles,
        prompts=len(answers),
        open=OPEN,
        long=SCROLLED,
        seed=SEED,
    )
