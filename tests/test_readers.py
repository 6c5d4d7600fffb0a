"""Files of every kind, sound and broken: rows in constant memory, or one message that names the place."""

import csv
import gzip
import json
import os
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preftune.data import arrow_rows, text_rows
from preftune.data.pairs import Drop, findings, to_pair
from preftune.data.readers import ENDINGS, ending, file_parts, file_rows
from preftune.data.sources import Source, find_source, read_rows
from preftune.errors import UserError
from preftune.schema import DatasetEntry
from preftune.workspace import Workspace

ROWS = [{"prompt": f"Q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(8)]
LINES = [json.dumps(r).encode() + b"\n" for r in ROWS]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, tmp_path / ".preftune")


def found(workspace: Workspace, name: str, **entry: Any) -> Source:
    return find_source(DatasetEntry(id=name, **entry), workspace)


def rows_of(workspace: Workspace, name: str, content: bytes | None = None) -> list[Any]:
    """The rows of a file, through the front door."""
    if content is not None:
        (workspace.project / name).write_bytes(content)
    return [row for _, row in read_rows(found(workspace, name), "train")]


def error_of(workspace: Workspace, name: str, content: bytes | None = None) -> UserError:
    with pytest.raises(UserError) as e:
        rows_of(workspace, name, content)
    return e.value


def packed(content: bytes) -> bytes:
    """Without the time of day, which would give the tests another name in each of several processes."""
    return gzip.compress(content, mtime=0)


def pretty(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=2).encode()


def test_endings() -> None:
    assert {name: ending(name) for name in ("a.jsonl", "a.b.json.gz", "a.parquet", "a.csv.gz")} == {
        "a.jsonl": ".jsonl",
        "a.b.json.gz": ".json.gz",
        "a.parquet": ".parquet",
        "a.csv.gz": ".csv.gz",
    }
    assert [ending(n) for n in ("a.txt", "a.gz", "a.parquet.gz", "jsonl", "a.jsonl.bz2", "a.JSONL")] == [None] * 6


# --- sound files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("x.jsonl", b"".join(LINES), "x.jsonl:1"),
        ("x.jsonl", b"".join(LINES).rstrip(b"\n"), "x.jsonl:1"),  # the last line does not end
        ("x.jsonl", b"".join(LINES).replace(b"\n", b"\r\n"), "x.jsonl:1"),
        ("x.jsonl", b"\xef\xbb\xbf" + b"".join(LINES), "x.jsonl:1"),
        ("x.jsonl", b"\n \n" + b"".join(LINES) + b"\n\n", "x.jsonl:3"),
        ("x.jsonl", json.dumps(ROWS).encode(), "x.jsonl[0]"),  # one list under the name .jsonl
        ("x.jsonl", b"\xef\xbb\xbf \n" + pretty(ROWS), "x.jsonl[0]"),
        ("x.jsonl.gz", packed(b"".join(LINES)), "x.jsonl.gz:1"),
        ("x.jsonl.gz", packed(b"".join(LINES[:3])) + packed(b"".join(LINES[3:])), "x.jsonl.gz:1"),
        ("x.jsonl.gz", packed(pretty(ROWS)), "x.jsonl.gz[0]"),
        ("x.json", pretty(ROWS), "x.json[0]"),
        ("x.json", b"\xef\xbb\xbf\r\n" + json.dumps(ROWS).encode() + b"\r\n", "x.json[0]"),
        ("x.json", b"".join(LINES), "x.json:1"),
        ("x.json", b"\n".join(json.dumps(r, indent=1).encode() for r in ROWS), "x.json:1"),  # objects over lines
        ("x.json", json.dumps({"version": 1, "data": ROWS}).encode(), "x.json[0]"),
        ("x.json.gz", packed(pretty(ROWS)), "x.json.gz[0]"),
    ],
)
def test_shapes(workspace: Workspace, name: str, content: bytes, first: str) -> None:
    (workspace.project / name).write_bytes(content)
    read = list(read_rows(found(workspace, name), "train"))
    assert [row for _, row in read] == ROWS
    assert read[0][0] == first
    assert len({row_id for row_id, _ in read}) == len(ROWS)


