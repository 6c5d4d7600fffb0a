"""The gate: promote, reject or inconclusive, by the first row of the table that applies.

Every comparison is written so that NaN never passes: a measure must be finite and beyond its bar.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Literal, NamedTuple

from preftune.power import Primary

Outcome = Literal["promote", "reject", "inconclusive"]
Kind = Literal["stop", "empty", "repetition", "nll", "capability"]
ALPHA = 0.05


class Opponent(NamedTuple):
    """Whom the policy is compared with, as the texts call it."""

    short: str
    long: str


SFT = Opponent("SFT", "the SFT model")
CHAMPION = Opponent("the champion", "the champion")

_AFTER_DAMAGE: dict[str, str] = {
    "stop": "the policy learned to go on: see in the report whether its answers ramble or are good but long; look "
    "whether the chosen answers are whole (max_length cuts them?), then train with a higher beta or less long",
    "empty": "look at the prompts that are answered with nothing, and at very short chosen answers in the data "
    "(preftune audit); then train with a lower learning_rate or a higher beta",
    "repetition": "the policy repeats itself: train with a lower learning_rate, a higher beta, or fewer epochs",
    "nll": "the policy writes what the SFT model finds very unlikely, as damaged models do: lower learning_rate, or "
    "raise beta; if the answers read well, raise gate.max_nll_factor",
    "capability": "the policy lost an ability: raise beta, lower learning_rate or train fewer steps, or mix in pairs "
    "of that kind; the table of tasks shows which answers changed",
}


@dataclass(frozen=True)
class Damage:
    """One way in which the policy may be worse than SFT.

    Args:
        name: In words, for the reasons.
        mean: Mean paired loss (positive: worse than SFT).
        low: The paired one-sided 95 % lower bound of it.
        bar: What it may not exceed.
        kind: What was damaged.
        p: Of a test that anything changed at all, adjusted for as many as are made; None: the bound decides alone.
            With few items a bootstrap bound of a 0/1 measure is too sure of itself, and of many tasks one exceeds its
            bar by chance; so both must agree.
    """

    name: str
    mean: float
    low: float
    bar: float
    kind: Kind = "capability"
    p: float | None = None

    @property
    def applies(self) -> bool:
        return self.low > self.bar and (self.p is None or self.p < ALPHA)

    @property
    def measured(self) -> bool:
        return all(isfinite(v) for v in (self.mean, self.low, self.bar, 0.0 if self.p is None else self.p))


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, why, and what to do next, in words."""

    outcome: Outcome
    reasons: list[str]
    advice: list[str]


def _unmeasured(required: dict[str, float], damages: list[Damage], primary: Primary) -> list[str]:
    reasons = [f"{name} is missing or not finite" for name, value in required.items() if not isfinite(value)]
    reasons += [f"{d.name} could not be measured" for d in damages if not d.measured]
    decides = primary.unusable is None and primary.unidentified is None
    if decides and not all(map(isfinite, (primary.value, primary.low, primary.high, primary.bar))):
        reasons.append(f"the {primary.words} or its interval is missing or not finite")
    return reasons


def _more(primary: Primary, needed: int | None, opponent: Opponent) -> list[str]:
    """What to do when the size does not suffice."""
    rows = "evaluation.max_pairs" if primary.items == "pairs" else "evaluation.max_prompts"
    size = f"about {needed:,}" if needed else "more"
    return [
        f"measure {size} held-out {primary.items}: hold out more (test_split_size, or a larger test split) and raise "
        f"{rows}",
        "or make the difference larger: more or cleaner pairs, more steps, a lower beta",
        f"until then keep {opponent.long}",
    ]


