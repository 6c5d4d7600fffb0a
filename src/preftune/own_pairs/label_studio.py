"""Labels in Label Studio's JSON.

A task is what its import takes and its export (JSON) writes: `{"data": …, "annotations": […]}`
(label_studio/tasks/serializers.py; https://labelstud.io/guide/task_format). A decision is a `choices` result; that of
its Pairwise tag is `{"type": "pairwise", "value": {"selected": "left"}}`, with `none` when the choice was taken back
(Pairwise.jsx of its editor). A skipped task is an annotation with `was_cancelled`. JSON-MIN puts the task's data and
the result side by side, under the tag's name, and leaves skipped ones out (converter/converter.py and utils.py of
label-studio-sdk). Its import refuses an annotation whose `completed_by` is neither an object with a member's email nor
a member's id, and gives one without it to whoever imports; it passes over keys that it does not know, and hands an
annotation's `id` back as `import_id`. So only its own annotators stand in `completed_by`, all names in `labeller`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from preftune.answer_view import joined
from preftune.digest import json_digest
from preftune.own_pairs.label_import import Row, by_task, check, label_of, sorted_out, winner_of
from preftune.own_pairs.labels import Label, LabelTask

# Settings → Labeling Interface → Code. A task is skipped with Label Studio's own button.
LABEL_STUDIO_CONFIG = """<View>
  <Header value="Which answer is better?"/>
  <Text name="prompt" value="$prompt"/>
  <Header value="First answer"/>
  <Text name="first" value="$first"/>
  <Header value="Second answer"/>
  <Text name="second" value="$second"/>
  <Choices name="better" toName="first" choice="single" required="true" showInline="true">
    <Choice value="The first" alias="first"/>
    <Choice value="The second" alias="second"/>
    <Choice value="Tie" alias="tie"/>
  </Choices>
</View>
"""
_SIDES = {"left": "first", "right": "second"}


def export_label_studio(tasks: Sequence[LabelTask], labels: Iterable[Label]) -> list[Row]:
    """Tasks with the labels that stand, as Label Studio imports them under `LABEL_STUDIO_CONFIG`.

    Args:
        tasks: Each key once or more often; it is written once.
        labels: In the order in which they were given.
    """
    given = by_task(labels)
    return [
        {
            "id": number,
            "data": {"task": key, "prompt": joined(task.prompt), "first": task.first, "second": task.second},
            "annotations": [_annotation(label) for label in given.get(key, [])],
        }
        for number, (key, task) in enumerate({t.key: t for t in tasks}.items(), 1)
    ]


def _annotation(label: Label) -> Row:
    who = {}
    if label.source == "label-studio":
        who["completed_by"] = int(label.labeller) if label.labeller.isdecimal() else {"email": label.labeller}
    choice = {"id": "better", "from_name": "better", "to_name": "first", "type": "choices"}
    skipped = label.winner == "skip"
    return {
        "id": _number_of(label.task, label.labeller),
        **who,
        "labeller": label.labeller,
        "source": label.source,
        "updated_at": label.time,
        "ground_truth": False,  # left out, it would be true
        "was_cancelled": skipped,
        "result": [] if skipped else [{**choice, "value": {"choices": [label.winner]}}],
    }


def _number_of(task: str, labeller: str) -> int:
    """By which an annotation of ours is known when Label Studio hands it back under another name."""
    return int(json_digest([task, labeller])[:12], 16)


def import_label_studio(
    data: Any, tasks: Sequence[LabelTask], there: Sequence[Label] = (), where: str = ""
) -> tuple[list[Label], dict[str, int]]:
    """Labels from Label Studio's export, JSON or JSON-MIN.

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
    whole, small = lambda row: isinstance(row.get("data"), dict), lambda row: "annotator" in row
    check(data, lambda row: whole(row) or small(row), "Label Studio's export (JSON or JSON-MIN)", where)
    ours = {_number_of(label.task, label.labeller): label.labeller for label in there}

    def found() -> Iterator[Label | str]:
        for row in data:
            if isinstance(row, dict) and whole(row):
                yield from _from_annotations(row, ours)
            elif isinstance(row, dict) and small(row):
                yield from _from_small(row)
            else:
                yield "unreadable"

    return sorted_out(found(), tasks, there)


def _from_annotations(row: Row, ours: dict[int, str]) -> Iterator[Label | str]:
    annotations = row.get("annotations")
    if not isinstance(annotations, list):
        if annotations is not None:
            yield "unreadable"
        return
    for annotation in annotations:
        if not isinstance(annotation, dict):
            yield "unreadable"
            continue
        number = annotation.get("import_id")
        by_number = ours.get(number) if isinstance(number, int) else None
        who = by_number or annotation.get("labeller") or _annotator(annotation.get("completed_by"))
        source = annotation.get("source")
        winner = "skip" if annotation.get("was_cancelled") is True else _decision(annotation.get("result"))
        yield label_of(row["data"].get("task"), who, winner, source, "label-studio", _when(annotation))


def _from_small(row: Row) -> Iterator[Label | str]:
    """An annotation of JSON-MIN, which for a task without any writes one without a result."""
    found = row.get("better")
    if found is None:
        if row.get("annotation_id") is not None:
            yield "undecided"
        return
    selected = found[0] if isinstance(found, list) and len(found) == 1 else None
    winner = _selected(selected.get("selected")) if isinstance(selected, dict) else winner_of(found)
    yield label_of(row.get("task"), _annotator(row.get("annotator")), winner, None, "label-studio", _when(row))


def _when(annotation: Any) -> str:
    time = (annotation.get("updated_at") or annotation.get("created_at")) if isinstance(annotation, dict) else None
    return time if isinstance(time, str) else ""


def _annotator(value: Any) -> str | None:
    """Label Studio's user: an object with email and id, an email, or an id."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _decision(result: Any) -> str:
    """The winner in an annotation's results, or why there is none."""
    if not isinstance(result, list):
        return "unreadable"
    for region in result:
        if not isinstance(region, dict) or not isinstance(region.get("value"), dict):
            continue
        if region.get("type") == "pairwise":
            return _selected(region["value"].get("selected"))
        choices = region["value"].get("choices")
        if region.get("from_name") == "better" and isinstance(choices, list) and len(choices) == 1:
            return winner_of(choices[0])
    return "unreadable" if result else "undecided"


def _selected(side: Any) -> str:
    if side in (None, "none"):
        return "undecided"
    return _SIDES.get(side, "unreadable") if isinstance(side, str) else "unreadable"
