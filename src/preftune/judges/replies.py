"""Reading a judge's reply: the verdict of a comparison, the rating of an answer."""

import re
from typing import Literal

_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_RATING = re.compile(r"\[\[\s*(\d{1,2}(?:\.\d{1,3})?)\s*\]\]")
_WINNERS: dict[str, Literal["first", "second", "tie"]] = {"A": "first", "B": "second", "C": "tie"}


def verdict(reply: str) -> Literal["first", "second", "tie"] | None:
    """Who wins: the last `[[A]]` (shown first), `[[B]]` (shown second) or `[[C]]` (tie) in a reply.

    The last, since a judge may quote an answer that holds such a marker before it decides.

    Returns:
        None if there is none.
    """
    found = _VERDICT.findall(reply)
    return _WINNERS[found[-1]] if found else None


def rating(reply: str) -> float | None:
    """The score: the last `[[number]]` in a reply; None if there is none, or if it is not from 1 to 10."""
    found = _RATING.findall(reply)
    score = float(found[-1]) if found else 0.0
    return score if 1 <= score <= 10 else None
