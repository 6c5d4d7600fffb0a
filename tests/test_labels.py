"""Labels: which two answers are shown, a file that loses nothing, agreement, and scores."""

import errno
import json
import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import StepError, UserError
from preftune.own_pairs.labels import (
    Label,
    LabelFile,
    agreement,
    labeller_name,
    new_label,
    score_by_people,
    standing,
    tasks_of,
)

TIME = "2026-01-02T03:04:05+00:00"


def prompt(id: str, answer: str | None = None, text: str = "Why?") -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"id": id, "group": id, "prompt": messages, "answer": answer, "topic": None, "row": {}}


def completion(id: str, number: int, text: str, **keys: Any) -> dict[str, Any]:
    return {
        "id": id,
        "number": number,
        "text": text,
        "whole": True,
        "tokens": 1,
        "temperature": 0.7,
        "error": None,
    } | keys


def label(task: str, labeller: str, winner: str) -> Label:
    return Label(task, labeller, winner, TIME, "page")


def test_two_answers_of_the_model() -> None:
    rows = [
        completion("a", 2, "zebra"),
        completion("a", 0, " "),
        completion("a", 1, "", error="timeout"),
        completion("a", 3, " zebra\n"),  # the same text again
        completion("a", 4, "apple", whole=False),
        completion("a", 5, "later"),
        completion("b", 0, "alone"),
    ]
    (task,) = tasks_of([prompt("a"), prompt("b")], rows)
    assert (task.id, task.first, task.second, task.numbers) == ("a", "apple", "zebra", (4, 2))
    assert task.prompt == [{"role": "user", "content": "Why?"}]


def test_the_datasets_answer_and_the_first_of_the_model() -> None:
    (task,) = tasks_of([prompt("a", "middle")], [completion("a", 0, "middle "), completion("a", 1, "begin")])
    assert (task.first, task.second, task.numbers) == ("begin", "middle", (1, -1))


def test_a_key_is_of_prompt_and_texts_whichever_comes_first() -> None:
    one = tasks_of([prompt("a")], [completion("a", 0, "x"), completion("a", 1, "y")])[0]
    swapped = tasks_of([prompt("other")], [completion("other", 0, "y"), completion("other", 3, "x")])[0]
    asked_otherwise = tasks_of([prompt("a", text="Why not?")], [completion("a", 0, "x"), completion("a", 1, "y")])[0]
    answered_otherwise = tasks_of([prompt("a")], [completion("a", 0, "x"), completion("a", 1, "z")])[0]
    assert one.key == swapped.key
    assert (swapped.numbers, one.numbers) == ((3, 0), (0, 1))
    assert len({one.key, asked_otherwise.key, answered_otherwise.key}) == 3


def test_a_label_comes_back(tmp_path: Path) -> None:
    file = LabelFile(tmp_path / "new" / "labels.jsonl")
    assert file.read() == []
    given = [label("t1", "Ömer", "first"), Label("t2", "b", "skip", TIME, "argilla")]
    file.append(given[0])
    file.append(given[1])
    file.append()
    assert file.read() == given
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert lines[0] == {"task": "t1", "labeller": "Ömer", "winner": "first", "time": TIME, "source": "page"}
    assert len(lines) == 2


