"""What imports of labels have in common: what is a label, which are new, and counts of all others."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from preftune.errors import UserError
from preftune.own_pairs.labels import SOURCES, WINNERS, Label, LabelTask, is_name, new_label, standing

Row = dict[str, Any]

# What became of what was read: name → words.
COUNTS = {
    "labels": "labels that are new",
    "known": "labels that are already there",
    "superseded": "labels that the same person changed later",
    "unknown_task": "labels on other tasks",
    "draft": "drafts that were never submitted",
    "undecided": "submitted without a decision",
    "unreadable": "no labels that can be read",
}


def by_task(labels: Iterable[Label]) -> dict[str, list[Label]]:
    """The labels that stand, by their tasks' keys."""
    given: dict[str, list[Label]] = {}
    for label in standing(labels):
        given.setdefault(label.task, []).append(label)
    return given


def check(data: Any, known: Callable[[Row], bool], what: str, where: str) -> None:
    """Raises a UserError if it is no list, or one in which nothing is known."""
    if isinstance(data, list) and (not data or any(isinstance(row, dict) and known(row) for row in data)):
        return
    raise UserError(f"is not {what}", where, "give the file as the program exported it, and name the right program")


def label_of(task: Any, who: Any, winner: str, source: Any, otherwise: str, time: Any) -> Label | str:
    """The label, or why it is none."""
    if winner not in WINNERS:
        return winner
    if not isinstance(task, str):
        return "unknown_task"
    if not is_name(who):
        return "unreadable"
    source = source if isinstance(source, str) and source in SOURCES else otherwise
    return new_label(task, who, winner, source, time if isinstance(time, str) else None)


def sorted_out(
    found: Iterable[Label | str], tasks: Sequence[LabelTask], there: Sequence[Label]
) -> tuple[list[Label], dict[str, int]]:
    """The labels that are new, and counts of all that was found.

    Args:
        found: Labels, or why something is none.
        tasks: The tasks that count.
        there: The labels that are already there; one that was given later than what was found stands.
    """
    keys = {task.key for task in tasks}
    have = {(label.task, label.labeller): label for label in standing(there)}
    counts = dict.fromkeys(COUNTS, 0)
    read: list[Label] = []
    for item in found:
        if isinstance(item, str):
            counts[item] += 1
        elif item.task not in keys:
            counts["unknown_task"] += 1
        else:
            read.append(item)
    last = standing(sorted(read, key=lambda label: label.time))
    counts["superseded"] = len(read) - len(last)
    new = []
    for label in last:
        old = have.get((label.task, label.labeller))
        if old is None or (old.winner != label.winner and old.time <= label.time):
            new.append(label)
        else:
            counts["known" if old.winner == label.winner else "superseded"] += 1
    return new, {**counts, "labels": len(new)}


def winner_of(value: Any) -> str:
    """The value, if it is a winner's name."""
    return value if isinstance(value, str) and value in WINNERS else "unreadable"
