"""Comparing policy and SFT on the same held-out pairs and prompts: the measures, their intervals, the verdict."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.comparison_inputs import Inputs, read_inputs
from preftune.decision import Weighed, weigh
from preftune.gate import SFT, Opponent
from preftune.measures import Triple, above, by_group, differences, displacement, effective, mean, measures
from preftune.mt_bench_scores import mt_bench_scores
from preftune.schema import Gate
from preftune.task_losses import task_differences, task_measures
from preftune.verdict_notes import verdict_notes

SCHEMA = 2
_HALF: Triple = (0.5, 0.5, 0.5)


def _flat(found: dict[str, Triple]) -> dict[str, float]:
    flat = {}
    for name, (value, low, high) in found.items():
        flat |= {name: value, f"{name}_lo": low, f"{name}_hi": high}
    return flat


def _finite(value: Any) -> Any:
    """NaN → null: JSON knows no NaN."""
    if isinstance(value, float):
        return round(value, 10) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value


def _judged_measures(rates: dict[str, Any], scores: dict[str, Any] | None) -> tuple[dict[str, Triple], ...]:
    """What judges say, as measures of (SFT, policy). SFT against itself is ½ by definition."""
    found: tuple[dict[str, Triple], ...] = ({}, {})
    if (held_out := rates.get("held_out")) and held_out["n"]:
        found[0].update({"win_rate": _HALF, "lc_win_rate": _HALF})
        found[1].update({"win_rate": tuple(held_out["raw"]), "lc_win_rate": tuple(held_out["controlled"])})
    for measure, who in zip(found, ("sft", "policy"), strict=True):
        if (rate := rates.get("alpaca_eval", {}).get(who)) and rate["n"]:
            measure["alpaca_eval/win_rate"] = tuple(rate["raw"])
            measure["alpaca_eval/lc_win_rate"] = tuple(rate["controlled"])
        if scores and scores["n"]:
            measure["mt_bench/score"] = tuple(scores[who]["score"])
    return found


def compare(
    sft: Path,
    policy: Path,
    training: dict[str, Any] | None,
    beta: float,
    gate: Gate,
    folder: Path,
    training_notes: Sequence[dict[str, str]] = (),
    judge: Path | None = None,
    opponent: Opponent = SFT,
) -> dict[str, Any]:
    """Computes every measure of both models and decides.

    Args:
        sft: The baseline's folder; or the champion's evaluation, which then stands in its place.
        policy: The policy's folder.
        training: train.json; None for a policy that was not trained here.
        beta: The DPO β of the training.
        gate: The bars.
        folder: Where verdict.json and comparison.jsonl go.
        training_notes: What the training's curves show; passed on.
        judge: The judge's folder; None without a judge.
        opponent: Whom the policy is compared with.

    Returns:
        verdict.json's content (docs/verdict.md).

    Raises:
        StepError: The models, or the judge, saw other items.
    """
    inputs = read_inputs(sft, policy, judge)
    weighed = weigh(inputs, training, beta, gate, opponent)
    result = _finite(verdict_of(inputs, weighed, opponent) | {"beta": beta, "training_notes": list(training_notes)})
    (folder / "verdict.json").write_text(json.dumps(result, indent=1, ensure_ascii=False))
    with (folder / "comparison.jsonl").open("w") as f:
        for (s, _), (chosen, rejected) in zip(inputs.pairs, weighed.rewards, strict=True):
            row = {name: s[name] for name in ("row_id", "source", "topic")}
            row |= {"reward_chosen": chosen, "reward_rejected": rejected, "margin": chosen - rejected}
            f.write(json.dumps(_finite(row)) + "\n")
    return result


def verdict_of(inputs: Inputs, weighed: Weighed, opponent: Opponent = SFT) -> dict[str, Any]:
    """verdict.json's content, but for β and what the training's curves show.

    Args:
        inputs: The rows.
        weighed: What the gate made of them.
        opponent: Whom the policy is compared with.
    """
    pairs, answers, margins = inputs.pairs, inputs.answers, weighed.margins
    rates, scores = weighed.rates, mt_bench_scores(inputs)
    found = _model_measures(inputs, weighed)
    for measure, extra in zip(found, _judged_measures(rates, scores), strict=True):
        measure.update(extra)
    changed = differences(pairs, answers)
    for task in inputs.tasks.values():
        changed |= task_differences(task)
    if "alpaca_eval" in rates:
        changed["alpaca_eval/win_rate"] = tuple(rates["alpaca_eval"]["difference"])
    if scores:
        changed["mt_bench/score"] = tuple(scores["difference"])
    moved, primary = displacement(pairs), weighed.primary
    return {
        "schema": SCHEMA,
        "outcome": weighed.verdict.outcome,
        "reasons": weighed.verdict.reasons,
        "advice": weighed.verdict.advice,
        "primary": {name: getattr(primary, name) for name in ("name", "value", "low", "high", "bar", "n")}
        | {"effective_n": primary.effective},
        "power": weighed.power,
        "pairs": len(pairs),
        "answers": len(answers),
        "metrics": {who: _flat(f) for who, f in zip(("sft", "policy"), found, strict=True)},
        "differences": {name: list(triple) for name, triple in changed.items()},
        "damages": [
            {name: getattr(d, name) for name in ("name", "kind", "mean", "low", "bar", "p", "applies")}
            for d in weighed.damages
        ],
        "tasks": weighed.tasks,
        "judge": weighed.judge,
        "win_rates": rates,
        "mt_bench": scores,
        "by_source": by_group(pairs, margins, "source"),
        "by_topic": by_group(pairs, margins, "topic"),
        "displacement": moved,
        "notes": verdict_notes(
            inputs,
            accuracy=weighed.accuracy,
            effective=effective([above(m, 0.0) for m in margins], [s["group_id"] for s, _ in pairs]),
            displaced=moved,
            damaged=any(d.applies for d in weighed.damages),
            judge=weighed.judge,
            rates=rates,
            opponent=opponent,
        ),
    }


def _model_measures(inputs: Inputs, weighed: Weighed) -> tuple[dict[str, Triple], dict[str, Triple]]:
    """All measures that need no judge, of (SFT, policy)."""
    found: list[dict[str, Triple]] = []
    for who in (0, 1):
        of_model = measures([both[who] for both in inputs.pairs], [both[who] for both in inputs.answers])
        for task in inputs.tasks.values():
            of_model |= task_measures(task, who)
        found.append(of_model)
    # The SFT model is its own reference: its rewards are 0 by definition.
    found[0] |= {"reward_accuracy": _HALF, "reward_margin": (0.0, 0.0, 0.0)}
    groups = [s["group_id"] for s, _ in inputs.pairs]
    found[1] |= {"reward_accuracy": weighed.accuracy, "reward_margin": mean(weighed.margins, groups)}
    return found[0], found[1]
