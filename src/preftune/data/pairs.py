"""From a dataset's row to a preference pair in canonical form, or to the reason why it is none.

Canonical: an explicit prompt (a list of messages that ends with the user's turn) and, for chosen and rejected,
only the assistant's turns that follow the shared prompt.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from preftune.data.check_list import REASONS
from preftune.data.labels import score_of, topic_of
from preftune.data.languages import language_code

Message = dict[str, str]

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
}
PROMPT_COLUMNS = ("prompt", "conversations", "question", "instruction", "input", "query")
SYSTEM_COLUMNS = ("system", "system_prompt")
LONGEST_TEXT = 1_000_000  # characters; no model here reads a tenth of it

# Control tokens of common chat templates: inside a text they would end a turn or forge one.
CONTROL_TOKENS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|begin_of_text|end_of_text|start_header_id|end_header_id|eot_id|end|user|"
    r"assistant|system)\|>|<(?:start_of_turn|end_of_turn)>|\[/?INST\]|<</?SYS>>|</s>"
)
_TURN = re.compile(r"\n\n(Human|Assistant):")


class Pair(BaseModel):
    """One preference pair.

    Args:
        prompt: Messages; the last one is the user's.
        chosen: The assistant's preferred turns after the prompt.
        rejected: The dispreferred ones.
        source: Which dataset it comes from.
        row_id: Where in it.
        group_id: Pairs with one group never fall on both sides of a split.
        score_chosen: The source's own score, where it has one.
        score_rejected: Likewise.
        topic: What it is about, where the source says so in a short label.
    """

    model_config = ConfigDict(frozen=True)
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    source: str
    row_id: str
    group_id: str
    score_chosen: float | None = None
    score_rejected: float | None = None
    topic: str | None = None


class Drop(Exception):
    """The row is no usable pair; `reason` is a key of `REASONS`."""

    def __init__(self, reason: str) -> None:
        assert reason in REASONS, reason
        self.reason = reason
        super().__init__(reason)


def _encodable(text: str) -> None:
    """JSON can hold half an emoji, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Drop("broken_text") from None


