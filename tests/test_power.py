"""The power that a verdict states, against scipy's binomial distribution, by hand and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from preftune.power import (
    Primary,
    accuracy_needed,
    accuracy_power,
    power_of,
    rate_needed,
    rate_power,
    times_in_ten,
)
from preftune.statistics import mean_interval, wilson


def accuracy(value: float, n: int = 80, bar: float = 0.5, **changes: object) -> Primary:
    low, high = wilson(value * n, n)
    fields = {"name": "reward_accuracy", "bar": bar, "n": n, "effective": float(n)} | changes
    return Primary(value=value, low=low, high=high, **fields)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("bar", [0.5, 0.6])
@pytest.mark.parametrize("n", [1, 5, 32, 80, 150])
@pytest.mark.parametrize("true", [0.5, 0.55, 0.7, 0.95])
def test_accuracy_power_is_the_binomial_sum(true: float, n: int, bar: float) -> None:
    """Over every possible count whose Wilson interval (scipy's) lies above the bar."""
    expected = sum(
        stats.binom.pmf(k, n, true)
        for k in range(n + 1)
        if stats.binomtest(k, n).proportion_ci(0.95, "wilson").low > bar
    )
    assert accuracy_power(true, n, bar) == pytest.approx(expected, abs=1e-9)


def test_the_sentence_of_the_documentation() -> None:
    """80 pairs at 59 %: 49 of 80 are the fewest whose interval lies above one half; P(k ≥ 49) by the normal
    approximation 1 − Φ((48.5 − 47.2)/4.40) = 0.38."""
    assert wilson(49, 80)[0] > 0.5 > wilson(48, 80)[0]
    assert accuracy_power(0.59, 80) == pytest.approx(0.38, abs=0.01)
    found = power_of(accuracy(47.2 / 80))
    assert found["text"] == "with 80 pairs, a true accuracy of 59% would be seen 4 times in 10"


@pytest.mark.parametrize("value", [0.52, 0.55, 0.6, 0.75, 0.45, 0.3])
@pytest.mark.parametrize("bar", [0.5, 0.6])
def test_the_size_that_is_needed_has_the_power(value: float, bar: float) -> None:
    """8 times in 10, to 3 points (the power of whole counts goes up and down in steps)."""
    n = accuracy_needed(value, bar)
    if value == bar:
        assert n is None
        return
    assert n is not None
    seen = accuracy_power(value, n, bar) if value > bar else 1 - accuracy_power_below(value, n, bar)
    assert seen == pytest.approx(0.8, abs=0.06 if n < 60 else 0.03)


def accuracy_power_below(true: float, n: int, bar: float) -> float:
    """Probability that the interval does not lie below the bar."""
    return sum(stats.binom.pmf(k, n, true) for k in range(n + 1) if not wilson(k, n)[1] < bar)


def test_needed_by_hand() -> None:
    """(1.95996·0.5 + 0.84162·√(0.55·0.45))²/0.05² = (0.97998 + 0.41870)²/0.0025 = 782.5 for 55 %."""
    assert accuracy_needed(0.55) == 783
    assert accuracy_needed(0.5) is None and accuracy_needed(math.nan) is None
    assert accuracy_needed(0.5001) is None  # nobody holds out so many


def test_rate_power_is_simulation_s() -> None:
    """Wins, ties and losses of 120 prompts around a mean of 0.58: how often the bootstrap interval lies above ½."""
    rng, n, true = np.random.default_rng(0), 120, 0.58
    tables = rng.choice([1.0, 0.5, 0.0], p=[true - 0.15, 0.3, 1 - true - 0.15], size=(500, n))
    intervals = [mean_interval(t.tolist()) for t in tables]
    seen = sum(low > 0.5 for low, _ in intervals) / 500
    stated = np.median([rate_power(true, low, high) for low, high in intervals])
    assert stated == pytest.approx(seen, abs=0.07)


def test_rate_needed_shrinks_the_interval_to_it() -> None:
    """An interval of 0.45 to 0.65 on 100 prompts: z·SE = 0.41 on the logit's scale, SE = 0.209; at 0.55 the logit is
    0.2007: n = 100·(2.8016·0.2096/0.2007)² = 856, within rounding."""
    assert rate_needed(0.55, 0.45, 0.65, 100) == pytest.approx(856, abs=6)
    assert rate_needed(0.5, 0.4, 0.6, 100) is None and rate_needed(math.nan, 0, 1, 100) is None
    n = rate_needed(0.45, 0.35, 0.55, 100)
    assert n == rate_needed(0.55, 0.45, 0.65, 100)  # below the bar likewise


def test_what_a_verdict_states() -> None:
    found = power_of(accuracy(0.7, 200))
    assert found["n"] == 200 and [a["true"] for a in found["at"]] == [0.55, 0.6, 0.65, 0.7, 0.8, 0.9]
    assert [a["power"] for a in found["at"]] == sorted(a["power"] for a in found["at"])
    assert accuracy_power(found["detectable"], 200) >= 0.8 > accuracy_power(found["detectable"] - 0.001, 200)
    assert found["needed"] is None  # it is decided
    assert found["text"] == "with 200 pairs, a true accuracy of 60% would be seen 8 times in 10"


@pytest.mark.parametrize(
    ("primary", "needed"),
    [
        (accuracy(0.55), 783),
        (accuracy(0.45), 783),  # to reject it
        (accuracy(0.55, effective=40.0), 1566),  # pairs of the same kind, worth half
        (accuracy(0.5), None),
        (accuracy(0.56, bar=0.6), None),  # better than SFT, but no size makes it 60 %
        (accuracy(0.9), None),
        (accuracy(0.1), None),
        (accuracy(0.65, bar=0.6), accuracy_needed(0.65, 0.6)),
    ],
)
def test_when_a_size_is_named(primary: Primary, needed: int | None) -> None:
    assert power_of(primary)["needed"] == needed


def test_groups_cost_power() -> None:
    """80 pairs that are worth 40 have the power of 40."""
    grouped, alone = power_of(accuracy(0.6, effective=40.0)), power_of(accuracy(0.6, 40))
    assert grouped["at"] == alone["at"] and grouped["n"] == 80


@pytest.mark.parametrize(
    "primary",
    [
        accuracy(0.6, unusable="it was down"),
        accuracy(0.6, unidentified="always longer"),
        accuracy(0.6, n=1, effective=1.0),
        Primary("lc_win_rate", math.nan, math.nan, math.nan, 0.5, 0, 0),
        Primary("reward_accuracy", math.nan, math.nan, math.nan, 0.5, 80, 80),
    ],
)
def test_when_nothing_can_be_said(primary: Primary) -> None:
    found = power_of(primary)
    assert found["needed"] is None or found["n"] == 1
    assert "cannot be said" in found["text"] or "too few" in found["text"]


@pytest.mark.parametrize(
    ("power", "text"),
    [
        (0.0, "less than once in 20"),
        (0.06, "once in 10"),
        (0.14, "once in 10"),
        (0.38, "4 times in 10"),
        (0.8, "8 times in 10"),
        (0.94, "9 times in 10"),
        (0.96, "more than 19 times in 20"),
    ],
)
def test_probabilities_in_words(power: float, text: str) -> None:
    assert times_in_ten(power) == text