def test_the_line_of_objects_over_several_lines(workspace: Workspace) -> None:
    """Each object takes five lines: the second starts on line 6."""
    content = b"\n".join(json.dumps(r, indent=1).encode() for r in ROWS)
    (workspace.project / "x.json").write_bytes(content)
    ids = [row_id for row_id, _ in read_rows(found(workspace, "x.json"), "train")]
    assert ids == [f"x.json:{1 + 5 * i}" for i in range(8)]


def test_a_list_of_nothing(workspace: Workspace) -> None:
    for name, content in (("x.json", b" [ ] \n"), ("y.jsonl.gz", packed(b"")), ("z.csv", b"prompt,chosen\n")):
        assert rows_of(workspace, name, content) == []


def test_an_escaped_nul_passes_to_the_checks(workspace: Workspace) -> None:
    (row,) = rows_of(workspace, "x.jsonl", b'{"prompt": "Q", "chosen": "a\\u0000b", "rejected": "c"}\n')
    assert row["chosen"] == "a\0b"
    assert findings(to_pair(row, "s", "r"), row) == ["control_characters"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".parquet", ".csv"])
def test_a_row_of_fifty_megabytes(workspace: Workspace, suffix: str) -> None:
    """It passes to the checks, which drop it; the row after it comes too."""
    rows = [{"prompt": "Q", "chosen": "x" * 50_000_000, "rejected": "b"}, ROWS[0]]
    path = workspace.project / f"x{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        path.write_text("prompt,chosen,rejected\n" + "".join(",".join(r.values()) + "\n" for r in rows))
    else:
        text = (json.dumps(rows) if suffix == ".json" else "".join(json.dumps(r) + "\n" for r in rows)).encode()
        path.write_bytes(gzip.compress(text, 1) if suffix.endswith(".gz") else text)
    started = time.process_time()
    read = rows_of(workspace, path.name)
    assert time.process_time() - started < 5
    assert read[1] == ROWS[0]
    assert findings(to_pair(read[0], "s", "r"), read[0]) == ["too_long"]


# --- broken text ------------------------------------------------------------------------------------------

BROKEN_7 = b"".join([*LINES[:6], b'{"prompt": "Q", "chosen"\n', *LINES[6:]])