def decide(
    *,
    required: dict[str, float],
    steps: tuple[int, int] | None,
    damages: list[Damage],
    primary: Primary,
    needed: int | None,
    opponent: Opponent = SFT,
) -> Verdict:
    """Decides.

    Args:
        required: Measures that must be there and finite.
        steps: (done, planned) optimizer steps; None for a policy that was not trained here.
        damages: The losses with their bars.
        primary: Held-out reward accuracy; with a judge the length-controlled win rate.
        needed: How many items would decide, if these do not.
        opponent: Whom the policy is compared with.
    """
    reasons, advice = _unmeasured(required, damages, primary), []
    if reasons:
        advice = [
            "find out where it comes from before anything else: a loss that is not finite (see the curves), a damaged "
            "file, or a dtype that is too narrow (dtype: float32)"
        ]
    if steps is not None and steps[0] != steps[1]:
        reasons.append(f"training stopped at step {steps[0]} of {steps[1]}")
        advice.append("run the same command again: the training goes on from its newest checkpoint")
    if reasons:
        return Verdict("reject", reasons, advice)
    if found := [d for d in damages if d.applies]:
        reasons = [
            f"{d.name}: worse than {opponent.short} by {d.mean:.3g} "
            f"(95 % sure of at least {d.low:.3g}; allowed {d.bar:g})"
            for d in found
        ]
        advice = [_AFTER_DAMAGE[kind] for kind in dict.fromkeys(d.kind for d in found)]
        return Verdict("reject", reasons, [f"keep {opponent.long}", *advice])
    if primary.unusable is not None:
        return Verdict(
            "inconclusive",
            [f"the judge cannot be used: {primary.unusable}"],
            [
                "read a few of its verdicts (judgements.jsonl), then take a stronger judge model, or repair the "
                "endpoint; verdicts that are there already are not asked for again",
                "or remove evaluation.judge: then the held-out reward accuracy decides",
            ],
        )
    if primary.unidentified is not None:
        return Verdict(
            "inconclusive",
            [f"the win rate at equal length is unknown: {primary.unidentified} on {primary.n} prompts"],
            [
                "measure more prompts (evaluation.max_prompts), or a policy whose answers are not all longer (pairs "
                "in which the chosen answer is not the longer one; a higher beta)",
                "or take a judge that looks less at the length",
            ],
        )
    return _by_primary(primary, needed, opponent)


def _by_primary(primary: Primary, needed: int | None, opponent: Opponent) -> Verdict:
    """The rows on the primary measure, which is finite and usable here."""
    value, low, high, bar = primary.value, primary.low, primary.high, primary.bar
    text = (
        f"{primary.words} {value:.1%} on {primary.n} held-out {primary.items} (95 % interval {low:.1%} to {high:.1%})"
    )
    if low > bar:
        return Verdict(
            "promote",
            [f"{text}: above {bar:.0%}", "no damage measure exceeds its bar"],
            [f"read the worst losses in the report; if they can be lived with, the policy can replace {opponent.long}"],
        )
    if high < 0.5:
        if primary.items != "pairs":
            meaning = f"the judge prefers {opponent.short}'s answers"
            check = "read the worst losses in the report: they show what the judge dislikes"
        elif opponent == SFT:
            meaning = "the policy prefers the rejected answers"
            check = "look whether chosen and rejected are swapped in the data (preftune audit shows pairs)"
        else:
            meaning = f"{opponent.short} tells chosen and rejected answers better apart"
            check = "look at what changed since in data and recipe (preftune audit shows pairs)"
        return Verdict("reject", [f"{text}: below 50 %, {meaning}"], [f"keep {opponent.long}", check])
    if high < bar:
        return Verdict(
            "inconclusive",
            [f"{text}: below {bar:.0%}, but not below 50 %"],
            [
                "more data will not change this: the policy is not as much better as the gate asks for",
                "train more or on better pairs, or lower the bar if so much is not needed",
            ],
        )
    more = f"; about {needed:,} held-out {primary.items} would decide" if needed else ""
    return Verdict("inconclusive", [f"{text}: it includes {bar:.0%}{more}"], _more(primary, needed, opponent))
