"""What people say of two answers to a prompt: the tasks, the file of labels, agreement, and scores."""

import fcntl
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from preftune.digest import json_digest
from preftune.errors import StepError, UserError
from preftune.own_pairs.selection import answers_of

Row = dict[str, Any]

WINNERS = ("first", "second", "tie", "skip")
SOURCES = ("page", "argilla", "label-studio")
LONGEST_NAME = 100  # characters
_WORTH = {"first": 1.0, "tie": 0.5, "second": 0.0}  # of a label, for the first answer


@dataclass(frozen=True)
class LabelTask:
    """Two answers to a prompt, one of which may be better.

    Args:
        key: Of the prompt and the two texts, whichever comes first: a label stays with them through other runs.
        prompt: Its messages.
        first: The text that sorts first; what is shown on the left is drawn for each labeller.
        second: The other one.
        id: Of the prompt.
        numbers: Of the two answers, in their order here; -1: the dataset's own.
    """

    key: str
    prompt: list[dict[str, str]]
    first: str
    second: str
    id: str
    numbers: tuple[int, int]


@dataclass(frozen=True)
class Label:
    """What one person said of one task.

    Args:
        task: The task's key.
        labeller: The person's name.
        winner: One of `WINNERS`.
        time: ISO, UTC.
        source: One of `SOURCES`.
    """

    task: str
    labeller: str
    winner: str
    time: str
    source: str


def tasks_of(prompts: Sequence[Row], completions: Sequence[Row]) -> list[LabelTask]:
    """One task for each prompt with two different answers: the dataset's own if there is one, then the model's.

    Args:
        prompts: Rows of prompts.jsonl.
        completions: Rows of completions.jsonl; failed and blank ones are passed over, cut ones are not.
    """
    answers = answers_of(prompts, completions, [])
    tasks = []
    for prompt in prompts:
        both = sorted(answers[prompt["id"]][:2], key=lambda a: a.text)
        if len(both) == 2:
            first, second = both
            key = json_digest({"prompt": prompt["prompt"], "answers": [first.text, second.text]})
            numbers = (first.number, second.number)
            tasks.append(LabelTask(key, prompt["prompt"], first.text, second.text, prompt["id"], numbers))
    return tasks


def labeller_name(name: str) -> str:
    """The name as it is written down.

    Raises:
        UserError: If it is none.
    """
    name = " ".join(name.split())
    if not is_name(name):
        raise UserError(
            f"{name!r} is no labeller's name", "--labeller", f"give one of 1 to {LONGEST_NAME} letters: --labeller=anna"
        )
    return name


