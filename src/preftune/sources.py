"""Reading one dataset: which splits it has, its bytes' digest, and its rows; local files or the hub.

Local files are read without the `datasets` library, so that a bad file is named within a second.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.digest import file_sha256, json_digest
from preftune.errors import StepError, UserError
from preftune.hub import is_unreachable
from preftune.schema import DatasetEntry
from preftune.workspace import Workspace

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
_SHARD = re.compile(r"^(?P<split>[A-Za-z0-9_.]+?)(?:-\d{5}-of-\d{5}(?:-[0-9a-f]+)?)?$")

# A split that is not there, and the one that is meant; the first that exists is taken.
SPLIT_FIXES = {
    "train": ("train_prefs",),
    "train_sft": ("train_prefs",),
    "train_prefs": ("train",),
    "test": ("test_prefs", "validation"),
    "test_sft": ("test_prefs",),
    "test_prefs": ("test", "validation"),
    "validation": ("test", "test_prefs"),
}


@dataclass(frozen=True)
class Source:
    """A dataset that exists.

    Args:
        entry: The recipe's entry.
        splits: Split name → its files (local), or no files (hub, saved folder).
        kind: `files`, `saved` (a folder written by `save_to_disk`) or `hub`.
        digest: Digest of the bytes (local) or the commit (hub).
        path: The local file or folder.
    """

    entry: DatasetEntry
    splits: dict[str, tuple[Path, ...]]
    kind: str
    digest: str
    path: Path | None = None


def _split_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The hub's own layout: `train.jsonl`, `train-00000-of-00002.parquet`, in the folder or its `data/`."""
    found: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        for path in sorted(place.glob("*")):
            match = _SHARD.match(path.stem)
            if path.is_file() and path.suffix in SUFFIXES and match:
                found.setdefault(match["split"], []).append(path)
        if found:
            break
    return {name: tuple(paths) for name, paths in found.items()}


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(SUFFIXES) or name.count("/") > 1


def find_source(entry: DatasetEntry, workspace: Workspace) -> Source:
    """Finds a dataset and what it depends on, without reading its rows.

    Raises:
        UserError: If it is not there, or of a kind that is not read.
    """
    path = workspace.resolve(entry.id)
    if path.is_dir() and entry.data_dir:
        path = path / entry.data_dir
        if not path.is_dir():
            raise UserError("there is no such data_dir", f"{entry.id}: {entry.data_dir}", "correct data_dir")
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(
                f"files ending in {path.suffix!r} are not read", entry.id, f"use one of {', '.join(SUFFIXES)}"
            )
        if path.stat().st_size == 0:
            raise UserError("the file is empty", entry.id, "write preference pairs into it, one object a line")
        return Source(entry, {"train": (path,)}, "files", file_sha256(path), path)
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return _saved(entry, path)
        splits = _split_files(path)
        if not splits:
            raise UserError(
                "the folder holds no split files",
                entry.id,
                f"put train.jsonl (or {', '.join(SUFFIXES[1:])}) there",
            )
        digest = json_digest({s: [file_sha256(p) for p in ps] for s, ps in splits.items()})
        return Source(entry, splits, "files", digest, path)
    if _looks_like_a_path(entry.id):
        raise UserError("there is no such file or folder", str(path), f"paths are relative to {workspace.project}")
    return _hub(entry)


def _saved(entry: DatasetEntry, path: Path) -> Source:
    dict_file = path / "dataset_dict.json"
    splits = json.loads(dict_file.read_text())["splits"] if dict_file.exists() else ["train"]
    files = sorted(p for p in path.rglob("*.arrow") if not p.name.startswith("cache-"))
    digest = json_digest({str(p.relative_to(path)): file_sha256(p) for p in files})
    return Source(entry, {s: () for s in splits}, "saved", digest, path)


def _hub(entry: DatasetEntry) -> Source:
    if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "TRUE", "True"):
        raise UserError(
            "no such file or folder here, and the hub is switched off (HF_HUB_OFFLINE)",
            entry.id,
            "correct the path, or unset HF_HUB_OFFLINE",
        )
    from datasets import get_dataset_split_names
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        commit = HfApi().dataset_info(entry.id, revision=entry.revision, timeout=4).sha
        names = get_dataset_split_names(entry.id, entry.config, revision=commit, data_dir=entry.data_dir)
    except RepositoryNotFoundError:
        raise UserError(
            "neither a file or folder here nor a dataset on the hub (or one that your token may not see)",
            entry.id,
            "correct the name; for a gated dataset accept its terms and set HF_TOKEN",
        ) from None
    except ValueError as e:  # HFValidationError (not an id), or an unknown configuration
        raise UserError(str(e).splitlines()[0], entry.id, "correct the dataset's id or config") from None
    except Exception as e:
        if not is_unreachable(e):
            raise
        raise UserError(
            f"not a file or folder here, and the hub cannot be reached ({type(e).__name__})",
            entry.id,
            "correct the path, or connect to the network and try again",
        ) from None
    return Source(entry, {n: () for n in names}, "hub", f"{entry.id}@{commit}")


