"""Short-answer questions: is an accepted answer said?

Normalised as SQuAD's evaluation does (Rajpurkar et al., arXiv 1606.05250): small letters, no articles, no
punctuation; here also no accents. The accepted answer must stand in the text as whole words, because a chat model
answers in sentences; how long it may search for it is bounded by the task's `max_gen_toks`.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any


def normalise(text: str) -> str:
    """Small letters, digits and single spaces.

    A comma between digits goes (1,000), and so does 's (Japan's); other punctuation becomes a space, so that
    7+5=12 is not the number 7512.
    """
    text = unicodedata.normalize("NFKD", text.lower())
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"(?<=\d),(?=\d{3})|(?<=\w)['’]s\b", "", text)
    text = re.sub(r"[\W_]+", " ", text)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def is_correct(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds one of the accepted answers as whole words."""
    said = f" {normalise(text)} "
    return any(f" {normalise(a)} " in said for a in answers)


def process_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """lm-eval's hook: the metrics of one document.

    Args:
        document: With the accepted `answers`.
        results: The model's one answer.
    """
    return {"acc": float(is_correct(results[0], document["answers"]))}
