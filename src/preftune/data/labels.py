"""What a row says about its pair beside the texts: the answers' scores, and a topic."""

from collections.abc import Mapping
from typing import Any

TOPIC_COLUMNS = ("topic", "category", "domain", "subset")
LONGEST_TOPIC = 80  # characters; a longer text is no label


def is_number(value: Any) -> bool:
    """Whether it is a number, and no endless one; JSON's true is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _number(value: Any) -> float | None:
    """The number, also one that is written as a text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if is_number(value) else None


def score_of(row: Mapping[str, Any], side: str) -> float | None:
    """The source's own score of an answer, where it has one.

    Args:
        row: Columns by name.
        side: `chosen` or `rejected`.
    """
    names = (f"score_{side}", f"{side}_score", f"{side}-rating", f"{side}_rating")
    return next((score for n in names if (score := _number(row.get(n))) is not None), None)


def topic_of(row: Mapping[str, Any]) -> str | None:
    """The first label among the topic columns. What cannot be one is passed over, and no reason to drop the row."""
    for value in map(row.get, TOPIC_COLUMNS):
        if isinstance(value, str) and 0 < len(label := " ".join(value.split())) <= LONGEST_TOPIC:
            return label.encode(errors="replace").decode()  # JSON can hold half an emoji, UTF-8 cannot
    return None