def _message(value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise Drop("wrong_type")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if not isinstance(content, str):
        raise Drop("wrong_type")
    _encodable(content)
    if not isinstance(role, str) or role.strip().lower() not in ROLES:
        raise Drop("unknown_role")
    return {"role": ROLES[role.strip().lower()], "content": content}


def _transcript(text: str) -> list[Message]:
    """hh-rlhf: `\\n\\nHuman: … \\n\\nAssistant: …` → messages."""
    parts = _TURN.split(text)
    if parts[0].strip():
        raise Drop("prompts_differ")
    return [
        {"role": "user" if who == "Human" else "assistant", "content": what.strip()}
        for who, what in zip(parts[1::2], parts[2::2], strict=True)
    ]


def messages_of(value: Any, role: str) -> list[Message]:
    """A text, one message, a list of messages or a transcript → messages; plain text gets `role`."""
    if isinstance(value, str):
        _encodable(value)
        is_transcript = value.startswith("\n\nHuman:") or (value.startswith("Human:") and "\n\nAssistant:" in value)
        if is_transcript:
            return _transcript("\n\n" + value.lstrip("\n"))
        return [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        return [_message(value)]
    if isinstance(value, list | tuple):
        return [_message(m) for m in value]
    if hasattr(value, "tolist") and isinstance(listed := value.tolist(), list):  # parquet gives numpy arrays of dicts
        return [_message(m) for m in listed]
    raise Drop("wrong_type")


def has_no_value(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def first_of(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[n] for n in names if n in row and not has_no_value(row[n])), None)


def text_of(messages: list[Message]) -> str:
    """The messages as one text, for digests and length counts."""
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)


def group_of(prompt: list[Message]) -> str:
    """Digest of the prompt without regard to case and white space."""
    normal = " ".join(text_of(prompt).casefold().split())
    return hashlib.sha256(normal.encode()).hexdigest()[:16]


def _split_prompt(
    prompt: Any, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt and the two answers, from whichever of the three carries the prompt."""
    full = any(m["role"] != "assistant" for m in (*chosen, *rejected))
    if not full:
        if has_no_value(prompt):
            raise Drop("empty_prompt")
        asked = messages_of(prompt, "user")
        if isinstance(prompt, str) and asked and asked[-1] == {"role": "assistant", "content": ""}:
            asked.pop()  # a transcript that ends where the assistant is to write
        return asked, chosen, rejected
    # Both sides carry the conversation. A separate `prompt` beside them only repeats it: as text it
    # lacks the turns, as a list it would be trained on twice.
    for side in (chosen, rejected):
        if not side or side[-1]["role"] != "assistant":
            raise Drop("last_turn_not_assistant")
    if len(chosen) != len(rejected):
        raise Drop("unequal_turns")
    shared = len(chosen)  # up to the last user's turn; only what the assistant says after it may differ
    while shared and chosen[shared - 1]["role"] == rejected[shared - 1]["role"] == "assistant":
        shared -= 1
    if chosen[:shared] != rejected[:shared]:
        raise Drop("prompts_differ")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def to_pair(row: Any, source: str, row_id: str) -> Pair:
    """Converts one row of any of the generic shapes.

    Args:
        row: Columns by name. Known shapes: `chosen`/`rejected` as texts, message lists, single messages
            (also ShareGPT's `from`/`value`) or hh-rlhf transcripts, with or without a prompt
            (`prompt`, `conversations`, `question`, …) and a system text; a `group_id` where the source has one.
            Other datasets' columns are brought to these by `adapters.py`.
        source: The dataset's id.
        row_id: Where the row stands in it.

    Raises:
        Drop: If it is no usable pair.
    """
    if not isinstance(row, Mapping):
        raise Drop("not_an_object")
    if any(has_no_value(row.get(side)) for side in ("chosen", "rejected")):
        raise Drop("missing_answer")
    chosen, rejected = messages_of(row["chosen"], "assistant"), messages_of(row["rejected"], "assistant")
    asked = first_of(row, PROMPT_COLUMNS)
    if asked is not None and asked is row.get("instruction"):  # Alpaca: what to do, and what with
        more = row.get("input")
        if isinstance(asked, str) and isinstance(more, str) and more.strip():
            asked = f"{asked}\n{more}"
    prompt, chosen, rejected = _split_prompt(asked, chosen, rejected)
    if prompt and prompt[0]["role"] == "system" and not prompt[0]["content"].strip():
        prompt = prompt[1:]
    system = first_of(row, SYSTEM_COLUMNS)
    if isinstance(system, str):
        _encodable(system)
    if isinstance(system, str) and system.strip() and (not prompt or prompt[0]["role"] != "system"):
        prompt = [{"role": "system", "content": system}, *prompt]
    _check(prompt, chosen, rejected)
    group = row.get("group_id")
    group = "" if has_no_value(group) else str(group).strip()
    _encodable(group)
    return Pair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        source=source,
        row_id=row_id,
        group_id=f"{source}:{group}" if group else group_of(prompt),
        score_chosen=score_of(row, "chosen"),
        score_rejected=score_of(row, "rejected"),
        topic=topic_of(row),
    )


def _check(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> None:
    for answer in (chosen, rejected):
        if not answer or any(m["role"] != "assistant" for m in answer):
            raise Drop("last_turn_not_assistant")
        if not answer[-1]["content"].strip() or not answer[0]["content"].strip():
            raise Drop("empty_answer")
    if not any(m["role"] == "user" and m["content"].strip() for m in prompt):
        raise Drop("empty_prompt")
    if prompt[-1]["role"] != "user":
        raise Drop("prompts_differ")


def _alternates(messages: list[Message]) -> bool:
    roles = [m["role"] for m in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    return all(role == ("user", "assistant")[i % 2] for i, role in enumerate(turns))


def _same_question(asked: Any, prompt: list[Message]) -> bool:
    """Whether a text column `prompt` holds the conversation's own texts: one of its questions, or its transcript."""
    if not isinstance(asked, str):
        return True
    try:
        texts = [m["content"].strip() for m in messages_of(asked, "user")]
    except Drop:
        return False
    return all(any(text in m["content"] for m in prompt) for text in texts)


def findings(pair: Pair, row: Mapping[str, Any], languages: tuple[str, ...] | None = None) -> list[str]:
    """Names of the checks (`check_list.CHOICE` and `CONTENT`) that a pair fails, looked at by itself.

    Args:
        pair: From `to_pair`.
        row: The row that it was made from.
        languages: Those to keep, where the row names its own (`language` or `lang`).
    """
    found = []
    messages = [*pair.prompt, *pair.chosen, *pair.rejected]
    language = first_of(row, ("language", "lang"))
    if languages and isinstance(language, str) and language_code(language) not in map(language_code, languages):
        found.append("other_language")
    if row.get("tie") is True or (pair.score_chosen is not None and pair.score_chosen == pair.score_rejected):
        found.append("tie")
    if pair.score_chosen is not None and pair.score_rejected is not None and pair.score_chosen < pair.score_rejected:
        found.append("score_inverted")
    if [m["content"].strip() for m in pair.chosen] == [m["content"].strip() for m in pair.rejected]:
        found.append("identical")
    if not _alternates(pair.prompt) or len(pair.chosen) > 1 or len(pair.rejected) > 1:
        found.append("not_alternating")
    if any(CONTROL_TOKENS.search(m["content"]) for m in messages):
        found.append("control_tokens")
    if any("\0" in m["content"] for m in messages):
        found.append("control_characters")
    if any(len(m["content"]) > LONGEST_TEXT for m in messages):
        found.append("too_long")
    if not _same_question(row.get("prompt"), pair.prompt):
        found.append("prompt_mismatch")
    if row.get("toxic") is True:
        found.append("toxic")
    if row.get("in_gsm8k_train") is True:
        found.append("in_gsm8k_train")
    return found
