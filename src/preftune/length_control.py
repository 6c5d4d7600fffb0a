"""The win rate at equal length (arXiv 2404.04475): what a judge would say if the answers were equally long.

Two ways to take the length out, because neither is safe alone:

- fitted, the paper's: logit P(win) = θ + φ·tanh(Δ/s), reported is σ(θ). Δ is the difference of lengths in
  characters, s its standard deviation (as alpaca-eval computes both). Ties are soft labels of ½. alpaca-eval's terms
  for the instruction and for other models need a download and many models; they are left out.
- balanced: the mean of the win rate where the policy's answer is longer and where it is shorter. The fit
  extrapolates: with a policy that is nearly always longer, θ is a guess from one side, and a judge that looks at
  nothing but "which is longer", with some noise, comes out far above ½. There the balanced rate is ½.

The reported value is the fitted one; its interval holds both intervals.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from preftune.statistics import CONFIDENCE, resamples_of, weighted_sums, wilson

RESAMPLES = 999
_MOST_STEPS = 50
_SMALL = 1e-5  # of Newton's last step: what is left is its square

Triple = tuple[float, float, float]
UNKNOWN: Triple = (float("nan"), 0.0, 1.0)


@dataclass(frozen=True)
class Controlled:
    """A length-controlled win rate.

    Args:
        value: σ(θ); nan if the data leave it open.
        low: Of the interval that holds both ways' intervals; 0 if the data leave it open.
        high: Likewise; 1.
        fitted: The paper's way alone: (value, low, high).
        balanced: The mean of both signs of Δ alone: (value, low, high).
        problem: Why the data leave it open; None if they do not.
    """

    value: float
    low: float
    high: float
    fitted: Triple
    balanced: Triple
    problem: str | None

    @property
    def identified(self) -> bool:
        return self.problem is None


def _fit(x: np.ndarray, y: np.ndarray, counts: np.ndarray, start: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """θ and φ of each weighted data set by Newton's method; nan where it does not settle.

    Args:
        x: Feature, (n,).
        y: Wins from 0 to 1, (n,).
        counts: Weight of each item in each data set, (data sets, n). Both θ and φ must be finite there.
        start: θ and φ to begin with.
    """
    theta, phi = np.full(len(counts), float(start[0])), np.full(len(counts), float(start[1]))
    open_, wins, wins_x = np.arange(len(counts)), weighted_sums(counts, y), weighted_sums(counts, x * y)
    for _ in range(_MOST_STEPS):
        p = special.expit(theta[open_, None] + phi[open_, None] * x)
        weighted = counts * p
        slope0, slope1 = wins - weighted.sum(1), wins_x - weighted_sums(weighted, x)
        weighted *= 1 - p
        h00, h01, h11 = weighted.sum(1), weighted_sums(weighted, x), weighted_sums(weighted, x * x)
        with np.errstate(all="ignore"):
            det = h00 * h11 - h01 * h01
            step0, step1 = (h11 * slope0 - h01 * slope1) / det, (h00 * slope1 - h01 * slope0) / det
            length = np.hypot(step0, step1)
            shorter = np.maximum(1, length / 3)  # a long step comes from a flat place: it would overshoot
        theta[open_] += step0 / shorter
        phi[open_] += step1 / shorter
        going = length > _SMALL
        open_, counts, wins, wins_x = open_[going], counts[going], wins[going], wins_x[going]
        if not len(open_):
            break
    theta[open_] = np.nan
    return theta, phi


def _separated(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Data sets in which one value of x divides wins from losses: φ or θ is infinite there.

    With the wins above t and the losses below it, every θ with −θ/φ = t fits as well, so that P(win) at x = 0 is 1
    if t is below 0, 0 if t is above 0, and open if the gap around t holds 0. A tie is a win and a loss in one.

    Args:
        x: Feature, (n,).
        y: Wins from 0 to 1, (n,).
        counts: (data sets, n).

    Returns:
        (which data sets are separated, P(win) at x = 0 in these, nan where it is open), (data sets,) each.
    """
    there = counts > 0
    won, lost = there & (y > 0), there & (y < 1)
    won_low, lost_low = (np.where(m, x, np.inf).min(1) for m in (won, lost))
    won_high, lost_high = (np.where(m, x, -np.inf).max(1) for m in (won, lost))
    separated = (lost_high <= won_low) | (won_high <= lost_low)
    at_zero = np.full(len(counts), np.nan)
    no_loss, no_win = np.isinf(lost_low), np.isinf(won_low)
    at_zero[no_loss & (won_low <= 0) & (won_high >= 0)] = 1
    at_zero[no_win & (lost_low <= 0) & (lost_high >= 0)] = 0
    up = ~no_loss & ~no_win & (lost_high <= won_low)
    down = ~no_loss & ~no_win & (won_high <= lost_low)
    at_zero[(up & (won_low <= 0)) | (down & (won_high >= 0))] = 1
    at_zero[(up & (lost_high >= 0)) | (down & (lost_low <= 0))] = 0
    at_zero[up & down] = np.nan  # one value of x: nothing is known of another
    # Both meet at 0 itself: what was seen there is P(win) there.
    meet = (up & (won_low == 0) & (lost_high == 0)) | (down & (won_high == 0) & (lost_low == 0))
    here = counts[meet] * (x == 0)
    at_zero[meet] = weighted_sums(here, y) / here.sum(1)
    return separated, at_zero


