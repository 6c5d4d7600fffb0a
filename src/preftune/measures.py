"""The measures on held-out pairs and on the answers to held-out prompts: of each model, and policy − SFT."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from preftune.comparison_inputs import Both, Row
from preftune.gate import SFT, Damage, Opponent
from preftune.schema import Gate
from preftune.statistics import (
    CONFIDENCE,
    clustered_interval,
    design_effect,
    interval_of,
    mcnemar,
    mean_interval,
    wilson,
)

Triple = tuple[float, float, float]
NOTHING: Triple = (math.nan, math.nan, math.nan)


def rewards(sft: Row, policy: Row, beta: float) -> tuple[float, float]:
    """The implicit rewards β·(log π − log π_ref) of (chosen, rejected), DPO eq. 4 (arXiv 2305.18290)."""
    return (
        beta * (policy["chosen_logp"] - sft["chosen_logp"]),
        beta * (policy["rejected_logp"] - sft["rejected_logp"]),
    )


def above(a: float, b: float) -> float:
    """1 if a > b, ½ if equal, 0 if below; NaN stays NaN."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.nan
    return 1.0 if a > b else 0.5 if a == b else 0.0


def share(values: Sequence[float], groups: Sequence[Any] | None = None) -> Triple:
    """Mean of 0, ½ and 1 with Wilson's interval, for as many items as they are worth if they come in groups."""
    if not values or not all(math.isfinite(v) for v in values):
        return NOTHING
    n = effective(values, groups)
    return sum(values) / len(values), *wilson(sum(values) / len(values) * n, n)


def effective(values: Sequence[float], groups: Sequence[Any] | None) -> float:
    """How many items that stand alone these are worth (Kish: n / design effect)."""
    if groups is None or len(set(groups)) == len(groups) or not all(map(math.isfinite, values)):
        return len(values)
    return len(values) / design_effect(values, groups)


def mean(values: Sequence[float], groups: Sequence[Any] | None = None) -> Triple:
    """Mean with its 95 % interval, over groups where items share one."""
    return (sum(values) / len(values), *interval_of(groups)(values, CONFIDENCE)) if values else NOTHING


def nll(answer: Row) -> float:
    """Negative log-likelihood of an answer under the SFT model, nats per token."""
    return -answer["sft_logp"] / max(answer["logp_tokens"], 1)


def _per_token(pair: Row, side: str) -> float:
    return pair[f"{side}_logp"] / max(pair[f"{side}_tokens"], 1)


def _empty(answer: Row) -> float:
    return float(not answer["text"].strip())


_OF_PAIRS: dict[str, Callable[[Row], float]] = {
    "ranking_accuracy": lambda p: above(p["chosen_logp"], p["rejected_logp"]),
    "ranking_accuracy_per_token": lambda p: above(_per_token(p, "chosen"), _per_token(p, "rejected")),
    "chosen_logp_per_token": lambda p: _per_token(p, "chosen"),
    "rejected_logp_per_token": lambda p: _per_token(p, "rejected"),
}
_OF_ANSWERS: dict[str, Callable[[Row], float]] = {
    "response_tokens": lambda a: a["tokens"],
    "stop_rate": lambda a: float(a["stopped"]),
    "empty_rate": _empty,
    "seq_rep_4": lambda a: a["seq_rep_4"],
    "nll_under_sft": nll,
    "kl_per_token": lambda a: (a["logp"] - a["sft_logp"]) / max(a["logp_tokens"], 1),
}
_SHARES = {"ranking_accuracy", "ranking_accuracy_per_token", "stop_rate", "empty_rate"}


def item_values(pairs: list[Row], answers: list[Row]) -> dict[str, list[float]]:
    """What one model's measures are the means of: name → a value for each pair or answer.

    Args:
        pairs: Lines of pairs.jsonl.
        answers: Lines of answers.jsonl.
    """
    found = {name: [of(p) for p in pairs] for name, of in _OF_PAIRS.items()}
    return found | {name: [of(a) for a in answers] for name, of in _OF_ANSWERS.items()}


def measures(pairs: list[Row], answers: list[Row]) -> dict[str, Triple]:
    """The measures of one model: name → (value, low, high), 95 % intervals.

    Args:
        pairs: Lines of pairs.jsonl.
        answers: Lines of answers.jsonl.
    """
    groups = [p["group_id"] for p in pairs]
    return {
        name: (share if name in _SHARES else mean)(values, groups if name in _OF_PAIRS else None)
        for name, values in item_values(pairs, answers).items()
    }


