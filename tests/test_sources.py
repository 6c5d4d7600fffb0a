"""Finding a dataset, choosing its split, reading its rows: local files and folders, and the hub switched off."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from preftune.errors import UserError
from preftune.pairs import Drop, to_pair
from preftune.schema import DatasetEntry
from preftune.sources import SPLIT_FIXES, Source, find_source, pick_split, read_rows
from preftune.workspace import Workspace

ROWS = [{"prompt": f"Q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(5)]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, tmp_path / ".preftune")


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(r) + "\n" for r in rows)


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """Rows in the format that the ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else lines(rows))
    return path


def found(workspace: Workspace, name: str, **entry: Any) -> Source:
    return find_source(DatasetEntry(id=name, **entry), workspace)


def rows_of(source: Source, split: str = "train") -> list[Any]:
    return [row for _, row in read_rows(source, split)]


# --- formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_one_file(workspace: Workspace, suffix: str) -> None:
    """A file is the split train; its rows come in order, each with a place that a user finds again."""
    write(workspace.project / f"pairs{suffix}")
    source = found(workspace, f"pairs{suffix}")
    assert list(source.splits) == ["train"] and source.kind == "files"
    read = list(read_rows(source, "train"))
    assert [row for _, row in read] == ROWS
    first = "pairs.jsonl:1" if suffix == ".jsonl" else f"pairs{suffix}[0]"
    assert read[0][0] == first


def test_message_lists_survive_parquet(workspace: Workspace) -> None:
    """pandas gives arrays of dicts; they become the same pair as lists do."""
    row = {
        "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}],
    }
    write(workspace.project / "x.parquet", [row, row])
    first = to_pair(rows_of(found(workspace, "x.parquet"))[0], "s", "r")
    assert first.prompt == [{"role": "user", "content": "Q"}]
    assert first.chosen == [{"role": "assistant", "content": "A"}]


def test_csv_keeps_answers_as_text(workspace: Workspace) -> None:
    """`4`, `None` and `NA` are answers; the scores beside them are numbers."""
    (workspace.project / "x.csv").write_text(
        "prompt,chosen,rejected,score_chosen,score_rejected\n2+2?,4,5,9,1\nNothing?,7,8,3,3\n"
    )
    read = rows_of(found(workspace, "x.csv"))
    assert [(r["chosen"], r["rejected"]) for r in read] == [("4", "5"), ("7", "8")]
    assert to_pair(read[0], "s", "r").score_chosen == 9.0
    with pytest.raises(Drop, match="tie"):
        to_pair(read[1], "s", "r")
    (workspace.project / "y.csv").write_text("prompt,chosen,rejected\nIn Python?,None,null\nCode?,NA,nan\n")
    assert [(r["chosen"], r["rejected"]) for r in rows_of(found(workspace, "y.csv"))] == [
        ("None", "null"),
        ("NA", "nan"),
    ]


def test_byte_order_mark(workspace: Workspace) -> None:
    """Excel and PowerShell write one."""
    for suffix, text in ((".jsonl", lines(ROWS)), (".json", json.dumps(ROWS)), (".csv", None)):
        path = workspace.project / f"x{suffix}"
        body = text or write(path).read_text()
        path.write_bytes(b"\xef\xbb\xbf" + body.encode())
        assert rows_of(found(workspace, path.name)) == ROWS, suffix


def test_blank_lines_and_numbers_of_lines(workspace: Workspace) -> None:
    """Blank lines are passed over, and count as lines."""
    (workspace.project / "x.jsonl").write_text("\n" + lines(ROWS[:1]) + "  \n\n" + lines(ROWS[1:2]) + "\n")
    read = list(read_rows(found(workspace, "x.jsonl"), "train"))
    assert read == [("x.jsonl:2", ROWS[0]), ("x.jsonl:5", ROWS[1])]


def test_windows_line_ends(workspace: Workspace) -> None:
    (workspace.project / "x.jsonl").write_bytes(lines(ROWS).replace("\n", "\r\n").encode())
    assert rows_of(found(workspace, "x.jsonl")) == ROWS


def test_unicode_line_ends_inside_a_text(workspace: Workspace) -> None:
    """U+2028 and U+0085 are no line ends of a file."""
    row = {"prompt": "a\u2028b\x85c", "chosen": "x", "rejected": "y"}
    (workspace.project / "x.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert rows_of(found(workspace, "x.jsonl")) == [row]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps({"data": ROWS}), ROWS),
        (json.dumps({"version": 1, "rows": ROWS}), ROWS),
        (lines(ROWS), ROWS),
        (lines(ROWS[:1]), ROWS[:1]),
        (json.dumps(ROWS[0], indent=2), ROWS[:1]),
        ("[]", []),
    ],
)
def test_shapes_of_json(workspace: Workspace, text: str, expected: list[Any]) -> None:
    """A list, a list under a name, JSON lines under the name .json (also a single one)."""
    (workspace.project / "x.json").write_text(text)
    assert rows_of(found(workspace, "x.json")) == expected


