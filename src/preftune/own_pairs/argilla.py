"""Labels in the JSON of Argilla 2.

`dataset.records.to_json()` writes a list of `Record.to_dict()` (argilla/src/argilla/records/_resource.py):
`{"id", "fields", "metadata", "suggestions", "responses": {question: [{"value", "user_id"}]}, "vectors"}`. Some
versions write each response's `status`, others do not: there a draft cannot be told from what was submitted, and the
export should be of `response.status == submitted` only. A record that was discarded without an answer has no response
there, so the question has the label `skip`. Argilla refuses records with a response of a user that it does not know
(argilla-server, bulk/records_bulk.py), and passes over keys of a record that it does not know (`Record.from_dict`): so
only its own users stand in `responses`, all others in `labels`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from preftune.answer_view import joined
from preftune.own_pairs.label_import import Row, by_task, check, label_of, sorted_out, winner_of
from preftune.own_pairs.labels import Label, LabelTask

# The dataset that takes the file: rg.Dataset("pairs", settings=settings).create(), then .records.from_json(FILE).
ARGILLA_SETTINGS = """import argilla as rg

settings = rg.Settings(
    fields=[rg.TextField(name="prompt"), rg.TextField(name="first"), rg.TextField(name="second")],
    questions=[rg.LabelQuestion(name="better", labels=["first", "second", "tie", "skip"])],
    allow_extra_metadata=True,
)
"""


def export_argilla(tasks: Sequence[LabelTask], labels: Iterable[Label]) -> list[Row]:
    """Records with the labels that stand, as `dataset.records.from_json` reads them under `ARGILLA_SETTINGS`.

    Args:
        tasks: Each key once or more often; it is written once.
        labels: In the order in which they were given.
    """
    given = by_task(labels)
    records = []
    for key, task in {t.key: t for t in tasks}.items():
        theirs = [
            {
                "value": label.winner,
                "user_id": label.labeller,
                "status": "discarded" if label.winner == "skip" else "submitted",
            }
            for label in given.get(key, [])
            if label.source == "argilla"
        ]
        others = [
            {"labeller": label.labeller, "winner": label.winner, "time": label.time, "source": label.source}
            for label in given.get(key, [])
            if label.source != "argilla"
        ]
        records.append(
            {
                "id": key,
                "fields": {"prompt": joined(task.prompt), "first": task.first, "second": task.second},
                "metadata": {"task": key},
                "suggestions": {},
                "responses": {"better": theirs} if theirs else {},
                "vectors": {},
                "labels": others,
            }
        )
    return records


def import_argilla(
    data: Any, tasks: Sequence[LabelTask], there: Sequence[Label] = (), where: str = ""
) -> tuple[list[Label], dict[str, int]]:
    """Labels from the file that Argilla's `dataset.records.to_json()` wrote.

    Args:
        data: What the file holds.
        tasks: The tasks that count.
        there: The labels that are already there.
        where: The file, for the error.

    Returns:
        (new labels, how many by the names of `COUNTS`).

    Raises:
        UserError: If it is no such list.
    """
    known = lambda row: isinstance(row.get("fields"), dict) and "responses" in row  # noqa: E731
    check(data, known, "what Argilla's records.to_json() writes", where)

    def found() -> Iterator[Label | str]:
        for row in data:
            if isinstance(row, dict) and known(row):
                yield from _from_record(row)
            else:
                yield "unreadable"

    return sorted_out(found(), tasks, there)


def _from_record(row: Row) -> Iterator[Label | str]:
    metadata, responses, others = row.get("metadata"), row["responses"], row.get("labels") or []
    key = (metadata.get("task") if isinstance(metadata, dict) else None) or row.get("id")
    answers = responses.get("better", []) if isinstance(responses, dict) else None
    for items, read in ((answers, _from_response), (others, _from_other)):
        if not isinstance(items, list):
            yield "unreadable"
            continue
        for item in items:
            yield read(key, item) if isinstance(item, dict) else "unreadable"


def _from_response(key: Any, response: Row) -> Label | str:
    status = response.get("status") or "submitted"
    words = {"draft": "draft", "discarded": "skip", "submitted": winner_of(response.get("value"))}
    winner = words.get(status, "unreadable") if isinstance(status, str) else "unreadable"
    return label_of(key, response.get("user_id"), winner, None, "argilla", "")


def _from_other(key: Any, item: Row) -> Label | str:
    winner = winner_of(item.get("winner"))
    return label_of(key, item.get("labeller"), winner, item.get("source"), "argilla", item.get("time"))
