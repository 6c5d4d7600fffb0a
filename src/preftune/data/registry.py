"""Datasets known by name: which of their splits hold preferences, how their rows are read, what is wrong with them.

The facts stand in `known_datasets.yaml`. A dataset that is not listed there is read by its columns alone.
"""

import functools
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from preftune.errors import UserError
from preftune.schema import DatasetEntry, Section
from preftune.strict_yaml import load_yaml

DATA = Path(__file__).parent / "known_datasets.yaml"
Adapter = Literal[
    "messages", "strings", "transcript", "tree", "arena", "stack-exchange", "helpsteer3", "distilabel", "sharegpt"
]
STREAMED_ROWS = 50_000  # of the recipe that is proposed for a huge dataset


class Refusal(Section):
    """Why a dataset is not read.

    Args:
        error: What it holds.
        advice: The way on.
        data_dir: Only this part of it is refused; None: all of it.
    """

    error: str
    advice: str
    data_dir: str | None = None


class KnownDataset(Section):
    """What is known about one dataset of the hub.

    Args:
        id: Its id on the hub.
        aliases: Ids under which people look for it, and which are not on the hub.
        purpose: What it is good for.
        licence: As its card says; None: the card states none.
        gated: One must accept terms on the hub before one can read it.
        adapter: The shape of its rows.
        dpo_splits: Splits to train on; none: it holds no preferences.
        test_splits: Splits to hold out.
        not_for_dpo: Pattern of split names → what these splits hold instead.
        needs_data_dir: One of these subfolders must be named.
        data_dirs: One of these subfolders may be named.
        streaming_advised: Too large to be read as a whole.
        columns: Its columns, in words.
        rows: Rows by split, in words.
        rule: What becomes of a row.
        defects: What is known to be wrong with it.
        languages: Those that are kept unless the recipe says otherwise; None: all.
        notices: What a user must know before training on it.
        refused: Why it is not read, or a part of it.
    """

    id: str
    aliases: tuple[str, ...] = ()
    purpose: str
    licence: str | None = None
    gated: bool = False
    adapter: Adapter
    dpo_splits: tuple[str, ...] = ()
    test_splits: tuple[str, ...] = ()
    not_for_dpo: dict[str, str] = Field(default_factory=dict)
    needs_data_dir: tuple[str, ...] = ()
    data_dirs: tuple[str, ...] = ()
    streaming_advised: bool = False
    columns: str
    rows: str
    rule: str
    defects: tuple[str, ...]
    languages: tuple[str, ...] | None = None
    notices: tuple[str, ...] = ()
    refused: Refusal | None = None


@functools.cache
def all_known() -> tuple[KnownDataset, ...]:
    """All known datasets, those that DPO guides name first."""
    return tuple(KnownDataset.model_validate(d) for d in load_yaml(DATA.read_text("utf-8"), DATA.name))


def _rules(found: KnownDataset) -> tuple[Any, ...]:
    """What decides about a local copy's rows. Its splits have their own names, so rules about splits cannot misfire."""
    return found.adapter, found.languages, found.refused


def _of_folder(path: str) -> KnownDataset | None:
    """The dataset that a local folder is named after."""
    *above, name = PurePosixPath("/", path.casefold()).parts
    candidates = [d for d in all_known() if d.id.casefold().endswith(f"/{name}")]
    owned = [d for d in candidates if d.id.casefold().split("/")[0] == above[-1]] if above else []
    if owned:
        return owned[0]
    same = all(_rules(d) == _rules(candidates[0]) for d in candidates)
    return candidates[0] if candidates and same else None


def known(name: str, folders: bool = True) -> KnownDataset | None:
    """Finds a dataset by its name, upper and lower case alike.

    Args:
        name: A hub id, an id under which people look for it, or a local path whose last part is the last part of
            a hub id. If datasets of several owners bear that name and are read differently, the folder above must
            bear the owner's name.
        folders: Whether it may be a local path. `someone/hh-rlhf` is spelled like one, and can be another dataset.

    Returns:
        The dataset, or None if it is not known.
    """
    for dataset in all_known():
        if name.casefold() in (i.casefold() for i in (dataset.id, *dataset.aliases)):
            return dataset
    return _of_folder(name) if folders else None