def is_name(value: Any) -> bool:
    """Whether it can stand as a labeller's name."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable() and bool(value.strip())


def new_label(task: str, labeller: str, winner: str, source: str, time: str | None = None) -> Label:
    """A label of this moment, or of a time that another program wrote down.

    Args:
        task: The task's key.
        labeller: The person's name.
        winner: One of `WINNERS`.
        source: One of `SOURCES`.
        time: ISO; without a zone it is UTC; what is no time counts as none.
    """
    moment = datetime.now(UTC)
    with suppress(ValueError, TypeError, OverflowError):
        said = datetime.fromisoformat(time)  # pyright: ignore[reportArgumentType]
        moment = said.astimezone(UTC) if said.tzinfo else said.replace(tzinfo=UTC)
    return Label(task, labeller, winner, moment.isoformat(timespec="seconds"), source)


class LabelFile:
    """Labels in a file of JSON lines that only grows. Several processes may write to it at once.

    Args:
        path: The file; it is made with its first label.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, *labels: Label) -> None:
        """Writes labels, all or none; they are on the disk when it returns.

        Raises:
            StepError: If they cannot be written.
        """
        if not labels:
            return
        assert all(label.winner in WINNERS and label.source in SOURCES for label in labels)
        lines = "".join(json.dumps(asdict(label)) + "\n" for label in labels).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._write(file, lines)
            finally:
                os.close(file)
        except OSError as e:
            raise StepError(
                f"labels cannot be saved: {e.strerror or e}", str(self.path), "free disk space, or correct permissions"
            ) from None

    def _write(self, file: int, lines: bytes) -> None:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            lines = b"\n" + lines  # after a power cut half a line may stand there
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, size)
            raise
        if size == 0:  # the file's name, too, must outlive a power cut
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def read(self, tell: Callable[[str], None] = lambda _: None) -> list[Label]:
        """All labels in their order.

        Args:
            tell: Called about each line that is no whole label, which is passed over.

        Raises:
            UserError: If the file is there and cannot be read.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as e:
            raise UserError(f"the labels cannot be read: {e.strerror or e}", str(self.path)) from None
        labels = []
        for number, line in enumerate(lines, 1):
            if label := _parsed(line):
                labels.append(label)
            elif line.strip():
                tell(f"{self.path}: line {number} is no whole label: passed over")
        return labels


def _parsed(line: bytes) -> Label | None:
    try:
        row = json.loads(line)
        label = Label(row["task"], row["labeller"], row["winner"], row["time"], row["source"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    texts = isinstance(label.task, str) and isinstance(label.time, str) and is_name(label.labeller)
    return label if texts and label.winner in WINNERS and label.source in SOURCES else None


def standing(labels: Iterable[Label]) -> list[Label]:
    """The labels that count: of each labeller the last one on each task."""
    return list({(label.task, label.labeller): label for label in labels}.values())


def agreement(labels: Iterable[Label]) -> list[Row]:
    """How far each two labellers agree on the tasks that both decided; a skip decides nothing.

    Args:
        labels: In the order in which they were given.

    Returns:
        For each two with a task in common: labellers, tasks, agreed (share), kappa (Cohen's, of the three decisions;
        None where it is undefined: both said the same of every task).
    """
    said: dict[str, dict[str, str]] = {}
    for label in standing(labels):
        if label.winner != "skip":
            said.setdefault(label.labeller, {})[label.task] = label.winner
    found = []
    for a, b in itertools.combinations(sorted(said), 2):
        if both := sorted(said[a].keys() & said[b].keys()):
            one, other = [said[a][t] for t in both], [said[b][t] for t in both]
            agreed = sum(x == y for x, y in zip(one, other, strict=True)) / len(both)
            found.append({"labellers": [a, b], "tasks": len(both), "agreed": agreed, "kappa": _kappa(one, other)})
    return found


def _kappa(one: list[str], other: list[str]) -> float | None:
    if len({*one, *other}) == 1:
        return None  # agreement by chance is certain, too: 0 / 0
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(one, other))


def score_by_people(tasks: Sequence[LabelTask], labels: Iterable[Label]) -> tuple[list[Row], Row]:
    """Scores of both answers of each task: a win is 1, a tie ½, a loss 0, the mean over those who decided.

    Args:
        tasks: From `tasks_of`.
        labels: In the order in which they were given.

    Returns:
        (rows of scores.jsonl, counts: tasks, labelled, not_labelled, skipped, other_tasks (labels on tasks that are
        not among these), labellers (tasks that each decided), agreement). Errors: `not_labelled`; `skipped`, if
        nobody decided.
    """
    given: dict[str, list[Label]] = {task.key: [] for task in tasks}
    counted = standing(labels)
    for label in counted:
        given.get(label.task, []).append(label)
    here = [label for label in counted if label.task in given]
    rows, errors = [], []
    for task in tasks:
        worth = [_WORTH[label.winner] for label in given[task.key] if label.winner != "skip"]
        error = None if worth else "skipped" if given[task.key] else "not_labelled"
        errors.append(error)
        for number, values in zip(task.numbers, (worth, [1 - w for w in worth]), strict=True):
            score = math.fsum(values) / len(values) if values else None
            rows.append({"id": task.id, "number": number, "score": score, "error": error})
    decided = [label.labeller for label in here if label.winner != "skip"]
    return rows, {
        "tasks": len(tasks),
        "labelled": errors.count(None),
        "not_labelled": errors.count("not_labelled"),
        "skipped": errors.count("skipped"),
        "other_tasks": len(counted) - len(here),
        "labellers": {name: decided.count(name) for name in sorted({label.labeller for label in here})},
        "agreement": agreement(here),
    }
