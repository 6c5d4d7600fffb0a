"""What a verdict must survive, by simulation through the functions that decide: equal models, better ones, damaged
ones, judges that are biased, and numbers that are none."""

import copy
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from simulated_evaluation import World, simulated

from preftune.comparison_inputs import Inputs
from preftune.decision import Weighed, primary_measure, weigh
from preftune.gate import decide
from preftune.measures import above, share
from preftune.power import accuracy_needed
from preftune.schema import Gate
from preftune.verdict import verdict_of

GATE = Gate.model_validate({})
# Answers that vary much from model to model: half of them stop, one in 20 is empty, three in 10 loop.
NOISY = {"stops": (0.5, 0.5), "empties": (0.05, 0.05), "loops": (0.3, 0.3)}
SIZES = [(32, 16, 20), (80, 30, 40), (200, 80, 100)]  # pairs, prompts, documents of each of the three tasks


def decided(world: World, rng: np.random.Generator, judged: bool = False) -> Weighed:
    return weigh(simulated(world, rng, judged), None, 0.1, GATE)


def outcomes(world: World, times: int, seed: int, judged: bool = False) -> Counter[str]:
    rng = np.random.default_rng(seed)
    return Counter(decided(world, rng, judged).verdict.outcome for _ in range(times))


# --- policy = SFT -----------------------------------------------------------------------------------------


def equal_models(times: int, judged: bool) -> Counter[str]:
    """A third of the comparisons of each size, half of them with noisy answers; with a judge it likes length, and the
    policy's answers are a fifth longer."""
    found: Counter[str] = Counter()
    for seed, (pairs, prompts, documents) in enumerate(SIZES):
        for noise in ({}, NOISY):
            world = World(pairs=pairs, prompts=prompts, documents=documents, **noise)
            if judged:
                world = replace(world, longer=1.2, by_length=1.0, ties=0.25)
            found += outcomes(world, times // 6, seed, judged)
    return found


def test_equal_models() -> None:
    """1,000 comparisons through every measure: at most 5 % promoted, at most 5 % rejected."""
    found = equal_models(1002, judged=False)
    assert found.total() == 1002
    assert found["promote"] <= 50 and found["reject"] <= 50, found
    assert found["promote"] >= 5  # what is never promoted could not tell a better model either


def test_equal_models_and_a_judge() -> None:
    found = equal_models(180, judged=True)
    assert found["promote"] <= 9 and found["reject"] <= 9, found


@pytest.mark.slow
def test_a_thousand_equal_models_and_a_judge() -> None:
    found = equal_models(1002, judged=True)
    assert found["promote"] <= 50 and found["reject"] <= 50, found
    assert found["promote"] >= 5


def test_an_identical_copy() -> None:
    """Not one in a hundred: nothing differs, so there is nothing to be sure of."""
    rng = np.random.default_rng(1)
    for judged in (False, True):
        made = simulated(World(pairs=80, prompts=30, documents=40), rng, judged)
        same = replace(
            made,
            pairs=[(s, s) for s, _ in made.pairs],
            answers=[(s, s) for s, _ in made.answers],
            tasks={n: replace(t, rows=[(s, s) for s, _ in t.rows]) for n, t in made.tasks.items()},
            judgements=[
                row | {"outcome": 0.5, "flipped": False, "orders": [{"winner": "tie"}] * 2} for row in made.judgements
            ],
        )
        found = weigh(same, None, 0.1, GATE)
        assert found.verdict.outcome == "inconclusive" and found.primary.value == 0.5
        assert not any(d.applies for d in found.damages)


# --- power ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [80, 200, 500])
def test_the_power_curve_is_theory_s(n: int) -> None:
    """How often a true accuracy is promoted, against the score test's exact power (promote when the count exceeds
    n/2 + 1.96·√n/2): within 5 points everywhere. 600 comparisons each; damage is left out."""
    rng = np.random.default_rng(n)
    for true in (0.5, 0.55, 0.6, 0.65, 0.7):
        promoted = 0
        for _ in range(600):
            right = [above(m, 0.0) for m in np.where(rng.random(n) < true, 1.0, -1.0)]
            primary = primary_measure(share(right), n, n, None, {}, GATE)
            promoted += decide(required={}, steps=None, damages=[], primary=primary, needed=None).outcome == "promote"
        theory = stats.binom.sf(math.floor(n / 2 + 1.959964 * math.sqrt(n) / 2), n, true)
        assert promoted / 600 == pytest.approx(theory, abs=0.05), true


def test_a_better_policy_is_promoted_with_the_size_that_is_named() -> None:
    """A true accuracy of 65 % needs 85 pairs to be seen 8 times in 10; damage must not get in the way."""
    needed = accuracy_needed(0.65)
    assert needed is not None and 80 <= needed <= 90
    found = outcomes(World(pairs=needed, prompts=40, documents=40, accuracy=0.65), 100, 5)
    assert 70 <= found["promote"] <= 92, found


def test_a_policy_that_the_judge_finds_better() -> None:
    """73 % of the decided comparisons at equal length, a quarter of them ties, lengths that differ: 150 prompts."""
    world = World(pairs=40, prompts=150, documents=20, win=0.73, ties=0.25, longer=1.15, by_length=0.8)
    found = outcomes(world, 40, 6, judged=True)
    assert found["promote"] >= 32, found
    worse = outcomes(replace(world, win=0.27), 20, 7, judged=True)
    assert worse["reject"] >= 16, worse


# --- judges -----------------------------------------------------------------------------------------------


def with_verdicts(made: Inputs, winner: Any) -> Inputs:
    """The same comparisons, judged by a rule: winner(SFT's answer, policy's answer, order) → side."""
    rows = []
    for (s, p), row in zip(made.answers, made.judgements, strict=True):
        sides = [winner(s, p, order) for order in (0, 1)]
        outcome = 0.5 if sides[0] != sides[1] or sides[0] == "tie" else float(sides[0] == "policy")
        orders = [{"winner": side, "error": None, "text": ""} for side in sides]
        rows.append(row | {"orders": orders, "outcome": outcome, "flipped": sides[0] != sides[1]})
    return replace(made, judgements=rows)


def longest(s: dict[str, Any], p: dict[str, Any], order: int) -> str:
    difference = len(p["text"]) - len(s["text"])
    return "policy" if difference > 0 else "sft" if difference < 0 else "tie"


def test_a_judge_that_always_says_a() -> None:
    made = simulated(World(pairs=40, prompts=80, documents=20), np.random.default_rng(8), judged=True)
    made = with_verdicts(made, lambda s, p, order: ("sft", "policy")[order])
    found = weigh(made, None, 0.1, GATE)
    assert found.rates["held_out"]["ties"] == 80 and found.rates["held_out"]["raw"][0] == 0.5
    assert found.verdict.outcome == "inconclusive" and "the judge cannot be used" in found.verdict.reasons[0]


@pytest.mark.parametrize("longer", [1.0, 1.4, 2.0, 6.0])
def test_a_judge_that_likes_the_longest(longer: float) -> None:
    """Never promoted, also where the policy is always longer and wins every comparison."""
    rng = np.random.default_rng(9)
    for _ in range(10):
        world = World(pairs=40, prompts=80, documents=20, longer=longer, empties=(0.0, 0.0))
        made = with_verdicts(simulated(world, rng, judged=True), longest)
        found = weigh(made, None, 0.1, GATE)
        assert found.verdict.outcome == "inconclusive" and "at equal length" in found.verdict.reasons[0]
    names = {n["name"] for n in verdict_of(made, found)["notes"]}
    assert {"judge_length_bias", "length_control"} <= names
    assert ("length_ratio" in names) == (longer > 1.3)
    if longer == 6.0:
        assert found.rates["held_out"]["raw"][0] == 1.0


# --- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ({"gibberish": True}, "nll"),
        ({"loops": (0.05, 0.9)}, "repetition"),
        ({"empties": (0.0, 0.4)}, "empty"),
        ({"stops": (0.9, 0.3)}, "stop"),
        ({"right": (0.6, 0.2)}, "capability"),
    ],
)
def test_a_damaged_policy(damage: dict[str, Any], kind: str) -> None:
    """It ranks the pairs well and the judge likes it; it is rejected, for this reason, and for no other (but for what
    chance adds to two in 20)."""
    rng = np.random.default_rng(10)
    world = World(pairs=100, prompts=60, documents=60, accuracy=0.9, win=0.9, **damage)
    found = [decided(world, rng, judged) for judged in (False, True) for _ in range(10)]
    kinds = [{d.kind for d in w.damages if d.applies} for w in found]
    assert all(w.verdict.outcome == "reject" for w in found) and all(kind in k for k in kinds)
    assert sum(k == {kind} for k in kinds) >= 18


