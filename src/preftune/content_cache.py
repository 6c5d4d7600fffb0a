"""What was paid for once (a judge's reply, a completion), kept by content in a SQLite file and not paid for again."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preftune.sqlite_file import open_cache


class ContentCache:
    """JSON values by key, on disk.

    Safe for several processes at once and against a kill at any moment: each value stands in a transaction of its
    own, and is on the disk when `add` returns. A file that is damaged is set aside, and told.

    Args:
        folder: Where it stands.
        what: What it holds, in the plural: `judgements`, `completions`; the file's and the table's name.
        tell: Called with what the user should know.

    Raises:
        StepError: If it can be neither opened nor begun.
    """

    def __init__(self, folder: Path, what: str, tell: Callable[[str], None]) -> None:
        assert what.isidentifier(), what  # it is part of a statement
        self._what, self._tell, self._failed = what, tell, False
        table = f"CREATE TABLE IF NOT EXISTS {what} (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"
        without = "if the folder is deleted, all is made anew"
        self._rows = open_cache(folder / f"{what}.sqlite", what, without, [table], tell)

    def get(self, key: str) -> Any:
        """The value that was added under this key; None if there is none."""
        found = self._rows.execute(f"SELECT value FROM {self._what} WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    def add(self, key: str, value: Any) -> None:
        """Keeps a JSON value; on a full disk it serves this run only, which is told once."""
        try:
            with self._rows:
                self._rows.execute(f"INSERT OR REPLACE INTO {self._what} VALUES (?, ?)", (key, json.dumps(value)))
        except sqlite3.Error as e:
            if not self._failed:
                self._tell(f"{self._what} cannot be kept ({e}): the next run will ask for them again")
            self._failed = True

    def close(self) -> None:
        self._rows.close()