@pytest.mark.parametrize(
    ("name", "content", "what", "where"),
    [
        ("x.jsonl", BROKEN_7, "not JSON: Expecting ':' delimiter", "x.jsonl, line 7"),
        ("x.jsonl.gz", packed(BROKEN_7), "not JSON: Expecting ':' delimiter", "x.jsonl.gz, line 7"),
        ("x.json", BROKEN_7, "not JSON: Expecting ':' delimiter", "x.json, line 7"),
        ("x.jsonl", b"{\n" + BROKEN_7, "not JSON: Expecting property name", "x.jsonl, line 1"),
        ("x.jsonl", b"".join(LINES).replace(b"\n", b"\r"), "not JSON: Extra data", "x.jsonl, line 1"),
        ("x.jsonl", LINES[0] + b"\0\0\0\0", "not JSON: null bytes", "x.jsonl, line 2"),
        ("x.jsonl", LINES[0] + b'{"prompt": "a\0b"}\n', "not JSON: null bytes", "x.jsonl, line 2"),
        ("x.json", b'[{"a": 1},\n{"a": "x\0y"}]', "not JSON: null bytes", "x.json, line 2"),
        ("x.jsonl", b"".join(LINES).decode().encode("utf-16"), "UTF-16, not UTF-8", "x.jsonl, line 1"),
        ("x.jsonl", b"".join(LINES).decode().encode("utf-16-le"), "not JSON: null bytes", "x.jsonl, line 1"),
        ("x.json", pretty(ROWS).decode().encode("utf-16"), "UTF-16, not UTF-8", "x.json, line 1"),
        ("x.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16, not UTF-8", "x.csv, line 1"),
        ("x.jsonl", b"".join(LINES[:4]) + '{"a": "é"}\n'.encode("latin-1"), "not UTF-8: byte 0xe9", "x.jsonl, line 5"),
        (
            "x.jsonl",
            '{"a": "é"}\n'.encode() + '{"a": "é"}'.encode("latin-1"),
            "not UTF-8: byte 0xe9",
            "x.jsonl, line 2",
        ),
        ("x.json", '[\n"é",\n"é"]'.encode("latin-1"), "not UTF-8: byte 0xe9", "x.json, line 2"),
        ("x.csv", 'a,b\n"1\n",2\né,3\n'.encode("latin-1"), "not UTF-8: byte 0xe9", "x.csv, line 4"),
        ("x.jsonl", packed(b"".join(LINES)), "is packed with gzip, but not named .gz", "x.jsonl"),
        ("x.jsonl.gz", b"".join(LINES), "is named .gz, but not packed with gzip", "x.jsonl.gz"),
        ("x.csv", packed(b"a,b\n"), "is packed with gzip, but not named .gz", "x.csv"),
        ("x.parquet", packed(b"PAR1"), "is packed with gzip, but not named .gz", "x.parquet"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer", "x.jsonl"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer", "x.parquet"),
        ("x.jsonl", LINES[0] + b'{"chosen": "a", "chosen": "b"}\n', "the key 'chosen' stands twice", "x.jsonl, line 2"),
        ("x.jsonl", b'{"c": [{"role": "user", "role": "user"}]}', "the key 'role' stands twice", "x.jsonl, line 1"),
        ("x.json", b'[{"a": 1},\n{"b": 1, "b": 1}]', "the key 'b' stands twice", "x.json, line 2"),
        ("x.json", b'[{"a": 1},\n{"b": 1}\n', "the file ends in the middle of the list", "x.json, line 2"),
        ("x.json", b'[{"a": 1},\n{"b": 1\n', "not JSON: Expecting ',' delimiter", "x.json, line 2"),
        ("x.json", b'[{"a": 1},\n{"b": "x', "not JSON: Unterminated string", "x.json, line 2"),
        ("x.json", b'[{"a": 1}\n{"b": 1}]', "Expecting ',' delimiter", "x.json, line 1"),
        ("x.json", b'[{"a": 1},\n]', "a comma before the list's end", "x.json, line 2"),
        ("x.json", b'[{"a": 1}]\n[{"a": 2}]', "more follows after the list's end", "x.json, line 2"),
        ("x.json", b'{"a": 1} {"a": 2}', "Extra data", "x.json, line 1"),
        ("x.json", b" \n ", "only blanks", "x.json"),
        ("x.csv", b"prompt;chosen;rejected\na;b;c\n", "separated by ';'", "x.csv, line 1"),
        ("x.csv", b"prompt\tchosen\tx\na\tb\tc\n", r"separated by '\\t'", "x.csv, line 1"),
        ("x.csv", b"a,b\n1,2\n\n3,4,5\n", "3 values in 2 columns", "x.csv, line 4"),
        ("x.csv", b'a,b\n1,2\n3,"open\n4,5\n', "not CSV: unexpected end of data", "x.csv, line 3"),
        ("x.csv", b"a,b,a\n1,2,3\n", "the column 'a' stands there twice", "x.csv, line 1"),
    ],
)
def test_broken_text(workspace: Workspace, name: str, content: bytes, what: str, where: str) -> None:
    """One message each: what is wrong, the file and the line, and what to do."""
    error = error_of(workspace, name, content)
    assert what.replace(r"\\t", r"\t") in error.error
    assert error.where == where
    assert error.advice


def test_advice_for_json_over_several_lines(workspace: Workspace) -> None:
    assert "a file named .json" in error_of(workspace, "x.jsonl", json.dumps(ROWS[0], indent=1).encode()).advice


def test_advice_for_old_line_ends(workspace: Workspace) -> None:
    assert r"not with \r alone" in error_of(workspace, "x.jsonl", b"".join(LINES).replace(b"\n", b"\r")).advice


