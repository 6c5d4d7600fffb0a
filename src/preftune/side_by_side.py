"""The words in which two texts differ, for showing them side by side."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import NamedTuple

MOST_DIFFERENT = 0.7  # above this share of different words the marks are noise
# Chinese and Japanese write no spaces between words: there each character counts as one.
_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_ASCII_MARKS = "!-/:-@\\[-`{-~"
_TOKEN = re.compile(rf"(?:[{_SINGLE}]|[^\s{_ASCII_MARKS}{_SINGLE}]+|[{_ASCII_MARKS}])\s*|\s+")
Part = tuple[bool, str]
Span = tuple[bool, int, int, int, int]  # equal, first[a:b], second[c:d]


class Differences(NamedTuple):
    """Two texts in parts that both have (False) and that only this one has (True).

    Args:
        first: The first text's parts; joined they are the text.
        second: The second text's.
        share: Of the words of both together, how many the other one lacks.
        marked: Whether parts are marked: not if the texts are equal, or too different.
    """

    first: list[Part]
    second: list[Part]
    share: float
    marked: bool


def _common_start(first: Sequence[str], second: Sequence[str]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _without_islands(spans: list[Span]) -> list[Span]:
    """Spans in which a few words in common between two longer changes are part of the change, for reading."""

    def length(span: Span) -> int:
        _, a, b, c, d = span
        return max(b - a, d - c)

    found = [span for span in spans if length(span)]
    for i in range(1, len(found) - 1):
        before, here, after = found[i - 1 : i + 2]
        if here[0] and not before[0] and not after[0] and length(here) < min(length(before), length(after)):
            found[i] = (False, *here[1:])
    return found


def _opcodes(first: Sequence[str], second: Sequence[str]) -> tuple[list[Span], float]:
    """(spans (equal, a, b, c, d): first[a:b] against second[c:d], share of the words that the other one lacks)."""
    start = _common_start(first, second)
    end = _common_start(first[start:][::-1], second[start:][::-1])
    middle = first[start : len(first) - end], second[start : len(second) - end]
    # From 200 words on, difflib starts no match at a word that is more than a hundredth of the second text. That
    # is wanted: an answer that repeats itself would else take minutes, and a lone "the" in common tells nothing.
    found = SequenceMatcher(None, *middle).get_opcodes()
    spans = [(tag == "equal", a + start, b + start, c + start, d + start) for tag, a, b, c, d in found]
    tail = (True, len(first) - end, len(first), len(second) - end, len(second))
    spans = _without_islands([(True, 0, start, 0, start), *spans, tail])
    common = sum(b - a for equal, a, b, _, _ in spans if equal)
    return spans, 1 - 2 * common / max(len(first) + len(second), 1)


def _parts(tokens: Sequence[str], spans: Sequence[tuple[bool, int, int]]) -> list[Part]:
    """Neighbours of one kind are one part."""
    return [
        (only_here, "".join("".join(tokens[a:b]) for _, a, b in found))
        for only_here, found in groupby((span for span in spans if span[1] < span[2]), lambda span: span[0])
    ]


def differences(first: str, second: str) -> Differences:
    """Marks the words that only one of two texts has.

    A word is compared without the white space that follows it. Source: Ratcliff and Obershelp's matching, as in
    `difflib.SequenceMatcher`, between the common start and the common end.

    Args:
        first: One text; a few thousand characters at most, for the time grows with their product.
        second: The other.
    """
    both = [_TOKEN.findall(text) for text in (first, second)]
    spans, share = _opcodes(*([token.rstrip() for token in tokens] for tokens in both))
    if share == 0 or share > MOST_DIFFERENT or not (first.strip() and second.strip()):
        spans = [(True, 0, len(both[0]), 0, len(both[1]))]
    return Differences(
        _parts(both[0], [(not equal, a, b) for equal, a, b, _, _ in spans]),
        _parts(both[1], [(not equal, c, d) for equal, _, _, c, d in spans]),
        share,
        len(spans) > 1,
    )