def test_each_label_and_the_new_file_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(file: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{file}").readlink()))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    file = LabelFile(tmp_path / "labels.jsonl")
    file.append(label("t1", "a", "first"))
    file.append(label("t2", "a", "first"))
    assert synced == [str(file.path), str(tmp_path), str(file.path)]


@pytest.mark.parametrize("torn", [b'{"task": "t2", "lab', b"\xff\x00\xc3", b"[1]", b'{"task": 1}', b"[" * 100_000])
def test_a_torn_line_costs_itself_only(tmp_path: Path, torn: bytes) -> None:
    file = LabelFile(tmp_path / "labels.jsonl")
    file.append(label("t1", "a", "first"))
    with file.path.open("ab") as f:
        f.write(torn)
    file.append(label("t3", "a", "tie"))
    told: list[str] = []
    assert file.read(told.append) == [label("t1", "a", "first"), label("t3", "a", "tie")]
    assert told == [f"{file.path}: line 2 is no whole label: passed over"]


def test_a_line_without_its_end_still_counts(tmp_path: Path) -> None:
    file = LabelFile(tmp_path / "labels.jsonl")
    file.append(label("t1", "a", "first"))
    file.path.write_bytes(file.path.read_bytes().rstrip())
    file.append(label("t2", "a", "first"))
    assert [x.task for x in file.read(pytest.fail)] == ["t1", "t2"]


@pytest.mark.parametrize("wrong", [{"winner": "left"}, {"labeller": " "}, {"time": 3}, {"source": "x"}, {"task": None}])
def test_a_row_with_another_value_is_no_label(tmp_path: Path, wrong: dict[str, Any]) -> None:
    row = {"task": "t", "labeller": "a", "winner": "first", "time": TIME, "source": "page"}
    file = LabelFile(tmp_path / "labels.jsonl")
    file.path.write_text(json.dumps(row) + "\n" + json.dumps({**row, **wrong}) + "\n")
    told: list[str] = []
    assert len(file.read(told.append)) == 1
    assert len(told) == 1 and "line 2" in told[0]


@given(st.binary(max_size=200))
def test_whatever_stands_in_the_file_new_labels_are_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = LabelFile(tmp_path_factory.getbasetemp() / "garbage.jsonl")
    file.path.write_bytes(data)
    before = file.read()
    file.append(label("t", "a", "second"))
    assert file.read() == [*before, label("t", "a", "second")]
    assert file.path.read_bytes().startswith(data)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LabelFile(tmp_path / "labels.jsonl")
    file.append(label("t1", "a", "first"))
    before, write = file.path.read_bytes(), os.write
    room = [10]

    def full(fd: int, data: Any) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[: room.pop()])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StepError, match="cannot be saved: No space left on device"):
        file.append(label("t2", "a", "first"), label("t3", "a", "first"))
    monkeypatch.undo()
    assert file.path.read_bytes() == before
    file.append(label("t2", "a", "first"))
    assert [x.task for x in file.read(pytest.fail)] == ["t1", "t2"]


def test_a_folder_in_the_files_place(tmp_path: Path) -> None:
    file = LabelFile(tmp_path)
    with pytest.raises(StepError, match="cannot be saved"):
        file.append(label("t1", "a", "first"))
    with pytest.raises(UserError, match="cannot be read"):
        file.read()