def test_a_line_without_end(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not collected until the memory is full."""
    monkeypatch.setattr(text_rows, "LONGEST_LINE", 100)
    error = error_of(workspace, "x.jsonl", LINES[0] + b'{"a": "' + b"x" * 100 + b'"}\n')
    assert (error.error, error.where) == ("a line without end", "x.jsonl, line 2")


@pytest.mark.parametrize(("lines", "place"), [(300, "x.jsonl.gz, after line "), (0, "x.jsonl.gz")])
def test_truncated_gzip(workspace: Workspace, lines: int, place: str) -> None:
    """The rows before the cut come; then the line is named from which on rows are missing."""
    whole = b"".join(json.dumps({"n": i, "noise": os.urandom(500).hex()}).encode() + b"\n" for i in range(400))
    file = packed(whole)
    (workspace.project / "x.jsonl.gz").write_bytes(file[: len(file) * lines // 400] if lines else file[:12])
    read: list[Any] = []
    with pytest.raises(UserError, match="ends in the middle") as e:
        read.extend(row["n"] for _, row in iter(read_rows(found(workspace, "x.jsonl.gz"), "train")))
    assert e.value.where.startswith(place)
    if lines:
        count = int(e.value.where.removeprefix(place))
        assert 200 < count <= 300


def test_damaged_gzip(workspace: Workspace) -> None:
    """A flipped byte is found by gzip itself, at the latest by its checksum."""
    file = bytearray(packed(b"".join(json.dumps({"n": os.urandom(300).hex()}).encode() + b"\n" for _ in range(99))))
    file[-8] ^= 1  # of the checksum
    error = error_of(workspace, "x.jsonl.gz", bytes(file))
    assert error.error.startswith("damaged gzip") and error.where == "x.jsonl.gz, after line 99"


# --- CSV --------------------------------------------------------------------------------------------------


def test_csv_quotes_commas_and_line_ends(workspace: Workspace) -> None:
    rows = rows_of(workspace, "x.csv", b'prompt,chosen,rejected\r\n"a, ""b""\r\nc",d,e\r\n')
    assert rows == [{"prompt": 'a, "b"\r\nc', "chosen": "d", "rejected": "e"}]


def test_a_short_line_of_csv(workspace: Workspace) -> None:
    """What is missing is None (the checks drop it), what is empty is empty."""
    rows = rows_of(workspace, "x.csv", b"prompt,chosen,rejected\na,b\na,,c\n")
    assert [r["rejected"] for r in rows] == [None, "c"] and rows[1]["chosen"] == ""
    with pytest.raises(Drop, match="missing_answer"):
        to_pair(rows[0], "s", "r")


def test_scores_of_csv(workspace: Workspace) -> None:
    rows = rows_of(workspace, "x.csv", b"score_chosen,chosen-rating\n1.5,2\nhigh,\n")
    assert rows[0] == {"score_chosen": 1.5, "chosen-rating": 2.0}
    assert str(rows[1]) == "{'score_chosen': nan, 'chosen-rating': nan}"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=2, max_size=2), max_size=6
    )
)
def test_csv_gives_back_what_was_written(workspace: Workspace, rows: list[list[str]]) -> None:
    with (workspace.project / "x.csv").open("w", newline="", encoding="utf-8") as f:
        csv.writer(f, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    assert [list(r.values()) for r in rows_of(workspace, "x.csv")] == rows


# --- JSON in windows --------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def read_json(folder: Path, text: bytes, window: int) -> list[Any]:
    (folder / "x.json").write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_rows, "_CHUNK", window)
        return [row for _, row in file_rows(str(folder / "x.json"), "x.json")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.lists(JSON, max_size=6), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_windows_give_what_json_gives(
    tmp_path: Path, rows: list[Any], window: int, indent: int | None, ascii_only: bool
) -> None:
    """However small the window, and wherever it cuts a value."""
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    assert read_json(tmp_path, text.encode(errors="surrogatepass"), window) == rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    st.lists(JSON, min_size=1, max_size=4),
    st.integers(1, 30),
    st.integers(0, 10**6),
    st.sampled_from([b"", b",", b"]", b"}", b'"', b"\xff", b"\\", b"\n", b"[", b"7"]),
)
def test_broken_lists(tmp_path: Path, rows: list[Any], window: int, place: int, put: bytes) -> None:
    """One byte is replaced: the rows are what `json` reads, or there is one UserError that names a line."""
    text = json.dumps(rows, indent=1).encode()
    place = 1 + place % (len(text) - 1)
    text = text[:place] + put + text[place + 1 :]
    try:
        expected = json.loads(text.decode(), object_pairs_hook=text_rows._object)
        assert isinstance(expected, list)
    except ValueError:
        with pytest.raises(UserError) as e:
            read_json(tmp_path, text, window)
        line = int(e.value.where.removeprefix("x.json, line "))
        assert 1 <= line <= text.count(b"\n") + 1
    else:
        assert read_json(tmp_path, text, window) == expected


@pytest.mark.parametrize("window", [1, 7, 64, 2**20])
def test_the_line_of_an_error_does_not_depend_on_the_window(tmp_path: Path, window: int) -> None:
    text = b"[\n" + b",\n".join(LINES) + b',\n{"prompt": }\n]'  # each row takes two lines
    with pytest.raises(UserError) as e:
        read_json(tmp_path, text, window)
    assert e.value.where == "x.json, line 18"


@pytest.mark.parametrize("window", [1, 7, 64, 2**20])
def test_the_line_of_a_wrong_byte_does_not_depend_on_the_window(tmp_path: Path, window: int) -> None:
    text = "[\n" + ",\n".join(['"äöü€"'] * 20)
    with pytest.raises(UserError) as e:
        read_json(tmp_path, text.encode() + b',\n"\xe4"]', window)
    assert (e.value.error, e.value.where) == ("not UTF-8: byte 0xe4", "x.json, line 22")


def test_a_long_list_takes_little_memory(tmp_path: Path) -> None:
    """24 MB of rows; the window is 1 MB."""
    row = json.dumps({"prompt": "Q", "chosen": "x" * 1000, "rejected": "y"})
    (tmp_path / "x.json").write_text("[" + ",".join([row] * 24_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in file_rows(str(tmp_path / "x.json"), "x.json")) == 24_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


# --- parquet ----------------------------------------------------------------------------------------------


def big_table(rows: int) -> pa.Table:
    return pa.table({"prompt": [f"Q{i}" for i in range(rows)], "chosen": [f"{i}" * 200 for i in range(rows)]})


@pytest.mark.parametrize(("cut", "what"), [(-1, "footer"), (-20, "magic bytes"), (6, "cannot be read"), (None, "")])
def test_truncated_parquet(workspace: Workspace, cut: int | None, what: str) -> None:
    path = workspace.project / "x.parquet"
    pq.write_table(big_table(3000), path)
    if cut is None:  # the pages are gone, the footer is whole
        content = path.read_bytes()
        path.write_bytes(content[:4] + b"\0" * 2000 + content[2004:])
    else:
        path.write_bytes(path.read_bytes()[:cut])
    error = error_of(workspace, "x.parquet")
    assert error.error.startswith("cannot be read: ") and what in error.error
    assert error.where.startswith("x.parquet") and "\n" not in error.error


def test_a_row_group_that_is_broken(workspace: Workspace) -> None:
    """The rows before it come; the last good row is named."""
    path = workspace.project / "x.parquet"
    pq.write_table(big_table(3000), path, row_group_size=1000)
    column = pq.read_metadata(path).row_group(1).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    content = path.read_bytes()
    path.write_bytes(content[:start] + b"\xff" * 100 + content[start + 100 :])
    assert error_of(workspace, "x.parquet").where == "x.parquet, after row 999"


def test_lists_of_the_wrong_depth(workspace: Workspace) -> None:
    """They pass to the checks."""
    rows = [{"prompt": "Q", "chosen": [[{"role": "assistant", "content": "A"}]], "rejected": [[]]}]
    pq.write_table(pa.Table.from_pylist(rows), workspace.project / "x.parquet")
    assert rows_of(workspace, "x.parquet") == rows
    with pytest.raises(Drop, match="wrong_type"):
        to_pair(rows[0], "s", "r")


def test_values_of_parquet_are_plain(workspace: Workspace) -> None:
    """What lacks a value is None, also a whole list; numbers are Python's own."""
    rows = [{"m": [{"role": "user", "content": None}], "s": 1.5, "n": 1}, {"m": None, "s": None, "n": None}]
    pq.write_table(pa.Table.from_pylist(rows), workspace.project / "x.parquet")
    read = rows_of(workspace, "x.parquet")
    assert read == rows and type(read[0]["n"]) is int and type(read[0]["s"]) is float


def test_mixed_shapes_written_by_datasets(workspace: Workspace) -> None:
    """`datasets` keeps them as JSON texts; they are unpacked at any depth, also in saved folders."""
    mixed = Dataset.from_dict(
        {"a": [[{"b": 0}, {"c": "x"}], None], "p": ['{"no": "json column"}', "y"]}, on_mixed_types="use_json"
    )
    mixed.to_parquet(str(workspace.project / "x.parquet"))
    mixed.save_to_disk(str(workspace.project / "saved"))
    for name in ("x.parquet", "saved"):
        assert rows_of(workspace, name) == [
            {"a": [{"b": 0}, {"c": "x"}], "p": '{"no": "json column"}'},
            {"a": None, "p": "y"},
        ]


def test_two_columns_of_one_name(workspace: Workspace) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["chosen", "chosen"]), workspace.project / "x.parquet")
    assert error_of(workspace, "x.parquet").error == "the column 'chosen' stands there twice"


