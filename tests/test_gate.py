"""The gate, row by row of its table, with and without a judge; NaN never promotes."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.gate import Damage, Verdict, decide
from preftune.power import Primary

FINE = Damage("empty answers", 0.0, -0.01, 0.01)
BETTER = (0.7, 0.6, 0.78)
UNSURE = (0.52, 0.45, 0.6)
WORSE = (0.3, 0.2, 0.4)


def primary(triple: tuple[float, float, float] = BETTER, **changes: Any) -> Primary:
    """The reward accuracy on 100 pairs, or with name="lc_win_rate" the win rate on 100 prompts."""
    fields = {"name": "reward_accuracy", "bar": 0.5, "n": 100, "effective": 100.0, **changes}
    return Primary(value=triple[0], low=triple[1], high=triple[2], **fields)


def run(**changes: Any) -> Verdict:
    """A decision that would promote, but for the changes."""
    inputs: dict[str, Any] = {
        "required": {"reward_accuracy": 0.7, "stop_rate": 1.0},
        "steps": (8, 8),
        "damages": [FINE, replace(FINE, name="repetition")],
        "primary": primary(),
        "needed": 50,
    }
    return decide(**{**inputs, **changes})


def judged(triple: tuple[float, float, float] = BETTER, **changes: Any) -> Primary:
    return primary(triple, name="lc_win_rate", **changes)


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
        # row 3: a judge that cannot be used, or a win rate that the data leave open
        ({"primary": judged(unusable="45% flip")}, "inconclusive", "the judge cannot be used: 45% flip"),
        ({"primary": judged(unidentified="always longer")}, "inconclusive", "at equal length is unknown"),
        # row 4: better
        ({}, "promote", "above 50%"),
        ({"primary": judged()}, "promote", "length-controlled win rate 70.0% on 100 held-out prompts"),
        ({"steps": None}, "promote", "above 50%"),
        # row 5: worse
        ({"primary": primary(WORSE)}, "reject", "the policy prefers the rejected answers"),
        ({"primary": judged(WORSE)}, "reject", "the judge prefers SFT's answers"),
        # row 6: otherwise, with the sample size
        ({"primary": primary(UNSURE)}, "inconclusive", "about 50 held-out pairs would decide"),
        ({"primary": judged(UNSURE)}, "inconclusive", "about 50 held-out prompts would decide"),
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
    assert "empty answers" in run(damages=damaged, primary=primary(WORSE)).reasons[0]
    unusable = judged((math.nan,) * 3, unusable="it was down")
    assert "empty answers" in run(damages=damaged, primary=unusable).reasons[0]
    assert run(primary=unusable, steps=(1, 2)).outcome == "reject"
    assert "it was down" in run(primary=replace(unusable, unidentified="no verdicts")).reasons[0]


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
    assert run(primary=primary(accuracy, bar=bar)).outcome == outcome
    assert run(primary=judged(accuracy, bar=bar)).outcome == outcome


def test_an_interval_below_the_bar_is_not_said_to_include_it() -> None:
    """51 % to 53 % does not include 60 %."""
    (reason,) = run(primary=primary((0.52, 0.51, 0.53), bar=0.6)).reasons
    assert "includes 60%" not in reason


@pytest.mark.parametrize(("low", "applies"), [(0.0999, False), (0.10, False), (0.1001, True)])
def test_a_damage_exceeds_its_bar(low: float, applies: bool) -> None:
    damage = Damage("stops", 0.3, low, 0.10)
    assert damage.applies is applies
    assert (run(damages=[damage]).outcome == "reject") is applies


@pytest.mark.parametrize(("p", "applies"), [(None, True), (0.0499, True), (0.05, False), (1.0, False)])
def test_a_damage_needs_its_test_to_agree(p: float | None, applies: bool) -> None:
    """The bound alone, or the bound and the exact test."""
    assert Damage("facts", 0.1, 0.05, 0.02, "capability", p).applies is applies
    assert not Damage("facts", 0.1, 0.01, 0.02, "capability", p).applies


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"primary": judged()},
        {"steps": (1, 2)},
        {"required": {"x": math.nan}},
        *({"damages": [Damage("x", 1.0, 0.9, 0.1, kind)]} for kind in ("stop", "empty", "repetition", "nll")),
        {"damages": [Damage("x", 1.0, 0.9, 0.1, "capability", 0.001)]},
        {"primary": judged(unusable="x")},
        {"primary": judged(unidentified="x")},
        {"primary": primary(WORSE)},
        {"primary": primary(UNSURE)},
        {"primary": primary((0.52, 0.51, 0.53), bar=0.6)},
    ],
)
def test_every_outcome_says_what_to_do(changes: dict[str, Any]) -> None:
    advice = run(**changes).advice
    assert advice and all(len(line) > 10 for line in advice) and len(set(advice)) == len(advice)


def test_the_advice_fits_the_reason() -> None:
    assert "test_split_size" in run(primary=primary(UNSURE)).advice[0]
    assert "about 50 held-out prompts" in run(primary=judged(UNSURE)).advice[0]
    assert "swapped" in run(primary=primary(WORSE)).advice[1]
    assert "same command" in run(steps=(1, 2)).advice[0]
    stops = Damage("answers that stop by themselves", 0.5, 0.4, 0.1, "stop")
    tasks = [Damage(f"lm-eval {t}", 0.5, 0.4, 0.02, "capability", 0.001) for t in ("facts", "gsm8k")]
    both = run(damages=[stops, *tasks])
    assert len(both.reasons) == 3 and len(both.advice) == 3  # keep SFT; stops; capability once


def test_no_size_no_promise() -> None:
    (reason,) = run(primary=primary((0.5, 0.4, 0.6)), needed=None).reasons
    assert "would decide" not in reason and "None" not in reason


def test_figures_are_in_the_reasons() -> None:
    reasons = run().reasons
    assert reasons[0].startswith("reward accuracy 70.0% on 100 held-out pairs (95 % interval 60.0% to 78.0%)")


bad_number = st.sampled_from([math.nan, math.inf, -math.inf])
PLACES = ["required", "mean", "low", "bar", "p", "primary.0", "primary.1", "primary.2"]
NAMES = st.sampled_from(["reward_accuracy", "lc_win_rate"])


@given(st.sets(st.sampled_from(PLACES), min_size=1), NAMES, st.data())
def test_nan_never_promotes(places: set[str], name: str, data: Any) -> None:
    """Whatever is not finite, and wherever: never promoted, and never by an exception."""
    triple = list(BETTER)
    damage = {"mean": 0.0, "low": -0.01, "bar": 0.01, "p": 0.5}
    required = {"reward_accuracy": 0.7}
    for place in sorted(places):
        value = data.draw(bad_number, label=place)
        if place == "required":
            required["reward_accuracy"] = value
        elif place in damage:
            damage[place] = value
        else:
            triple[int(place[-1])] = value
    found = run(
        required=required,
        damages=[FINE, Damage("x", **damage)],
        primary=primary((triple[0], triple[1], triple[2]), name=name),
    )
    assert found.outcome == "reject"
    assert found.reasons and found.advice


number = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 0.4, 0.5, 0.6, 0.7])
finite = st.sampled_from([0.0, 0.01, 0.5])
maybe = st.sampled_from([None, "a reason"])


@given(
    st.dictionaries(st.sampled_from("ab"), number),
    st.none() | st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.lists(st.builds(Damage, st.just("d"), number, number, finite, p=st.none() | number), max_size=2),
    st.tuples(number, number, number),
    NAMES,
    maybe,
    maybe,
)
def test_promotion_has_every_condition(
    required: dict[str, float],
    steps: tuple[int, int] | None,
    damages: list[Damage],
    triple: tuple[float, float, float],
    name: str,
    unusable: str | None,
    unidentified: str | None,
) -> None:
    """The contract read backwards: what is promoted is finite, whole, undamaged, judged and above the bar."""
    measure = primary(triple, name=name, unusable=unusable, unidentified=unidentified)
    found = run(required=required, steps=steps, damages=damages, primary=measure)
    assert found.outcome in ("promote", "reject", "inconclusive") and found.reasons and found.advice
    if found.outcome == "promote":
        assert all(math.isfinite(v) for v in required.values()) and (steps is None or steps[0] == steps[1])
        assert all(d.measured and not d.applies for d in damages)
        assert unusable is None and unidentified is None
        assert all(math.isfinite(v) for v in triple) and triple[1] > 0.5
