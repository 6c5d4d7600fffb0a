"""From the messages of conversation trees (OpenAssistant) to pairs of answers to one message, by their rank."""

from collections.abc import Iterator, Mapping
from typing import Any

from preftune.data.labels import is_number
from preftune.data.pairs import ROLES, Drop

_ROOT, _GONE = -1, -2  # in place of a parent's index


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and value != ""


def pair_siblings(messages: list[tuple[str, Any]]) -> Iterator[tuple[str, Any, Any | Drop]]:
    """Makes pairs of the answers to one message.

    Of siblings the best is left out, every other one is rejected for one of the next better rank. Siblings of one
    rank: each is paired with the first one of the next better rank. Where there is none (they share the best rank),
    the first one counts as the best, and the others tie with it.

    Args:
        messages: (row id, message) of a whole split.

    Yields:
        (row id, message, the row for `to_pair` or why there is none), once for each message and in their order.
    """
    nodes = [row if isinstance(row, Mapping) else {} for _, row in messages]
    index: dict[Any, int] = {}
    for i, node in enumerate(nodes):
        if _is_id(node.get("message_id")):
            index.setdefault(node["message_id"], i)
    parents = [index.get(p, _GONE) if _is_id(p := node.get("parent_id")) else _ROOT for node in nodes]
    reasons = _reasons(nodes, parents, index)
    ranked = _ranked(nodes, parents, reasons)
    for i, (row_id, row) in enumerate(messages):
        verdict = reasons[i] or ranked[i]
        if not isinstance(row, Mapping):
            yield row_id, row, row
        elif isinstance(verdict, str):
            yield row_id, row, Drop(verdict)
        else:
            yield row_id, row, _sibling_pair(nodes, parents, i, *verdict)


def _reasons(nodes: list[Mapping[str, Any]], parents: list[int], index: dict[Any, int]) -> list[str | None]:
    """Why a message is no answer that can be compared with its siblings."""
    above = _above([n.get("deleted") is True or n.get("review_result") is False for n in nodes], parents)
    found: list[str | None] = []
    for i, node in enumerate(nodes):
        role, text, own_id = node.get("role"), node.get("text"), node.get("message_id")
        role = ROLES.get(role) if isinstance(role, str) else None
        if role != "assistant":
            found.append("not_an_answer" if role else "unknown_role")
        elif above[i] or parents[i] == _ROOT:
            found.append(above[i] or "empty_prompt")
        elif _is_id(own_id) and index[own_id] != i:
            found.append("duplicate")
        elif not isinstance(text, str) or not text.strip():
            found.append("empty_answer")
        else:
            found.append(None if is_number(node.get("rank")) else "no_rank")
    return found


def _above(is_deleted: list[bool], parents: list[int]) -> list[str | None]:
    """Of each message: `deleted` if it or one above it is; `empty_prompt` if no path leads to a root; else empty."""
    found: list[str | None] = [None] * len(parents)
    for i in range(len(parents)):
        path = []
        while i >= 0 and found[i] is None:
            found[i] = "empty_prompt"  # what a path meets that runs in a circle
            path.append(i)
            i = parents[i]
        state = found[i] if i >= 0 else "" if i == _ROOT else "empty_prompt"
        for j in reversed(path):
            state = found[j] = "deleted" if is_deleted[j] else state
    return found


def _ranked(
    nodes: list[Mapping[str, Any]], parents: list[int], reasons: list[str | None]
) -> dict[int, str | tuple[int, bool]]:
    """For each comparable answer: the sibling that is chosen and whether that is a tie, or why there is none."""
    siblings: dict[int, list[int]] = {}
    for i, reason in enumerate(reasons):
        if reason is None:
            siblings.setdefault(parents[i], []).append(i)
    found: dict[int, str | tuple[int, bool]] = {}
    for answers in siblings.values():
        best, *others = sorted(answers, key=lambda i: nodes[i]["rank"])
        found[best] = "best_answer" if others else "no_rank"
        better, current = None, best  # the first of the next better rank, and of this one
        for i in others:
            if nodes[i]["rank"] != nodes[current]["rank"]:
                better, current = current, i
            found[i] = (best, True) if better is None else (better, False)
    return found


def _sibling_pair(
    nodes: list[Mapping[str, Any]], parents: list[int], i: int, better: int, is_tie: bool
) -> dict[str, Any]:
    path, above = [], parents[i]
    while above >= 0:
        path.append({"role": nodes[above].get("role"), "content": nodes[above].get("text")})
        above = parents[above]
    return {
        "prompt": path[::-1],
        "chosen": [{"role": "assistant", "content": nodes[better]["text"]}],
        "rejected": [{"role": "assistant", "content": nodes[i]["text"]}],
        "group_id": nodes[i].get("message_tree_id"),
        "language": nodes[i].get("lang"),
        "tie": is_tie,
    }