def test_one_row_of_message_lists(workspace: Workspace) -> None:
    """A single pair's own lists are not taken for the rows."""
    row = {"chosen": [{"role": "assistant", "content": "A"}], "rejected": [{"role": "assistant", "content": "B"}]}
    (workspace.project / "x.json").write_text(json.dumps({"prompt": "Q", **row}))
    assert rows_of(found(workspace, "x.json")) == [{"prompt": "Q", **row}]


# --- broken files -----------------------------------------------------------------------------------------


def test_a_broken_line_is_named(workspace: Workspace) -> None:
    (workspace.project / "x.jsonl").write_text(lines(ROWS[:2]) + '{"prompt": "Q", "chosen":\n' + lines(ROWS[2:]))
    with pytest.raises(UserError, match="not JSON") as e:
        rows_of(found(workspace, "x.jsonl"))
    assert e.value.where == "x.jsonl, line 3"


def test_the_rows_before_a_broken_line_come(workspace: Workspace) -> None:
    """Reading is lazy."""
    (workspace.project / "x.jsonl").write_text(lines(ROWS[:2]) + "{\n")
    rows = read_rows(found(workspace, "x.jsonl"), "train")
    assert [next(rows)[1], next(rows)[1]] == ROWS[:2]


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("x.json", b'[\n {"a": 1},\n {"a": }\n]', "x.json, line 3"),
        ("x.json", b"not json", "x.json, line 1"),
        ("x.json", b'"text"', "x.json"),
        ("x.json", b"3", "x.json"),
        ("x.json", b'{"a": 1}\n{"a": \n', "x.json, line 2"),
        ("x.jsonl", b'{"a": "\xff"}\n', "x.jsonl, byte 7"),
        ("x.json", b'["\xff"]', "x.json, byte 2"),
        ("x.jsonl", "text".encode("utf-16"), "x.jsonl, byte 0"),
        ("x.parquet", b"PAR1 not really", "x.parquet"),
        ("x.csv", b'a,b\n"open,1\n', "x.csv"),
        ("x.csv", b"a,b\n\xff,1\n", "x.csv"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl, line 1"),
        ("x.json", b"[" * 100_000, "x.json"),
        ("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "x.jsonl, line 1"),
    ],
)
def test_broken_files(workspace: Workspace, name: str, content: bytes, where: str) -> None:
    """One message that names the file and the place, whatever is wrong with it."""
    (workspace.project / name).write_bytes(content)
    with pytest.raises(UserError) as e:
        rows_of(found(workspace, name))
    assert e.value.where.startswith(where)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_an_empty_file(workspace: Workspace, suffix: str) -> None:
    (workspace.project / f"x{suffix}").touch()
    with pytest.raises(UserError, match="the file is empty"):
        found(workspace, f"x{suffix}")


def test_other_endings(workspace: Workspace) -> None:
    (workspace.project / "x.xlsx").write_text("x")
    with pytest.raises(UserError, match=r"'\.xlsx' are not read") as e:
        found(workspace, "x.xlsx")
    assert ".parquet" in e.value.advice


# --- folders ----------------------------------------------------------------------------------------------


def test_a_folder_of_splits(workspace: Workspace) -> None:
    folder = workspace.project / "set"
    write(folder / "train.jsonl", ROWS[:3])
    write(folder / "test.csv", ROWS[3:])
    (folder / "README.md").write_text("no data")
    source = found(workspace, "set")
    assert set(source.splits) == {"train", "test"}
    assert rows_of(source) == ROWS[:3] and rows_of(source, "test") == ROWS[3:]


def test_the_hub_s_layout(workspace: Workspace) -> None:
    """Shards in data/, read in the order of their numbers."""
    folder = workspace.project / "set"
    write(folder / "data" / "train_prefs-00001-of-00002.parquet", ROWS[2:4])
    write(folder / "data" / "train_prefs-00000-of-00002.parquet", ROWS[:2])
    write(folder / "data" / "test_prefs-00000-of-00001-3f2a9c.parquet", ROWS[4:])
    source = found(workspace, "set", split="train_prefs")
    assert set(source.splits) == {"train_prefs", "test_prefs"}
    assert rows_of(source, "train_prefs") == ROWS[:4]
    assert rows_of(source, "test_prefs") == ROWS[4:]


