"""Reading one dataset: which splits it has, its bytes' digest, and its rows; local files or the hub."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path

from preftune.data import hub
from preftune.data.arrow_rows import saved_batches
from preftune.data.layout import Splits, folder_splits
from preftune.data.readers import ENDINGS, ending, file_parts, file_rows
from preftune.data.shuffle import shuffled
from preftune.data.text_rows import Row
from preftune.digest import file_sha256, json_digest
from preftune.errors import UserError
from preftune.schema import DatasetEntry
from preftune.workspace import Workspace

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
        splits: Split name → its files: local paths, or addresses (`hf://datasets/<id>@<commit>/<path>`).
        kind: `files`, `saved` (a folder written by `save_to_disk`) or `hub`.
        digest: Digest of the bytes (local) or the commit (hub).
        path: The local file or folder.
    """

    entry: DatasetEntry
    splits: Splits
    kind: str
    digest: str
    path: Path | None = None


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(ENDINGS) or name.count("/") > 1


def find_source(entry: DatasetEntry, workspace: Workspace) -> Source:
    """Finds a dataset and what it depends on, without reading its rows.

    Raises:
        UserError: If it is not there, or of a kind that is not read.
    """
    try:
        path = _existing(entry.id, workspace)
        if path is not None:
            return _local(entry, path)
    except PermissionError as e:
        raise UserError("permission denied", str(e.filename or entry.id), "change its permissions") from None
    commit = hub.find_commit(entry.id, entry.revision)
    splits = hub.split_files(f"{hub.PREFIX}{entry.id}", entry.id, entry.config, entry.data_dir, commit)
    if not splits:
        raise UserError("the dataset holds no files that are read", entry.id, f"it needs {', '.join(ENDINGS)}")
    _check_endings(splits, entry.id)
    return Source(entry, splits, "hub", f"{entry.id}@{commit}")


def _existing(name: str, workspace: Workspace) -> Path | None:
    """The file or folder of that name; None if it can only be a name on the hub."""
    try:
        path = workspace.project / Path(name).expanduser()
        if path.is_file() or path.is_dir():
            return path
        dangling = path.is_symlink()
    except PermissionError:
        raise
    except (OSError, RuntimeError) as e:  # too long, an unknown ~user
        raise UserError(f"no path: {getattr(e, 'strerror', None) or e}", name, "correct the path") from None
    if dangling:
        raise UserError("a symbolic link that leads nowhere", str(path), "fetch the file, or correct the path")
    if _looks_like_a_path(name):
        raise UserError("there is no such file or folder", str(path), f"paths are relative to {workspace.project}")
    return None


def _local(entry: DatasetEntry, path: Path) -> Source:
    if path.is_file():
        _check_endings({"train": (str(path),)}, entry.id)
        _check_sizes({"train": (str(path),)})
        return Source(entry, {"train": (str(path),)}, "files", file_sha256(path), path)
    kind, splits = folder_splits(path, entry)
    if kind == "saved":
        folder = path / entry.data_dir if entry.data_dir else path
        files = [Path(f) for f in chain.from_iterable(splits.values())]
        digest = json_digest({str(f.relative_to(folder)): file_sha256(f) for f in files})
    else:
        _check_endings(splits, entry.id)
        _check_sizes(splits)
        digest = json_digest({split: [file_sha256(Path(f)) for f in files] for split, files in splits.items()})
    return Source(entry, splits, kind, digest, path)


def _check_endings(splits: Splits, where: str) -> None:
    for file in chain.from_iterable(splits.values()):
        if ending(file) is None:
            name = file.rpartition("/")[2]
            suffix = "".join(Path(name).suffixes[-2:] if name.endswith(".gz") else Path(name).suffixes[-1:])
            raise UserError(f"files ending in {suffix!r} are not read", where, f"use one of {', '.join(ENDINGS)}")


def _check_sizes(splits: Splits) -> None:
    for file in chain.from_iterable(splits.values()):
        if Path(file).stat().st_size == 0:
            raise UserError("the file is empty", Path(file).name, "write preference pairs into it, one object a line")


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
    sft = wanted == "train_sft" and wanted in source.splits
    if strict:
        text = f"split {wanted!r} is meant for SFT" if sft else f"there is no split {wanted!r}"
        raise UserError(text, entry.id, f"write {fix} (it has: {have})")
    why = f": {wanted!r} holds the same rows, but is meant for SFT" if sft else ""
    return fix, f"{entry.id}: split {wanted!r} is read as {fix!r}{why} (it has: {have})"


def read_rows(source: Source, split: str, seed: int | None = None) -> Iterator[Row]:
    """Yields (row id, row) of one split, with the recipe's `columns` applied; ids are unique within the source.

    Args:
        source: The dataset.
        split: One of its splits.
        seed: Orders the rows of a `streaming` entry at random; None (a first look): the files' order, as always
            without `streaming`.

    Raises:
        UserError: If a file is not what its ending says.
        StepError: If the hub fails while reading (a retry may help).
    """
    entry = source.entry
    rows = _named(_rows(source, split, seed if entry.streaming else None), entry)
    if entry.columns is None:
        yield from rows
        return
    names = entry.columns if isinstance(entry.columns, dict) else {}
    keep = set(entry.columns) if isinstance(entry.columns, list) else None
    for number, (row_id, row) in enumerate(rows):
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


def _named(rows: Iterator[Row], entry: DatasetEntry) -> Iterator[Row]:
    """The rows; what is wrong with a file is told with its dataset."""
    try:
        yield from rows
    except UserError as e:
        if Path(entry.id).name in e.where:
            raise
        raise UserError(e.error, f"{entry.name}: {e.where}", e.advice) from None


def _rows(source: Source, split: str, seed: int | None) -> Iterator[Row]:
    files = source.splits[split]
    if source.kind == "saved":
        if seed is None:
            return chain.from_iterable(saved_batches(files, split))
        return shuffled([files], lambda all_files: saved_batches(all_files, split), seed)
    labels = _labels(source)
    if seed is not None:
        return shuffled(files, lambda file: file_parts(file, labels[file]), seed)
    fetched = source.kind == "hub" and not source.entry.streaming
    return chain.from_iterable(file_rows(hub.fetch(f) if fetched else f, labels[f]) for f in files)


def _labels(source: Source) -> dict[str, str]:
    """What a file is called in row ids: its name; where several have one name, the path below their folder."""
    files = list(dict.fromkeys(chain.from_iterable(source.splits.values())))
    paths = [f.split("/") for f in files]
    names = Counter(path[-1] for path in paths)
    common = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))
    return {
        file: path[-1] if names[path[-1]] == 1 else "/".join(path[common:])
        for file, path in zip(files, paths, strict=True)
    }
