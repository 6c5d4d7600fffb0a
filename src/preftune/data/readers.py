"""The rows of one file, by its ending; what is wrong with the file is told in one message that names the place."""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from preftune.data.arrow_rows import parquet_groups, parquet_rows
from preftune.data.hub import PREFIX, is_unreachable, open_remote
from preftune.data.text_rows import Bytes, Row, csv_rows, json_lines, json_rows
from preftune.errors import PreftuneError, StepError, UserError

ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")
_BUFFER = 2**20
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\{")


def ending(name: str) -> str | None:
    """The ending of a file that can be read (`.jsonl.gz`, …), or None."""
    return next((e for e in ENDINGS if name.endswith(e)), None)


def file_rows(file: str, label: str, group: int | None = None) -> Iterator[Row]:
    """Yields (row id, row) of one file, in its order and in constant memory.

    Args:
        file: A local path, or an `hf://` address that is read as a stream.
        label: The file's name in row ids (`train.jsonl:7`, `train.parquet[12]`) and messages.
        group: Only this row group (parquet).

    Raises:
        UserError: If the file is not what its ending says.
        StepError: If the hub fails while reading.
    """
    place = label
    try:
        for row in _rows(file, label, group):
            place = row[0]
            yield row
    except PreftuneError:
        raise
    except Exception as e:  # gzip, pyarrow and the hub's client raise a dozen kinds for a broken file
        where = label if place == label else f"{label}, after {_told(place[len(label) :])}"
        if file.startswith(PREFIX) and is_unreachable(e):
            raise StepError(f"the hub's file could not be read: {e or type(e).__name__}", where, "try again") from e
        if isinstance(e, EOFError):
            raise UserError("the file ends in the middle", where, "it was not copied whole: fetch it again") from None
        if isinstance(e, zlib.error | gzip.BadGzipFile):
            raise UserError(f"damaged gzip: {e}", where, "fetch the file again") from None
        text = e.strerror if isinstance(e, OSError) and e.strerror else str(e).partition("\n")[0]
        raise UserError(f"cannot be read: {text or type(e).__name__}", where, "check the file") from None


def _told(tail: str) -> str:
    """The end of a row id in words."""
    return f"line {tail[1:]}" if tail.startswith(":") else f"row {tail[1:-1]}"


def file_parts(file: str, label: str) -> list[Iterator[Row]]:
    """The file in parts that can be read in any order: a parquet file's row groups, any other file as a whole."""
    if ending(file) != ".parquet":
        return [file_rows(file, label)]
    try:
        count = parquet_groups(file)
    except Exception:
        return [file_rows(file, label)]  # reading it tells what is wrong
    return [file_rows(file, label, group) for group in range(count)]


def _rows(file: str, label: str, group: int | None) -> Iterator[Row]:
    kind = ending(file)
    if kind == ".parquet":
        if not file.startswith(PREFIX):
            with io.FileIO(file) as f:
                _check_head(f.read(64), label)
        yield from parquet_rows(file, label, group)
        return
    with _opened(file, label) as f:
        if kind in (".csv", ".csv.gz"):
            yield from csv_rows(f, label)
        elif kind in (".json", ".json.gz") or _ARRAY.match(f.peek(_BUFFER)):  # one list under the name .jsonl
            yield from json_rows(f, label)
        else:
            yield from json_lines(f, label)


@contextmanager
def _opened(file: str, label: str) -> Iterator[Bytes]:
    """The file's bytes, unpacked."""
    raw: Any = open_remote(file) if file.startswith(PREFIX) else io.FileIO(file)
    with io.BufferedReader(raw, _BUFFER) as f:
        _check_head(f.peek(64)[:64], label)
        if label.endswith(".gz"):
            with gzip.GzipFile(fileobj=f) as unpacked:
                yield unpacked
        else:
            yield f


def _check_head(head: bytes, label: str) -> None:
    if not head:
        raise UserError("the file is empty", label, "write preference pairs into it, or remove it")
    if head.startswith(b"version https://git-lfs"):
        raise UserError("the file is a Git LFS pointer, not the data", label, "fetch the data with: git lfs pull")
    if (packed := head.startswith(b"\x1f\x8b")) != label.endswith(".gz"):
        text = "is packed with gzip, but not named .gz" if packed else "is named .gz, but not packed with gzip"
        raise UserError(f"the file {text}", label, "correct its name")
