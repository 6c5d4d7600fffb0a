"""From rows of a known dataset's own shape to rows that `pairs.to_pair` reads. Their columns tell the shape.

Shapes: two conversations and a winner (Chatbot Arena), two responses and a preference (HelpSteer3), re-rated pairs
(distilabel), a tree of ranked messages (OpenAssistant), `response_j` and `response_k` (Stack Exchange).
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from preftune.data.labels import is_number
from preftune.data.pairs import PROMPT_COLUMNS, Drop
from preftune.data.trees import pair_siblings


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The columns by which a shape is known; the first one that fits counts.
SHAPES = {
    "arena": _names("conversation_a conversation_b winner"),
    "helpsteer3": _names("context response1 response2 overall_preference"),
    "distilabel": _names("input chosen rejected status"),
    "tree": _names("message_id message_tree_id role text"),
    "stack-exchange": _names("question response_j response_k"),
}
_PAIR = _names("chosen rejected")


def recognise(columns: Iterable[str]) -> str | None:
    """Names the shape that a row's columns have.

    A stated preference between two answers is believed, whatever a recipe's `columns` calls chosen; beside a tree's
    or Stack Exchange's columns, chosen and rejected are believed.

    Args:
        columns: A row's column names.

    Returns:
        A name in `SHAPES`, or None for what `to_pair` reads as it is.
    """
    have = frozenset(columns)
    shape = next((name for name, needed in SHAPES.items() if needed <= have), None)
    return None if shape in ("tree", "stack-exchange") and have >= _PAIR else shape


def adapt(rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any, Any | Drop]]:
    """Brings rows to a shape that `to_pair` reads. The first object's columns decide for all.

    Args:
        rows: (row id, row) as read.

    Yields:
        (row id, the row as read, the row for `to_pair` or why there is none), once for each row and in their order.
        A row that is not of the shape comes as it is: `to_pair` says what it lacks.
    """
    remaining = iter(rows)
    for row_id, row in remaining:
        if isinstance(row, Mapping):
            break
        yield row_id, row, row
    else:
        return
    remaining = itertools.chain([(row_id, row)], remaining)
    shape = recognise(row)
    if shape == "tree":
        yield from pair_siblings(list(remaining))
    elif shape is None:
        yield from ((row_id, row, row) for row_id, row in remaining)
    else:
        convert, needed = _CONVERT[shape], SHAPES[shape]
        for row_id, row in remaining:
            yield row_id, row, convert(row) if isinstance(row, Mapping) and needed <= row.keys() else row


def _is_flagged(tags: Any) -> bool:
    return isinstance(tags, Mapping) and tags.get("flagged") is True


def _says(role: str, text: Any) -> Any:
    """A message, so that a text that looks like a transcript is not read as one."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _arena(row: Mapping[str, Any]) -> dict[str, Any] | Drop:
    if is_number(row.get("turn")) and row["turn"] > 1:
        return Drop("later_turn")
    a, b, winner = row["conversation_a"], row["conversation_b"], row["winner"]
    if not isinstance(winner, str) or winner not in ("model_a", "model_b", "tie", "tie (bothbad)"):
        return Drop("missing_answer")
    taggers = row.get("toxic_chat_tag")
    return {
        "chosen": b if winner == "model_b" else a,
        "rejected": a if winner == "model_b" else b,
        "tie": winner.startswith("tie"),
        "language": row.get("language"),
        "toxic": _is_flagged(row.get("openai_moderation"))
        or (isinstance(taggers, Mapping) and any(map(_is_flagged, taggers.values()))),
    }


def _helpsteer3(row: Mapping[str, Any]) -> dict[str, Any] | Drop:
    preference = row["overall_preference"]
    if not is_number(preference):
        return Drop("missing_answer")
    first, second = _says("assistant", row["response1"]), _says("assistant", row["response2"])
    return {
        "prompt": row["context"],
        "chosen": second if preference > 0 else first,
        "rejected": first if preference > 0 else second,
        "tie": preference == 0,
        "language": row.get("language"),
        "domain": row.get("domain"),
    }


