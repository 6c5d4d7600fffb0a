"""Numbers, shares and intervals as people read them: the report, the comparison of runs, the model card."""

import math
import re
from collections.abc import Sequence
from typing import Any, TypeGuard

MISSING = "not measured"


def number(value: float) -> str:
    """A number for people: mostly three decimals, a real minus sign, powers of ten only where needed."""
    if value == 0:
        return "0"
    size = abs(value)
    text = f"{value:.2g}" if size < 0.0005 or size >= 1e6 else f"{value:,.0f}" if size >= 1000 else f"{value:.3f}"
    return text.replace("-", "−")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def value_text(value: Any, unit: str, signed: bool = False) -> str:
    """A value in its unit; a difference of shares is told in percentage points.

    Args:
        value: A number, or None where nothing was measured.
        unit: share, tokens, nats, score or number.
        signed: It is a difference: with its sign.
    """
    if not is_number(value):
        return MISSING
    if unit == "share":
        sign = round(value * 100, 1)
        text = f"{abs(sign):.1f}" + ("" if signed else "%")
    else:
        decimals = {"tokens": 1, "score": 2}.get(unit)
        text = number(abs(value)) if decimals is None else f"{abs(value):,.{decimals}f}"
        sign = value if re.search("[1-9]", text) else 0.0  # what is shown as 0 has no sign
    return ("−" if sign < 0 else "+" if signed and sign > 0 else "") + text


def interval_text(low: Any, high: Any, unit: str, signed: bool = False) -> str:
    """Both ends of an interval; empty if one is missing."""
    if not (is_number(low) and is_number(high)):
        return ""
    return f"{value_text(low, unit, signed)} to\u00a0{value_text(high, unit, signed)}"


def triple(metrics: dict[str, Any], name: str) -> tuple[Any, Any, Any]:
    """(value, low, high) of a measure among flat metrics."""
    return metrics.get(name), metrics.get(f"{name}_lo"), metrics.get(f"{name}_hi")


def cell(found: Sequence[Any] | None, unit: str, signed: bool = False) -> dict[str, str]:
    """What a table's cell shows.

    Args:
        found: (value, low, high), or None.
        unit: As for `value_text`.
        signed: It is a difference.

    Returns:
        `value` and `interval`, which is empty where there is none.
    """
    value, low, high = found or (None, None, None)
    points = " points" if signed and unit == "share" and is_number(value) else ""
    return {
        "value": value_text(value, unit, signed) + points,
        "interval": interval_text(low, high, unit, signed) if low != high else "",
    }


def judgement(difference: Sequence[Any] | None, better: str) -> str:
    """What a difference's interval says, in one word or two.

    Args:
        difference: (value, low, high), or None.
        better: higher, lower, or empty if neither is.
    """
    if difference is None or not (is_number(difference[1]) and is_number(difference[2])):
        return ""
    _, low, high = difference
    if low <= 0 <= high:
        return "no clear change"
    way = "higher" if low > 0 else "lower"
    return way if not better else "better" if way == better else "worse"


def percent(value: float) -> str:
    """A share as a place on a scale from 0 to 100, for a style."""
    return f"{100 * min(max(value, 0.0), 1.0):.2f}"


def track(found: Sequence[Any] | None, mark: float = 0.5) -> dict[str, str] | None:
    """A share, its interval and a mark as places on a scale from 0 to 100.

    Args:
        found: (value, low, high), or None.
        mark: Where the dashed line stands.

    Returns:
        `value`, `low`, `width`, `mark`; None if something is missing.
    """
    if found is None or not all(map(is_number, found)):
        return None
    value, low, high = found
    return {
        "value": percent(value),
        "low": percent(low),
        "width": percent(min(high, 1.0) - max(low, 0.0)),
        "mark": percent(mark),
    }
