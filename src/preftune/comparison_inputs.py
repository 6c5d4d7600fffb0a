"""What a verdict is computed from: the files of both evaluations and of the judge, joined item by item."""

import json
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.children import read_json_lines
from preftune.errors import StepError

Row = dict[str, Any]
Both = tuple[Row, Row]  # (SFT's, policy's)
_OF_PAIRS = ("chosen_logp", "rejected_logp")
_OF_ANSWERS = ("seq_rep_4", "logp", "sft_logp")


@dataclass(frozen=True)
class Task:
    """One lm-eval task, run on both models.

    Args:
        name: lm-eval's.
        main: The metric that the gate looks at; None if it has none.
        higher: By metric: whether more is better.
        binary: By metric: whether a document's value is 0 or 1.
        totals: By model and metric: the value as lm-eval aggregates it.
        rows: Both models' row of lm_eval.jsonl, document by document.
    """

    name: str
    main: str | None
    higher: dict[str, bool]
    binary: dict[str, bool]
    totals: tuple[dict[str, float], dict[str, float]]
    rows: list[Both]

    @property
    def clusters(self) -> list[Hashable] | None:
        """Each document's group; None where every one stands alone."""
        found = [s["doc_id"] if s["cluster"] is None else s["cluster"] for s, _ in self.rows]
        return found if len(set(found)) < len(found) else None


@dataclass(frozen=True)
class Inputs:
    """All rows, joined.

    Args:
        pairs: Of pairs.jsonl.
        answers: Of answers.jsonl.
        tasks: By name.
        suites: Of suite_answers.jsonl, by suite.
        judge: judge.json; None without a judge.
        judgements: Of judgements.jsonl.
        grades: Of grades.jsonl.
    """

    pairs: list[Both]
    answers: list[Both]
    tasks: dict[str, Task]
    suites: dict[str, list[Both]]
    judge: Row | None = None
    judgements: list[Row] = field(default_factory=list)
    grades: list[Row] = field(default_factory=list)


def joined(sft: list[Row], policy: list[Row], what: str, key: Callable[[Row], Hashable]) -> list[Both]:
    """Rows of both models on the same item, in the SFT model's order.

    Args:
        sft: The baseline's rows.
        policy: The policy's rows.
        what: For the message.
        key: What makes an item.

    Raises:
        StepError: They are not on the same items.
    """
    found = {key(row): row for row in policy}
    if len(found) != len(policy) or {key(row) for row in sft} != set(found) or len(sft) != len(policy):
        raise StepError(
            f"{what}: SFT and policy saw other items, so they cannot be compared",
            "baseline and policy",
            "run both evaluations again with the same recipe: remove both folders from the store",
        )
    return [(row, found[key(row)]) for row in sft]


def _numbers(rows: list[Row], fields: tuple[str, ...]) -> list[Row]:
    """The rows with NaN where a number is null: what could not be written was not finite."""
    return [row | {name: math.nan for name in fields if row[name] is None} for row in rows]


def _metrics(found: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in found.items()}


def _tasks(sft: Path, policy: Path) -> dict[str, Task]:
    about = [
        json.loads((path / "lm_eval.json").read_text()) if (path / "lm_eval.json").exists() else {}
        for path in (sft, policy)
    ]
    rows = [
        [row | {"metrics": _metrics(row["metrics"])} for row in read_json_lines(path / "lm_eval.jsonl")]
        for path in (sft, policy)
    ]
    if about[0].keys() != about[1].keys():
        joined([{"task": t} for t in about[0]], [{"task": t} for t in about[1]], "lm-eval", lambda r: r["task"])
    tasks = {}
    for name in about[0]:
        both = joined(
            *([r for r in found if r["task"] == name] for found in rows),
            what=f"lm-eval task {name}",
            key=lambda r: r["id"],
        )
        if other := [s["id"] for s, p in both if s["digest"] != p["digest"]]:
            raise StepError(
                f"lm-eval task {name}: SFT and policy were asked different things in {len(other)} of {len(both)} "
                f"documents (the first is {other[0]}), so they cannot be compared",
                "baseline and policy",
                "the task's file, its few-shot examples or the chat template changed in between: run both again",
            )
        config = about[0][name]
        totals = _metrics(about[0][name]["metrics"]), _metrics(about[1][name]["metrics"])
        tasks[name] = Task(name, config["main"], config["higher_is_better"], config["binary"], totals, both)
    return tasks


def read_inputs(sft: Path, policy: Path, judge: Path | None) -> Inputs:
    """Reads and joins.

    Args:
        sft: The baseline's folder.
        policy: The policy's folder.
        judge: The judge's folder; None without one.

    Raises:
        StepError: The models saw other items.
    """

    def both(name: str, what: str, key: Callable[[Row], Hashable], numbers: tuple[str, ...] = ()) -> list[Both]:
        files = [_numbers(read_json_lines(path / name), numbers) for path in (sft, policy)]
        return joined(*files, what=what, key=key)

    suites: dict[str, list[Both]] = {}
    for s, p in both("suite_answers.jsonl", "suites", lambda r: (r["suite"], r["id"])):
        suites.setdefault(s["suite"], []).append((s, p))
    found = Inputs(
        pairs=both("pairs.jsonl", "pairs", lambda r: r["row_id"], _OF_PAIRS),
        answers=both("answers.jsonl", "answers", lambda r: r["row_id"], _OF_ANSWERS),
        tasks=_tasks(sft, policy),
        suites=suites,
    )
    if judge is None:
        return found
    return Inputs(
        found.pairs,
        found.answers,
        found.tasks,
        found.suites,
        json.loads((judge / "judge.json").read_text()),
        read_json_lines(judge / "judgements.jsonl"),
        read_json_lines(judge / "grades.jsonl"),
    )
