"""Intervals for the verdict. Deterministic: the bootstrap's seed is fixed."""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 4999


def wilson(successes: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion; ties may count one half.

    Args:
        successes: From 0 to n.
        n: Trials, at least 1.
        confidence: Two-sided.

    Returns:
        (low, high). Source: Wilson (1927); for whole successes equal to
        `scipy.stats.binomtest(k, n).proportion_ci(confidence, "wilson")`.
    """
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Bootstrap interval of a mean (BCa; the percentile method where BCa is undefined).

    Args:
        values: At least one; not a number gives (nan, nan).
        confidence: Two-sided; 0.90 gives the one-sided 95 % bounds.

    Returns:
        (low, high); both the value itself if all values are equal.
    """
    data = np.asarray(values, dtype=float)
    if not np.isfinite(data).all():
        return float("nan"), float("nan")
    if len(data) < 2 or np.ptp(data) == 0:
        return float(data.mean()), float(data.mean())
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (data,),
                np.mean,
                confidence_level=confidence,
                n_resamples=RESAMPLES,
                method=method,
                rng=np.random.default_rng(0),
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            break
    return float(found.low), float(found.high)


def pairs_needed(accuracy: float, bar: float = 0.5) -> int | None:
    """How many pairs would put Wilson's interval of this accuracy clear of the bar; None if it equals it.

    From Wilson's bound: the interval excludes `bar` when (p − bar)² n > z² bar (1 − bar).
    """
    if accuracy == bar:
        return None
    z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    return int(np.ceil(z * z * bar * (1 - bar) / (accuracy - bar) ** 2)) + 1
