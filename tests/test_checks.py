"""Checking a dataset: each row is kept or stands in the quarantine file with its reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from preftune.data.check_list import REASONS
from preftune.data.checks import check_source, peek
from preftune.data.mixture import load_pairs
from preftune.data.pairs import Drop, findings, to_pair
from preftune.data.sources import Source, find_source
from preftune.errors import UserError
from preftune.schema import DatasetEntry, Validation
from preftune.workspace import Workspace


def good(i: int = 0, **more: Any) -> dict[str, Any]:
    return {"prompt": f"Q{i}", "chosen": f"good {i}", "rejected": f"bad {i}", **more}


def source_of(folder: Path, rows: list[Any], name: str = "x.jsonl", **entry: Any) -> Source:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return find_source(DatasetEntry(id=name, **entry), Workspace(folder, folder / ".preftune"))


def check(folder: Path, rows: list[Any], entry: dict[str, Any] | None = None, **validation: Any) -> dict[str, Any]:
    (folder / "out").mkdir(exist_ok=True)
    return check_source(source_of(folder, rows, **(entry or {})), Validation(**validation), folder / "out", 42)


def quarantine(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "quarantine.jsonl").read_text().split("\n")[:-1]]


def test_good_rows_are_all_kept(tmp_path: Path) -> None:
    """Figures by hand: 'good 0' has 6 letters, 'bad 0' has 5; with the role 'assistant: ' (11) 17 and 16."""
    report = check(tmp_path, [good(i) for i in range(4)])
    assert report["train"] == {
        "split": "train",
        "files": ["x.jsonl"],
        "read": 4,
        "kept": 4,
        "drawn": 4,
        "dropped": {},
        "warned": {},
        "examples": {},
        "mean_chars": {"chosen": 17.0, "rejected": 16.0},
        "chosen_longer": 1.0,
        "length_accuracy": 1.0,
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
        check_source(source, Validation(), tmp_path, 42)


def test_other_columns_are_named_with_a_mapping_to_paste(tmp_path: Path) -> None:
    rows = [{"task": f"Q{i}", "good_output": "A", "bad_output": "B"} for i in range(3)]
    with pytest.raises(UserError, match="no column chosen and rejected") as e:
        check(tmp_path, rows, max_dropped=1)
    assert "columns found: task, good_output, bad_output" in e.value.error
    assert "columns: {prompt: task, chosen: good_output, rejected: bad_output}" in e.value.advice


def test_rows_of_one_defect_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no usable pair: 3 × {REASONS['identical']}"):
        check(tmp_path, [{"prompt": f"Q{i}", "chosen": "same", "rejected": "same"} for i in range(3)], max_dropped=1)


def test_both_splits_are_checked_and_fixes_told(tmp_path: Path) -> None:
    """Split fixes become notices; under strict they are errors."""
    source_of(tmp_path, [good(i) for i in range(3)], "set/train_prefs.jsonl")
    source_of(tmp_path, [good(9), "bad"], "set/test_prefs.jsonl")
    workspace = Workspace(tmp_path, tmp_path / ".preftune")
    source = find_source(DatasetEntry(id="set", split="train", test_split="test"), workspace)
    out = tmp_path / "out"
    out.mkdir()
    report = check_source(source, Validation(), out, 42)
    assert (report["train"]["split"], report["test"]["split"]) == ("train_prefs", "test_prefs")
    assert (report["train"]["read"], report["test"]["read"], report["test"]["kept"]) == (3, 2, 1)
    assert len(report["notices"]) == 2 and all("is read as" in n for n in report["notices"])
    assert [q["split"] for q in quarantine(tmp_path)] == ["test_prefs"]
    assert len(load_pairs(out / "test.jsonl")) == 1
    with pytest.raises(UserError, match="no split 'train'"):
        check_source(source, Validation(strict=True), out, 42)


def test_training_on_the_test_split_is_told(tmp_path: Path) -> None:
    source_of(tmp_path, [good(0)], "set/test.jsonl")
    workspace = Workspace(tmp_path, tmp_path / ".preftune")
    source = find_source(DatasetEntry(id="set", split="test"), workspace)
    report = check_source(source, Validation(), tmp_path, 42)
    assert any("official test split" in n for n in report["notices"])
    with pytest.raises(UserError, match="official test split"):
        check_source(source, Validation(severity={"test_split_trained": "fail"}), tmp_path, 42)


def test_a_check_can_warn_instead_of_drop(tmp_path: Path) -> None:
    """The row is kept and counted; a tie is no defect, so it may be more than max_dropped."""
    tie = {"score_chosen": 5, "score_rejected": 5}
    rows = [good(0), good(1, **tie), good(2, **tie)]
    dropped = check(tmp_path, rows, max_dropped=0)["train"]
    assert (dropped["kept"], dropped["dropped"], dropped["warned"]) == (1, {"tie": 2}, {})
    warned = check(tmp_path, rows, severity={"tie": "warn"})["train"]
    assert (warned["kept"], warned["dropped"], warned["warned"]) == (3, {}, {"tie": 2})
    assert warned["examples"] == {"tie": ["x.jsonl:2", "x.jsonl:3"]}
    assert quarantine(tmp_path) == []


def test_a_warning_is_about_a_pair_that_is_kept(tmp_path: Path) -> None:
    """A row with two findings, one of which drops it, is counted once: as dropped."""
    inverted = {"score_chosen": 1, "score_rejected": 5}
    rows = [good(0, **inverted), good(1, rejected="good 1", **inverted), good(2), good(0, **inverted)]
    report = check(tmp_path, rows)["train"]
    assert (report["kept"], report["dropped"]) == (2, {"duplicate": 1, "identical": 1})
    assert report["warned"] == {"score_inverted": 1}
    assert report["examples"]["score_inverted"] == ["x.jsonl:1"]


def test_a_check_can_stop_the_run(tmp_path: Path) -> None:
    rows = [good(i) for i in range(8)] + [good(3), "text"]
    with pytest.raises(UserError, match=r"1 of 10 rows fail the check duplicate: .* \(for example x.jsonl:9\)"):
        check(tmp_path, rows, severity={"duplicate": "fail"})
    with pytest.raises(UserError, match="the check not_an_object"):
        check(tmp_path, rows, severity={"not_an_object": "fail"})
    assert check(tmp_path, rows[:8], severity={"duplicate": "fail"})["train"]["kept"] == 8


@pytest.mark.parametrize(
    ("severity", "message"),
    [
        ({"ties": "drop"}, "'ties' is no check → did you mean tie"),
        ({"missing_answer": "warn"}, "missing_answer: it can be drop or fail, not warn"),
        ({"length_tells": "drop"}, "length_tells: it can be warn or fail, not drop"),
    ],
)
def test_severities_are_checked(severity: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Validation(severity=severity)  # pyright: ignore[reportArgumentType]


def test_max_rows_are_drawn_at_random_from_what_passed(tmp_path: Path) -> None:
    rows = [good(i) for i in range(200)] + ["bad"]
    report = check(tmp_path, rows, {"max_rows": 20})["train"]
    assert (report["read"], report["kept"], report["drawn"], report["dropped"]) == (201, 200, 20, {"not_an_object": 1})
    first = [p.row_id for p in load_pairs(tmp_path / "out" / "train.jsonl")]
    places = [int(i.rpartition(":")[2]) for i in first]
    assert len(set(places)) == 20 and places == sorted(places)
    assert max(places) > 100, "not the first rows of the file"
    check(tmp_path, rows, {"max_rows": 20})
    assert [p.row_id for p in load_pairs(tmp_path / "out" / "train.jsonl")] == first
    check_source(source_of(tmp_path, rows, max_rows=20), Validation(), tmp_path / "out", 7)
    assert [p.row_id for p in load_pairs(tmp_path / "out" / "train.jsonl")] != first


def test_a_stream_ends_when_enough_are_kept(tmp_path: Path) -> None:
    """Every row that was read is counted, the rest is not read."""
    rows = [good(i) if i % 4 else "bad" for i in range(400)]
    report = check(tmp_path, rows, {"max_rows": 30, "streaming": True})["train"]
    assert report["kept"] == report["drawn"] == 30
    assert report["read"] == 30 + sum(report["dropped"].values()) < 400
    assert len(quarantine(tmp_path)) == report["dropped"]["not_an_object"]


def test_rows_in_other_languages_name_them(tmp_path: Path) -> None:
    rows = [good(i, language=name) for i, name in enumerate(("German", "German", "fr"))]
    with pytest.raises(UserError, match=r"no pair is left: 3 rows are in other languages \(German, fr\)") as e:
        check(tmp_path, rows, languages="en")
    assert "validation.languages asks for en" in e.value.advice
    assert check(tmp_path, rows, languages=["de"])["train"]["dropped"] == {"other_language": 1}


def test_guessing_by_length(tmp_path: Path) -> None:
    """60 pairs: the longer one is chosen in 48 of them, as long in 6, shorter in 6: (48 + 3) / 60 = 85 %."""

    def row(i: int) -> dict[str, Any]:
        longer, shorter = f"a much longer answer {i:02d}", f"short {i:02d}"
        if i < 48:
            return good(i, chosen=longer, rejected=shorter)
        return good(i, chosen=shorter, rejected=longer if i < 54 else f"SHORT {i:02d}")

    rows = [row(i) for i in range(60)]
    report = check(tmp_path, rows)
    assert report["train"]["length_accuracy"] == 0.85
    assert any("the longer one is chosen in 85% of the pairs" in n for n in report["notices"])
    assert check(tmp_path, rows, max_length_accuracy=0.85)["notices"] == []
    with pytest.raises(UserError, match="85%"):
        check(tmp_path, rows, severity={"length_tells": "fail"})


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
            try:
                assert q["reason"] in findings(to_pair(q["row"], "s", "r"), q["row"])
            except Drop as drop:
                assert drop.reason == q["reason"]


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
