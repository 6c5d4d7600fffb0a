"""Intervals and tests for the verdict. Deterministic: the bootstrap's seed is fixed.

All intervals are two-sided; at a confidence of 0.90 each end is a one-sided 95 % bound.
"""

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
from scipy import special

CONFIDENCE = 0.95
RESAMPLES = 4999
BOOTSTRAP_UP_TO = 5_000  # values; of more, the mean's bootstrap interval is Student's to three digits
_AT_ONCE = 1_000_000  # counts in memory at once: 8 MB

Interval = tuple[float, float]


def wilson(successes: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion; ties may count one half.

    Args:
        successes: From 0 to n.
        n: Trials, above 0; fewer than were made where they come in groups (see `design_effect`).
        confidence: Two-sided.

    Returns:
        (low, high). Source: Wilson (1927); for whole successes equal to
        `scipy.stats.binomtest(k, n).proportion_ci(confidence, "wilson")`.
    """
    z = float(special.ndtri(0.5 + confidence / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _draw(rng: np.random.Generator, rows: int, n: int) -> np.ndarray:
    """How often each of n items stands in each of `rows` resamples: (rows, n)."""
    drawn = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(float)


@functools.lru_cache(maxsize=8)
def _kept(n: int, resamples: int) -> np.ndarray:
    return _draw(np.random.default_rng(0), resamples, n)


def resamples_of(n: int, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """The bootstrap's resamples of n items, in blocks that fit into memory.

    The same for every measure on the same n items, so that they are drawn once; the same draws as
    `scipy.stats.bootstrap(rng=numpy.random.default_rng(0))` makes.

    Yields:
        Counts, (resamples of this block, n): how often each item was drawn.
    """
    if n * resamples <= _AT_ONCE:
        yield _kept(n, resamples)
        return
    rng, rows = np.random.default_rng(0), max(1, _AT_ONCE // n)
    for first in range(0, resamples, rows):
        yield _draw(rng, min(rows, resamples - first), n)


def weighted_sums(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`weights @ values`, (rows, n) by (n,), without BLAS: its threads wait for each other longer than the sum takes
    where cores are busy, and its last digit depends on their number."""
    return np.einsum("ij,j->i", weights, values)


def _bca(resampled: np.ndarray, estimate: float, jackknife: np.ndarray, confidence: float) -> Interval:
    """BCa interval (Efron 1987), the percentile method where it is undefined.

    Args:
        resampled: The statistic on each resample.
        estimate: On the data.
        jackknife: On the data without each item in turn.
        confidence: Two-sided.
    """
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    below = ((resampled < estimate).mean() + (resampled <= estimate).mean()) / 2
    with np.errstate(all="ignore"):
        bias = special.ndtri(below)
        pull = (len(jackknife) - 1) * (jackknife.mean() - jackknife)
        skew = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
        z = bias + special.ndtri(tails)
        found = special.ndtr(bias + z / (1 - skew * z))
    low, high = np.quantile(resampled, found if np.isfinite(found).all() else tails)
    return float(low), float(high)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Bootstrap interval of a mean (BCa; Student's t for more than `BOOTSTRAP_UP_TO` values).

    Args:
        values: At least one; not a number gives (nan, nan).
        confidence: Two-sided.

    Returns:
        (low, high); both the value itself if all values are equal. Equal to
        `scipy.stats.bootstrap(method="BCa", n_resamples=RESAMPLES, rng=numpy.random.default_rng(0))`.
    """
    data = np.asarray(values, dtype=float)
    n = len(data)
    if not np.isfinite(data).all():
        return float("nan"), float("nan")
    if n < 2 or np.ptp(data) == 0:
        return float(data[0]), float(data[0])
    if n > BOOTSTRAP_UP_TO:
        return _student(float(data.mean()), float(data.std(ddof=1) / np.sqrt(n)), n - 1, confidence)
    # Sums, not means: sums of 0, ½ and 1 are exact, so that equal ones are seen to be equal.
    total = data.sum()
    resampled = np.concatenate([weighted_sums(counts, data) for counts in resamples_of(n)])
    low, high = _bca(resampled, total, (total - data) * (n / (n - 1)), confidence)
    return low / n, high / n


def ratio_interval(
    above: Sequence[float], below: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Ratio of two means of the same items, with its BCa interval over items.

    Args:
        above: One value an item, at least one item.
        below: Likewise.
        confidence: Two-sided.

    Returns:
        (ratio, low, high); nan where the lower mean is 0 or a value is not finite.
    """
    a, b = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or not b.sum():
        return float("nan"), float("nan"), float("nan")
    ratio, n = float(a.sum() / b.sum()), len(a)
    with np.errstate(all="ignore"):
        resampled = np.concatenate([weighted_sums(counts, a) / weighted_sums(counts, b) for counts in resamples_of(n)])
        jackknife = (a.sum() - a) / (b.sum() - b)
    if n < 2 or np.ptp(resampled) == 0:
        return ratio, ratio, ratio
    if not (np.isfinite(resampled).all() and np.isfinite(jackknife).all()):
        return ratio, float("nan"), float("nan")
    return ratio, *_bca(resampled, ratio, jackknife, confidence)


def _student(mean: float, error: float, freedom: int, confidence: float) -> Interval:
    half = float(special.stdtrit(freedom, 0.5 + confidence / 2)) * error
    return mean - half, mean + half


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, int]:
    """Standard error of a mean whose items come in groups (arXiv 2411.00640).

    SE² = Σᵢ(xᵢ − x̄)²/(n(n − 1)) + Σ_c Σ_{i≠j in c}(xᵢ − x̄)(xⱼ − x̄)/n²

    Args:
        values: n of them.
        clusters: Each item's group.

    Returns:
        (SE, number of groups).
    """
    data = np.asarray(values, dtype=float)
    n = len(data)
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    off = data - data.mean()
    sums = np.bincount([names[c] for c in clusters], weights=off, minlength=len(names))
    squares = (off**2).sum()
    alone = squares / (n * (n - 1)) if n > 1 else 0.0
    return float(np.sqrt(max(0.0, alone + ((sums**2).sum() - squares) / n**2))), len(names)


def clustered_interval(
    values: Sequence[float], clusters: Sequence[Hashable], confidence: float = CONFIDENCE
) -> Interval:
    """Interval of a mean whose items come in groups: Student's t on the clustered standard error, with as many
    degrees of freedom as there are groups, less one. With a single group it is `mean_interval`'s.

    Args:
        values: Not a number gives (nan, nan).
        clusters: Each item's group.
        confidence: Two-sided.
    """
    if not np.isfinite(np.asarray(values, dtype=float)).all():
        return float("nan"), float("nan")
    error, groups = clustered_error(values, clusters)
    if groups < 2:
        return mean_interval(values, confidence)
    return _student(float(np.mean(values)), error, groups - 1, confidence)


def design_effect(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """How many items in groups are worth one item alone: clustered / unclustered variance, at least 1 (Kish 1965)."""
    n = len(values)
    alone = float(np.var(np.asarray(values, dtype=float), ddof=1)) / n if n > 1 else 0.0
    error, groups = clustered_error(values, clusters)
    return max(1.0, error**2 / alone) if alone > 0 and groups > 1 else 1.0


def mcnemar(worse: int, better: int) -> float:
    """Exact McNemar, two-sided: the p-value of a paired 0/1 measure that changed on `worse` + `better` items.

    Args:
        worse: Items on which only the first model was right.
        better: Items on which only the second was.

    Returns:
        As `scipy.stats.binomtest(worse, worse + better).pvalue`; 1 if nothing changed.
    """
    return min(1.0, 2 * float(special.bdtr(min(worse, better), worse + better, 0.5)))


def paired_t(differences: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Two-sided p-value that a mean difference is 0, by Student's t on the clustered standard error."""
    error, groups = clustered_error(differences, clusters)
    mean = float(np.mean(differences))
    if groups < 2 or mean == 0:
        return 1.0
    return float(2 * special.stdtr(groups - 1, -abs(mean) / error)) if error else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment (1979): below α for as many tests as can be believed at once at level α.

    Args:
        p_values: Of all tests that are made.

    Returns:
        The adjusted p-values, in the same order.
    """
    adjusted, highest, tests = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, i in enumerate(sorted(range(tests), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (tests - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def interval_of(clusters: Sequence[Hashable] | None) -> Callable[[Sequence[float], float], Interval]:
    """The mean's interval that fits these items: over groups where some of them share one."""
    if clusters is None or len(set(clusters)) == len(clusters):
        return mean_interval
    return lambda values, confidence: clustered_interval(values, clusters, confidence)
