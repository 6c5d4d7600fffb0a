"""Win rates from a judge's verdicts: raw (FastChat's protocol, arXiv 2306.05685) and at equal length.

Every pair of answers is judged in both orders; a disagreement is a tie. The win rate is (wins + ½ ties)/n over the
comparisons with a verdict; comparisons without one are counted as errors, never dropped in silence.
"""

import math
from collections.abc import Hashable
from typing import Any, NamedTuple

from preftune.comparison_inputs import Both, Inputs, Row
from preftune.errors import StepError
from preftune.length_control import length_controlled
from preftune.measures import Triple, mean
from preftune.schema import Gate
from preftune.statistics import ratio_interval, wilson

_OUTCOMES = (0.0, 0.5, 1.0)


class Comparison(NamedTuple):
    """Two answers that are to be compared.

    Args:
        id: The question's.
        turn: From 1.
        lengths: Of the answers in characters: (the first side's, the second side's).
    """

    id: str
    turn: int
    lengths: tuple[int, int]


def _wanted(inputs: Inputs) -> dict[tuple[str, tuple[str, str]], list[Comparison]]:
    """All comparisons that there should be: (suite, sides) → comparisons."""
    wanted: dict[tuple[str, tuple[str, str]], list[Comparison]] = {}
    models = ("sft", "policy")
    wanted["held_out", models] = [
        Comparison(s["row_id"], 1, (len(s["text"]), len(p["text"]))) for s, p in inputs.answers
    ]
    for suite, rows in inputs.suites.items():
        for s, p in rows:
            if suite == "alpaca_eval":
                reference = len(s["reference"][0])
                for who, row in zip(models, (s, p), strict=True):
                    lengths = reference, len(row["turns"][0]["text"])
                    wanted.setdefault((suite, ("reference", who)), []).append(Comparison(s["id"], 1, lengths))
                continue
            for turn, (a, b) in enumerate(zip(s["turns"], p["turns"], strict=True), 1):
                found = Comparison(s["id"], turn, (len(a["text"]), len(b["text"])))
                wanted.setdefault((suite, models), []).append(found)
    return wanted


def _outcome(row: Row | None) -> float | None:
    return row["outcome"] if row is not None and row["outcome"] in _OUTCOMES else None


def _raw(outcomes: list[float], groups: list[Hashable] | None) -> Triple:
    """(wins + ½ ties)/n with a bootstrap interval over questions; Wilson's where all outcomes are equal, and resamples
    would all be alike."""
    if outcomes and len(set(outcomes)) == 1:
        n = len(set(groups)) if groups else len(outcomes)
        return outcomes[0], *wilson(outcomes[0] * n, n)
    return mean(outcomes, groups)


def win_rate(wanted: list[Comparison], rows: list[Row]) -> dict[str, Any]:
    """One entry of verdict.json's `win_rates`: of the second side against the first.

    Args:
        wanted: All comparisons that there should be.
        rows: Their lines of judgements.jsonl.
    """
    found = {(row["id"], row["turn"]): row for row in rows}
    if strange := set(found) - {(c.id, c.turn) for c in wanted}:
        raise StepError(
            f"the judge compared an answer that nobody gave: {sorted(strange)[0][0]}",
            "judgements.jsonl",
            "it belongs to another evaluation: remove the judge's folder from the store and run again",
        )
    judged = [
        (c, found[c.id, c.turn], outcome)
        for c in wanted
        if (outcome := _outcome(found.get((c.id, c.turn)))) is not None
    ]
    outcomes = [outcome for *_, outcome in judged]
    delta = [c.lengths[1] - c.lengths[0] for c, *_ in judged]
    several_turns = any(c.turn > 1 for c in wanted)
    groups: list[Hashable] | None = [c.id for c, *_ in judged] if several_turns else None
    controlled = length_controlled(outcomes, delta, groups)
    decided = [(d, o) for d, o in zip(delta, outcomes, strict=True) if d != 0 and o != 0.5]
    return {
        "n": len(judged),
        "wins": outcomes.count(1.0),
        "ties": outcomes.count(0.5),
        "losses": outcomes.count(0.0),
        "raw": list(_raw(outcomes, groups)),
        "controlled": [controlled.value, controlled.low, controlled.high] if judged else None,
        "identified": controlled.identified,
        "why": controlled.problem,
        "fitted": list(controlled.fitted),
        "balanced": list(controlled.balanced),
        "length_ratio": list(_length_ratio(wanted)),
        "longer_share": sum(d > 0 for d in delta) / len(delta) if delta else math.nan,
        "longer_wins": sum((d > 0) == (o == 1) for d, o in decided) / len(decided) if decided else math.nan,
        "missing": len(wanted) - len(judged),
        "flip_rate": _flip_rate(rows),
    }