def _write_many(path: Path, labeller: str) -> None:
    for n in range(100):
        LabelFile(path).append(label(f"t{n}", labeller, "first"))


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(path, name)) for name in ("a", "b", "c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = LabelFile(path).read(pytest.fail)
    assert sorted((x.labeller, x.task) for x in found) == sorted((w, f"t{n}") for w in "abc" for n in range(100))


def test_the_last_label_of_a_labeller_counts() -> None:
    given = [label("t", "a", "first"), label("t", "b", "tie"), label("u", "a", "skip"), label("t", "a", "second")]
    assert {(x.task, x.labeller): x.winner for x in standing(given)} == {
        ("t", "a"): "second",
        ("t", "b"): "tie",
        ("u", "a"): "skip",
    }


def test_a_time_of_another_program_is_kept_in_utc() -> None:
    assert new_label("t", "a", "tie", "argilla", "2026-01-02T05:04:05.678+02:00").time == "2026-01-02T03:04:05+00:00"
    assert new_label("t", "a", "tie", "argilla", "2026-01-02T03:04:05").time == TIME
    assert new_label("t", "a", "tie", "argilla", "yesterday").time.endswith("+00:00")


@pytest.mark.parametrize("name", ["", "  ", "a" * 101, "a\x00b"])
def test_no_name(name: str) -> None:
    with pytest.raises(UserError, match="no labeller's name"):
        labeller_name(name)
    assert labeller_name("  Anna \n Ö. ") == "Anna Ö."


def both(a: str, b: str) -> list[Label]:
    """Two labellers' decisions, one letter a task: f(irst), s(econd), t(ie), - (skip), space (none)."""
    words = {"f": "first", "s": "second", "t": "tie", "-": "skip"}
    pairs = (("a", a), ("b", b))
    return [label(f"t{n}", who, words[x]) for who, said in pairs for n, x in enumerate(said) if x in words]


def test_kappa_by_hand() -> None:
    # 6 of 10 agree. a: 5 first, 3 second, 2 tie; b: 4, 4, 2. By chance .5 * .4 + .3 * .4 + .2 * .2 = .36.
    (found,) = agreement(both("fffffssstt", "fffsstssft"))
    assert found["labellers"] == ["a", "b"] and found["tasks"] == 10
    assert found["agreed"] == pytest.approx(0.6)
    assert found["kappa"] == pytest.approx((0.6 - 0.36) / (1 - 0.36))


def test_skips_and_tasks_of_one_labeller_do_not_count() -> None:
    (found,) = agreement(both("ffs-f ", "fs -sf"))  # both decided t0, t1, t4
    assert found["tasks"] == 3 and found["agreed"] == pytest.approx(1 / 3)


def test_kappa_is_undefined_where_all_is_the_same() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert agreement(both("fff", "fff"))[0] == {
            "labellers": ["a", "b"],
            "tasks": 3,
            "agreed": 1.0,
            "kappa": None,
        }
        assert agreement(both("fff", "sss"))[0]["kappa"] == pytest.approx(0)
        assert agreement(both("f", "s"))[0]["kappa"] == pytest.approx(0)


def test_each_two_of_three_who_share_a_task() -> None:
    given = [label("t", "c", "first"), label("t", "a", "first"), label("t", "b", "tie"), label("u", "d", "first")]
    assert [row["labellers"] for row in agreement(given)] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert agreement([]) == []


def test_scores_by_hand() -> None:
    ids = ["won", "split", "thirds", "skipped", "unseen"]
    rows = [completion(i, n, f"{text} {i}") for i in ids for n, text in enumerate(("good", "bad"))]
    tasks = tasks_of([prompt(i) for i in ids], rows)
    key = {task.id: task.key for task in tasks}
    assert all(task.numbers == (1, 0) for task in tasks)  # "bad" sorts before "good"
    given = [
        label(key["won"], "a", "first"),
        label(key["won"], "a", "second"),  # thought better of it
        label(key["won"], "b", "skip"),
        label(key["split"], "a", "first"),
        label(key["split"], "b", "second"),
        label(key["thirds"], "a", "first"),
        label(key["thirds"], "b", "tie"),
        label(key["thirds"], "c", "tie"),
        label(key["skipped"], "a", "skip"),
        label("of another run", "a", "first"),
    ]
    scores, counts = score_by_people(tasks, given)
    found = {(row["id"], row["number"]): (row["score"], row["error"]) for row in scores}
    assert len(scores) == 10
    assert (found["won", 0], found["won", 1]) == ((1.0, None), (0.0, None))
    assert (found["split", 0], found["split", 1]) == ((0.5, None), (0.5, None))
    assert found["thirds", 1][0] == pytest.approx(2 / 3) and found["thirds", 0][0] == pytest.approx(1 / 3)
    assert found["skipped", 0] == found["skipped", 1] == (None, "skipped")
    assert found["unseen", 0] == found["unseen", 1] == (None, "not_labelled")
    pairs = counts.pop("agreement")
    assert counts == {
        "tasks": 5,
        "labelled": 3,
        "not_labelled": 1,
        "skipped": 1,
        "other_tasks": 1,
        "labellers": {"a": 3, "b": 2, "c": 1},
    }
    assert [(row["labellers"], row["tasks"]) for row in pairs] == [(["a", "b"], 2), (["a", "c"], 1), (["b", "c"], 1)]
    json.dumps(counts), json.dumps(pairs, allow_nan=False)
