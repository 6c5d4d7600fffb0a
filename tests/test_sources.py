"""Finding a dataset, choosing its split, reading its rows: local files and folders, and the hub switched off."""

import gzip
import itertools
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, load_dataset

from preftune.data import readers, shuffle
from preftune.data.pairs import to_pair
from preftune.data.sources import SPLIT_FIXES, Source, find_source, pick_split, read_rows
from preftune.errors import UserError
from preftune.schema import DatasetEntry
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
    first, second = to_pair(read[0], "s", "r"), to_pair(read[1], "s", "r")
    assert (first.score_chosen, first.score_rejected) == (9.0, 1.0)
    assert (second.score_chosen, second.score_rejected) == (3.0, 3.0)
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
        ("x.jsonl", b'{"a": "\xff"}\n', "x.jsonl, line 1"),
        ("x.json", b'["\xff"]', "x.json, line 1"),
        ("x.jsonl", "text".encode("utf-16"), "x.jsonl, line 1"),
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


# --- the hub's layouts in a local folder ------------------------------------------------------------------

CARD = """---
license: mit
configs:
- config_name: default
  default: true
  data_files:
  - split: train_prefs
    path: data/train_prefs-*
  - split: test_prefs
    path: data/test_prefs-*
- config_name: swapped
  data_files:
  - split: train
    path: data/test_prefs-*
---
# A card
configs: none of this counts
"""


