"""Tokenizing a pair exactly as TRL's DPOTrainer does, with the model's own chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.data.pairs import Message, Pair
from preftune.data.token_file import read_tokens

CHECKED = 8  # pairs at the beginning of a file of ids


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of a pair; prompt + answer is one sequence of the model."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def _ids(tokenizer: Any, messages: list[Message], **kwargs: Any) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **kwargs)["input_ids"]


def _common_prefix(a: list[int], b: list[int]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def tokenize_prompt(tokenizer: Any, prompt: list[Message]) -> list[int]:
    """Ids of the prompt, ending where the assistant begins to write."""
    return _ids(tokenizer, prompt, add_generation_prompt=True)


def tokenize_pair(tokenizer: Any, pair: Pair) -> TokenizedPair:
    """Tokenizes prompt and both answers; an answer starts where prompt and prompt + answer diverge.

    Source: `tokenize_fn` in trl/trainer/dpo_trainer.py (TRL 1.16), whose ids these are.
    """
    prompt = tokenize_prompt(tokenizer, pair.prompt)
    chosen = _ids(tokenizer, pair.prompt + pair.chosen)
    rejected = _ids(tokenizer, pair.prompt + pair.rejected)
    n = min(_common_prefix(prompt, chosen), _common_prefix(prompt, rejected))
    return TokenizedPair(prompt[:n], chosen[n:], rejected[n:])


def is_of(tokenizer: Any, file: Path, pairs: Sequence[Pair]) -> bool:
    """Whether the ids of a file are this tokenizer's, as far as its first pairs tell.

    They were found without transformers, perhaps days ago: a template may write today's date.

    Args:
        tokenizer: The model's, with its chat template.
        file: From `token_file.write_tokens`.
        pairs: Those that it begins with, `CHECKED` or fewer.
    """
    found = [tokenize_pair(tokenizer, p) for p in pairs]
    return read_tokens(file, len(pairs)) == [(t.prompt, t.chosen, t.rejected) for t in found]
