"""The token ids of pairs as a file: an Arrow stream, which `datasets.Dataset.from_file` opens memory-mapped as it is.

So a training's processes share one copy in memory, and nothing is converted or read before it is needed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from preftune.data.pair_tokenizer import Ids
from preftune.data.pairs import Pair

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")  # as TRL's DPOTrainer names them


@contextmanager
def write_tokens(path: Path) -> Iterator[Callable[[Sequence[tuple[Pair, Ids]]], None]]:
    """Opens a file of token ids, int32, with each pair's source and row in the column `id`.

    Args:
        path: Where it is written.

    Yields:
        A function that appends pairs as one batch: give it some hundreds at a time.
    """
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    schema = pa.schema([("id", pa.string()), *((name, ids) for name in COLUMNS)])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:

        def append(rows: Sequence[tuple[Pair, Ids]]) -> None:
            names = pa.array([f"{p.source} {p.row_id}" for p, _ in rows], pa.string())
            columns = [pa.array([of[i] for _, of in rows], ids) for i in range(len(COLUMNS))]
            stream.write_batch(pa.record_batch([names, *columns], schema=schema))

        yield append


def read_tokens(path: Path, count: int) -> list[Ids]:
    """The ids of a file's first pairs.

    Args:
        path: From `write_tokens`.
        count: How many.
    """
    import pyarrow as pa

    found: list[Ids] = []
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            if len(found) >= count:
                break
            rows = batch.slice(0, count - len(found))
            found += zip(*(rows.column(name).to_pylist() for name in COLUMNS), strict=True)
    return found