def numbered(*numbers: int) -> list[dict[str, str]]:
    return [{"prompt": f"Q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in numbers]


def write_gz(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines(rows).encode()))


def ultrafeedback(folder: Path) -> None:
    write(folder / "data" / "train_prefs-00000-of-00002.parquet", numbered(0, 1))
    write(folder / "data" / "train_prefs-00001-of-00002.parquet", numbered(2, 3))
    write(folder / "data" / "test_prefs-00000-of-00001.parquet", numbered(4))
    (folder / "README.md").write_text(CARD)


def hh_rlhf(folder: Path) -> None:
    for number, part in enumerate(("harmless-base", "helpful-base")):
        write_gz(folder / part / "train.jsonl.gz", numbered(2 * number))
        write_gz(folder / part / "test.jsonl.gz", numbered(2 * number + 1))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# HH\n")
    (folder / "red-team-attempts").mkdir()
    (folder / "red-team-attempts" / "red_team_attempts.jsonl.gz").write_bytes(b"not to be read")


def stack_exchange(folder: Path) -> None:
    for number, part in enumerate(("finetune", "reward", "rl", "evaluation")):
        for shard in range(3):
            write(folder / "data" / part / f"train-{shard:05d}-of-00003.parquet", numbered(10 * number + shard))


def folders_named_after_splits(folder: Path) -> None:
    write(folder / "train" / "a.jsonl", numbered(0))
    write(folder / "train" / "b.jsonl", numbered(1))
    write(folder / "test" / "a.jsonl", numbered(2))


@pytest.mark.parametrize(
    ("build", "entry", "expected"),
    [
        (ultrafeedback, {}, {"train_prefs": [0, 1, 2, 3], "test_prefs": [4]}),
        (ultrafeedback, {"config": "default"}, {"train_prefs": [0, 1, 2, 3], "test_prefs": [4]}),
        (ultrafeedback, {"config": "swapped"}, {"train": [4]}),
        (hh_rlhf, {}, {"train": [0, 2], "test": [1, 3]}),
        (hh_rlhf, {"data_dir": "harmless-base"}, {"train": [0], "test": [1]}),
        (stack_exchange, {"data_dir": "data/rl"}, {"train": [20, 21, 22]}),
        (stack_exchange, {"data_dir": "data/evaluation"}, {"train": [30, 31, 32]}),
        (stack_exchange, {}, {"test": [30, 31, 32]}),  # named after the folder "evaluation"
        (folders_named_after_splits, {}, {"train": [0, 1], "test": [2]}),
        (lambda f: write(f / "pairs.jsonl", numbered(0, 1)), {}, {"train": [0, 1]}),
        (lambda f: write(f / "Code-Feedback.jsonl", numbered(0)), {}, {"train": [0]}),
    ],
)
def test_layouts(workspace: Workspace, build: Any, entry: dict[str, str], expected: dict[str, list[int]]) -> None:
    """As `datasets` itself reads the folder: the same splits, the same rows in the same order."""
    folder = workspace.project / "set"
    folder.mkdir()
    build(folder)
    source = found(workspace, "set", **entry)
    got = {split: rows_of(source, split) for split in source.splits}
    assert got == {split: numbered(*numbers) for split, numbers in expected.items()}
    ids = [row_id for split in source.splits for row_id, _ in read_rows(source, split)]
    assert len(set(ids)) == len(ids)
    theirs = load_dataset(str(folder), entry.get("config"), data_dir=entry.get("data_dir"), streaming=True)
    assert {str(split): list(rows) for split, rows in theirs.items()} == got


def test_row_ids_of_files_with_one_name(workspace: Workspace) -> None:
    """Then, and only then, they carry the folder."""
    hh_rlhf(workspace.project / "set")
    source = found(workspace, "set")
    assert [row_id for row_id, _ in read_rows(source, "train")] == [
        "harmless-base/train.jsonl.gz:1",
        "helpful-base/train.jsonl.gz:1",
    ]
    (row_id, _), *_ = read_rows(found(workspace, "set", data_dir="helpful-base"), "train")
    assert row_id == "train.jsonl.gz:1"


def test_a_configuration_that_is_not_there(workspace: Workspace) -> None:
    ultrafeedback(workspace.project / "set")
    with pytest.raises(UserError, match="configuration 'nope' not found") as e:
        found(workspace, "set", config="nope")
    assert "swapped" in e.value.error and e.value.advice == "correct config" and e.value.where == "set"


def test_a_configuration_must_be_chosen(workspace: Workspace) -> None:
    ultrafeedback(workspace.project / "set")
    (workspace.project / "set" / "README.md").write_text(
        CARD.replace("  default: true\n", "").replace("config_name: default", "config_name: plain")
    )
    with pytest.raises(UserError, match=r"(?s)Config name is missing.*'plain', 'swapped'") as e:
        found(workspace, "set")
    assert e.value.advice == "correct config"


@pytest.mark.parametrize(
    "card", ["---\nconfigs: [\n---\n", "---\nconfigs:\n- config_name: a\n  data_files: gone-*.jsonl\n---\n"]
)
def test_a_broken_card(workspace: Workspace, card: str) -> None:
    write(workspace.project / "set" / "train.jsonl")
    (workspace.project / "set" / "README.md").write_text(card)
    with pytest.raises(UserError) as e:
        found(workspace, "set")
    assert e.value.where == "set" and e.value.advice


def test_scripts_are_not_run(workspace: Workspace, tmp_path: Path) -> None:
    folder = workspace.project / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for config in (None, "a"):
        with pytest.raises(UserError, match="scripts are not run") as e:
            found(workspace, "set", config=config)
        assert "refs/convert/parquet" in e.value.advice
    assert not (tmp_path / "ran").exists()


def test_files_of_other_kinds(workspace: Workspace) -> None:
    """`datasets` would read them, our readers do not."""
    folder = workspace.project / "set"
    write(folder / "deep" / "train.jsonl")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: text.txt\n---\n")
    (folder / "text.txt").write_text("x")
    with pytest.raises(UserError, match=r"'\.txt' are not read"):
        found(workspace, "set")


def test_one_split_in_two_formats(workspace: Workspace) -> None:
    """The same rows would be read twice."""
    write(workspace.project / "set" / "train.jsonl")
    write(workspace.project / "set" / "train.parquet")
    with pytest.raises(UserError, match=r"stands there twice: train\.jsonl and train\.parquet"):
        found(workspace, "set")


def test_what_does_not_count_in_a_folder(workspace: Workspace) -> None:
    folder = workspace.project / "set"
    write(folder / "train.jsonl", ROWS)
    for name in ("._train.jsonl", ".hidden.json", "notes.md", "train.py"):
        (folder / name).write_text("x")
    (folder / "cache.json").mkdir()
    (folder / "again").symlink_to("../set")
    source = found(workspace, "set")
    assert list(source.splits) == ["train"] and rows_of(source) == ROWS


def test_symbolic_links(workspace: Workspace) -> None:
    """huggingface_hub's cache is made of them: the link's name counts. A loop is told."""
    folder = workspace.project / "set"
    write(workspace.project / "blobs" / "0a1b.jsonl", ROWS).rename(workspace.project / "blobs" / "0a1b")
    folder.mkdir()
    (folder / "train.jsonl").symlink_to("../blobs/0a1b")
    assert rows_of(found(workspace, "set")) == rows_of(found(workspace, "set/train.jsonl")) == ROWS
    (folder / "test.jsonl").symlink_to("test.jsonl")
    for name in ("set", "set/test.jsonl"):
        with pytest.raises(UserError, match="a symbolic link that leads nowhere") as e:
            found(workspace, name)
        assert "test.jsonl" in e.value.where


def test_a_file_that_two_patterns_find_is_read_once(workspace: Workspace) -> None:
    """`datasets` reads it twice."""
    write(workspace.project / "set" / "deep" / "train-train.jsonl", ROWS)
    assert rows_of(found(workspace, "set")) == ROWS
    assert len(list(load_dataset(str(workspace.project / "set"), split="train", streaming=True))) == 2 * len(ROWS)


def test_a_loop_of_folders(workspace: Workspace) -> None:
    """Also where `datasets` looks for the files, each is read once."""
    hh_rlhf(workspace.project / "set")
    (workspace.project / "set" / "harmless-base" / "up").symlink_to("..")
    assert rows_of(found(workspace, "set")) == numbered(0, 2)


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-has-this-name/x.jsonl"])
def test_names_that_are_no_path(workspace: Workspace, name: str) -> None:
    with pytest.raises(UserError, match="no path"):
        found(workspace, name)


def test_saved_datasets_that_are_not_whole(workspace: Workspace) -> None:
    folder = workspace.project / "both"
    data = Dataset.from_list(ROWS)
    DatasetDict({"train": data, "test": data}).save_to_disk(str(folder))
    (folder / "test" / "state.json").unlink()
    with pytest.raises(UserError, match="not whole"):
        found(workspace, "both")
    (folder / "dataset_dict.json").write_text("{}")
    with pytest.raises(UserError, match="not whole"):
        found(workspace, "both")


def test_saved_shards_in_order(workspace: Workspace) -> None:
    """The places count on through the files, also when the rows come in another order."""
    rows = numbered(*range(2500))
    Dataset.from_list(rows).save_to_disk(str(workspace.project / "one"), num_shards=3)
    source = found(workspace, "one", streaming=True, max_rows=1)
    assert len(source.splits["train"]) == 3
    plain = list(read_rows(source, "train"))
    assert plain == [(f"train[{i}]", row) for i, row in enumerate(rows)]
    mixed = list(read_rows(source, "train", seed=1))
    assert mixed != plain and sorted(mixed, key=lambda r: int(r[0][6:-1])) == plain


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


def test_train_sft_is_read_as_train_prefs_with_its_reason() -> None:
    """It holds the same rows; under strict the message names the fix."""
    source = having("train_prefs", "train_sft")
    split, notice = pick_split(source, "train_sft", strict=False)
    assert split == "train_prefs"
    assert notice and "holds the same rows, but is meant for SFT" in notice
    with pytest.raises(UserError, match="'train_sft' is meant for SFT") as e:
        pick_split(source, "train_sft", strict=True)
    assert e.value.advice.startswith("write train_prefs")
    _, notice = pick_split(having("train_prefs"), "train_sft", strict=False)
    assert notice and "SFT" not in notice


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


# --- streaming --------------------------------------------------------------------------------------------


def shards(folder: Path, suffix: str, files: int = 12, rows: int = 100) -> list[int]:
    """Numbered rows; parquet in row groups of 20."""
    for shard in range(files):
        path = folder / f"train-{shard:05d}-of-{files:05d}{suffix}"
        here = numbered(*range(shard * rows, (shard + 1) * rows))
        if suffix == ".parquet":
            path.parent.mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist(here), path, row_group_size=20)
        elif suffix == ".jsonl.gz":
            write_gz(path, here)
        else:
            write(path, here)
    return list(range(files * rows))


