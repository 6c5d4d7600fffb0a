"""Opening a SQLite file that is a cache: a damaged one is set aside, and a new one begun."""

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from preftune.errors import StepError
from preftune.store import locked

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def open_cache(
    path: Path, what: str, without: str, statements: Sequence[str], tell: Callable[[str], None]
) -> sqlite3.Connection:
    """Opens the file, or begins it. Two processes never both set a damaged file aside.

    Args:
        path: The file; a lock stands beside it.
        what: What it holds, for messages.
        without: What happens when its folder is deleted, for the advice.
        statements: Run on the opened file, in this order: pragmas, tables that are made when missing.
        tell: Called when a damaged file was set aside.

    Raises:
        StepError: If it can be neither opened nor begun.
    """
    try:
        with locked(path.parent / "lock"):
            try:
                return _connect(path, statements)
            except sqlite3.DatabaseError as e:
                if e.sqlite_errorcode & 0xFF not in _DAMAGED:
                    raise
                tell(f"the cache of {what} was damaged ({e}): set aside, and begun anew")
                for file in list(path.parent.glob(f"{path.name}*")):  # a journal belongs to its file
                    file.rename(file.with_name(f"broken-{time.time_ns()}-{file.name}"))
                return _connect(path, statements)
    except (sqlite3.Error, OSError) as e:
        raise StepError(
            f"the cache of {what} cannot be opened: {e}",
            str(path),
            f"free disk space or correct the folder's permissions; {without}",
        ) from None


def _connect(path: Path, statements: Sequence[str]) -> sqlite3.Connection:
    rows = sqlite3.connect(path, timeout=60)
    try:
        if (found := rows.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            damaged = sqlite3.DatabaseError(found)
            damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damaged
        for statement in statements:
            with rows:
                rows.execute(statement)
    except BaseException:
        rows.close()
        raise
    return rows