def test_a_text_of_parquet_that_is_not_utf8(workspace: Workspace) -> None:
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"chosen": text}), workspace.project / "x.parquet")
    assert "utf-8" in error_of(workspace, "x.parquet").error


def test_a_parquet_file_of_no_rows(workspace: Workspace) -> None:
    pq.write_table(big_table(0), workspace.project / "x.parquet")
    assert rows_of(workspace, "x.parquet") == []
    assert [list(p) for p in file_parts(str(workspace.project / "x.parquet"), "x")] in ([], [[]])


def test_parts_of_parquet(tmp_path: Path) -> None:
    """Row groups in any order give the same ids as the whole file."""
    pq.write_table(big_table(2500), tmp_path / "x.parquet", row_group_size=1000)
    whole = list(file_rows(str(tmp_path / "x.parquet"), "x.parquet"))
    parts = file_parts(str(tmp_path / "x.parquet"), "x.parquet")
    assert len(parts) == 3
    backwards = [list(p) for p in reversed(parts)]
    assert [row for part in reversed(backwards) for row in part] == whole
    assert [row_id for row_id, _ in whole] == [f"x.parquet[{i}]" for i in range(2500)]


def test_a_single_row_group_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MB of texts in one row group of pages of 1 MB, decoded 2 MB at a time."""
    monkeypatch.setattr(arrow_rows, "_BATCH_BYTES", 2**21)
    table = pa.table({"chosen": [os.urandom(16_000).hex() for _ in range(2000)]})
    pq.write_table(table, tmp_path / "x.parquet", compression="none", use_dictionary=False, write_batch_size=32)
    before, peak = pa.total_allocated_bytes(), 0
    for _ in file_rows(str(tmp_path / "x.parquet"), "x.parquet"):
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert 0 < peak < 16_000_000


def test_batches_shrink_for_long_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 kB a row and 16 kB a batch: five rows at a time, though a thousand may be."""
    seen: list[int] = []
    plain = arrow_rows._python
    monkeypatch.setattr(arrow_rows, "_python", lambda batch: seen.append(batch.num_rows) or plain(batch))
    monkeypatch.setattr(arrow_rows, "_BATCH_BYTES", 16_000)
    table = pa.table({"chosen": (texts := [os.urandom(1500).hex() for _ in range(20)])})
    pq.write_table(table, tmp_path / "x.parquet", compression="none", use_dictionary=False, write_statistics=False)
    assert [r["chosen"] for _, r in file_rows(str(tmp_path / "x.parquet"), "x")] == texts
    assert seen == [5, 5, 5, 5]