def streamed(source: Source, seed: int | None) -> list[tuple[str, int]]:
    return [(row_id, int(row["prompt"][1:])) for row_id, row in read_rows(source, "train", seed)]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet"])
def test_a_stream_is_a_seeded_permutation(workspace: Workspace, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "BUFFER", 50)
    numbers = shards(workspace.project / "set", suffix)
    source = found(workspace, "set", streaming=True, max_rows=5)
    plain = streamed(source, None)
    assert [n for _, n in plain] == numbers
    first, again, other = streamed(source, 1), streamed(source, 1), streamed(source, 2)
    assert first == again != other
    assert sorted(first) == sorted(other) == sorted(plain)  # the same ids for the same rows
    assert first[:100] != plain[:100]


def test_only_streams_are_shuffled(workspace: Workspace) -> None:
    numbers = shards(workspace.project / "set", ".jsonl")
    assert [n for _, n in streamed(found(workspace, "set", max_rows=5), 1)] == numbers


def test_a_stream_does_not_depend_on_the_hash_seed(workspace: Workspace) -> None:
    shards(workspace.project / "set", ".parquet")
    code = f"""
import hashlib
from pathlib import Path
from preftune.schema import DatasetEntry
from preftune.data.sources import find_source, read_rows
from preftune.workspace import Workspace
here = Path({str(workspace.project)!r})
source = find_source(DatasetEntry(id="set", streaming=True, max_rows=1), Workspace(here, here))
print(hashlib.sha256(" ".join(i for i, _ in read_rows(source, "train", 3)).encode()).hexdigest())
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and len(runs[0]) == 65


def test_a_stream_is_mixed_from_several_files(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a buffer of 50, the first hundred of 1200 rows come from four files, not in their order."""
    monkeypatch.setattr(shuffle, "BUFFER", 50)
    shards(workspace.project / "set", ".jsonl")
    source = found(workspace, "set", streaming=True, max_rows=5)
    first = [n for _, n in itertools.islice(streamed(source, 7), 100)]
    assert len({n // 100 for n in first}) == shuffle.OPEN
    assert sum(a > b for a, b in itertools.pairwise(first)) > 30


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_who_stops_early_has_read_few_files(workspace: Workspace, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of twelve, though the consumer takes rows beyond the buffer."""
    monkeypatch.setattr(shuffle, "BUFFER", 50)
    opened: set[str] = set()
    plain = readers._rows

    def spy(file: str, *rest: Any) -> Any:
        opened.add(file)
        return plain(file, *rest)

    monkeypatch.setattr(readers, "_rows", spy)
    shards(workspace.project / "set", suffix)
    rows = read_rows(found(workspace, "set", streaming=True, max_rows=5), "train", seed=1)
    assert opened == set()
    taken = [next(rows) for _ in range(60)]
    rows.close()
    assert len(taken) == 60 and 1 < len(opened) <= shuffle.OPEN


def test_parts_are_begun_one_by_one() -> None:
    """The order of 100 parts of 10 rows: never more than four begun and not yet ended."""
    running, most = 0, 0

    def part(number: int) -> Iterator[tuple[str, int]]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        yield from ((f"{number}:{i}", number) for i in range(10))
        running -= 1

    rows = list(shuffle.shuffled(range(100), lambda n: [part(n)], seed=0))
    assert sorted(rows) == sorted((f"{n}:{i}", n) for n in range(100) for i in range(10))
    assert most == shuffle.OPEN


def test_rows_that_all_fit_are_shuffled_too() -> None:
    rows = [(str(i), i) for i in range(100)]
    orders = [[n for _, n in shuffle.shuffled("a", lambda _: [iter(rows)], seed=seed)] for seed in (1, 2)]
    assert orders[0] != orders[1] and all(sorted(o) == [*range(100)] != o for o in orders)
    assert sum(a < b for a, b in itertools.pairwise(orders[0])) < 75


def test_a_large_buffer_mixes_well() -> None:
    """All rows fit: each of 3 files × 40 rows is equally likely to come first (chi-square, 2 degrees)."""
    firsts = Counter(
        next(shuffle.shuffled("abc", lambda f: [iter([(f, i) for i in range(40)])], seed=s))[0] for s in range(600)
    )
    assert sum((firsts[f] - 200) ** 2 / 200 for f in "abc") < 13.8  # p = 0.001


def test_an_error_in_a_stream(workspace: Workspace) -> None:
    shards(workspace.project / "set", ".parquet")
    path = workspace.project / "set" / "train-00003-of-00012.parquet"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="cannot be read") as e:
        streamed(found(workspace, "set", streaming=True, max_rows=5), 1)
    assert e.value.where == f"set: {path.name}"


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


def test_max_rows_is_not_applied_here(workspace: Workspace) -> None:
    """The checks draw from all rows."""
    write(workspace.project / "x.jsonl")
    assert rows_of(found(workspace, "x.jsonl", max_rows=2)) == ROWS


def test_a_source_survives_pickling(workspace: Workspace) -> None:
    """It is handed from process to process."""
    ultrafeedback(workspace.project / "set")
    source = found(workspace, "set")
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert copy == source and rows_of(copy, "test_prefs") == numbered(4)


def test_reading_plain_files_imports_nothing_heavy(workspace: Workspace) -> None:
    """So that a bad file is named within a second; only the hub's own layouts need `datasets`."""
    for suffix in (".jsonl", ".jsonl.gz", ".csv", ".json"):
        if suffix == ".jsonl.gz":
            write_gz(workspace.project / "x.jsonl.gz", ROWS)
        else:
            write(workspace.project / f"x{suffix}")
    write(workspace.project / "set" / "sub" / "data" / "train-00000-of-00001.parquet")
    Dataset.from_list(ROWS).save_to_disk(str(workspace.project / "saved"))
    code = f"""
import sys
from pathlib import Path
from preftune.schema import DatasetEntry
from preftune.data.sources import find_source, read_rows
from preftune.workspace import Workspace
here = Path({str(workspace.project)!r})

def read(name, **entry):
    source = find_source(DatasetEntry(id=name, **entry), Workspace(here, here))
    assert len(list(read_rows(source, "train"))) == 5

for name in ("x.jsonl", "x.jsonl.gz", "x.csv", "x.json"):
    read(name)
assert not any(m in sys.modules for m in ("pyarrow", "pandas", "numpy"))
read("set", data_dir="sub")
read("saved")
assert not any(m in sys.modules for m in ("torch", "datasets", "huggingface_hub"))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
