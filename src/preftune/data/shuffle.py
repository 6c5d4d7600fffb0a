"""The rows of many files in a random order that a seed fixes: few files open, few rows in memory."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from preftune.data.text_rows import Row

T = TypeVar("T")

OPEN = 4  # files whose parts are mixed, and parts read at once
BUFFER = 10_000  # rows


def shuffled(files: Sequence[T], parts: Callable[[T], Iterable[Iterator[Row]]], seed: int) -> Iterator[Row]:
    """Yields all rows once; who stops early has read no more than a part of each open file.

    Args:
        files: What the parts are made of, in an order that is the same on every machine.
        parts: A file's parts (row groups), none of which is read before its first row is asked for.
        seed: Fixes the order.
    """
    rng = random.Random(seed)
    yield from _buffered(_interleaved(_parts(files, parts, rng), rng), rng)


def _parts(files: Sequence[T], parts: Callable[[T], Iterable[Iterator[Row]]], rng: random.Random) -> Iterator[Any]:
    files = rng.sample(files, len(files))
    for start in range(0, len(files), OPEN):
        here = [part for file in files[start : start + OPEN] for part in parts(file)]
        rng.shuffle(here)
        yield from here


def _interleaved(parts: Iterator[Iterator[Row]], rng: random.Random) -> Iterator[Row]:
    reading: list[Iterator[Row]] = []
    while True:
        while len(reading) < OPEN and (part := next(parts, None)) is not None:
            reading.append(part)
        if not reading:
            return
        chosen = rng.randrange(len(reading))
        try:
            yield next(reading[chosen])
        except StopIteration:
            del reading[chosen]


def _buffered(rows: Iterator[Row], rng: random.Random) -> Iterator[Row]:
    held: list[Row] = []
    for row in rows:
        if len(held) < BUFFER:
            held.append(row)
        else:
            chosen = rng.randrange(BUFFER)
            yield held[chosen]
            held[chosen] = row
    rng.shuffle(held)
    yield from held
