"""The data checks by name: what each means, what is done about a row that fails it, what a recipe may change.

`item` is the number in docs/own-data.md's list of what spoils preference training.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["drop", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        meaning: What is wrong with the row or dataset.
        severity: What is done by default: `drop` the row, keep it and `warn`, or `fail` (stop the run).
        item: Number in the list of docs/own-data.md.
        allowed: What `validation.severity` may say instead. A row without a usable pair cannot be kept.
        choice: The row is no defect, it is left out by choice (a tie, another language): it does not count
            towards `validation.max_dropped`.
    """

    meaning: str
    severity: Severity
    item: int
    allowed: tuple[Severity, ...] = ("drop", "warn", "fail")
    choice: bool = False


_NO_PAIR: tuple[Severity, ...] = ("drop", "fail")
_NO_ROW: tuple[Severity, ...] = ("warn", "fail")

# Rows that cannot become a pair.
STRUCTURE = {
    "not_an_object": Check("the row is not an object with named fields", "drop", 8, _NO_PAIR),
    "missing_answer": Check("chosen or rejected is missing", "drop", 8, _NO_PAIR),
    "wrong_type": Check("prompt, chosen or rejected is neither text nor a list of messages", "drop", 2, _NO_PAIR),
    "unknown_role": Check("a message has a role other than user, assistant or system", "drop", 2, _NO_PAIR),
    "empty_prompt": Check("the prompt is missing or empty", "drop", 7, _NO_PAIR),
    "empty_answer": Check("an answer has no text", "drop", 7, _NO_PAIR),
    "last_turn_not_assistant": Check("an answer does not consist of the assistant's turns", "drop", 7, _NO_PAIR),
    "unequal_turns": Check("chosen and rejected have different numbers of turns", "drop", 4, _NO_PAIR),
    "prompts_differ": Check("chosen and rejected answer different prompts", "drop", 4, _NO_PAIR),
    "broken_text": Check("a text holds half a character (it was cut inside an emoji)", "drop", 12, _NO_PAIR),
}

# Rows that their dataset offers for something else, or that nobody preferred.
CHOICE = {
    "not_an_answer": Check("a user's message of a conversation tree: it is part of prompts", "drop", 8, _NO_PAIR, True),
    "best_answer": Check("the best of its siblings: it is chosen in another row's pair", "drop", 8, _NO_PAIR, True),
    "no_rank": Check("an answer that nobody ranked, or that has no sibling", "drop", 8, _NO_PAIR, True),
    "deleted": Check("the message, or one above it, was deleted or failed its review", "drop", 8, _NO_PAIR, True),
    "later_turn": Check("a later turn of two conversations that went different ways", "drop", 4, _NO_PAIR, True),
    "other_language": Check("the row is in a language that is not asked for", "drop", 12, choice=True),
    "tie": Check("both answers were judged equal", "drop", 5, choice=True),
}

# Pairs that can be trained on, but should not be.
CONTENT = {
    "identical": Check("chosen and rejected are the same text", "drop", 6),
    "not_alternating": Check("the turns do not alternate user, assistant after at most one system turn", "drop", 4),
    "control_tokens": Check("a text contains a chat template's control tokens", "drop", 12),
    "control_characters": Check("a text contains the character NUL", "drop", 12),
    "too_long": Check("a text has more than a million characters", "drop", 3),
    "duplicate": Check("the same pair stands earlier in this source, or in another one", "drop", 9),
    "contradiction": Check("the same two answers stand there the other way round", "drop", 5),
    "score_inverted": Check("the source scores chosen below rejected", "warn", 5),
    "prompt_mismatch": Check("the column prompt is another text than the conversation's", "warn", 2),
    "toxic": Check("the source marks the conversation as toxic", "warn", 12),
    "in_gsm8k_train": Check("the source says that the question stands in GSM8K", "warn", 9),
}

# Found when the sources meet: in the mixture.
MIXTURE = {
    "prompt_held_out": Check("the prompt is held out", "drop", 9, _NO_PAIR),
    "near_held_out": Check("the prompt is nearly one that is held out", "drop", 9),
    "near_duplicate": Check("nearly the same pair comes from another source", "drop", 9),
    "over_share": Check("left out so that the shares are those asked for", "drop", 10, _NO_PAIR, True),
    "contaminated": Check("the pair shares 13 words in a row with an evaluation set", "drop", 9),
}

# Found with the model's own tokenizer and template, at the recipe's max_length. TRL trains on none of these.
TOKENS = {
    "prompt_fills_max_length": Check("the prompt alone fills max_length", "drop", 3, _NO_PAIR),
    "empty_after_cut": Check("at max_length nothing is left of an answer", "drop", 3, _NO_PAIR),
    "identical_after_cut": Check("at max_length chosen and rejected are the same", "drop", 3, _NO_PAIR),
}

# About a dataset as a whole.
DATASET = {
    "length_tells": Check("guessing the longer (or the shorter) answer is right too often", "warn", 11, _NO_ROW),
    "test_split_trained": Check("an official test split is trained on", "warn", 9, _NO_ROW),
}

CHECKS: dict[str, Check] = {**STRUCTURE, **CHOICE, **CONTENT, **MIXTURE, **TOKENS, **DATASET}
REASONS: dict[str, str] = {name: check.meaning for name, check in CHECKS.items()}
