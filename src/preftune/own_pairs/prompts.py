"""Prompts from the rows of a file or dataset: the user's turns, cleaned, each once; what is left out has a reason."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.data.labels import topic_of
from preftune.data.overlap import near_across, shares_words
from preftune.data.pairs import (
    CONTROL_TOKENS,
    PROMPT_COLUMNS,
    SYSTEM_COLUMNS,
    Drop,
    Message,
    first_of,
    group_of,
    messages_of,
    to_pair,
)
from preftune.data.registry import known
from preftune.data.sources import Source, find_source, pick_split, read_rows
from preftune.data.text_rows import text_lines
from preftune.digest import file_sha256
from preftune.errors import UserError
from preftune.pairs_schema import Prompts
from preftune.schema import DatasetEntry
from preftune.workspace import Workspace

Row = dict[str, Any]

# Why a row gave no prompt: reason → words.
REASONS = {
    "unreadable": "neither a text nor messages that hold a user's turn",
    "broken_text": "half a character, which cannot be written",
    "empty": "the user says nothing",
    "no_answer": "the row has no answer of its own",
    "control_tokens": "control tokens of a chat template in the text",
    "too_long": "the model has no room for an answer",
    "duplicate": "the same prompt stands there earlier",
    "near_duplicate": "nearly the same prompt stands there earlier",
    "contaminated": "shares 13 words in a row with an evaluation set",
}
_COLUMNS = (*PROMPT_COLUMNS, "text", "messages")
_ANSWERS = ("answer", "output", "response", "completion")


@dataclass(frozen=True)
class FoundPrompts:
    """A file or dataset of prompts that is there.

    Args:
        settings: The recipe's section.
        digest: Of its bytes, or its commit.
        source: The dataset; None for a text file.
        path: The text file.
    """

    settings: Prompts
    digest: str
    source: Source | None = None
    path: Path | None = None


def find_prompts(settings: Prompts, workspace: Workspace) -> FoundPrompts:
    """Finds the prompts, without reading them.

    Raises:
        UserError: If they are not there.
    """
    where = f"pairs.prompts: {settings.id}"
    if settings.id.endswith(".txt"):
        path = workspace.resolve(settings.id)
        if not path.is_file():
            raise UserError("there is no such file", where, f"paths are relative to {workspace.project}")
        return FoundPrompts(settings, file_sha256(path), path=path)
    names = ("config", "split", "revision", "data_dir")
    # Here a dataset that holds no pairs is welcome, also by a name that is not on the hub.
    known_as = None if workspace.resolve(settings.id).exists() else known(settings.id, folders=False)
    name = known_as.id if known_as else settings.id
    entry = DatasetEntry.model_validate({"id": name, **settings.model_dump(include=set(names))})
    try:
        source = find_source(entry, workspace)
        pick_split(source, settings.split, strict=False)
    except UserError as e:
        raise UserError(e.error, where, e.advice.replace("preference pairs", "prompts")) from None
    return FoundPrompts(settings, source.digest, source)


def _rows(found: FoundPrompts) -> Iterator[tuple[str, Any]]:
    if found.path is not None:
        yield from text_lines(found.path)
        return
    assert found.source is not None
    split, _ = pick_split(found.source, found.settings.split, strict=False)
    yield from read_rows(found.source, split)


def _answered(messages: list[Message]) -> tuple[list[Message], str | None]:
    """The conversation up to the user's last turn, and what the assistant says after it."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end], "\n\n".join(m["content"] for m in messages[end:]) or None


def _asked(row: Any, settings: Prompts) -> tuple[list[Message], str | None]:
    """The prompt, and the answer that follows it in the same conversation.

    Raises:
        Drop: As in `data/pairs.py`.
    """
    if not isinstance(row, Mapping):
        return _answered(messages_of(row, "user"))
    names = (settings.column,) if settings.column else _COLUMNS
    value = first_of(row, names)
    if value is None:
        if {"chosen", "rejected"} <= set(row):
            return to_pair(row, "", "").prompt, None
        raise Drop("wrong_type")
    more = row.get("input")
    if value is row.get("instruction") and isinstance(value, str) and isinstance(more, str) and more.strip():
        value = f"{value}\n{more}"  # Alpaca: what to do, and what with
    prompt, answer = _answered(messages_of(value, "user"))
    system = first_of(row, SYSTEM_COLUMNS)
    if isinstance(system, str) and system.strip() and prompt and prompt[0]["role"] != "system":
        prompt = [*messages_of(system, "system"), *prompt]
    return prompt, answer


def _own_answer(row: Any, said: str | None, settings: Prompts) -> str | None:
    """The row's own answer: the named column's, the assistant's last turn, or the first known column's."""
    if settings.answer is None and said and said.strip():
        return said.strip()
    value = first_of(row, (settings.answer,) if settings.answer else _ANSWERS) if isinstance(row, Mapping) else None
    if value is None:
        return None
    answers = messages_of(value, "assistant")
    text = answers[-1]["content"].strip() if answers and answers[-1]["role"] == "assistant" else ""
    return text or None