def differences(pairs: list[Both], answers: list[Both]) -> dict[str, Triple]:
    """Policy − SFT, item by item: name → (difference, low, high), 95 % intervals. Not of the KL, which is that
    already."""
    groups = [s["group_id"] for s, _ in pairs]
    found = {name: mean([of(p) - of(s) for s, p in pairs], groups) for name, of in _OF_PAIRS.items()}
    return found | {
        name: mean([of(p) - of(s) for s, p in answers]) for name, of in _OF_ANSWERS.items() if name != "kl_per_token"
    }


def displacement(pairs: list[Both]) -> dict[str, Any]:
    """How the likelihood of the chosen answers moved (arXiv 2410.08847): verdict.json's `displacement`."""
    if not pairs:
        return {}
    moved = [p["chosen_logp"] - s["chosen_logp"] for s, p in pairs]
    per_token = [_per_token(p, "chosen") - _per_token(s, "chosen") for s, p in pairs]
    return {
        "mean_chosen_logp_change": sum(moved) / len(moved),
        "mean_chosen_logp_change_per_token": list(mean(per_token, [s["group_id"] for s, _ in pairs])),
        "share_fallen": sum(d < 0 for d in moved) / len(moved),
    }


def by_group(pairs: list[Both], margins: list[float], key: str) -> list[dict[str, Any]]:
    """Reward accuracy and ranking accuracy for each source or topic, the largest first.

    Args:
        pairs: The held-out pairs.
        margins: The reward margin of each.
        key: `source` or `topic`; pairs without one are left out.
    """
    places: dict[str, list[int]] = {}
    for i, (s, _) in enumerate(pairs):
        if s[key] is not None:
            places.setdefault(s[key], []).append(i)
    ranked = _OF_PAIRS["ranking_accuracy"]
    return [
        {
            "name": name,
            "n": len(at),
            "reward_accuracy": list(share([above(margins[i], 0.0) for i in at], [pairs[i][0]["group_id"] for i in at])),
            "ranking_accuracy": {
                "sft": sum(ranked(pairs[i][0]) for i in at) / len(at),
                "policy": sum(ranked(pairs[i][1]) for i in at) / len(at),
            },
        }
        for name, at in sorted(places.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def lower_bound(losses: Sequence[float], clusters: Sequence[Any] | None = None) -> float:
    """The paired one-sided 95 % lower bound of a mean loss."""
    if clusters is not None:
        return clustered_interval(losses, clusters, 0.90)[0]
    return mean_interval(losses, 0.90)[0]


def answer_damages(answers: list[Both], gate: Gate, opponent: Opponent = SFT) -> list[Damage]:
    """What the policy's answers lost against the opponent's to the same prompts, with the bars.

    Args:
        answers: (opponent's, policy's) answer to each prompt.
        gate: The bars.
        opponent: Whom the policy is compared with.
    """
    if not answers:
        return []
    found: list[Damage] = []

    def binary(name: str, kind: Any, losses: list[float], bar: float) -> None:
        p = mcnemar(losses.count(1), losses.count(-1))
        found.append(Damage(name, sum(losses) / len(losses), lower_bound(losses), bar, kind, p))

    def continuous(name: str, kind: Any, losses: list[float], bar: float) -> None:
        found.append(Damage(name, sum(losses) / len(losses), lower_bound(losses), bar, kind))

    stops = [float(s["stopped"]) - float(p["stopped"]) for s, p in answers]
    binary("answers that stop by themselves", "stop", stops, gate.max_stop_loss)
    binary("empty answers", "empty", [_empty(p) - _empty(s) for s, p in answers], gate.max_empty_gain)
    repetition = [p["seq_rep_4"] - s["seq_rep_4"] for s, p in answers]
    continuous("repetition (seq-rep-4)", "repetition", repetition, gate.max_repetition_gain)
    continuous(
        f"NLL of the answers under SFT, above {gate.max_nll_factor:g} × {opponent.short}'s + {gate.max_nll_offset:g}",
        "nll",
        [nll(p) - gate.max_nll_factor * nll(s) - gate.max_nll_offset for s, p in answers],
        0.0,
    )
    return found