def test_data_dir(workspace: Workspace) -> None:
    write(workspace.project / "set" / "harmless" / "train.jsonl", ROWS[:1])
    write(workspace.project / "set" / "train.jsonl", ROWS[1:])
    assert rows_of(found(workspace, "set", data_dir="harmless")) == ROWS[:1]
    assert rows_of(found(workspace, "set")) == ROWS[1:]


def test_a_data_dir_that_is_not_there(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that is missing is named, not the hub asked."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(workspace.project / "set" / "train.jsonl")
    with pytest.raises(UserError) as e:
        found(workspace, "set", data_dir="harmles")
    assert "harmles" in str(e.value) and "hub" not in str(e.value)


def test_a_folder_without_splits(workspace: Workspace) -> None:
    (workspace.project / "set").mkdir()
    (workspace.project / "set" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="holds no split files") as e:
        found(workspace, "set")
    assert "train.jsonl" in e.value.advice


def test_saved_datasets(workspace: Workspace) -> None:
    """What `save_to_disk` wrote: with splits and without."""
    data = Dataset.from_list(ROWS)
    DatasetDict({"train": data.select(range(3)), "test": data.select([3, 4])}).save_to_disk(
        str(workspace.project / "both")
    )
    data.save_to_disk(str(workspace.project / "one"))
    both, one = found(workspace, "both"), found(workspace, "one")
    assert (both.kind, set(both.splits)) == ("saved", {"train", "test"})
    assert rows_of(both) == ROWS[:3] and rows_of(both, "test") == ROWS[3:]
    assert list(one.splits) == ["train"] and rows_of(one) == ROWS
    assert next(read_rows(both, "test"))[0] == "test[0]"
    assert both.digest != one.digest


def test_digests_follow_the_bytes(workspace: Workspace) -> None:
    """The same bytes are the same dataset, whatever the time of the file; one changed letter is another."""
    path = write(workspace.project / "x.jsonl")
    before = found(workspace, "x.jsonl").digest
    path.write_text(path.read_text())
    assert found(workspace, "x.jsonl").digest == before
    path.write_text(path.read_text().replace("good 3", "Good 3"))
    assert found(workspace, "x.jsonl").digest != before
    write(workspace.project / "set" / "train.jsonl")
    whole = found(workspace, "set").digest
    write(workspace.project / "set" / "test.jsonl")
    assert found(workspace, "set").digest != whole


# --- what is not there ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nothing.jsonl", "./nothing", "/nothing/here", "a/b/c", "~/nothing.csv"])
def test_no_such_path(workspace: Workspace, name: str) -> None:
    """What looks like a path is not searched on the hub."""
    with pytest.raises(UserError, match="no such file or folder") as e:
        found(workspace, name)
    assert str(workspace.project) in e.value.advice


@pytest.mark.parametrize("name", ["my-pairs", "someone/some-data"])
def test_hub_names_offline(workspace: Workspace, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="the hub is switched off") as e:
        found(workspace, name)
    assert e.value.where == name


# --- splits -----------------------------------------------------------------------------------------------


def having(*splits: str) -> Source:
    return Source(DatasetEntry(id="a/b"), {s: () for s in splits}, "hub", "a/b@1")


@pytest.mark.parametrize(
    ("wanted", "has", "read"),
    [
        ("train", ["train_prefs", "test_prefs"], "train_prefs"),
        ("train_sft", ["train_prefs", "train_sft"], "train_prefs"),
        ("train_sft", ["train_prefs"], "train_prefs"),
        ("train_prefs", ["train"], "train"),
        ("test", ["test_prefs", "validation"], "test_prefs"),
        ("test", ["validation"], "validation"),
        ("test_sft", ["test_prefs"], "test_prefs"),
        ("test_prefs", ["test", "validation"], "test"),
        ("test_prefs", ["validation"], "validation"),
        ("validation", ["test"], "test"),
        ("validation", ["test_prefs"], "test_prefs"),
    ],
)
def test_split_fixes(wanted: str, has: list[str], read: str) -> None:
    """The split that is meant is read, and told; under strict it is an error that names it."""
    source = having(*has)
    split, notice = pick_split(source, wanted, strict=False)
    assert split == read
    assert notice and repr(wanted) in notice and repr(read) in notice
    with pytest.raises(UserError) as e:
        pick_split(source, wanted, strict=True)
    assert read in e.value.advice and all(s in e.value.advice for s in has)


@pytest.mark.parametrize("wanted", ["train", "train_prefs", "test", "test_prefs", "validation"])
def test_a_split_that_is_there_is_read(wanted: str) -> None:
    source = having("train", "train_prefs", "test", "test_prefs", "validation")
    assert pick_split(source, wanted, strict=True) == (wanted, None)


def test_train_sft_alone_is_read() -> None:
    """A dataset without preference splits: nothing else can be meant."""
    assert pick_split(having("train_sft", "test_sft"), "train_sft", strict=False) == ("train_sft", None)


@pytest.mark.parametrize("wanted", ["nope", "train", "test"])
def test_a_missing_split_names_those_that_exist(wanted: str) -> None:
    with pytest.raises(UserError, match=f"no split '{wanted}'") as e:
        pick_split(having("dev", "alpha"), wanted, strict=False)
    assert e.value.advice == "it has: alpha, dev"


@pytest.mark.parametrize("wanted", ["train_gen", "test_gen"])
def test_gen_splits_hold_no_preferences(wanted: str) -> None:
    """Also when they exist."""
    with pytest.raises(UserError, match="not preferences"):
        pick_split(having("train_prefs", "train_gen", "test_gen"), wanted, strict=False)


def test_fixes_never_lead_from_test_to_train() -> None:
    for wanted, fixes in SPLIT_FIXES.items():
        assert all(f.startswith("train") == wanted.startswith("train") for f in fixes)


# --- columns and rows -------------------------------------------------------------------------------------


def test_a_mapping_of_columns(workspace: Workspace) -> None:
    """Our name → the dataset's; the dataset's own columns stay."""
    write(workspace.project / "x.jsonl", [{"q": "Q", "response_j": "A", "response_k": "B", "id": 1}])
    columns = {"prompt": "q", "chosen": "response_j", "rejected": "response_k"}
    (row,) = rows_of(found(workspace, "x.jsonl", columns=columns))
    assert (row["prompt"], row["chosen"], row["rejected"], row["id"]) == ("Q", "A", "B", 1)


def test_a_mapping_to_a_column_that_is_not_there(workspace: Workspace) -> None:
    """It and those that exist are named."""
    write(workspace.project / "x.jsonl")
    with pytest.raises(UserError, match="columns names 'answer_a', which is not there") as e:
        rows_of(found(workspace, "x.jsonl", columns={"chosen": "answer_a"}))
    assert "prompt, chosen, rejected" in e.value.error and e.value.where == "x.jsonl: columns"


def test_a_mapping_may_swap(workspace: Workspace) -> None:
    write(workspace.project / "x.jsonl", ROWS[:1])
    columns = {"chosen": "rejected", "rejected": "chosen"}
    (row,) = rows_of(found(workspace, "x.jsonl", columns=columns))
    assert (row["chosen"], row["rejected"]) == (ROWS[0]["rejected"], ROWS[0]["chosen"])


def test_a_list_of_columns_keeps_these(workspace: Workspace) -> None:
    """The handbook's style."""
    write(workspace.project / "x.jsonl", ROWS[:1])
    (row,) = rows_of(found(workspace, "x.jsonl", columns=["chosen", "rejected", "not there"]))
    assert set(row) == {"chosen", "rejected"}


def test_rows_that_are_no_objects_pass_unchanged(workspace: Workspace) -> None:
    """They are the checks' business."""
    (workspace.project / "x.jsonl").write_text('"text"\n3\nnull\n[1]\n')
    assert rows_of(found(workspace, "x.jsonl", columns={"prompt": "q"})) == ["text", 3, None, [1]]


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (3, 3), (5, 5), (6, 5), (None, 5)])
def test_max_rows(workspace: Workspace, limit: int | None, count: int) -> None:
    write(workspace.project / "x.jsonl")
    assert rows_of(found(workspace, "x.jsonl", max_rows=limit)) == ROWS[:count]


