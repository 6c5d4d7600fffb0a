"""The gate: promote, reject or inconclusive, by the first row of the table that applies.

Every comparison is written so that NaN never passes: a measure must be finite and beyond its bar.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from preftune.schema import Gate

Outcome = Literal["promote", "reject", "inconclusive"]


@dataclass(frozen=True)
class Damage:
    """One way in which the policy may be worse than SFT.

    Args:
        name: In words, for the reasons.
        mean: Mean paired loss (positive: worse than SFT).
        low: The paired one-sided 95 % lower bound of it.
        bar: What it may not exceed.
    """

    name: str
    mean: float
    low: float
    bar: float

    @property
    def applies(self) -> bool:
        return self.low > self.bar

    @property
    def measured(self) -> bool:
        return isfinite(self.mean) and isfinite(self.low) and isfinite(self.bar)


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and why, in words."""

    outcome: Outcome
    reasons: list[str]


def decide(
    *,
    required: dict[str, float],
    steps: tuple[int, int],
    damages: list[Damage],
    accuracy: tuple[float, float, float],
    pairs: int,
    needed: int | None,
    gate: Gate,
) -> Verdict:
    """Decides.

    Args:
        required: Measures that must be there and finite.
        steps: (done, planned) optimizer steps.
        damages: The losses with their bars.
        accuracy: Held-out reward accuracy with its 95 % interval: (value, low, high).
        pairs: How many held-out pairs it is measured on.
        needed: How many pairs would decide, if these do not.
        gate: The bars.
    """
    reasons = [f"{name} is missing or not finite" for name, value in required.items() if not isfinite(value)]
    reasons += [f"{d.name} could not be measured" for d in damages if not d.measured]
    if steps[0] != steps[1]:
        reasons.append(f"training stopped at step {steps[0]} of {steps[1]}")
    if reasons:
        return Verdict("reject", reasons)
    reasons = [
        f"{d.name}: worse than SFT by {d.mean:.3g} (95 % sure of at least {d.low:.3g}; allowed {d.bar:g})"
        for d in damages
        if d.applies
    ]
    if reasons:
        return Verdict("reject", reasons)
    value, low, high = accuracy
    text = f"reward accuracy {value:.1%} on {pairs} held-out pairs (95 % interval {low:.1%} to {high:.1%})"
    if all(map(isfinite, accuracy)) and low > gate.min_reward_accuracy:
        return Verdict(
            "promote", [f"{text}: above {gate.min_reward_accuracy:.0%}", "no damage measure exceeds its bar"]
        )
    if isfinite(high) and high < 0.5:
        return Verdict("reject", [f"{text}: below 50 %, the policy prefers the rejected answers"])
    more = f"; about {needed} held-out pairs would decide at this accuracy" if needed else ""
    if high < gate.min_reward_accuracy:
        return Verdict("inconclusive", [f"{text}: below {gate.min_reward_accuracy:.0%}, but not below 50 %"])
    return Verdict("inconclusive", [f"{text}: it includes {gate.min_reward_accuracy:.0%}{more}"])
