"""The rows of Arrow's files (parquet, folders written by `save_to_disk`), a batch at a time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preftune.data.hub import PREFIX, open_remote
from preftune.data.text_rows import Row, repeated
from preftune.errors import UserError

_BUFFER = 2**20
_BATCH_BYTES = 2**24  # of a parquet file's columns, decoded at once
_BATCH_ROWS = 1000


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    if file.startswith(PREFIX):  # one request for each column of a row group
        with open_remote(file, seekable=True) as f, pq.ParquetFile(f, pre_buffer=False) as parquet:
            yield parquet
    else:
        with pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as parquet:
            yield parquet


def parquet_groups(file: str) -> int:
    """The number of row groups of a parquet file."""
    with _opened(file) as parquet:
        return parquet.num_row_groups


def parquet_rows(file: str, label: str, group: int | None = None) -> Iterator[Row]:
    """Yields (row id, row) of a parquet file.

    Args:
        file: A local path or an `hf://` address.
        label: The file's name in row ids: `train.parquet[12]`.
        group: Only this row group.

    Raises:
        UserError: If two columns have one name. A broken file raises what pyarrow raises.
    """
    with _opened(file) as parquet:
        if name := repeated(parquet.schema_arrow.names):
            raise UserError(f"the column {name!r} stands there twice", label, "keep one of them")
        meta = parquet.metadata
        groups = list(range(meta.num_row_groups)) if group is None else [group]
        sizes = [meta.row_group(g) for g in groups]
        widest = max((s.total_byte_size / s.num_rows for s in sizes if s.num_rows), default=1)
        size = max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(1, widest))))
        number = sum(meta.row_group(g).num_rows for g in range(groups[0])) if groups else 0
        for batch in parquet.iter_batches(batch_size=size, row_groups=groups):
            for row in _python(batch):
                yield f"{label}[{number}]", row
                number += 1


def saved_batches(files: tuple[str, ...], label: str) -> Iterator[Iterator[Row]]:
    """The rows of a folder written by `save_to_disk`, in parts of at most a thousand.

    Args:
        files: Its Arrow files, in their order.
        label: The name in row ids: `train[12]`.

    Raises:
        UserError: If a file is broken.
    """
    import pyarrow as pa

    start = 0
    for file in files:
        try:
            with pa.memory_map(file) as mapped:
                batches = pa.ipc.open_stream(mapped).read_all().to_batches(max_chunksize=_BATCH_ROWS)
        except (pa.ArrowException, OSError) as e:
            text = str(e).partition("\n")[0]
            raise UserError(
                f"cannot be read: {text}", f"{label}: {Path(file).name}", "save the dataset again"
            ) from None
        for batch in batches:
            yield _numbered(batch, label, start)
            start += batch.num_rows


def _numbered(batch: Any, label: str, start: int) -> Iterator[Row]:
    for number, row in enumerate(_python(batch), start):
        yield f"{label}[{number}]", row


def _python(batch: Any) -> list[dict[str, Any]]:
    rows = batch.to_pylist()
    for field in batch.schema:
        if "arrow.json" in str(field.type):
            for row in rows:
                row[field.name] = _unpacked(row[field.name], field.type)
    return rows


def _unpacked(value: Any, kind: Any) -> Any:
    """`datasets` writes values of mixed shapes as JSON texts."""
    if value is None:
        return None
    if getattr(kind, "extension_name", "") == "arrow.json":
        return json.loads(value)
    if isinstance(value, list):
        return [_unpacked(v, kind.field(0).type) for v in value]
    if isinstance(value, dict):
        return {field.name: _unpacked(value[field.name], field.type) for field in kind}
    return value