def _distilabel(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The status `swapped` says what was done to chosen and rejected, not what is to be done."""
    return {**row, "tie": True} if isinstance(row["status"], str) and row["status"] == "tie" else row


def _stack_exchange(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt": _says("user", row["question"]),
        "chosen": _says("assistant", row["response_j"]),
        "rejected": _says("assistant", row["response_k"]),
        "group_id": row.get("qid"),
    }


_CONVERT: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "arena": _arena,
    "helpsteer3": _helpsteer3,
    "distilabel": _distilabel,
    "stack-exchange": _stack_exchange,
}


# --- data of no known shape -----------------------------------------------------------------------------------

_LIKE = {
    "arena": "lmsys/chatbot_arena_conversations",
    "helpsteer3": "nvidia/HelpSteer3",
    "tree": "OpenAssistant/oasst1",
    "stack-exchange": "lvwerra/stack-exchange-paired",
}
# Words in column names.
_GOOD = _names("chosen good better best win winner winning won accept accepted prefer preferred positive pos correct")
_BAD = _names(
    "rejected reject bad worse worst lose loser losing lost decline declined dispreferred negative neg incorrect wrong"
)
_NOT = _names("non not un less")
_LETTERS = (({"j"}, {"k"}), ({"w"}, {"l"}))  # as in response_j and response_k, y_w and y_l
_ABOUT = _names("score scores rating ratings model models id reason rationale source count length reward logps")
_ASKED = _names("prompt question instruction input query context problem task request title post")
_ANSWER = _names("answer answers response responses output outputs completion completions reply solution")
_VERDICT = _names("winner preference preferred label vote choice verdict judgment better")
_TALK = _names("messages conversation conversations transcript dialogue text")


def _words(column: str) -> set[str]:
    return {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", column)}


def _opposites(words: dict[str, set[str]]) -> tuple[str | None, str | None]:
    """The columns whose names say better and worse; two that differ in nothing else before others."""
    bad = [c for c, w in words.items() if w & _BAD or (w & _GOOD and w & _NOT)]
    good = [c for c, w in words.items() if w & _GOOD and c not in bad]
    for one, other in itertools.product(words, words):
        alone, against = words[one] - words[other], words[other] - words[one]
        if (alone, against) in _LETTERS or (one in good and other in bad and alone <= _GOOD and against <= _BAD | _NOT):
            return one, other
    return next(iter(good), None), next(iter(bad), None)


def suggest(columns: list[str]) -> tuple[str, dict[str, str] | None]:
    """What data is that gives no pair, judged by the names of its columns.

    Args:
        columns: Of the rows that were looked at.

    Returns:
        The nearest shape, what is missing and what to do, in words; and the recipe's `columns`, if they can help.
    """
    have = set(columns)
    if have >= _PAIR:
        return "no row has both chosen and rejected: fill in what is missing", None
    words = {c: w for c in columns if not (w := _words(c)) & _ABOUT}
    asked = next((c for c in PROMPT_COLUMNS if c in have), next((c for c, w in words.items() if w & _ASKED), None))
    others = {c: w for c, w in words.items() if c != asked}
    good, bad = _opposites(others)
    if good and bad:
        left = [c for c in words if c not in (asked, good, bad)]
        asked = asked or (left[0] if len(left) == 1 else None)
        mapping = {**({"prompt": asked} if asked else {}), "chosen": good, "rejected": bad}
        return f"{good!r} and {bad!r} sound like a better and a worse answer", mapping
    for name, like in _LIKE.items():
        missing = sorted(SHAPES[name] - have)
        if not missing:
            return f"the columns are those of {like}, but no row tells which of two answers is better", None
        if len(missing) == 1:
            return f"the columns are nearly those of {like}, but there is no {missing[0]}: add it", None
    verdict = next((c for c, w in others.items() if w & _VERDICT), None)
    answers = [c for c, w in others.items() if w & _ANSWER] or [c for c in others if verdict not in (None, c)]
    if verdict and len(answers) > 1:
        return (
            f"{verdict!r} says row by row which answer is better: write a file in which the better answer of each "
            "row is chosen and the other one rejected",
            None,
        )
    if verdict and answers:
        return f"each row holds one answer and what is thought of it ({verdict!r}): put two answers into a row", None
    if side := good or bad:
        return f"{side!r} sounds like one of two answers, but no column like the other one: add it", None
    if len(answers) > 1:
        return (
            f"{answers[0]!r} and {answers[1]!r} hold answers, but no column says which is better; if one always is, "
            "name it in the dataset's entry: columns: {chosen: …, rejected: …}",
            None,
        )
    if answers or any(_words(c) & _TALK for c in columns):
        return "this is SFT data, one answer to each prompt: use it for SFT, or add a worse answer to each row", None
    return "name the columns in the dataset's entry: columns: {prompt: …, chosen: …, rejected: …}", None