# --- not a number -----------------------------------------------------------------------------------------


def numbers_of(made: Inputs) -> list[tuple[str, str]]:
    """(rows, field) of every number that a measure is computed from."""
    found = [("pairs", k) for k, v in made.pairs[0][0].items() if isinstance(v, int | float)]
    found += [
        ("answers", k) for k, v in made.answers[0][0].items() if isinstance(v, float) or k in ("tokens", "logp_tokens")
    ]
    return found + [("tasks", name) for name in made.tasks]


@pytest.mark.parametrize("judged", [False, True])
def test_not_a_number_anywhere_is_never_promoted(judged: bool) -> None:
    """Each number of each file, of SFT and of the policy, in a comparison that is promoted without it."""
    world = World(pairs=60, prompts=60, documents=20, accuracy=0.95, win=0.95, ties=0.05)
    made = simulated(world, np.random.default_rng(11), judged)
    assert weigh(made, None, 0.1, GATE).verdict.outcome == "promote"
    places = numbers_of(made)
    assert {"chosen_logp", "chosen_tokens", "seq_rep_4", "sft_logp", "tokens", "facts"} <= {f for _, f in places}
    for rows, field in places:
        for who in (0, 1):
            broken = copy.deepcopy(made)
            if rows == "tasks":
                (metric,) = broken.tasks[field].rows[2][who]["metrics"]
                broken.tasks[field].rows[2][who]["metrics"][metric] = math.nan
            else:
                getattr(broken, rows)[2][who][field] = math.nan
            found = weigh(broken, None, 0.1, GATE).verdict
            assert found.outcome == "reject", (rows, field, who)
            assert "not finite" in found.reasons[0] or "could not be measured" in found.reasons[0]


def test_a_verdict_that_is_not_a_number_is_an_error_of_the_judge() -> None:
    world = World(pairs=60, prompts=60, documents=20, accuracy=0.95, win=0.95, ties=0.05)
    made = simulated(world, np.random.default_rng(11), judged=True)
    for row in made.judgements[:2]:  # 2 of 60 are over the bar of 2 %
        row["outcome"] = math.nan
    found = weigh(made, None, 0.1, GATE)
    assert found.verdict.outcome == "inconclusive" and "3.3% of the comparisons" in found.verdict.reasons[0]