def test_saved_folder_whose_file_is_broken(workspace: Workspace) -> None:
    Dataset.from_list(ROWS).save_to_disk(str(workspace.project / "saved"))
    (file,) = (workspace.project / "saved").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:300])
    error = error_of(workspace, "saved")
    assert error.error.startswith("cannot be read") and file.name in error.where
    file.unlink()
    assert "is missing" in error_of(workspace, "saved").error


# --- files that cannot be opened --------------------------------------------------------------------------


@pytest.fixture
def open_place() -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder that anyone can reach, and a call that gives up root's right to read everything."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    is_root = os.geteuid() == 0
    yield place, (lambda: os.seteuid(65534)) if is_root else lambda: None
    if is_root:
        os.seteuid(0)
    for path in (place, *place.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(place)


@pytest.mark.parametrize("closed", ["set", "set/data", "set/train.jsonl", "set/deep/deeper"])
def test_no_permission(open_place: tuple[Path, Callable[[], None]], closed: str) -> None:
    """A folder, one inside it, a file: none is taken for empty."""
    place, become_nobody = open_place
    (place / "set" / "data").mkdir(parents=True)
    (place / "set" / "deep" / "deeper").mkdir(parents=True)
    if closed == "set/deep/deeper":
        (place / "set" / "deep" / "train.jsonl").write_bytes(LINES[0])
    else:
        (place / "set" / "train.jsonl").write_bytes(LINES[0])
    (place / closed).chmod(0)
    become_nobody()
    with pytest.raises(UserError, match="permission denied") as e:
        found(Workspace(place, place), "set")
    assert e.value.where == str(place / closed)


def test_a_file_that_is_closed_after_it_was_found(open_place: tuple[Path, Callable[[], None]]) -> None:
    place, become_nobody = open_place
    for suffix in (".jsonl", ".parquet"):
        (place / f"x{suffix}").write_bytes(LINES[0])
        source = found(Workspace(place, place), f"x{suffix}")
        (place / f"x{suffix}").chmod(0)
        become_nobody()
        with pytest.raises(UserError, match="cannot be read: Permission denied"):
            list(read_rows(source, "train"))
        os.seteuid(os.getuid())


def test_a_file_that_is_gone(workspace: Workspace) -> None:
    for suffix in (".jsonl", ".json.gz", ".csv", ".parquet"):
        path = workspace.project / f"x{suffix}"
        path.write_bytes(b"x")
        source = found(workspace, path.name)
        path.unlink()
        with pytest.raises(UserError, match="cannot be read: No such file"):
            list(read_rows(source, "train"))


@pytest.mark.parametrize("suffix", ENDINGS)
def test_a_file_without_bytes(workspace: Workspace, suffix: str) -> None:
    """Found at once, alone or as a split; or while reading, if it was emptied since."""
    path = workspace.project / "set" / f"train{suffix}"
    path.parent.mkdir()
    path.touch()
    for name in (f"set/train{suffix}", "set"):
        with pytest.raises(UserError, match="the file is empty"):
            found(workspace, name)
    path.write_bytes(b"x")
    source = found(workspace, "set")
    path.write_bytes(b"")
    with pytest.raises(UserError, match="the file is empty"):
        list(read_rows(source, "train"))


def test_garbage_is_never_a_traceback(workspace: Workspace) -> None:
    for suffix in ENDINGS:
        for content in (os.urandom(3000), b"\x1f\x8b" + os.urandom(3000), b"PAR1" + os.urandom(3000) + b"PAR1"):
            error = error_of(workspace, f"x{suffix}", content)
            assert error.where.startswith(f"x{suffix}") and error.advice


def test_pandas_indices_are_columns_like_others(workspace: Workspace) -> None:
    pd.DataFrame(ROWS, index=[f"i{n}" for n in range(8)]).to_parquet(workspace.project / "x.parquet")
    assert rows_of(workspace, "x.parquet")[0] == {**ROWS[0], "__index_level_0__": "i0"}
