"""The splits of a local folder: plain files named after them, the hub's layout, or what `save_to_disk` wrote.

The simplest layout is told without the `datasets` library, whose import takes seconds.
"""

import json
import os
import re
from pathlib import Path

from preftune.data.hub import script_error, split_files
from preftune.data.readers import ENDINGS, ending
from preftune.errors import UserError
from preftune.schema import DatasetEntry

Splits = dict[str, tuple[str, ...]]

_SHARD = re.compile(r"(?P<split>[A-Za-z0-9_.]+?)(?:-\d{5}-of-\d{5}(?:-[0-9a-f]+)?)?")
_SPLIT_NAMES = ("train", "test", "val", "dev", "eval")
_CONFIGS = re.compile(r"\A---\s*\n(?:.*\n)*?configs:")


def folder_splits(root: Path, entry: DatasetEntry) -> tuple[str, Splits]:
    """The kind of a folder (`files` or `saved`), and its splits' files.

    Args:
        root: The folder.
        entry: Its config and data_dir; its id names it in messages.

    Raises:
        UserError: If it holds no splits, or its files cannot be told apart.
    """
    folder = root / entry.data_dir if entry.data_dir else root
    if not folder.is_dir():
        raise UserError("there is no such data_dir", f"{entry.id}: {entry.data_dir}", "correct data_dir")
    if {p.name for p in folder.iterdir()} & {"state.json", "dataset_dict.json"}:
        return "saved", _saved(folder, entry.id)
    if entry.config is None and not _names_configs(root) and (found := _plain(folder, entry.id)):
        return "files", found
    if (root / f"{root.name}.py").is_file():
        raise script_error(entry.id)
    splits = split_files(str(root), entry.id, entry.config, entry.data_dir) if _holds_data(folder) else {}
    if not splits:
        raise UserError(
            "the folder holds no split files", entry.id, f"put train.jsonl (or {', '.join(ENDINGS[1:])}) there"
        )
    return "files", splits


def _names_configs(root: Path) -> bool:
    """Whether README.md or `.huggingface.yaml` tell which files are which split."""
    card = root / "README.md"
    text = card.read_text(errors="replace") if card.is_file() else ""
    return _CONFIGS.match(text.split("\n---", 1)[0] + "\n") is not None or (root / ".huggingface.yaml").exists()


def _holds_data(folder: Path) -> bool:
    def stop(error: OSError) -> None:
        raise error

    return any([ending(name) for _, _, names in os.walk(folder, onerror=stop) for name in names])  # the whole of it


def _plain(folder: Path, where: str) -> Splits:
    """`train.jsonl`, `train-00000-of-00002.parquet`, … in the folder or its `data/`; nothing if in both or none."""
    places = [found for place in (folder, folder / "data") if place.is_dir() and (found := _named(place, where))]
    if len(places) != 1:
        return {}
    splits = places[0]
    names = list(splits)
    if len(names) == 1 and len(splits[names[0]]) == 1 and not names[0].startswith(_SPLIT_NAMES):
        return {"train": splits[names[0]]}  # as on the hub
    return splits


def _named(place: Path, where: str) -> Splits:
    found: dict[str, list[Path]] = {}
    for path in sorted(place.iterdir()):
        kind = ending(path.name)
        if kind is None or path.name.startswith(".") or path.is_dir():
            continue
        if not path.exists():
            raise UserError(
                "a symbolic link that leads nowhere", f"{where}: {path.name}", "fetch the file, or remove it"
            )
        if (match := _SHARD.fullmatch(path.name.removesuffix(kind))) is None:
            return {}  # told by the library
        found.setdefault(match["split"], []).append(path)
    for split, paths in found.items():
        if len({ending(p.name) for p in paths}) > 1:
            both = " and ".join(p.name for p in paths[:2])
            raise UserError(f"the split {split!r} stands there twice: {both}", where, "keep one of them")
    return {split: tuple(map(str, paths)) for split, paths in found.items()}


def _saved(folder: Path, where: str) -> Splits:
    try:
        listed = folder / "dataset_dict.json"
        parts = (
            {s: folder / s for s in json.loads(listed.read_text())["splits"]} if listed.exists() else {"train": folder}
        )
        states = {split: json.loads((part / "state.json").read_text()) for split, part in parts.items()}
        splits = {s: tuple(str(parts[s] / f["filename"]) for f in state["_data_files"]) for s, state in states.items()}
    except (FileNotFoundError, ValueError, LookupError, TypeError) as e:
        raise UserError(f"the saved dataset is not whole: {e}", where, "save it again with save_to_disk") from None
    if missing := [f for files in splits.values() for f in files if not Path(f).is_file()]:
        text = f"the saved dataset is not whole: {Path(missing[0]).relative_to(folder)} is missing"
        raise UserError(text, where, "save it again with save_to_disk")
    return splits