def test_max_rows_spares_the_held_out_side(workspace: Workspace) -> None:
    """It saves training time; the verdict is measured on the whole test split, also under another name."""
    for split in ("train_prefs", "test_prefs"):
        write(workspace.project / "set" / f"{split}.jsonl")
    source = found(workspace, "set", split="train_prefs", test_split="test_prefs", max_rows=2)
    assert (len(rows_of(source, "train_prefs")), len(rows_of(source, "test_prefs"))) == (2, 5)
    renamed = found(workspace, "set", split="train", test_split="test", max_rows=2)
    train, test = (pick_split(renamed, s, strict=False)[0] for s in ("train", "test"))
    assert (len(rows_of(renamed, train)), len(rows_of(renamed, test))) == (2, 5)


def test_reading_a_local_file_imports_nothing_heavy(workspace: Workspace) -> None:
    """So that a bad file is named within a second."""
    write(workspace.project / "x.jsonl")
    code = f"""
import sys
from pathlib import Path
from preftune.schema import DatasetEntry
from preftune.sources import find_source, read_rows
from preftune.workspace import Workspace
here = Path({str(workspace.project)!r})
assert len(list(read_rows(find_source(DatasetEntry(id="x.jsonl"), Workspace(here, here)), "train"))) == 5
sys.exit(any(m in sys.modules for m in ("torch", "datasets", "pandas", "huggingface_hub")))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
