"""Short-answer questions: is an accepted answer said in the first sentence?

Normalised as SQuAD's evaluation does (Rajpurkar et al., arXiv 1606.05250): small letters, no articles, no
punctuation; here also no accents. The accepted answer must stand in the sentence as whole words, because a chat
model answers in sentences.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from preftune.lm_tasks.rules import sentences


def normalise(text: str) -> str:
    """Small letters, digits and single spaces.

    A comma between digits goes (1,000), an apostrophe inside a word goes (o'clock); other punctuation becomes a
    space, so that 7+5=12 is not the number 7512.
    """
    text = unicodedata.normalize("NFKD", text.lower())
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"(?<=\d),(?=\d{3})|(?<=\w)['’](?=\w)", "", text)
    text = re.sub(r"[\W_]+", " ", text)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def is_correct(text: str, answers: Sequence[str]) -> bool:
    """Whether the first sentence of an answer holds one of the accepted answers as whole words."""
    first = next(iter(sentences(text)), "")
    said = f" {normalise(first)} "
    return any(f" {normalise(a)} " in said for a in answers)


def process_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """lm-eval's hook: the metrics of one document.

    Args:
        document: With the accepted `answers`.
        results: The model's one answer.
    """
    return {"acc": float(is_correct(results[0], document["answers"]))}
