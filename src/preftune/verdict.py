"""Comparing policy and SFT on the same held-out pairs and prompts: the measures, their intervals, the verdict."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.comparison_inputs import Both, Inputs, read_inputs
from preftune.gate import decide
from preftune.measures import (
    Triple,
    above,
    answer_damages,
    by_group,
    differences,
    displacement,
    effective,
    mean,
    measures,
    rewards,
    share,
)
from preftune.mt_bench_scores import mt_bench_scores
from preftune.power import Primary, power_of
from preftune.schema import Gate
from preftune.statistics import ratio_interval
from preftune.task_losses import compare_tasks, required_task_measures, task_differences, task_measures, ungated
from preftune.verdict_notes import verdict_notes
from preftune.win_rates import judge_summary, win_rates

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


def primary_measure(
    accuracy: Triple, n: int, worth: float, judge: dict[str, Any] | None, rates: dict[str, Any], gate: Gate
) -> Primary:
    """What decides: the length-controlled win rate on the held-out prompts with a judge, else the reward accuracy.

    Args:
        accuracy: Reward accuracy with its interval.
        n: Held-out pairs.
        worth: What they are worth as pairs that stand alone.
        judge: verdict.json's `judge`.
        rates: verdict.json's `win_rates`.
        gate: The bars.
    """
    if judge is None:
        return Primary("reward_accuracy", *accuracy, gate.min_reward_accuracy, n, worth)
    found = rates.get("held_out") or {"n": 0, "controlled": None, "why": "no prompt was answered"}
    value, low, high = found["controlled"] or (math.nan, math.nan, math.nan)
    n = found["n"]
    return Primary("lc_win_rate", value, low, high, gate.min_win_rate, n, n, judge["why"], found["why"])


def compare(
    sft: Path,
    policy: Path,
    training: dict[str, Any] | None,
    beta: float,
    gate: Gate,
    folder: Path,
    training_notes: Sequence[dict[str, str]] = (),
    judge: Path | None = None,
) -> dict[str, Any]:
    """Computes every measure of both models and decides.

    Args:
        sft: The baseline's folder.
        policy: The policy's folder.
        training: train.json; None for a policy that was not trained here.
        beta: The DPO β of the training.
        gate: The bars.
        folder: Where verdict.json and comparison.jsonl go.
        training_notes: What the training's curves show; passed on.
        judge: The judge's folder; None without a judge.

    Returns:
        verdict.json's content (docs/verdict.md).

    Raises:
        StepError: The models, or the judge, saw other items.
    """
    inputs = read_inputs(sft, policy, judge)
    result, reward = verdict_of(inputs, training, beta, gate)
    result = _finite(result | {"training_notes": list(training_notes)})
    (folder / "verdict.json").write_text(json.dumps(result, indent=1, ensure_ascii=False))
    with (folder / "comparison.jsonl").open("w") as f:
        for (s, _), (chosen, rejected) in zip(inputs.pairs, reward, strict=True):
            row = {name: s[name] for name in ("row_id", "source", "topic")}
            row |= {"reward_chosen": chosen, "reward_rejected": rejected, "margin": chosen - rejected}
            f.write(json.dumps(_finite(row)) + "\n")
    return result


def verdict_of(
    inputs: Inputs, training: dict[str, Any] | None, beta: float, gate: Gate
) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """The verdict on rows in memory.

    Args:
        inputs: The rows.
        training: train.json, or None.
        beta: The DPO β.
        gate: The bars.

    Returns:
        (verdict.json's content without training_notes, the rewards of each pair).
    """
    pairs, answers = inputs.pairs, inputs.answers
    reward = [rewards(s, p, beta) for s, p in pairs]
    margins = [chosen - rejected for chosen, rejected in reward]
    found = _model_measures(inputs, margins)
    changed = differences(pairs, answers)
    for task in inputs.tasks.values():
        changed |= task_differences(task)
    rates, judged, scores = win_rates(inputs), judge_summary(inputs, gate), mt_bench_scores(inputs)
    tasks, capability = compare_tasks(inputs.tasks, gate)
    damages = answer_damages(answers, gate) + capability
    worth = effective([above(m, 0.0) for m in margins], [s["group_id"] for s, _ in pairs])
    primary = primary_measure(found[1]["reward_accuracy"], len(pairs), worth, judged, rates, gate)
    power = power_of(primary)
    decision = decide(
        required=_required(inputs, found),
        steps=None if training is None else (training["steps"], training["max_steps"]),
        damages=damages,
        primary=primary,
        needed=power["needed"],
    )
    for measure, extra in zip(found, _judged_measures(rates, scores), strict=True):
        measure.update(extra)
    if "alpaca_eval" in rates:
        changed["alpaca_eval/win_rate"] = tuple(rates["alpaca_eval"]["difference"])
    if scores:
        changed["mt_bench/score"] = tuple(scores["difference"])
    moved = displacement(pairs)
    result = {
        "schema": SCHEMA,
        "outcome": decision.outcome,
        "reasons": decision.reasons,
        "advice": decision.advice,
        "primary": {
            "name": primary.name,
            "value": primary.value,
            "low": primary.low,
            "high": primary.high,
            "bar": primary.bar,
            "n": primary.n,
            "effective_n": primary.effective,
        },
        "power": power,
        "pairs": len(pairs),
        "answers": len(answers),
        "beta": beta,
        "metrics": {who: _flat(f) for who, f in zip(("sft", "policy"), found, strict=True)},
        "differences": {name: list(triple) for name, triple in changed.items()},
        "damages": [
            {"name": d.name, "mean": d.mean, "low": d.low, "bar": d.bar, "p": d.p, "applies": d.applies, "kind": d.kind}
            for d in damages
        ],
        "tasks": tasks,
        "judge": judged,
        "win_rates": rates,
        "mt_bench": scores,
        "by_source": by_group(pairs, margins, "source"),
        "by_topic": by_group(pairs, margins, "topic"),
        "displacement": moved,
        "notes": verdict_notes(
            pairs=pairs,
            answers=answers,
            effective=worth,
            displaced=moved,
            damaged=any(d.applies for d in damages),
            length_ratio=_length_ratio(answers),
            judge=judged,
            rates=rates,
            accuracy=found[1]["reward_accuracy"],
            ungated=ungated(inputs.tasks),
        ),
    }
    return result, reward


def _length_ratio(answers: list[Both]) -> list[float]:
    """Mean length of the policy's answers over SFT's, in characters."""
    if not answers:
        return [math.nan] * 3
    return list(ratio_interval([len(p["text"]) for _, p in answers], [len(s["text"]) for s, _ in answers]))


def _model_measures(inputs: Inputs, margins: list[float]) -> tuple[dict[str, Triple], dict[str, Triple]]:
    """All measures that need no judge, of (SFT, policy)."""
    found = tuple(
        measures([both[who] for both in inputs.pairs], [both[who] for both in inputs.answers]) for who in (0, 1)
    )
    groups = [s["group_id"] for s, _ in inputs.pairs]
    # The SFT model is its own reference: its rewards are 0 by definition.
    found[0].update({"reward_accuracy": _HALF, "reward_margin": (0.0, 0.0, 0.0)})
    found[1].update(
        {"reward_accuracy": share([above(m, 0.0) for m in margins], groups), "reward_margin": mean(margins, groups)}
    )
    for task in inputs.tasks.values():
        for who in (0, 1):
            found[who].update(task_measures(task, who))
    return found[0], found[1]


def _required(inputs: Inputs, found: tuple[dict[str, Triple], dict[str, Triple]]) -> dict[str, float]:
    """What must be finite: every measure that is computed item by item, of both models."""
    totals = {
        f"lm_eval/{task.name}/{metric}" for task in inputs.tasks.values() for total in task.totals for metric in total
    } - {name for task in inputs.tasks.values() for name in required_task_measures(task)}
    return {
        f"{name}{who}": triple[0]
        for who, measure in zip((" (SFT)", ""), found, strict=True)
        for name, triple in measure.items()
        if name not in totals
    }
