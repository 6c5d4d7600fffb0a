"""What a comparison of this size could have seen: the power of the gate's primary rule.

Seen means: the lower end of the 95 % interval lies above the bar.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, isfinite, log
from typing import Any

import numpy as np
from scipy import special

from preftune.statistics import CONFIDENCE, wilson

WANTED = 0.8
MOST = 20_000  # items; beyond, no size is named: the difference is too small to matter
_SHOWN = (0.55, 0.60, 0.65, 0.70, 0.80, 0.90)
_Z = float(special.ndtri(0.5 + CONFIDENCE / 2))


@dataclass(frozen=True)
class Primary:
    """The measure that decides.

    Args:
        name: `reward_accuracy` or `lc_win_rate`.
        value: From 0 to 1.
        low: Of its 95 % interval.
        high: Likewise.
        bar: The interval must lie above it.
        n: Items behind it.
        effective: What these are worth as items that do not come in groups.
        unusable: Why the judge cannot be believed; None if it can, or there is none.
        unidentified: Why the data leave the value open; None if they do not.
    """

    name: str
    value: float
    low: float
    high: float
    bar: float
    n: int
    effective: float
    unusable: str | None = None
    unidentified: str | None = None

    @property
    def words(self) -> str:
        return "reward accuracy" if self.name == "reward_accuracy" else "length-controlled win rate"

    @property
    def items(self) -> str:
        return "pairs" if self.name == "reward_accuracy" else "prompts"


def accuracy_power(true: float, n: float, bar: float = 0.5) -> float:
    """Probability that Wilson's lower bound of a share exceeds the bar: the binomial sum, exact but for ties.

    Args:
        true: The share in truth.
        n: Trials.
        bar: The bar.
    """
    trials = max(1, round(n))
    low, high = 0, trials + 1  # the fewest successes that exceed the bar
    while low < high:
        middle = (low + high) // 2
        if wilson(middle, trials)[0] > bar:
            high = middle
        else:
            low = middle + 1
    return float(special.bdtrc(low - 1, trials, true)) if low else 1.0


def accuracy_needed(value: float, bar: float = 0.5) -> int | None:
    """How many pairs would show a true share of this value, above the bar or below it, 8 times in 10.

    From the normal approximation of both shares:
    n = (z₀.₉₇₅·√(bar(1 − bar)) + z₀.₈·√(v(1 − v)))² / (v − bar)².

    Returns:
        The number; None if the value equals the bar, or if more than `MOST` would be needed.
    """
    if not isfinite(value) or value == bar:
        return None
    wanted = float(special.ndtri(WANTED))
    root = _Z * np.sqrt(bar * (1 - bar)) + wanted * np.sqrt(max(0.0, value * (1 - value)))
    n = ceil((root / (value - bar)) ** 2)
    return n if n <= MOST else None


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return log(p / (1 - p))


def rate_power(true: float, low: float, high: float, bar: float = 0.5) -> float:
    """Probability that a win rate's interval lies above the bar: normal on the logit's scale, with the standard error
    that the interval at hand implies.

    Args:
        true: The rate in truth.
        low: Of the interval that was found.
        high: Likewise.
        bar: The bar.
    """
    error = (_logit(high) - _logit(low)) / (2 * _Z)
    return float(special.ndtr((_logit(true) - _logit(bar)) / error - _Z)) if error > 0 else float("nan")


def rate_needed(value: float, low: float, high: float, n: int, bar: float = 0.5) -> int | None:
    """How many prompts would show a true win rate of this value, above the bar or below it, 8 times in 10."""
    error = (_logit(high) - _logit(low)) / (2 * _Z)
    if not isfinite(value) or _logit(value) == _logit(bar):
        return None
    found = ceil(n * ((_Z + float(special.ndtri(WANTED))) * error / (_logit(value) - _logit(bar))) ** 2)
    return found if 0 < found <= MOST else None


def _detectable(power: Callable[[float], float], bar: float) -> float | None:
    """The smallest value, to a thousandth, that is seen 8 times in 10."""
    low, high = round(bar * 1000), 999
    if not power(high / 1000) >= WANTED:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle / 1000) >= WANTED else (middle + 1, high)
    return high / 1000


def times_in_ten(power: float) -> str:
    """A probability in words."""
    if power < 0.05:
        return "less than once in 20"
    if power >= 0.95:
        return "more than 19 times in 20"
    tenths = round(10 * power)
    return {0: "once in 20", 1: "once in 10", 10: "9 times in 10"}.get(tenths, f"{tenths} times in 10")


def power_of(primary: Primary) -> dict[str, Any]:
    """verdict.json's `power`: n, at, detectable, needed, text.

    The text tells the power at the value that was found, if that lies above the bar and is no clear case; else at the
    value that is seen 8 times in 10.
    """
    n, bar = primary.n, primary.bar
    usable = primary.unusable is None and primary.unidentified is None and n > 0
    if not usable or not all(map(isfinite, (primary.value, primary.low, primary.high))):
        text = f"what {n} {primary.items} could have shown cannot be said"
        return {"n": n, "at": [], "detectable": None, "needed": None, "text": text}
    if primary.name == "reward_accuracy":

        def power(true: float) -> float:
            return accuracy_power(true, primary.effective, bar)
    else:

        def power(true: float) -> float:
            return rate_power(true, primary.low, primary.high, bar)

    detectable = _detectable(power, bar)
    shown = detectable
    if detectable is not None and primary.value >= bar + 0.01 and power(primary.value) < WANTED:
        shown = primary.value
    kind = "accuracy" if primary.name == "reward_accuracy" else "length-controlled win rate"
    if shown is None:
        text = f"{n} {primary.items} are too few to show even the best {kind} 8 times in 10"
    else:
        text = f"with {n} {primary.items}, a true {kind} of {shown:.0%} would be seen {times_in_ten(power(shown))}"
    return {
        "n": n,
        "at": [{"true": true, "power": round(power(true), 4)} for true in _SHOWN if true > bar],
        "detectable": detectable,
        "needed": _needed(primary),
        "text": text,
    }


def _needed(primary: Primary) -> int | None:
    """Items that would decide at the value that was found; None where it is decided, or no size would."""
    value, low, high, bar, n = primary.value, primary.low, primary.high, primary.bar, primary.n
    if low > bar or high < 0.5 or 0.5 <= value <= bar:
        return None
    target = bar if value > bar else 0.5
    if primary.name == "reward_accuracy":
        found = accuracy_needed(value, target)
        return None if found is None else ceil(found * n / primary.effective)
    return rate_needed(value, low, high, n, target)
