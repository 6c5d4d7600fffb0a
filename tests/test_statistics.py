"""Intervals and tests against scipy, against hand-made numbers, and against simulation."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from preftune.statistics import (
    BOOTSTRAP_UP_TO,
    RESAMPLES,
    clustered_error,
    clustered_interval,
    design_effect,
    holm,
    interval_of,
    mcnemar,
    mean_interval,
    paired_t,
    ratio_interval,
    resamples_of,
    wilson,
)


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


@pytest.mark.parametrize("n", [2, 60, 199, 260])
def test_mean_interval_is_scipy_s_bca(n: int) -> None:
    """Also where the resamples come in several blocks (from n = 201 on), and with values that repeat."""
    data = np.random.default_rng(3).normal(1, 2, n) if n != 199 else np.arange(n) % 7 * 0.5
    for confidence in (0.90, 0.95):
        expected = stats.bootstrap(
            (data,),
            np.mean,
            confidence_level=confidence,
            n_resamples=RESAMPLES,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert mean_interval(data.tolist(), confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


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


def test_many_values() -> None:
    """Above the limit Student's t takes the bootstrap's place; just below it they agree to three digits of the
    interval's width, even for skewed values."""
    data = np.random.default_rng(4).exponential(1, BOOTSTRAP_UP_TO + 1)
    above, below = mean_interval(data.tolist()), mean_interval(data[:-1].tolist())
    expected = stats.t.interval(0.95, len(data) - 1, loc=data.mean(), scale=stats.sem(data))
    assert above == pytest.approx(expected, abs=1e-12)
    assert above == pytest.approx(below, abs=0.03 * (above[1] - above[0]))


def test_resamples_hold_n_items_each() -> None:
    for n in (3, 300):
        blocks = list(resamples_of(n, 4000))
        counts = np.concatenate(blocks)
        assert counts.shape == (4000, n) and (counts.sum(1) == n).all()
        assert all(b.size <= 1_000_000 for b in blocks)


def test_ratio_of_means_is_scipy_s_paired_bootstrap() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.exponential(3, 40), rng.exponential(2, 40)
    expected = stats.bootstrap(
        (a, b),
        lambda x, y, axis=-1: x.sum(axis) / y.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert ratio_interval(a.tolist(), b.tolist()) == pytest.approx(
        (a.mean() / b.mean(), expected.low, expected.high), abs=1e-12
    )


def test_a_ratio_that_is_none() -> None:
    assert all(math.isnan(x) for x in ratio_interval([1.0, 2.0], [0.0, 0.0]))
    assert all(math.isnan(x) for x in ratio_interval([1.0, math.nan], [1.0, 1.0]))
    assert ratio_interval([3.0], [2.0]) == (1.5, 1.5, 1.5)
    assert ratio_interval([2.0, 4.0], [1.0, 2.0]) == (2.0, 2.0, 2.0)
    ratio, low, _ = ratio_interval([1.0, 1.0], [0.0, 2.0])  # a resample may have nothing below
    assert ratio == 1.0 and math.isnan(low)


# --- items that come in groups ----------------------------------------------------------------------------


def test_clustered_error_is_the_paper_s() -> None:
    """arXiv 2411.00640: SE² = SE_CLT² + 1/n² Σ_c Σᵢ Σ_{j≠i} (s_ic − s̄)(s_jc − s̄), as three loops."""
    rng = np.random.default_rng(7)
    clusters = rng.integers(0, 12, 50).tolist()
    values = (rng.normal(size=50) + np.array(clusters)).tolist()
    mean, n = sum(values) / 50, 50
    total = stats.sem(values) ** 2
    for c in set(clusters):
        own = [v for v, k in zip(values, clusters, strict=True) if k == c]
        for i in range(len(own)):
            for j in range(len(own)):
                if i != j:
                    total += (own[i] - mean) * (own[j] - mean) / n**2
    assert clustered_error(values, clusters) == (pytest.approx(math.sqrt(total)), len(set(clusters)))


def test_without_groups_the_error_is_the_usual_one() -> None:
    values = np.random.default_rng(8).normal(size=30).tolist()
    assert clustered_error(values, range(30)) == (pytest.approx(stats.sem(values)), 30)
    assert clustered_interval(values, range(30)) == pytest.approx(
        stats.t.interval(0.95, 29, loc=np.mean(values), scale=stats.sem(values))
    )
    assert interval_of(None) is mean_interval and interval_of(list(range(30))) is mean_interval
    assert interval_of([0, 0, 1])([1.0, 2.0, 4.0], 0.95) == clustered_interval([1.0, 2.0, 4.0], [0, 0, 1])


def test_clustered_interval_covers_where_the_unclustered_does_not() -> None:
    """20 groups of 5 that are half alike: 95 % of the intervals hold the truth; without groups it would be 75 %."""
    rng, clusters = np.random.default_rng(9), [i // 5 for i in range(100)]
    hits = {"clustered": 0, "alone": 0}
    for _ in range(400):
        values = (rng.normal(size=20).repeat(5) + rng.normal(size=100)).tolist()
        for name, groups in (("clustered", clusters), ("alone", range(100))):
            low, high = clustered_interval(values, list(groups))
            hits[name] += low <= 0 <= high
    assert 0.92 <= hits["clustered"] / 400 <= 0.98
    assert hits["alone"] / 400 < 0.85


def test_a_single_group_says_nothing_about_groups() -> None:
    values = [1.0, 2.0, 4.0]
    assert clustered_interval(values, ["all"] * 3) == mean_interval(values)
    assert design_effect(values, ["all"] * 3) == 1.0
    assert all(math.isnan(x) for x in clustered_interval([1.0, math.nan], ["a", "b"]))


def test_design_effect() -> None:
    """Groups of m items that are alike count as one each, nearly; items that stand alone as one each."""
    values = np.random.default_rng(10).integers(0, 2, 200).astype(float)
    assert design_effect(values.repeat(4).tolist(), np.arange(200).repeat(4).tolist()) == pytest.approx(4, abs=0.03)
    assert design_effect(values.tolist(), range(200)) == pytest.approx(1)
    # Within a group one is right and one is wrong: that is more certain than chance, and not made use of.
    assert design_effect([0.0, 1.0] * 50, [i // 2 for i in range(100)]) == 1.0


# --- tests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("worse", "better"), [(0, 1), (1, 0), (5, 0), (0, 5), (3, 3), (12, 4), (40, 61), (300, 200)])
def test_mcnemar_is_the_exact_binomial_test(worse: int, better: int) -> None:
    expected = stats.binomtest(worse, worse + better).pvalue
    assert mcnemar(worse, better) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_by_hand() -> None:
    """Five of five: 2/32; nothing changed: 1."""
    assert (mcnemar(5, 0), mcnemar(0, 0)) == (0.0625, 1.0)


def test_paired_t_is_student_s() -> None:
    values = np.random.default_rng(11).normal(0.3, 1, 40)
    assert paired_t(values.tolist(), range(40)) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert paired_t([0.0, 0.0], range(2)) == 1.0 and paired_t([1.0, 1.0], range(2)) == 0.0
    assert paired_t([3.0], range(1)) == 1.0


def test_holm_by_hand() -> None:
    """Sorted 0.005·4, 0.01·3, 0.03·2, and 0.04·1 which may not be below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9]) and holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_steps_reject(p_values: list[float]) -> None:
    """Holm's own procedure at 0.05: from the smallest on, while p ≤ α/(m − rank)."""
    rejected, adjusted = set(), holm(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if (len(p_values) - rank) * p_values[i] > 0.05:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(adjusted) if p <= 0.05} == rejected
