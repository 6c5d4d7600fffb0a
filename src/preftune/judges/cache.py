"""What a judge has said, kept by content in a SQLite file, so that no reply is paid for twice."""

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preftune.errors import StepError
from preftune.store import locked

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class JudgementCache:
    """Replies (or scores) by key, on disk.

    Safe for several processes at once and against a kill at any moment: each value stands in a transaction of its
    own, and is on the disk when `add` returns. A file that is damaged is set aside, and told.

    Args:
        folder: Where it stands.
        tell: Called with what the user should know.

    Raises:
        StepError: If it can be neither opened nor begun.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._path, self._tell, self._failed = folder / "judgements.sqlite", tell, False
        try:
            with locked(folder / "lock"):  # two processes must not both set a damaged file aside
                self._rows = self._open()
        except (sqlite3.Error, OSError) as e:
            raise StepError(
                f"the cache of judgements cannot be opened: {e}",
                str(self._path),
                "free disk space or correct the folder's permissions; if the folder is deleted, all is asked anew",
            ) from None

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as e:
            if e.sqlite_errorcode & 0xFF not in _DAMAGED:
                raise
            self._tell(f"the cache of judgements was damaged ({e}): set aside, and begun anew")
            for path in list(self._path.parent.glob("judgements.sqlite*")):  # a journal belongs to its file
                path.rename(path.with_name(f"broken-{time.time_ns()}-{path.name}"))
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        rows = sqlite3.connect(self._path, timeout=60)
        try:
            if (found := rows.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                damaged = sqlite3.DatabaseError(found)
                damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise damaged
            with rows:
                rows.execute("CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
        except BaseException:
            rows.close()
            raise
        return rows

    def get(self, key: str) -> Any:
        """The value that was added under this key; None if there is none."""
        found = self._rows.execute("SELECT value FROM judgements WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    def add(self, key: str, value: Any) -> None:
        """Keeps a JSON value; on a full disk it serves this run only, which is told once."""
        try:
            with self._rows:
                self._rows.execute("INSERT OR REPLACE INTO judgements VALUES (?, ?)", (key, json.dumps(value)))
        except sqlite3.Error as e:
            if not self._failed:
                self._tell(f"judgements cannot be kept ({e}): the next run will ask for them again")
            self._failed = True

    def close(self) -> None:
        self._rows.close()