def _read(
    row_id: str,
    row: Any,
    settings: Prompts,
    with_answers: bool,
    tokens: Callable[[list[Message]], int] | None,
    most: int,
) -> Row | tuple[str, list[Message] | None]:
    """A prompt, or why there is none and what there was."""
    try:
        prompt, said = _asked(row, settings)
    except Drop as e:
        empty = e.reason in ("empty_prompt", "empty_answer", "missing_answer")
        return ("broken_text" if e.reason == "broken_text" else "empty" if empty else "unreadable"), None
    if not prompt:
        return "empty", None
    if prompt[-1]["role"] != "user":
        return "unreadable", prompt
    if not prompt[-1]["content"].strip():
        return "empty", prompt
    answer = None
    if with_answers:
        try:
            answer = _own_answer(row, said, settings)
        except Drop as e:
            return ("broken_text" if e.reason == "broken_text" else "no_answer"), prompt
        if answer is None:
            return "no_answer", prompt
    if any(CONTROL_TOKENS.search(text) for text in (*(m["content"] for m in prompt), answer or "")):
        return "control_tokens", prompt
    if tokens is not None and tokens(prompt) > most:
        return "too_long", prompt
    columns = {str(k): v for k, v in row.items()} if isinstance(row, Mapping) else {}
    columns = json.loads(json.dumps(columns, default=str))  # parquet has dates and bytes
    return {
        "id": row_id,
        "group": group_of(prompt),
        "prompt": prompt,
        "answer": answer,
        "topic": topic_of(columns),
        "row": columns,
    }


def _check_columns(rows: Iterator[tuple[str, Any]], settings: Prompts) -> Iterator[tuple[str, Any]]:
    """The rows; raises a UserError if the first one lacks a column that the recipe names."""
    for number, (row_id, row) in enumerate(rows):
        if number == 0:
            have = list(row) if isinstance(row, Mapping) else []
            for key, name in (("column", settings.column), ("answer", settings.answer)):
                if name is not None and name not in have:
                    there = f"it has: {', '.join(map(str, have))}" if have else "its rows have no columns"
                    raise UserError(
                        f"there is no column {name!r} ({there})", f"pairs.prompts.{key}", "correct the name"
                    )
        yield row_id, row


def _user_text(row: Row) -> str:
    return "\n".join(m["content"] for m in row["prompt"] if m["role"] == "user")


def _sift(
    kept: list[Row], near_duplicates: float | None, evaluation_texts: Sequence[str]
) -> tuple[list[Row], list[tuple[Row, str]]]:
    """The prompts that differ from all before them and from the evaluation sets; the others with their reasons."""
    texts = [_user_text(row) for row in kept]
    gone: dict[int, str] = dict.fromkeys(shares_words(texts, evaluation_texts), "contaminated")
    stay = [i for i in range(len(kept)) if i not in gone]
    if near_duplicates is not None:
        # Of each two texts of different sources the one whose source sorts first stays: here, the earlier one.
        places = [f"{i:012}" for i in stay]
        near = near_across([texts[i] for i in stay], places, near_duplicates)
        gone |= dict.fromkeys((stay[i] for i in near), "near_duplicate")
    return [row for i, row in enumerate(kept) if i not in gone], [(kept[i], gone[i]) for i in sorted(gone)]


def read_prompts(
    found: FoundPrompts,
    *,
    with_answers: bool,
    near_duplicates: float | None,
    evaluation_texts: Sequence[str],
    seed: int,
    tokens: Callable[[list[Message]], int] | None,
    most_tokens: int,
) -> tuple[list[Row], list[Row], int]:
    """Reads, cleans and draws the prompts.

    Args:
        found: From `find_prompts`.
        with_answers: Whether each row's own answer is needed.
        near_duplicates: Similarity of word trigrams from which two prompts count as one; None: not looked at.
        evaluation_texts: Texts that no prompt may share 13 words in a row with.
        seed: Of the draw.
        tokens: Counts a prompt's tokens; None: they cannot be counted.
        most_tokens: That a prompt may have.

    Returns:
        (rows of prompts.jsonl in the file's order; what was left out: id, reason, prompt (None if it could not be
        read); how many were not drawn). All rows that were read are in one of the three.

    Raises:
        UserError: If a file cannot be read, a named column is missing, or nothing is left.
    """
    kept: list[Row] = []
    dropped: list[Row] = []
    seen: set[str] = set()

    def drop(row_id: str, reason: str, prompt: list[Message] | None) -> None:
        dropped.append({"id": row_id, "reason": reason, "prompt": prompt})

    for row_id, row in _check_columns(_rows(found), found.settings):
        read = _read(row_id, row, found.settings, with_answers, tokens, most_tokens)
        if isinstance(read, tuple):
            drop(row_id, *read)
        elif read["group"] in seen:
            drop(row_id, "duplicate", read["prompt"])
        else:
            seen.add(read["group"])
            kept.append(read)
    kept, sifted = _sift(kept, near_duplicates, evaluation_texts)
    for row, reason in sifted:
        drop(row["id"], reason, row["prompt"])
    if not kept:
        raise UserError(f"no prompt is left: {_counts(dropped)}", f"pairs.prompts: {found.settings.id}", "add prompts")
    most = found.settings.max_prompts
    if most is None or most >= len(kept):
        return kept, dropped, 0
    drawn = sorted(random.Random(seed).sample(range(len(kept)), most))
    return [kept[i] for i in drawn], dropped, len(kept) - most


def _counts(dropped: Iterable[Row]) -> str:
    reasons = Counter(row["reason"] for row in dropped)
    return ", ".join(f"{n} {reason}" for reason, n in reasons.most_common()) or "there are no rows"
