"""Reference log-probabilities, computed once ever: a small SQLite file for each starting model's weights.

A pair's values stand under a digest of all that they depend on besides the weights: the token ids that the model sees,
and how it scores them. So a new β, learning rate or seed finds every pair, a grown mixture all but the new ones, and
another `max_length` all but those that it cuts differently.
"""

import hashlib
import sqlite3
import struct
import zlib
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from preftune.children import tell
from preftune.sqlite_file import open_cache

LogPs = tuple[float, float]  # of the chosen and the rejected answer: float32 values, in nats
_FORMAT = struct.Struct("<ffI")  # both, and a checksum: SQLite does not notice a flipped bit in a value


def visible_part(prompt: list[int], answer: list[int], max_length: int | None, keep_end: bool) -> tuple[list[int], int]:
    """What the model sees of prompt + answer after truncation.

    Args:
        prompt: Token ids.
        answer: Token ids.
        max_length: Tokens that are kept; None keeps all.
        keep_end: Whether the last tokens are kept rather than the first.

    Returns:
        The ids, and how many of them are the prompt's. Those of TRL 1.16's `DataCollatorForPreference`.
    """
    ids, start = prompt + answer, len(prompt)
    if max_length is None or len(ids) <= max_length:
        return ids, start
    if keep_end:
        return ids[-max_length:], max(start - (len(ids) - max_length), 0)
    return ids[:max_length], min(start, max_length)


def pair_key(row: Mapping[str, list[int]], scoring: str, max_length: int | None, keep_end: bool) -> bytes:
    """The key of a pair: a sha256 of what the model sees of both answers and how it scores them.

    Both together, since `ld_alpha` counts an answer's tokens beyond the other's length apart.

    Args:
        row: `prompt_ids`, `chosen_ids`, `rejected_ids`.
        scoring: Digest of the settings that the values depend on.
        max_length: As in `visible_part`.
        keep_end: As in `visible_part`.
    """
    digest = hashlib.sha256(scoring.encode())
    for side in ("chosen_ids", "rejected_ids"):
        ids, start = visible_part(row["prompt_ids"], row[side], max_length, keep_end)
        digest.update(struct.pack("<QQ", len(ids), start))
        digest.update(array("q", ids).tobytes())
    return digest.digest()


def _pack(key: bytes, values: LogPs) -> bytes:
    numbers = struct.pack("<ff", *values)
    return numbers + struct.pack("<I", zlib.crc32(key + numbers))


def _unpack(key: bytes, stored: Any) -> LogPs | None:
    """None if it is not what was stored under this key."""
    if not isinstance(stored, bytes) or len(stored) != _FORMAT.size:
        return None
    chosen, rejected, check = _FORMAT.unpack(stored)
    return (chosen, rejected) if check == zlib.crc32(key + stored[:8]) else None


class ReferenceCache:
    """The values of one starting model's weights, on disk.

    Safe for several processes at once and against a kill at any moment. A file that is damaged is set aside, and told.

    Args:
        folder: Where it stands; named by a digest of the weights.

    Raises:
        StepError: If it can be neither opened nor begun.
    """

    def __init__(self, folder: Path) -> None:
        self._failed = False
        statements = [
            # Not waiting for the disk after each batch: a kill loses nothing by it, a power cut at worst the file.
            "PRAGMA synchronous = OFF",
            "CREATE TABLE IF NOT EXISTS pairs (key BLOB PRIMARY KEY, logps BLOB) WITHOUT ROWID",
        ]
        without = "the folder may be deleted: it is made anew"
        self._rows = open_cache(folder / "rows.sqlite", "reference log-probabilities", without, statements, tell)

    def get(self, keys: Iterable[bytes]) -> dict[bytes, LogPs]:
        """The values that are known, bit by bit as they were added."""
        found, damaged = {}, []
        for key in set(keys):
            for (stored,) in self._rows.execute("SELECT logps FROM pairs WHERE key = ?", (key,)):
                if (values := _unpack(key, stored)) is None:
                    damaged.append((key,))
                else:
                    found[key] = values
        if damaged:
            tell(f"{len(damaged)} damaged reference log-probabilities are computed anew")
            with self._rows:
                self._rows.executemany("DELETE FROM pairs WHERE key = ?", damaged)
        return found

    def add(self, values: Mapping[bytes, LogPs]) -> dict[bytes, LogPs]:
        """Adds values in one transaction; on a full disk they are only given back, and told.

        Returns:
            What stands under these keys from now on: where another process was first, its values, so that a training
            that is resumed finds those that it began with.
        """
        packed = [(key, _pack(key, logps)) for key, logps in values.items()]
        try:
            with self._rows:
                self._rows.executemany("INSERT OR IGNORE INTO pairs VALUES (?, ?)", packed)
            return {**values, **self.get(values)}
        except sqlite3.Error as e:
            if not self._failed:
                tell(f"reference log-probabilities cannot be kept ({e}): they serve this training only")
            self._failed = True
            return dict(values)

    def close(self) -> None:
        self._rows.close()