def why_not(found: KnownDataset, split: str) -> str | None:
    """What a split holds instead of preferences; None if it is not known as such a split."""
    return next((why for pattern, why in found.not_for_dpo.items() if fnmatchcase(split, pattern)), None)


def default_languages(name: str) -> tuple[str, ...] | None:
    """The languages that are kept of a dataset if the recipe names none; None: all."""
    found = known(name)
    return found.languages if found else None


def table() -> list[dict[str, Any]]:
    """All known datasets with all fields, ready for JSON."""
    return [d.model_dump(mode="json") for d in all_known()]


def apply(entry: DatasetEntry, strict: bool, local: bool | None = None) -> tuple[DatasetEntry, tuple[str, ...]]:
    """Refuses what is no preference data, corrects an id, and tells what a user must know.

    Args:
        entry: The recipe's entry.
        strict: Refuse an id that is not on the hub instead of correcting it.
        local: Whether `entry.id` is a path here (True) or a hub id (False); None: a known id is a hub id, all else
            is a path.

    Returns:
        The entry to read, and notices.

    Raises:
        UserError: If the dataset, the subfolder or the split holds no preferences, if a subfolder must be named
            or is not there, or, under `strict`, if the id is another dataset's.
    """
    found = known(entry.id, folders=local is not False)
    if local is None:
        local = known(entry.id, folders=False) is None
    if found is None:
        return entry, () if local else _unpinned(entry)
    _refuse(found, entry, local)
    if local:
        return entry, tuple(f"{entry.id}: {n}" for n in found.notices)
    notices = []
    if entry.id.casefold() != found.id.casefold():  # found by an alias
        if strict:
            raise UserError("there is no such dataset on the hub", entry.id, f"write id: {found.id}")
        notices.append(f"{entry.id} is not on the hub: {found.id} is read instead")
        entry = entry.model_copy(update={"id": found.id})
    if found.gated:
        notices.append(
            f"{entry.id}: it is gated: accept its terms at https://huggingface.co/datasets/{found.id} and put your "
            "token into the environment variable HF_TOKEN"
        )
    notices += [f"{entry.id}: {n}" for n in found.notices]
    if found.streaming_advised and not entry.streaming:
        notices.append(
            f"{entry.id}: {entry.data_dir} is downloaded as a whole ({found.rows}); streaming: true with "
            f"max_rows: {STREAMED_ROWS} reads a part"
        )
    return entry, (*notices, *_unpinned(entry))


def _unpinned(entry: DatasetEntry) -> tuple[str, ...]:
    if entry.revision not in (None, "main"):  # main is a branch: it moves on
        return ()
    return (
        f"{entry.id}: no revision is pinned, so the newest one is read; to get the same rows next time write "
        "revision: with the commit that the run records (source_digest, after the @)",
    )


def _refuse(found: KnownDataset, entry: DatasetEntry, local: bool) -> None:
    data_dir = str(PurePosixPath(entry.data_dir)) if entry.data_dir else None
    if found.refused and found.refused.data_dir in (None, data_dir):
        same = found.id.casefold() == entry.id.casefold() or local
        where = entry.id if same else f"{entry.id} (on the hub: {found.id})"
        raise UserError(found.refused.error, where, found.refused.advice)
    # A local copy may have folders of its own making; that a folder is there is looked at when it is read.
    if not local and found.needs_data_dir and data_dir is None:
        snippet = f"data_dir: {found.needs_data_dir[0]}"
        if found.streaming_advised:
            snippet += f", streaming: true, max_rows: {STREAMED_ROWS}"
        raise UserError(
            f"data_dir is missing: without one, all of it is read ({found.rows})",
            entry.id,
            f"name one of {', '.join(found.needs_data_dir)}; for example {{id: {found.id}, {snippet}}}",
        )
    allowed = found.needs_data_dir or found.data_dirs
    if not local and allowed and data_dir is not None and data_dir not in allowed:
        raise UserError(f"there is no data_dir {entry.data_dir!r}", entry.id, f"use one of {', '.join(allowed)}")
    for split in filter(None, (entry.split, entry.test_split)):
        # for *_sft sources.pick_split knows a way out: *_prefs, if that is there
        if not split.endswith("_sft") and (why := why_not(found, split)):
            instead = found.test_splits if split == entry.test_split else found.dpo_splits
            raise UserError(f"split {split!r} is not for DPO: {why}", entry.id, f"use {' or '.join(instead)}")
