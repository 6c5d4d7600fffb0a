"""Checking one dataset: every row becomes a pair or stands in the quarantine file with its reason."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from preftune.errors import UserError
from preftune.pairs import PROMPT_COLUMNS, REASONS, Drop, Pair, text_of, to_pair
from preftune.schema import Validation
from preftune.sources import Source, pick_split, read_rows


def _no_pairs(source: Source, columns: list[str], reason: str) -> UserError:
    """The error for data that holds no pair at all: the columns found, and a mapping to paste."""
    here = ", ".join(columns) or "none"
    if reason != "missing_answer":
        return UserError(
            f"no usable pair: {REASONS[reason]} in every row",
            source.entry.id,
            f"columns found: {here}; docs/own-data.md shows the shapes that are read",
        )
    prompt = next((c for c in columns if c in PROMPT_COLUMNS), columns[0] if columns else "…")
    guess = [c for c in columns if c not in PROMPT_COLUMNS and c != prompt]
    if decides := [c for c in columns if c in ("winner", "overall_preference", "preference", "label")]:
        return UserError(
            f"the column {decides[0]!r} says row by row which answer is better (columns found: {here})",
            source.entry.id,
            "write a file in which the better answer of each row is chosen and the other one rejected",
        )
    if len(guess) < 2:
        return UserError(
            "no preference pairs: there is no column chosen and rejected, and no two columns that could be them "
            f"(columns found: {here})",
            source.entry.id,
            "use it for SFT, or add a worse answer to each row; if columns hold both, map them: "
            f"columns: {{prompt: {prompt}, chosen: …, rejected: …}}",
        )
    return UserError(
        f"no preference pairs: there is no column chosen and rejected (columns found: {here})",
        source.entry.id,
        "if other columns hold them, name them in the recipe's dataset entry: "
        f"columns: {{prompt: {prompt}, chosen: {guess[0]}, rejected: {guess[1]}}}",
    )


def check_source(source: Source, validation: Validation, folder: Path) -> dict[str, Any]:
    """Converts and checks a source's splits, and writes `train.jsonl`, `test.jsonl` and `quarantine.jsonl`.

    Args:
        source: The dataset.
        validation: The recipe's section.
        folder: Where the files go.

    Returns:
        The report: id, splits, notices, and per split `read` = `kept` + the sum of `dropped`.

    Raises:
        UserError: If nothing is usable or more than `max_dropped` was dropped.
    """
    entry = source.entry
    report: dict[str, Any] = {"id": entry.id, "source_digest": source.digest, "notices": []}
    wanted = {"train": entry.split} | ({"test": entry.test_split} if entry.test_split else {})
    with (folder / "quarantine.jsonl").open("w") as quarantine:
        for side, name in wanted.items():
            split, notice = pick_split(source, name, validation.strict)
            if notice:
                report["notices"].append(notice)
            if side == "train" and split.startswith("test"):
                report["notices"].append(f"{entry.id}: the official test split {split!r} is used for training")
            report[side] = _check_split(source, split, validation, folder / f"{side}.jsonl", quarantine)
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))
    return report


def _check_split(source: Source, split: str, validation: Validation, target: Path, quarantine: Any) -> dict[str, Any]:
    read, dropped, columns = 0, Counter[str](), Counter[str]()
    seen: set[int] = set()
    swapped: set[int] = set()
    lengths = [0, 0, 0]  # characters of chosen, of rejected, and pairs whose chosen is longer
    kept = 0
    with target.open("w") as out:
        for row_id, row in read_rows(source, split):
            read += 1
            if isinstance(row, dict):
                columns.update(map(str, row))
            try:
                pair = to_pair(row, source.entry.id, row_id)
                _check_seen(pair, seen, swapped)
            except Drop as drop:
                dropped[drop.reason] += 1
                line = {
                    "source": source.entry.id,
                    "split": split,
                    "row_id": row_id,
                    "reason": drop.reason,
                    "meaning": REASONS[drop.reason],
                    "row": row,
                }
                text = json.dumps(line, ensure_ascii=False, default=str)
                quarantine.write(text.encode(errors="backslashreplace").decode() + "\n")
                continue
            kept += 1
            sides = len(text_of(pair.chosen)), len(text_of(pair.rejected))
            lengths = [lengths[0] + sides[0], lengths[1] + sides[1], lengths[2] + (sides[0] > sides[1])]
            out.write(pair.model_dump_json() + "\n")
    where = f"{source.entry.id}, split {split}"
    if read == 0:
        raise UserError("there are no rows", where, "write preference pairs into it")
    if kept == 0:
        raise _no_pairs(source, [c for c, _ in columns.most_common()], dropped.most_common(1)[0][0])
    if (share := 1 - kept / read) > validation.max_dropped:
        reasons = ", ".join(f"{n} × {REASONS[r]}" for r, n in dropped.most_common())
        raise UserError(
            f"{read - kept} of {read} rows ({share:.0%}) are unusable: {reasons}",
            where,
            f"the rows stand in {quarantine.name}; correct the data, or raise validation.max_dropped "
            f"(now {validation.max_dropped:g})",
        )
    return {
        "split": split,
        "read": read,
        "kept": kept,
        "dropped": dict(sorted(dropped.items())),
        "mean_chars": {"chosen": round(lengths[0] / kept, 1), "rejected": round(lengths[1] / kept, 1)},
        "chosen_longer": round(lengths[2] / kept, 4),
    }


def _check_seen(pair: Pair, seen: set[int], swapped: set[int]) -> None:
    prompt, chosen, rejected = text_of(pair.prompt), text_of(pair.chosen), text_of(pair.rejected)
    this = hash((prompt, chosen, rejected))  # within one process only: the set, not the value, matters
    if this in seen:
        raise Drop("duplicate")
    if this in swapped:
        raise Drop("contradiction")
    seen.add(this)
    swapped.add(hash((prompt, rejected, chosen)))


def peek(source: Source, validation: Validation, rows: int = 200) -> None:
    """Looks at the first rows only, for errors that can be told before anything starts.

    Raises:
        UserError: As `check_source`, if none of the first rows is usable.
    """
    entry = source.entry
    for name in filter(None, (entry.split, entry.test_split)):
        split, _ = pick_split(source, name, validation.strict)
        if source.kind != "files":
            continue
        columns, reasons = Counter[str](), Counter[str]()
        for row_id, row in itertools.islice(read_rows(source, split), rows):
            if isinstance(row, dict):
                columns.update(map(str, row))
            try:
                to_pair(row, entry.id, row_id)
                break
            except Drop as drop:
                reasons[drop.reason] += 1
        else:
            if not reasons:
                raise UserError("there are no rows", f"{entry.id}, split {split}", "write preference pairs into it")
            raise _no_pairs(source, [c for c, _ in columns.most_common()], reasons.most_common(1)[0][0])
