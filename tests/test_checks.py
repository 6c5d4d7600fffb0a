"""Checking a dataset: each row is kept or stands in the quarantine file with its reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from preftune.checks import check_source, peek
from preftune.errors import UserError
from preftune.mixture import load_pairs
from preftune.pairs import REASONS, Drop, to_pair
from preftune.schema import DatasetEntry, Validation
from preftune.sources import Source, find_source
from preftune.workspace import Workspace


def good(i: int = 0, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Q{i}", "chosen": f"good {i}", "rejected": f"bad {i}", **more}


def source_of(folder: Path, rows: list[Any], name: str = "x.jsonl", **entry: Any) -> Source:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return find_source(DatasetEntry(id=name, **entry), Workspace(folder, folder / ".preftune"))


def check(folder: Path, rows: list[Any], **validation: Any) -> dict[str, Any]:
    (folder / "out").mkdir(exist_ok=True)
    return check_source(source_of(folder, rows), Validation(**validation), folder / "out")


def quarantine(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "quarantine.jsonl").read_text().split("\n")[:-1]]


def test_good_rows_are_all_kept(tmp_path: Path) -> None:
    """Figures by hand: 'good 0' has 6 letters, 'bad 0' has 5; with the role 'assistant: ' (11) 17 and 16."""
    report = check(tmp_path, [good(i) for i in range(4)])
    assert report["train"] == {
        "split": "train",
        "read": 4,
        "kept": 4,
        "dropped": {},
        "mean_chars": {"chosen": 17.0, "rejected": 16.0},
        "chosen_longer": 1.0,
    }
    assert report["notices"] == [] and "test" not in report
    assert quarantine(tmp_path) == []
    pairs = load_pairs(tmp_path / "out" / "train.jsonl")
    assert [p.row_id for p in pairs] == [f"x.jsonl:{i}" for i in range(1, 5)]
    assert {p.source for p in pairs} == {"x.jsonl"}
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_each_dropped_row_stands_in_the_quarantine(tmp_path: Path) -> None:
    """With its place, its reason in words, and itself."""
    tie = good(1, score_chosen=5, score_rejected=5)
    report = check(tmp_path, [good(0), tie, "text", good(2), {"prompt": "Q"}, good(3, chosen=" ")], max_dropped=1)
    assert report["train"]["read"] == 6 and report["train"]["kept"] == 2
    assert report["train"]["dropped"] == {"empty_answer": 1, "missing_answer": 1, "not_an_object": 1, "tie": 1}
    found = quarantine(tmp_path)
    assert [(q["row_id"], q["reason"]) for q in found] == [
        ("x.jsonl:2", "tie"),
        ("x.jsonl:3", "not_an_object"),
        ("x.jsonl:5", "missing_answer"),
        ("x.jsonl:6", "empty_answer"),
    ]
    assert found[0] == {
        "source": "x.jsonl",
        "split": "train",
        "row_id": "x.jsonl:2",
        "reason": "tie",
        "meaning": REASONS["tie"],
        "row": tie,
    }


def test_duplicates_and_contradictions(tmp_path: Path) -> None:
    """The first one stays; the same answers the other way round contradict it, also again."""
    swapped = {"prompt": "Q0", "chosen": "bad 0", "rejected": "good 0"}
    report = check(tmp_path, [good(0), good(0), swapped, swapped, good(1), good(0)], max_dropped=1)
    assert report["train"]["kept"] == 2
    assert report["train"]["dropped"] == {"contradiction": 2, "duplicate": 2}


def test_same_answers_to_another_prompt_are_no_duplicate(tmp_path: Path) -> None:
    assert check(tmp_path, [good(0), good(0, prompt="other")])["train"]["kept"] == 2


def test_the_share_of_dropped_rows_has_a_bar(tmp_path: Path) -> None:
    """3 of 6 is 0.5: not above the default 0.5; above 0.49."""
    rows = [good(0), good(1), good(2), "a", "b", {"chosen": 1}]
    assert check(tmp_path, rows)["train"]["kept"] == 3
    with pytest.raises(UserError, match=r"3 of 6 rows \(50%\) are unusable") as e:
        check(tmp_path, rows, max_dropped=0.49)
    assert "2 × " + REASONS["not_an_object"] in e.value.error
    assert e.value.where == "x.jsonl, split train" and "now 0.49" in e.value.advice
    with pytest.raises(UserError, match="1 of 2"):
        check(tmp_path, [good(0), "a"], max_dropped=0)
    assert check(tmp_path, [good(0)], max_dropped=0)["train"]["kept"] == 1


def test_no_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n\n")
    source = find_source(DatasetEntry(id="x.jsonl"), Workspace(tmp_path, tmp_path))
    with pytest.raises(UserError, match="there are no rows"):
        check_source(source, Validation(), tmp_path)


def test_other_columns_are_named_with_a_mapping_to_paste(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}", "response_j": "A", "response_k": "B"} for i in range(3)]
    with pytest.raises(UserError, match="no column chosen and rejected") as e:
        check(tmp_path, rows, max_dropped=1)
    assert "columns found: question, response_j, response_k" in e.value.error
    assert "columns: {prompt: question, chosen: response_j, rejected: response_k}" in e.value.advice


def test_rows_of_one_defect_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no usable pair: {REASONS['identical']} in every row"):
        check(tmp_path, [{"prompt": f"Q{i}", "chosen": "same", "rejected": "same"} for i in range(3)], max_dropped=1)


def test_both_splits_are_checked_and_fixes_told(tmp_path: Path) -> None:
    """Split fixes become notices; under strict they are errors."""
    source_of(tmp_path, [good(i) for i in range(3)], "set/train_prefs.jsonl")
    source_of(tmp_path, [good(9), "bad"], "set/test_prefs.jsonl")
    workspace = Workspace(tmp_path, tmp_path / ".preftune")
    source = find_source(DatasetEntry(id="set", split="train", test_split="test"), workspace)
    out = tmp_path / "out"
    out.mkdir()
    report = check_source(source, Validation(), out)
    assert (report["train"]["split"], report["test"]["split"]) == ("train_prefs", "test_prefs")
    assert (report["train"]["read"], report["test"]["read"], report["test"]["kept"]) == (3, 2, 1)
    assert len(report["notices"]) == 2 and all("is read as" in n for n in report["notices"])
    assert [q["split"] for q in quarantine(tmp_path)] == ["test_prefs"]
    assert len(load_pairs(out / "test.jsonl")) == 1
    with pytest.raises(UserError, match="no split 'train' for DPO"):
        check_source(source, Validation(strict=True), out)


def test_training_on_the_test_split_is_told(tmp_path: Path) -> None:
    source_of(tmp_path, [good(0)], "set/test.jsonl")
    workspace = Workspace(tmp_path, tmp_path / ".preftune")
    report = check_source(find_source(DatasetEntry(id="set", split="test"), workspace), Validation(), tmp_path)
    assert any("official test split" in n for n in report["notices"])


def test_half_an_emoji_does_not_stop_the_check(tmp_path: Path) -> None:
    r"""JSON can hold `\ud83d` alone (a text cut in the middle of an emoji); UTF-8 cannot."""
    rows = [good(0), good(1, chosen="cut \ud83d"), good(2, prompt="\udc00"), "text \ud83d"]
    report = check(tmp_path, rows, max_dropped=1)
    assert report["train"]["read"] == 4
    assert report["train"]["kept"] + sum(report["train"]["dropped"].values()) == 4
    assert report["train"]["kept"] == len(load_pairs(tmp_path / "out" / "train.jsonl")) >= 1
    assert len(quarantine(tmp_path)) == sum(report["train"]["dropped"].values())


text = st.sampled_from(["", "A", "B", "a", " ", "é", "\n\nHuman: x\n\nAssistant: y", "<|im_end|>", "\u2028", "\r"])
field = st.one_of(text, st.none(), st.integers(0, 2), st.lists(st.none(), max_size=1))
row = st.one_of(
    st.fixed_dictionaries({"prompt": text, "chosen": text, "rejected": text}),
    st.fixed_dictionaries({}, optional={"prompt": field, "chosen": field, "rejected": field}),
    field,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(row, max_size=12))
@example([good(0, chosen="\u2028"), good(0, chosen="\r"), good(1)])
def test_every_row_is_accounted_for(tmp_path: Path, rows: list[Any]) -> None:
    """read = kept + the sum of dropped, exactly; the files hold just these rows, in order."""
    try:
        report = check(tmp_path, [*rows, good(99)], max_dropped=1)["train"]
    except Drop as e:  # never leaves the checks
        raise AssertionError from e
    assert report["read"] == len(rows) + 1
    assert report["read"] == report["kept"] + sum(report["dropped"].values())
    kept = load_pairs(tmp_path / "out" / "train.jsonl")
    thrown = quarantine(tmp_path)
    assert (len(kept), len(thrown)) == (report["kept"], sum(report["dropped"].values()))
    places = [int(i.rpartition(":")[2]) for i in [*(p.row_id for p in kept), *(q["row_id"] for q in thrown)]]
    assert sorted(places) == list(range(1, len(rows) + 2))
    for q in thrown:
        if q["reason"] not in ("duplicate", "contradiction"):
            with pytest.raises(Drop, match=q["reason"]):
                to_pair(q["row"], "s", "r")


# --- peek -------------------------------------------------------------------------------------------------


def test_peek_is_content_with_one_pair(tmp_path: Path) -> None:
    peek(source_of(tmp_path, ["bad", good(0), "bad"]), Validation())


def test_peek_stops_at_the_first_pair(tmp_path: Path) -> None:
    """What comes later is not even read."""
    source = source_of(tmp_path, [good(0)])
    assert source.path
    source.path.write_text(source.path.read_text() + "{broken\n")
    peek(source, Validation())


@pytest.mark.parametrize("count", [1, 200, 201, 500])
def test_peek_refuses_what_holds_no_pair(tmp_path: Path, count: int) -> None:
    """However many rows there are."""
    source = source_of(tmp_path, [{"question": "Q", "answer": "A"}] * count)
    with pytest.raises(UserError, match="no column chosen and rejected"):
        peek(source, Validation())


def test_peek_names_a_broken_line_and_a_missing_split(tmp_path: Path) -> None:
    source = source_of(tmp_path, [good(0)])
    assert source.path
    source.path.write_text("{broken\n")
    with pytest.raises(UserError, match="not JSON"):
        peek(source, Validation())
    with pytest.raises(UserError, match="no split 'test'"):
        peek(source_of(tmp_path, [good(0)], test_split="test"), Validation())


def test_peek_refuses_a_file_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n\n")
    source = find_source(DatasetEntry(id="x.jsonl"), Workspace(tmp_path, tmp_path))
    with pytest.raises(UserError, match="there are no rows"):
        peek(source, Validation())