def _length_ratio(wanted: list[Comparison]) -> Triple:
    if not wanted:
        return math.nan, math.nan, math.nan
    return ratio_interval([c.lengths[1] for c in wanted], [c.lengths[0] for c in wanted])


def _flip_rate(rows: list[Row]) -> float:
    """Share of the comparisons with two verdicts in which they disagree."""
    judged = [row["flipped"] for row in rows if _outcome(row) is not None]
    return sum(judged) / len(judged) if judged else math.nan


def win_rates(inputs: Inputs) -> dict[str, Any]:
    """verdict.json's `win_rates`, by suite; nothing without a judge.

    Raises:
        StepError: The verdicts belong to other answers.
    """
    if inputs.judge is None:
        return {}
    rates: dict[str, Any] = {}
    for (suite, sides), wanted in _wanted(inputs).items():
        rows = [r for r in inputs.judgements if r["suite"] == suite and tuple(r["pair"]) == sides]
        if suite == "alpaca_eval":
            rates.setdefault(suite, {})[sides[1]] = win_rate(wanted, rows)
        elif wanted:
            rates[suite] = win_rate(wanted, rows)
    if "alpaca_eval" in rates:
        rates["alpaca_eval"]["difference"] = list(_against_reference(inputs))
    return rates


def _against_reference(inputs: Inputs) -> Triple:
    """AlpacaEval: the policy's raw win rate less SFT's, on the questions where both have a verdict."""
    outcome = {
        (r["id"], r["pair"][1]): value
        for r in inputs.judgements
        if r["suite"] == "alpaca_eval" and (value := _outcome(r)) is not None
    }
    both = [
        outcome[s["id"], "policy"] - outcome[s["id"], "sft"]
        for s, _ in inputs.suites["alpaca_eval"]
        if (s["id"], "policy") in outcome and (s["id"], "sft") in outcome
    ]
    return mean(both)


def judge_summary(inputs: Inputs, gate: Gate) -> dict[str, Any] | None:
    """verdict.json's `judge`: whether its verdicts on the held-out prompts, which decide, can be used.

    Args:
        inputs: The rows.
        gate: Its bars on flips and errors.
    """
    if inputs.judge is None:
        return None
    rows = [r for r in inputs.judgements if r["suite"] == "held_out"]
    wanted = len(inputs.answers)
    judged = sum(_outcome(r) is not None for r in rows)
    flips = _flip_rate(rows)
    errors = (wanted - judged) / wanted if wanted else math.nan
    about = inputs.judge
    why = None
    if not errors <= gate.max_judge_errors:
        said = ", ".join(f"{n} × {reason}" for reason, n in (about.get("errors") or {}).items())
        why = f"{errors:.1%} of the comparisons have no verdict (allowed: {gate.max_judge_errors:.0%})"
        why += f"; {said}" if said else ""
        why += f"; it was stopped: {about['stopped']}" if about.get("stopped") else ""
    elif not flips <= gate.max_flip_rate:
        why = f"{flips:.1%} of its verdicts change with the order of the answers (allowed: {gate.max_flip_rate:.0%})"
    return {
        "kind": about["kind"],
        "model": about["model"],
        "comparisons": wanted,
        "flip_rate": flips,
        "error_rate": errors,
        "position_bias": _position_bias(rows),
        "usable": why is None,
        "why": why,
        **{
            k: about.get(k)
            for k in ("requests", "cached", "prompt_tokens", "completion_tokens", "cost", "errors", "stopped")
        },
    }


def _position_bias(rows: list[Row]) -> float:
    """Share of the verdicts with a winner that name the answer shown first; ½ without bias."""
    first = [
        order["winner"] == shown
        for row in rows
        for order, shown in zip(row["orders"], row["pair"], strict=True)
        if order["winner"] in row["pair"]
    ]
    return sum(first) / len(first) if first else math.nan


def texts_identical(answers: list[Both]) -> float:
    """Share of prompts that both models answer with the same text."""
    return sum(s["text"] == p["text"] for s, p in answers) / len(answers) if answers else math.nan
