"""The rows of text files (JSON lines, JSON, CSV) in constant memory; what is wrong is told with its line."""

import codecs
import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preftune.errors import UserError

Row = tuple[str, Any]
Bytes = io.BufferedReader | gzip.GzipFile

LONGEST_LINE = 2**28  # bytes; a longer line is no row but a file of another kind
_CHUNK = 2**20


def _not_utf8(error: UnicodeDecodeError, label: str, line: int) -> UserError:
    if line == 1 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return UserError("UTF-16, not UTF-8", f"{label}, line 1", "save it as UTF-8: iconv -f UTF-16 -t UTF-8")
    return UserError(
        f"not UTF-8: byte 0x{error.object[error.start]:02x}",
        f"{label}, line {line}",
        "save the whole file as UTF-8 (a single such byte is usually Latin-1, that is Windows-1252)",
    )


def _lines(f: Bytes, label: str) -> Iterator[tuple[int, str]]:
    number = 0
    while line := f.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise UserError("a line without end", f"{label}, line {number}", "write one row a line")
        try:
            text = line.decode()
        except UnicodeDecodeError as e:
            raise _not_utf8(e, label, number) from None
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def text_lines(path: Path) -> Iterator[Row]:
    """Yields (row id, text) of each line of a text file, without its end.

    Raises:
        UserError: If it is not UTF-8.
    """
    with path.open("rb") as f:
        for number, line in _lines(f, path.name):
            yield f"{path.name}:{number}", line.rstrip("\r\n")


class _DuplicateKey(ValueError):
    """One object names a key twice: `json` alone would keep the last value without a word."""


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(items)
    if len(made) != len(items):
        raise _DuplicateKey(f"the key {repeated([name for name, _ in items])!r} stands twice in one object")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _not_json(error: Exception, text: str, where: str, advice: str) -> UserError:
    if isinstance(error, _DuplicateKey):
        return UserError(str(error), where, "keep one of them")
    if "\0" in text:
        return UserError("not JSON: null bytes", where, "the file was not written whole, or is UTF-16: write it again")
    return UserError(f"not JSON: {getattr(error, 'msg', str(error))}", where, advice)


def json_lines(f: Bytes, label: str) -> Iterator[Row]:
    """Yields (`file.jsonl:7`, row) of JSON lines; blank lines are passed over.

    Raises:
        UserError: If a line is not JSON.
    """
    for number, line in _lines(f, label):
        if line.isspace():
            continue
        try:
            row = _DECODER.decode(line)
        except (ValueError, RecursionError) as e:  # not JSON, numbers or nesting without end
            advice = "one JSON object a line"
            if number == 1 and line.strip() in ("{", "["):
                advice += "; JSON over several lines belongs into a file named .json"
            elif "\r" in line.rstrip():
                advice += "; lines end with \\n, not with \\r alone"
            raise _not_json(e, line, f"{label}, line {number}", advice) from None
        yield f"{label}:{number}", row


class _Window:
    """A part of a JSON text, which grows as needed and moves on.

    Args:
        f: The file.
        label: Its name, for messages.
    """

    def __init__(self, f: Bytes, label: str) -> None:
        self.f, self.label = f, label
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at = "", 0
        self.line, self.counted = 1, 0  # the line of text[counted]
        self.last = 1  # the line of the last value's end
        self.read = 0  # line ends read so far

    def line_here(self) -> int:
        """The line of the current position."""
        self.line += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        return self.line

    def more(self) -> bool:
        """Reads on, as much again as is still needed; False at the file's end."""
        self.line_here()
        self.text, self.at, self.counted = self.text[self.at :], 0, 0
        chunk = self.f.read(max(_CHUNK, len(self.text)))
        try:
            self.text += self.decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as e:
            raise _not_utf8(e, self.label, 1 + self.read + e.object.count(b"\n", 0, e.start)) from None
        self.read += chunk.count(b"\n")
        return bool(chunk)

    def next(self) -> str:
        """The next character that is no white space; empty at the file's end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def error(self, error: Exception, position: int) -> UserError:
        """The error with its line; what is missing is missed on the last line that holds anything."""
        what = self.text[position : position + 1]
        if "delimiter" in str(error):
            position = len(self.text[:position].rstrip())
        self.at = min(position, len(self.text.rstrip()))
        line = self.line_here() if self.text.strip() else self.last
        return _not_json(error, what, f"{self.label}, line {line}", "write a list of objects")

    def value(self) -> Any:
        """The JSON value that starts here."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as e:
                # near the window's end it may only be cut; anywhere else it is wrong
                cut = e.msg.startswith("Unterminated string") or e.pos >= len(self.text) - 16
                ahead = e.pos - self.at
                if cut and self.more():
                    continue
                raise self.error(e, self.at + ahead) from None
            except (ValueError, RecursionError) as e:
                raise self.error(e, self.at) from None
            ahead = end - self.at
            if end < len(self.text) - 2 or not self.more():  # else a number may go on: 1. or 1e+
                self.at += ahead
                self.last = self.line_here()
                return value


