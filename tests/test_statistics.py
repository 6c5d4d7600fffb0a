"""Intervals against scipy, against hand-made numbers, and against simulation."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from preftune.statistics import RESAMPLES, mean_interval, pairs_needed, wilson


@pytest.mark.parametrize("confidence", [0.90, 0.95, 0.99])
@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (50, 100), (613, 1000)])
def test_wilson_is_scipy_s(k: int, n: int, confidence: float) -> None:
    expected = stats.binomtest(k, n).proportion_ci(confidence, "wilson")
    assert wilson(k, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_by_hand() -> None:
    """8 of 10, z = 1.96: centre (0.8 + 0.19207)/1.38415 = 0.71674, half 1.96/1.38415·sqrt(0.016 + 0.009604) =
    0.22658: from 0.4902 to 0.9433."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_holds_its_proportion(n: int, share: float, confidence: float) -> None:
    """Within [0, 1], around p, symmetric, and narrower with more trials; ties may count one half."""
    successes = round(share * n * 2) / 2
    low, high = wilson(successes, n, confidence)
    p = successes / n
    assert 0 <= low <= p + 1e-12 and p - 1e-12 <= high <= 1
    mirrored = wilson(n - successes, n, confidence)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)
    wider = wilson(successes * 4, n * 4, confidence)
    assert wider[1] - wider[0] < high - low


def test_mean_interval_is_scipy_s_bca() -> None:
    data = np.random.default_rng(3).normal(1, 2, 60)
    for confidence in (0.90, 0.95):
        expected = stats.bootstrap(
            (data,),
            np.mean,
            confidence_level=confidence,
            n_resamples=RESAMPLES,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert mean_interval(data.tolist(), confidence) == (expected.low, expected.high)


def test_mean_interval_near_student_s() -> None:
    """For 200 normal values the bootstrap agrees with the t interval to a few per cent of its width."""
    data = np.random.default_rng(1).normal(0, 1, 200)
    low, high = mean_interval(data.tolist())
    t_low, t_high = stats.t.interval(0.95, 199, loc=data.mean(), scale=stats.sem(data))
    assert (low, high) == pytest.approx((t_low, t_high), abs=0.05 * (t_high - t_low))


def test_one_sided_bounds_are_the_two_sided_ninety() -> None:
    data = np.random.default_rng(2).exponential(1, 80).tolist()
    assert mean_interval(data, 0.90)[0] > mean_interval(data, 0.95)[0]


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [3] * 50, [0.0, -0.0]])
def test_equal_values_are_their_own_interval(values: list[float]) -> None:
    assert mean_interval(values) == (values[0], values[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_what_is_not_finite_has_no_interval(bad: float, place: int) -> None:
    values = [1.0, 2.0, 3.0]
    values[place] = bad
    assert all(math.isnan(x) for x in mean_interval(values))


def test_the_same_values_give_the_same_interval() -> None:
    data = np.random.default_rng(5).normal(size=30).tolist()
    assert mean_interval(data) == mean_interval(data)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-1e6, 1e6)), min_size=1, max_size=12))
@example([0.0] * 11 + [1.0])
@example([1.0] * 30 + [-1.0])
@example([0.0, 1e-300])
@example([1.0, 1.0 + 2**-52])
@example([0.1] * 5 + [0.1 + 1e-17, 0.30000000000000004])
def test_mean_interval_lies_among_the_values(values: list[float]) -> None:
    """Finite, ordered, within the values' own range; no warning on the way (warnings are errors here)."""
    low, high = mean_interval(values)
    assert math.isfinite(low) and math.isfinite(high) and low <= high
    slack = 1e-9 * max(abs(v) for v in values)
    assert min(values) - slack <= low and high <= max(values) + slack


@pytest.mark.parametrize("accuracy", [0.51, 0.55, 0.6, 0.75, 0.95, 0.45, 0.3])
@pytest.mark.parametrize("bar", [0.5, 0.6])
def test_pairs_needed_are_enough_and_hardly_more(accuracy: float, bar: float) -> None:
    """With so many pairs Wilson's interval is clear of the bar, with two fewer it is not."""
    if accuracy == bar:
        return
    n = pairs_needed(accuracy, bar)
    assert n is not None

    def clear(count: int) -> bool:
        low, high = wilson(accuracy * count, count)
        return low > bar or high < bar

    assert clear(n) and not clear(n - 2)


def test_pairs_needed_by_hand() -> None:
    """(1.95996)²·0.25/0.05² = 384.15 for 55 %; nothing decides at the bar itself."""
    assert pairs_needed(0.55) in (385, 386)
    assert pairs_needed(0.5) is None
    assert pairs_needed(0.6, 0.6) is None
