"""An example of a rule: which of a model's answers is better? `preftune pairs` calls `score` for each of them."""

import re

HEDGES = ("as an ai", "i cannot", "i'm sorry", "it depends", "there are many", "it's important to note")


def score(prompt: list[dict[str, str]], answer: str, row: dict) -> float:
    """Prefers direct answers that do not repeat themselves.

    Args:
        prompt: The conversation, a list of {role, content}; the last message is the user's.
        answer: The model's answer.
        row: The prompt's own row in its file: other columns (a solution, unit tests) can be used here.

    Returns:
        Any number: the higher, the better. True and False are numbers, too.
    """
    words = re.findall(r"\w+", answer.lower())
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    repeated = 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
    hedges = sum(hedge in answer.lower() for hedge in HEDGES)
    return -repeated - 0.2 * hedges