def json_rows(f: Bytes, label: str) -> Iterator[Row]:
    """Yields (`file.json[7]`, row) of a list of rows, of a list under a name (read whole), or of one pair; and
    (`file.json:7`, row) of JSON lines under the name .json.

    Raises:
        UserError: If it is not JSON, or none of these.
    """
    window = _Window(f, label)
    mark = window.next()
    if mark == "[":
        yield from _list_items(window)
        return
    if not mark:
        raise UserError("not JSON: there are only blanks", label, "write a list of objects")
    line = window.line_here()
    first = window.value()
    if window.next():
        yield f"{label}:{line}", first
        while window.next():
            if (here := window.line_here()) == line:
                raise UserError("not JSON: Extra data", f"{label}, line {line}", "one JSON object a line")
            line = here
            yield f"{label}:{line}", window.value()
        return
    rows = first
    if isinstance(first, dict):  # a single pair's own lists are not the rows
        rows = [first] if "chosen" in first else next((v for v in first.values() if isinstance(v, list)), [first])
    if not isinstance(rows, list):
        raise UserError("not a list of objects", label, "write a list of objects, or JSON lines")
    for number, row in enumerate(rows):
        yield f"{label}[{number}]", row


def _list_items(window: _Window) -> Iterator[Row]:
    window.at += 1
    number, mark = 0, window.next()
    while mark != "]":
        yield f"{window.label}[{number}]", window.value()
        number, mark = number + 1, window.next()
        if mark == ",":
            window.at += 1
            mark = window.next()
            if mark == "]":
                raise window.error(ValueError("a comma before the list's end"), window.at)
        elif mark != "]":
            what = "Expecting ',' delimiter" if mark else "the file ends in the middle of the list"
            raise window.error(ValueError(what), window.at)
    window.at += 1
    if window.next():
        raise window.error(ValueError("more follows after the list's end"), window.at)


def csv_rows(f: Bytes, label: str) -> Iterator[Row]:
    """Yields (`file.csv[7]`, row) of a CSV file with a header. Texts stay texts (`4`, `None` and `NA` are
    answers); columns of scores become numbers; what a short line lacks is None.

    Raises:
        UserError: If it is not CSV.
    """
    csv.field_size_limit(LONGEST_LINE)
    lines = csv.reader((text for _, text in _lines(f, label)), strict=True)
    names: list[str] = []
    scores: list[str] = []
    number = 0
    while True:
        line = lines.line_num + 1
        try:
            values = next(lines, None)
        except csv.Error as e:
            raise UserError(f"not CSV: {e}", f"{label}, line {line}", 'quote texts: "He said ""no"", twice"') from None
        if values is None:
            return
        if not values:
            continue
        if not names:
            names = _header(values, label)
            scores = [n for n in names if "score" in n or "rating" in n]
            continue
        if len(values) > len(names):
            text = f"{len(values)} values in {len(names)} columns"
            raise UserError(text, f"{label}, line {line}", "put texts that hold commas in double quotes")
        row: dict[str, Any] = dict.fromkeys(names)
        row.update(zip(names, values, strict=False))
        for name in scores:
            row[name] = _number(row[name])
        yield f"{label}[{number}]", row
        number += 1


def _header(names: list[str], label: str) -> list[str]:
    if len(names) == 1 and (mark := next((m for m in ";\t|" if m in names[0]), None)):
        raise UserError(f"the columns are separated by {mark!r}", f"{label}, line 1", "save it with commas")
    if name := repeated(names):
        raise UserError(f"the column {name!r} stands there twice", f"{label}, line 1", "keep one of them")
    return names


def repeated(names: list[str]) -> str | None:
    """The first name that stands there twice."""
    return next((n for n in names if names.count(n) > 1), None)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return float("nan")
