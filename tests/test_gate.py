"""The gate, row by row of its table; NaN never promotes."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.gate import Damage, Verdict, decide
from preftune.schema import Gate

FINE = Damage("empty answers", 0.0, -0.01, 0.01)
BETTER = (0.7, 0.6, 0.78)
UNSURE = (0.52, 0.45, 0.6)
WORSE = (0.3, 0.2, 0.4)


def run(**changes: Any) -> Verdict:
    """A decision that would promote, but for the changes."""
    inputs: dict[str, Any] = {
        "required": {"reward_accuracy": 0.7, "stop_rate": 1.0},
        "steps": (8, 8),
        "damages": [FINE, replace(FINE, name="repetition")],
        "accuracy": BETTER,
        "pairs": 100,
        "needed": 50,
        "gate": Gate(),
    }
    return decide(**{**inputs, **changes})


@pytest.mark.parametrize(
    ("changes", "outcome", "reason"),
    [
        # row 1: missing, not finite, stopped short
        ({"required": {"stop_rate": math.nan}}, "reject", "stop_rate is missing or not finite"),
        ({"required": {"stop_rate": math.inf}}, "reject", "stop_rate is missing or not finite"),
        ({"damages": [replace(FINE, mean=math.nan)]}, "reject", "empty answers could not be measured"),
        ({"damages": [replace(FINE, low=math.nan)]}, "reject", "empty answers could not be measured"),
        ({"damages": [replace(FINE, low=-math.inf)]}, "reject", "empty answers could not be measured"),
        ({"steps": (7, 8)}, "reject", "training stopped at step 7 of 8"),
        # row 2: damage
        ({"damages": [Damage("empty answers", 0.2, 0.1, 0.01)]}, "reject", "empty answers: worse than SFT by 0.2"),
        # row 4: better
        ({}, "promote", "above 50%"),
        # row 5: worse
        ({"accuracy": WORSE}, "reject", "the policy prefers the rejected answers"),
        # row 6: otherwise, with the sample size
        ({"accuracy": UNSURE}, "inconclusive", "about 50 held-out pairs would decide"),
    ],
)
def test_each_row(changes: dict[str, Any], outcome: str, reason: str) -> None:
    found = run(**changes)
    assert found.outcome == outcome
    assert any(reason in r for r in found.reasons), found.reasons


def test_the_first_row_that_applies_decides() -> None:
    """Missing goes before damage, damage before a good or a bad accuracy."""
    damaged = [Damage("empty answers", 0.2, 0.1, 0.01)]
    assert run(damages=damaged, steps=(1, 2)).reasons == ["training stopped at step 1 of 2"]
    assert "empty answers" in run(damages=damaged).reasons[0]
    assert "empty answers" in run(damages=damaged, accuracy=WORSE).reasons[0]


def test_all_reasons_of_a_row_are_told() -> None:
    bad = Damage("a", 0.2, 0.1, 0.01)
    assert len(run(damages=[bad, replace(bad, name="b"), FINE]).reasons) == 2
    assert len(run(required={"x": math.nan, "y": math.inf}, steps=(0, 1)).reasons) == 3


@pytest.mark.parametrize(
    ("accuracy", "bar", "outcome"),
    [
        ((0.6, 0.5, 0.7), 0.5, "inconclusive"),  # the bar itself is not above it
        ((0.6, 0.5000001, 0.7), 0.5, "promote"),
        ((0.4, 0.3, 0.5), 0.5, "inconclusive"),
        ((0.4, 0.3, 0.4999999), 0.5, "reject"),
        ((0.7, 0.59, 0.8), 0.6, "inconclusive"),
        ((0.7, 0.61, 0.8), 0.6, "promote"),
        ((0.52, 0.51, 0.53), 0.6, "inconclusive"),  # better than SFT, but not by as much as is asked for
        ((0.4, 0.3, 0.49), 0.6, "reject"),
    ],
)
def test_the_bars_of_the_accuracy(accuracy: tuple[float, float, float], bar: float, outcome: str) -> None:
    assert run(accuracy=accuracy, gate=Gate(min_reward_accuracy=bar)).outcome == outcome


def test_an_interval_below_the_bar_is_not_said_to_include_it() -> None:
    """51 % to 53 % does not include 60 %."""
    (reason,) = run(accuracy=(0.52, 0.51, 0.53), gate=Gate(min_reward_accuracy=0.6)).reasons
    assert "includes 60%" not in reason


@pytest.mark.parametrize(("low", "applies"), [(0.0999, False), (0.10, False), (0.1001, True)])
def test_a_damage_exceeds_its_bar(low: float, applies: bool) -> None:
    damage = Damage("stops", 0.3, low, 0.10)
    assert damage.applies is applies
    assert (run(damages=[damage]).outcome == "reject") is applies


def test_no_size_no_promise() -> None:
    (reason,) = run(accuracy=(0.5, 0.4, 0.6), needed=None).reasons
    assert "would decide" not in reason and "None" not in reason


def test_figures_are_in_the_reasons() -> None:
    reasons = run().reasons
    assert reasons[0].startswith("reward accuracy 70.0% on 100 held-out pairs (95 % interval 60.0% to 78.0%)")


bad_number = st.sampled_from([math.nan, math.inf, -math.inf])
PLACES = ["required", "mean", "low", "bar", "accuracy.0", "accuracy.1", "accuracy.2"]


@given(st.sets(st.sampled_from(PLACES), min_size=1), st.data())
def test_nan_never_promotes(places: set[str], data: Any) -> None:
    """Whatever is not finite, and wherever: never promoted, and never by an exception."""
    accuracy = list(BETTER)
    damage = {"mean": 0.0, "low": -0.01, "bar": 0.01}
    required = {"reward_accuracy": 0.7}
    for place in sorted(places):
        value = data.draw(bad_number, label=place)
        if place == "required":
            required["reward_accuracy"] = value
        elif place in damage:
            damage[place] = value
        else:
            accuracy[int(place[-1])] = value
    found = run(required=required, damages=[FINE, Damage("x", **damage)], accuracy=tuple(accuracy))
    assert found.outcome != "promote"
    assert found.reasons


number = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 0.4, 0.5, 0.6, 0.7])
finite = st.sampled_from([0.0, 0.01, 0.5])


@given(
    st.dictionaries(st.sampled_from("ab"), number),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.lists(st.builds(Damage, st.just("d"), number, number, finite), max_size=2),
    st.tuples(number, number, number),
)
def test_promotion_has_every_condition(
    required: dict[str, float],
    steps: tuple[int, int],
    damages: list[Damage],
    accuracy: tuple[float, float, float],
) -> None:
    """The contract read backwards: what is promoted is finite, whole, undamaged and above the bar."""
    found = run(required=required, steps=steps, damages=damages, accuracy=accuracy)
    assert found.outcome in ("promote", "reject", "inconclusive") and found.reasons
    if found.outcome == "promote":
        assert all(math.isfinite(v) for v in required.values()) and steps[0] == steps[1]
        assert all(d.low <= d.bar for d in damages)
        assert all(math.isfinite(v) for v in accuracy) and accuracy[1] > 0.5