def pick_split(source: Source, wanted: str, strict: bool) -> tuple[str, str | None]:
    """The split to read, and a notice if it is not the one that was asked for.

    Raises:
        UserError: If it is missing and no known fix applies, or under `strict`.
    """
    entry = source.entry
    if wanted.endswith("_gen"):
        raise UserError(f"split {wanted!r} holds prompts for generation, not preferences", entry.id, "use train_prefs")
    if wanted == "train_sft" and "train_prefs" in source.splits:  # same rows, but not what is meant
        fix: str | None = "train_prefs"
    elif wanted in source.splits:
        return wanted, None
    else:
        fix = next((s for s in SPLIT_FIXES.get(wanted, ()) if s in source.splits), None)
    have = ", ".join(sorted(source.splits))
    if fix is None:
        without = "; or remove test_split and set test_split_size" if wanted == entry.test_split else ""
        raise UserError(f"there is no split {wanted!r}", entry.id, f"it has: {have}{without}")
    if strict:
        raise UserError(f"there is no split {wanted!r} for DPO", entry.id, f"write {fix} (it has: {have})")
    return fix, f"{entry.id}: split {wanted!r} is read as {fix!r} (it has: {have})"


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                yield f"{path.name}:{number}", json.loads(line)
            except (ValueError, RecursionError) as e:  # not JSON, numbers or nesting without end
                what = getattr(e, "msg", str(e))
                raise UserError(f"not JSON: {what}", f"{path.name}, line {number}", "one JSON object a line") from None


def _json_array(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as e:
        if e.msg == "Extra data":  # JSON lines under the name .json
            yield from _json_lines(path)
            return
        raise UserError(f"not JSON: {e.msg}", f"{path.name}, line {e.lineno}", "write a list of objects") from None
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as e:
        raise UserError(f"not JSON: {e}", path.name, "write a list of objects") from None
    if isinstance(rows, dict) and "chosen" in rows:  # a single pair
        rows = [rows]
    if isinstance(rows, dict):
        rows = next((v for v in rows.values() if isinstance(v, list)), [rows])
    if not isinstance(rows, list):
        raise UserError("not a list of objects", path.name, "write a list of objects, or JSON lines")
    for number, row in enumerate(rows):
        yield f"{path.name}[{number}]", row


def _csv(path: Path) -> Any:
    """Texts stay texts (`4`, `None` and `NA` are answers); columns of scores become numbers."""
    import pandas as pd

    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name in frame.columns:
        if "score" in str(name) or "rating" in str(name):
            frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame


def _table(path: Path) -> Iterator[tuple[str, Any]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else _csv(path)
    except Exception as e:  # pandas raises a dozen kinds for a broken file
        raise UserError(f"cannot be read: {str(e).splitlines()[0]}", path.name, "check the file") from None
    for number, row in enumerate(frame.to_dict("records")):
        yield f"{path.name}[{number}]", row


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        reader = {".jsonl": _json_lines, ".json": _json_array}.get(path.suffix, _table)
        yield from reader(path)
    except UnicodeDecodeError as e:
        raise UserError(f"not UTF-8 text: {e.reason}", f"{path.name}, byte {e.start}", "save it as UTF-8") from None


def read_rows(source: Source, split: str) -> Iterator[tuple[str, Any]]:
    """Yields (row id, row) of one split, with the recipe's `columns` applied.

    Raises:
        UserError: If a file is not what its ending says.
        StepError: If the hub fails while reading (a retry may help).
    """
    entry = source.entry
    if source.kind == "files":
        rows = (r for path in source.splits[split] for r in _file_rows(path))
    else:
        rows = _library_rows(source, split)
    # the held-out split may have been read under another name (pick_split)
    held_out = entry.test_split is not None and pick_split(source, entry.test_split, False)[0] == split
    names = entry.columns if isinstance(entry.columns, dict) else {}
    keep = set(entry.columns) if isinstance(entry.columns, list) else None
    for number, (row_id, row) in enumerate(rows):
        if entry.max_rows is not None and number >= entry.max_rows and not held_out:
            return
        if isinstance(row, dict):
            needed = {names[side] for side in ("prompt", "chosen", "rejected") if side in names}
            if number == 0 and (missing := sorted(needed - set(row))):
                raise UserError(
                    f"columns names {missing[0]!r}, which is not there (it has: {', '.join(map(str, row))})",
                    f"{entry.id}: columns",
                    "correct the name",
                )
            if keep is not None:
                row = {k: v for k, v in row.items() if k in keep}
            row = {**row, **{ours: row[theirs] for ours, theirs in names.items() if theirs in row}}
        yield row_id, row


def _library_rows(source: Source, split: str) -> Iterator[tuple[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    entry = source.entry
    if source.kind == "saved":
        data = datasets.load_from_disk(str(source.path))
        data = data[split] if isinstance(data, datasets.DatasetDict) else data
    else:
        commit = source.digest.rpartition("@")[2]
        try:
            data = datasets.load_dataset(entry.id, entry.config, split=split, revision=commit, data_dir=entry.data_dir)
        except (OSError, DatasetsError) as e:
            raise StepError(f"the hub dataset could not be read: {e}", entry.id, "try again") from e
    for number, row in enumerate(data):
        yield f"{split}[{number}]", row
