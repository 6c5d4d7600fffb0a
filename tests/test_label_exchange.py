"""Labels through Label Studio's and Argilla's JSON: nothing is lost, nothing is added twice, all is counted."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import UserError
from preftune.own_pairs.exchange import (
    ARGILLA_SETTINGS,
    COUNTS,
    LABEL_STUDIO_CONFIG,
    add_labels,
    export_argilla,
    export_label_studio,
    import_argilla,
    import_label_studio,
    read_export,
)
from preftune.own_pairs.labels import SOURCES, WINNERS, Label, LabelFile, LabelTask, standing

TIME, LATER = "2026-01-02T03:04:05+00:00", "2026-01-02T03:04:06+00:00"
USER = "0f0e1c9c-6a4e-4a5e-9a0f-000000000001"
TASKS = [
    LabelTask(f"key-{n}", [{"role": "user", "content": f"Why {n}?"}], f"a {n}", f"b {n}", f"row-{n}", (0, 1))
    for n in range(1, 5)
]
WAYS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "label-studio": (export_label_studio, import_label_studio),
    "argilla": (export_argilla, import_argilla),
}


def label(task: str, labeller: str, winner: str, source: str = "page", time: str = TIME) -> Label:
    return Label(task, labeller, winner, time, source)


def counts(**those: int) -> dict[str, int]:
    return dict.fromkeys(COUNTS, 0) | those


def what(labels: list[Label]) -> list[tuple[str, str, str]]:
    return sorted((x.task, x.labeller, x.winner) for x in labels)


def studio(task: Any, *annotations: Any) -> dict[str, Any]:
    """A task as Label Studio exports it."""
    return {"id": 7, "data": {"task": task, "prompt": "…"}, "annotations": list(annotations), "predictions": []}


def annotation(result: Any, by: Any = 3, **keys: Any) -> dict[str, Any]:
    return {"id": 1001, "completed_by": by, "was_cancelled": False, "ground_truth": False, "result": result} | keys


def choice(*values: str) -> list[dict[str, Any]]:
    value = {"choices": list(values)}
    return [
        {"value": value, "id": "x", "from_name": "better", "to_name": "first", "type": "choices", "origin": "manual"}
    ]


def pairwise(side: str) -> list[dict[str, Any]]:
    return [{"value": {"selected": side}, "id": "x", "from_name": "pw", "to_name": "first,second", "type": "pairwise"}]


def record(key: str, *responses: Any) -> dict[str, Any]:
    """As Argilla's to_json writes it; the record's own id was chosen by Argilla."""
    fields = {"prompt": "…", "first": "…", "second": "…"}
    answers = {"better": list(responses)} if responses else {}
    rest = {"suggestions": {}, "vectors": {}, "_server_id": USER}
    return {"id": "other", "fields": fields, "metadata": {"task": key}, "responses": answers, **rest}


LABELS = st.lists(
    st.builds(
        Label,
        st.sampled_from([task.key for task in TASKS]),
        st.one_of(
            st.sampled_from(["anna", "ben@example.org", "3", "٣", USER]),
            st.from_regex(r"[a-zA-Z@ .]*[a-z]", fullmatch=True),
        ),
        st.sampled_from(WINNERS),
        st.sampled_from([TIME, LATER]),
        st.sampled_from(SOURCES),
    ),
    max_size=12,
)


@pytest.mark.parametrize("way", WAYS)
@given(given_labels=LABELS)
def test_the_round_trip_loses_nothing(way: str, given_labels: list[Label]) -> None:
    made, read = WAYS[way]
    given_labels = [x for x in given_labels if len(x.labeller) <= 100]
    data = json.loads(json.dumps(made(TASKS, given_labels)))
    assert len(data) == len(TASKS)
    back, found = read(data, TASKS)
    assert what(back) == what(standing(given_labels))
    assert found == counts(labels=len(back))
    again, found = read(data, TASKS, back)
    assert again == [] and found == counts(known=len(back))


def test_label_studio_keeps_source_and_time() -> None:
    given_labels = [
        label("key-1", "anna", "tie"),
        label("key-1", "7", "skip", "label-studio"),
        label("key-2", USER, "first", "argilla"),
    ]
    back, _ = import_label_studio(export_label_studio(TASKS, given_labels), TASKS)
    assert sorted(back, key=repr) == sorted(given_labels, key=repr)


def test_a_task_of_label_studio() -> None:
    given_labels = [
        label("key-1", "anna", "first", time=LATER),
        label("key-1", "ben@example.org", "skip", "label-studio"),
        label("key-1", "12", "tie", "label-studio"),
    ]
    rows = export_label_studio([TASKS[0], TASKS[0]], given_labels)
    assert [row["id"] for row in rows] == [1]  # a pair that two prompts share is labelled once
    assert rows[0]["data"] == {"task": "key-1", "prompt": "Why 1?", "first": "a 1", "second": "b 1"}
    anna, ben, twelve = rows[0]["annotations"]
    # Label Studio refuses a name here; without one the annotation is the importing user's
    assert "completed_by" not in anna and anna["labeller"] == "anna"
    assert ben["completed_by"] == {"email": "ben@example.org"} and twelve["completed_by"] == 12
    assert anna["result"][0]["value"] == {"choices": ["first"]} and anna["result"][0]["type"] == "choices"
    assert (anna["was_cancelled"], ben["was_cancelled"], ben["result"]) == (False, True, [])
    assert anna["ground_truth"] is False


def test_the_configuration_fits_the_data() -> None:
    tree = ET.fromstring(LABEL_STUDIO_CONFIG)
    row = export_label_studio(TASKS, [label("key-1", "anna", "first")])[0]
    texts = {tag.attrib["name"]: tag.attrib["value"] for tag in tree.iter("Text")}
    assert texts == {"prompt": "$prompt", "first": "$first", "second": "$second"} and texts.keys() <= row["data"].keys()
    (choices,) = tree.iter("Choices")
    result = row["annotations"][0]["result"][0]
    assert (choices.attrib["name"], choices.attrib["toName"]) == (result["from_name"], result["to_name"])
    assert [tag.attrib["alias"] for tag in tree.iter("Choice")] == ["first", "second", "tie"]
    compile(ARGILLA_SETTINGS, "settings", "exec")
    assert all(f'"{name}"' in ARGILLA_SETTINGS for name in ("prompt", "first", "second", "better", *WINNERS))


def test_what_label_studio_exports() -> None:
    data = [
        studio("key-1", annotation(choice("first"), 3), annotation(choice("tie"), {"id": 4, "email": "b@example.org"})),
        studio("key-2", annotation(pairwise("left"), "c@example.org"), annotation(pairwise("right"), {"id": 4})),
        studio("key-3", annotation([], 3, was_cancelled=True), annotation(choice("second"), 4, was_cancelled=True)),
        studio("key-4"),
    ]
    labels, found = import_label_studio(data, TASKS)
    assert what(labels) == [
        ("key-1", "3", "first"),
        ("key-1", "b@example.org", "tie"),
        ("key-2", "4", "second"),
        ("key-2", "c@example.org", "first"),
        ("key-3", "3", "skip"),
        ("key-3", "4", "skip"),
    ]
    assert found == counts(labels=6)
    assert {x.source for x in labels} == {"label-studio"}


def test_what_label_studio_exports_and_cannot_be_used() -> None:
    other_question = [{**choice("first")[0], "from_name": "tone"}]
    data = [
        studio("key-9", annotation(choice("first"))),
        studio(None, annotation(choice("first"))),
        studio("key-1", annotation([]), annotation(pairwise("none"))),
        studio("key-2", annotation(choice("first", "tie")), annotation(choice("third")), annotation(other_question)),
        studio("key-3", annotation(choice("first"), by=None), annotation(choice("first"), by=True), "x"),
        studio("key-4", annotation("x"), annotation([*other_question, "x", *choice("tie")])),
        {"id": 1, "data": {"task": "key-4"}, "annotations": 3},
        {"id": 1, "data": {"task": "key-4"}},
        "no task",
    ]
    labels, found = import_label_studio(data, TASKS)
    assert what(labels) == [("key-4", "3", "tie")]
    assert found == counts(labels=1, unknown_task=2, undecided=2, unreadable=9)


def test_json_min() -> None:
    def row(key: str, annotator: Any, **keys: Any) -> dict[str, Any]:
        return {
            "task": key,
            "prompt": "…",
            "id": 7,
            "annotator": annotator,
            "annotation_id": 3,
            "updated_at": TIME,
        } | keys

    data = [
        row("key-1", 3, better="first"),
        row("key-1", "b@example.org", better=[{"selected": "right"}]),
        row("key-2", 3, better="tie"),
        row("key-2", 4),  # submitted without a choice
        row("key-2", None, annotation_id=None),  # not annotated at all
        row("key-3", 3, better=["first", "tie"]),
        row("key-3", None, better="first"),
        row("key-8", 3, better="first"),
    ]
    labels, found = import_label_studio(data, TASKS, [label("key-2", "3", "tie", "label-studio")])
    assert what(labels) == [("key-1", "3", "first"), ("key-1", "b@example.org", "second")]
    assert {x.time for x in labels} == {TIME}
    assert found == counts(labels=2, known=1, undecided=1, unreadable=2, unknown_task=1)


def test_the_later_decision_of_one_person_stands() -> None:
    first, second = annotation(choice("first"), updated_at=LATER), annotation(choice("second"), created_at=TIME)
    labels, found = import_label_studio([studio("key-1", first, second)], TASKS)
    assert what(labels) == [("key-1", "3", "first")] and found == counts(labels=1, superseded=1)
    assert labels[0].time == LATER


def test_an_old_export_does_not_undo_a_newer_label() -> None:
    old = export_label_studio(TASKS, [label("key-1", "anna", "first")])
    now = [label("key-1", "anna", "first"), label("key-1", "anna", "second", time=LATER)]
    assert import_label_studio(old, TASKS, now) == ([], counts(superseded=1))
    changed = export_label_studio(TASKS, [label("key-1", "anna", "tie", time=LATER)])
    labels, _ = import_label_studio(changed, TASKS, now)
    assert what(labels) == [("key-1", "anna", "tie")]


def test_annotations_that_label_studio_hands_back_are_not_another_persons() -> None:
    """It gives those without a user of its own to whoever imported them, and keeps our id as import_id."""
    there = [label("key-1", "anna", "first"), label("key-1", "ben", "tie")]
    (row, *_) = export_label_studio(TASKS, there)
    kept = ("result", "was_cancelled", "ground_truth")
    back = [
        {**{k: a[k] for k in kept}, "id": n, "import_id": a["id"], "completed_by": 1, "updated_at": LATER}
        for n, a in enumerate(row["annotations"])
    ]
    assert import_label_studio([studio("key-1", *back)], TASKS, there) == ([], counts(known=2))


def test_a_record_of_argilla() -> None:
    given_labels = [
        label("key-1", USER, "tie", "argilla"),
        label("key-1", "u2", "skip", "argilla"),
        label("key-1", "anna", "first"),
    ]
    rows = export_argilla([TASKS[0], TASKS[0], TASKS[1]], given_labels)
    assert [row["id"] for row in rows] == ["key-1", "key-2"]
    assert rows[0]["fields"] == {"prompt": "Why 1?", "first": "a 1", "second": "b 1"}
    assert rows[0]["metadata"] == {"task": "key-1"} and rows[0]["suggestions"] == {}
    # Argilla refuses the whole file for a response of a user that it does not know
    assert rows[0]["responses"] == {
        "better": [
            {"value": "tie", "user_id": USER, "status": "submitted"},
            {"value": "skip", "user_id": "u2", "status": "discarded"},
        ]
    }
    assert rows[0]["labels"] == [{"labeller": "anna", "winner": "first", "time": TIME, "source": "page"}]
    assert rows[1]["responses"] == {}


def test_what_argilla_exports() -> None:
    data = [
        record(
            "key-1", {"value": "first", "user_id": "u1"}, {"value": "second", "user_id": "u2", "status": "submitted"}
        ),
        record("key-2", {"value": "skip", "user_id": "u1"}, {"value": "tie", "user_id": "u2", "status": "discarded"}),
        record("key-3", {"value": "first", "user_id": "u1", "status": "draft"}),
        record("key-4"),
        {**record("x", {"value": "tie", "user_id": "u1", "status": None}), "id": "key-4", "metadata": {}},
    ]
    labels, found = import_argilla(data, TASKS, [label("key-1", "u1", "first", "argilla")])
    assert what(labels) == [
        ("key-1", "u2", "second"),
        ("key-2", "u1", "skip"),
        ("key-2", "u2", "skip"),
        ("key-4", "u1", "tie"),
    ]
    assert found == counts(labels=4, known=1, draft=1)
    assert {x.source for x in labels} == {"argilla"}


def test_what_argilla_exports_and_cannot_be_used() -> None:
    data = [
        record("key-9", {"value": "first", "user_id": "u1"}),
        record("key-1", {"value": ["first"], "user_id": "u1"}, {"value": "left", "user_id": "u1"}, {"value": "tie"}),
        record("key-1", {"value": "first", "user_id": "u1", "status": "pending"}, "x"),
        {**record("key-2"), "responses": []},
        {**record("key-2"), "responses": {"better": {}}},
        {**record("key-2"), "labels": 7},
        "x",
    ]
    labels, found = import_argilla(data, TASKS)
    assert labels == [] and found == counts(unknown_task=1, unreadable=9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("data", [{}, "x", None, 3, [3], [{}], [{"id": 1, "text": "x"}], [[]]])
def test_another_file(way: str, data: Any) -> None:
    with pytest.raises(UserError, match="is not ") as error:
        WAYS[way][1](data, TASKS, (), "labels.json")
    assert error.value.where == "labels.json" and error.value.advice


@pytest.mark.parametrize(("one", "other"), [("argilla", "label-studio"), ("label-studio", "argilla")])
def test_the_other_programs_file(one: str, other: str) -> None:
    with pytest.raises(UserError, match="is not "):
        WAYS[one][1](WAYS[other][0](TASKS, []), TASKS)
    assert WAYS[one][1]([], TASKS) == ([], counts())


NAMES = """data task annotations result value choices selected type from_name completed_by annotator better email id
annotation_id fields responses metadata labels labeller winner user_id status updated_at import_id"""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["key-1", "first", "left", "u1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES.split()), inner, max_size=6),
    max_leaves=20,
)


@pytest.mark.parametrize("way", WAYS)
@given(rows=st.lists(JSON, max_size=4))
def test_whatever_stands_in_the_list(way: str, rows: list[Any]) -> None:
    """A row of the right kind stands in front, so that all others are read."""
    right = {
        "label-studio": studio("key-1", annotation(choice("tie"), "me")),
        "argilla": record("key-1", {"value": "tie", "user_id": "me"}),
    }
    labels, found = WAYS[way][1]([right[way], *rows], TASKS)
    assert ("key-1", "me", "tie") in what(labels)
    assert found.keys() == COUNTS.keys() and found["labels"] == len(labels)
    assert all(x.task in {t.key for t in TASKS} and x.winner in WINNERS and x.source in SOURCES for x in labels)
    assert sum(found.values()) >= sum(not isinstance(row, dict) for row in rows) + 1


def test_labels_are_added_to_the_file(tmp_path: Path) -> None:
    file, path = LabelFile(tmp_path / "labels.jsonl"), tmp_path / "export.json"
    file.append(label("key-1", "3", "first", "label-studio"))
    rows = [
        studio("key-1", annotation(choice("first"))),
        studio("key-2", annotation(choice("tie"))),
        studio("key-3", annotation([])),
    ]
    path.write_text(json.dumps(rows), encoding="utf-8-sig")
    assert add_labels(path, import_label_studio, TASKS, file) == {"labels": 1, "known": 1, "undecided": 1}
    assert what(file.read()) == [("key-1", "3", "first"), ("key-2", "3", "tie")]
    assert add_labels(path, import_label_studio, TASKS, file) == {"labels": 0, "known": 2, "undecided": 1}
    assert len(file.read()) == 2


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000, b'{"a": 1}\n{"a": 2}\n'])
def test_no_json_file(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "export.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match="is no JSON file"):
        read_export(path)
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=re.escape(str(missing)) + ".*cannot be read"):
            read_export(missing)