def _fitted(x: np.ndarray, y: np.ndarray, counts: np.ndarray, start: tuple[float, float]) -> np.ndarray:
    """σ(θ) of each data set; nan where it is open."""
    separated, found = _separated(x, y, counts)
    if not separated.all():
        theta, _ = _fit(x, y, counts[~separated], start)
        found[~separated] = special.expit(theta)
    return found


def _balanced(delta: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Win rate with both signs of Δ at equal weight; nan where one of them does not occur."""
    size, rate = {}, {}
    with np.errstate(all="ignore"):
        for sign in (-1, 0, 1):
            of_sign = counts * (np.sign(delta) == sign)
            size[sign] = of_sign.sum(1)
            rate[sign] = weighted_sums(of_sign, y) / size[sign]
    equal = size[0] / counts.sum(1)
    both_signs = np.where(equal < 1, (1 - equal) * (rate[-1] + rate[1]) / 2, 0)
    return np.where(equal > 0, equal * rate[0], 0) + both_signs


def _interval(estimate: float, resampled: np.ndarray, n: int) -> Triple:
    """Percentile interval, widened to Student's t for small n (Hesterberg 2015: expanded percentile interval). A
    resample that leaves the value open counts as 0 for the lower end and as 1 for the upper one."""
    freedom = max(1, n - 2)  # θ and φ
    tail = float(special.ndtr(-np.sqrt(n / freedom) * special.stdtrit(freedom, 0.5 + CONFIDENCE / 2)))
    low, high = np.nan_to_num(resampled, nan=0.0), np.nan_to_num(resampled, nan=1.0)
    return estimate, float(np.quantile(low, tail)), float(np.quantile(high, 1 - tail))


def _problem(delta: np.ndarray, fitted: Triple, balanced: Triple) -> str | None:
    if not np.isfinite(balanced[0]):
        return f"one side's answers are never {'shorter' if (delta > 0).any() else 'longer'} than the other's"
    if not np.isfinite(fitted[0]):
        return "the verdicts follow the length alone"
    if min(fitted[1], balanced[1]) <= 0 and max(fitted[2], balanced[2]) >= 1:
        return "too few comparisons in which the longer answer is the other side's"
    return None


def length_controlled(
    outcomes: Sequence[float], differences: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Controlled:
    """The win rate at equal length, with a 95 % bootstrap interval over prompts.

    Args:
        outcomes: Of each comparison: 1 the policy won, ½ tie, 0 it lost.
        differences: Length of the policy's answer less the other's, in characters.
        clusters: Comparisons that belong together (turns of one question) are drawn together.
    """
    y, delta = np.asarray(outcomes, dtype=float), np.asarray(differences, dtype=float)
    n = len(y)
    if n == 0 or not (np.isfinite(y).all() and np.isfinite(delta).all()):
        nothing = (float("nan"), float("nan"), float("nan"))
        return Controlled(*nothing, nothing, nothing, "nothing was compared" if n == 0 else "a value is not finite")
    names = list(dict.fromkeys(clusters if clusters is not None else range(n)))
    place = {name: i for i, name in enumerate(names)}
    member = np.array([place[c] for c in (clusters if clusters is not None else range(n))])
    scale = delta.std(ddof=1) if n > 1 else 0.0
    x = np.tanh(delta / scale) if scale > 0 else np.sign(delta)
    whole = np.ones((1, n))
    separated, at_zero = _separated(x, y, whole)
    start = (0.0, 0.0)
    if separated[0]:
        value = float(at_zero[0])
    else:
        theta, phi = _fit(x, y, whole, start)
        value, start = float(special.expit(theta[0])), (float(theta[0]), float(phi[0]))
    fitted, balanced = [], []
    for block in resamples_of(len(names), RESAMPLES):
        counts = block[:, member]
        fitted.append(_fitted(x, y, counts, start))
        balanced.append(_balanced(delta, y, counts))
    ways = (
        _interval(value, np.concatenate(fitted), len(names)),
        _interval(float(_balanced(delta, y, whole)[0]), np.concatenate(balanced), len(names)),
    )
    if problem := _problem(delta, *ways):
        return Controlled(*UNKNOWN, *ways, problem)
    low, high = min(w[1] for w in ways), max(w[2] for w in ways)
    if low == high:
        # All resamples are alike (only wins, only ties): so narrow is no knowledge.
        low, high = wilson(value * len(names), len(names))
    return Controlled(value, low, high, *ways, None)
