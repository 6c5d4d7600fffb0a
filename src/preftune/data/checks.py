"""Checking one dataset: every row becomes a pair or stands in the quarantine file with its reason."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from preftune.data.adapters import adapt, suggest
from preftune.data.check_list import CHECKS
from preftune.data.pairs import Drop, Pair, findings, text_of, to_pair
from preftune.data.registry import default_languages
from preftune.data.sources import Source, pick_split, read_rows
from preftune.errors import UserError
from preftune.schema import DatasetEntry, Validation

EXAMPLES = 5  # row ids that a report names for each check
MOST_FILES = 20  # that a report names
FEW_PAIRS = 50  # below this, guessing by length is right or wrong by accident


def check_source(source: Source, validation: Validation, folder: Path, seed: int) -> dict[str, Any]:
    """Converts and checks a source's splits, and writes `train.jsonl`, `test.jsonl` and `quarantine.jsonl`.

    Args:
        source: The dataset.
        validation: The recipe's section.
        folder: Where the files go.
        seed: Draws `max_rows` of the pairs, and orders a stream.

    Returns:
        The report: id, splits, notices, and per split `read` = `kept` + the sum of `dropped`; `drawn` of the kept
        pairs stand in the file.

    Raises:
        UserError: If nothing is usable, more than `max_dropped` is defective, or a check set to `fail` failed.
    """
    entry = source.entry
    report: dict[str, Any] = {"id": entry.name, "source_digest": source.digest, "notices": []}
    wanted = {"train": entry.split} | ({"test": entry.test_split} if entry.test_split else {})
    with (folder / "quarantine.jsonl").open("w") as quarantine:
        for side, name in wanted.items():
            split, notice = pick_split(source, name, validation.strict)
            if notice:
                report["notices"].append(notice)
            if side == "train" and split.startswith("test"):
                text = f"{entry.id}: the official test split {split!r} is used for training"
                if validation.does("test_split_trained") == "fail":
                    raise UserError(text, f"{entry.id}, split {split}", "train on another split")
                report["notices"].append(text)
            check = _Check(source, split, validation, quarantine)
            limit = entry.max_rows if side == "train" or entry.streaming else None
            report[side] = check.run(folder / f"{side}.jsonl", limit, seed)
            report["notices"] += check.notices()
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))
    return report


class _Check:
    """The counts of one split while its rows pass by."""

    def __init__(self, source: Source, split: str, validation: Validation, quarantine: TextIO) -> None:
        self.source, self.split, self.validation, self.quarantine = source, split, validation, quarantine
        self.read = self.kept = self.drawn = 0
        self.dropped, self.warned = Counter[str](), Counter[str]()
        self.examples: dict[str, list[str]] = {}
        self.languages = validation.languages or default_languages(source.entry.id)
        self.columns: dict[str, None] = {}
        self.other_languages = Counter[str]()
        self.seen: set[int] = set()
        self.chars = {"chosen": 0, "rejected": 0}
        self.longer = self.shorter = 0

    @property
    def where(self) -> str:
        return f"{self.source.entry.name}, split {self.split}"

    def run(self, target: Path, limit: int | None, seed: int) -> dict[str, Any]:
        """Reads the rows, writes the pairs, and judges the whole.

        Args:
            target: The file of pairs.
            limit: At most this many pairs are kept; None: all.
            seed: Draws them.
        """
        streaming = self.source.entry.streaming
        with target.open("w") as out:
            for row_id, row, generic in adapt(read_rows(self.source, self.split, seed)):
                self.read += 1
                if self.read <= 1000 and isinstance(row, dict):
                    self.columns.update(dict.fromkeys(map(str, row)))
                pair = self._judge(row_id, row, generic)
                if pair is not None:
                    out.write(pair.model_dump_json() + "\n")
                    if streaming and self.kept == limit:
                        break
        self.drawn = self.kept if limit is None else min(limit, self.kept)
        self._stop_if_unusable()
        if self.drawn < self.kept:
            _draw(target, self.kept, self.drawn, seed)
        return self.report()

    def _judge(self, row_id: str, row: Any, generic: Any) -> Pair | None:
        """The pair, counted; None if the row is dropped."""
        try:
            if isinstance(generic, Drop):
                raise generic
            pair = to_pair(generic, self.source.entry.name, row_id)
            found = findings(pair, generic, self.languages) + self._seen_before(pair)
            if "other_language" in found:
                self.other_languages[str(generic.get("language") or generic.get("lang"))[:30]] += 1
            for name in found:
                if self.validation.does(name) != "warn":
                    raise Drop(name)
        except Drop as drop:
            self.dropped[drop.reason] += 1
            self._example(drop.reason, row_id)
            line = {
                "source": self.source.entry.name,
                "split": self.split,
                "row_id": row_id,
                "reason": drop.reason,
                "meaning": CHECKS[drop.reason].meaning,
                "row": row,
            }
            text = json.dumps(line, ensure_ascii=False, default=str)
            self.quarantine.write(text.encode(errors="backslashreplace").decode() + "\n")
            return None
        self.kept += 1
        self.seen.add(self._digest(pair))
        for name in found:  # a warning is about a pair that is kept
            self.warned[name] += 1
            self._example(name, row_id)
        sides = len(text_of(pair.chosen)), len(text_of(pair.rejected))
        self.chars["chosen"] += sides[0]
        self.chars["rejected"] += sides[1]
        self.longer += sides[0] > sides[1]
        self.shorter += sides[0] < sides[1]
        return pair

    @staticmethod
    def _digest(pair: Pair, swapped: bool = False) -> int:
        """Of prompt and answers; within one process only: the set of those seen matters, not the value."""
        answers = text_of(pair.chosen), text_of(pair.rejected)
        return hash((text_of(pair.prompt), *(answers[::-1] if swapped else answers)))

    def _seen_before(self, pair: Pair) -> list[str]:
        if self._digest(pair) in self.seen:
            return ["duplicate"]
        return ["contradiction"] if self._digest(pair, swapped=True) in self.seen else []

    def _example(self, name: str, row_id: str) -> None:
        if len(examples := self.examples.setdefault(name, [])) < EXAMPLES:
            examples.append(row_id)

    def _stop_if_unusable(self) -> None:
        if self.read == 0:
            raise UserError("there are no rows", self.where, "write preference pairs into it")
        for name, count in (self.dropped + self.warned).items():
            if self.validation.does(name) == "fail":
                raise UserError(
                    f"{count} of {self.read} rows fail the check {name}: {CHECKS[name].meaning} "
                    f"(for example {', '.join(self.examples[name])})",
                    self.where,
                    "correct the data, or change validation.severity",
                )
        if self.kept == 0:
            if self.other_languages:
                found = ", ".join(name for name, _ in self.other_languages.most_common(5))
                raise UserError(
                    f"no pair is left: {self.dropped['other_language']} rows are in other languages ({found})",
                    self.where,
                    f"validation.languages asks for {', '.join(self.languages or ())}: add one of theirs",
                )
            raise no_pairs(self.source.entry, self.split, list(self.columns), self.dropped)
        defects = sum(n for name, n in self.dropped.items() if not CHECKS[name].choice)
        if (share := defects / self.read) > self.validation.max_dropped:
            reasons = ", ".join(f"{n} × {CHECKS[r].meaning}" for r, n in self.dropped.most_common())
            raise UserError(
                f"{defects} of {self.read} rows ({share:.0%}) are unusable: {reasons}",
                self.where,
                f"the rows stand in {self.quarantine.name}; correct the data, or raise validation.max_dropped "
                f"(now {self.validation.max_dropped:g})",
            )
        if self._length_tells() and self.validation.does("length_tells") == "fail":
            raise UserError(self.notices()[0], self.where, "balance the lengths, or raise max_length_accuracy")

    @property
    def length_accuracy(self) -> float:
        """How often the better one of "the longer is chosen" and "the shorter is chosen" is right."""
        equal = self.kept - self.longer - self.shorter
        return (max(self.longer, self.shorter) + equal / 2) / self.kept

    def _length_tells(self) -> bool:
        return self.kept >= FEW_PAIRS and self.length_accuracy > self.validation.max_length_accuracy

    def notices(self) -> list[str]:
        """What a person should know about the whole split."""
        if not self._length_tells():
            return []
        which = "longer" if self.longer > self.shorter else "shorter"
        return [
            f"{self.where}: length tells the answers apart: the {which} one is chosen in "
            f"{self.length_accuracy:.0%} of the pairs; a model can win by writing {which} answers"
        ]

    def report(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "files": sorted({Path(f).name for f in self.source.splits[self.split]})[:MOST_FILES],
            "read": self.read,
            "kept": self.kept,
            "drawn": self.drawn,
            "dropped": dict(sorted(self.dropped.items())),
            "warned": dict(sorted(self.warned.items())),
            "examples": dict(sorted(self.examples.items())),
            "mean_chars": {side: round(n / self.kept, 1) for side, n in self.chars.items()},
            "chosen_longer": round(self.longer / self.kept, 4),
            "length_accuracy": round(self.length_accuracy, 4),
        }


def _draw(path: Path, lines: int, count: int, seed: int) -> None:
    """Leaves `count` randomly drawn lines of the file, in their order."""
    import numpy as np

    chosen = set(np.random.default_rng(seed).permutation(lines)[:count].tolist())
    drawn = path.with_suffix(".drawn")
    with path.open() as read, drawn.open("w") as out:
        out.writelines(line for i, line in enumerate(read) if i in chosen)
    drawn.replace(path)


def no_pairs(entry: DatasetEntry, split: str, columns: list[str], dropped: Counter[str]) -> UserError:
    """The error for data that gives no pair at all: why, the columns found, and a mapping to paste."""
    here = ", ".join(columns) or "none"
    where = f"{entry.name}, split {split}"
    reason = dropped.most_common(1)[0][0]
    if reason == "missing_answer":
        nearest, mapping = suggest(columns)
        found = mapping or {"prompt": columns[0] if columns else "…", "chosen": "…", "rejected": "…"}
        paste = f"columns: {{{', '.join(f'{k}: {v}' for k, v in found.items())}}}"
        advice = f"if these columns hold the pairs, write into the dataset's entry: {paste}"
        if mapping is None:
            advice = f"{nearest}; if two columns hold a better and a worse answer, map them: {paste}"
        text = "no preference pairs: there is no column chosen and rejected"
        if {"chosen", "rejected"} <= set(columns):
            text = "no preference pairs: chosen or rejected is empty in every row"
        return UserError(f"{text} (columns found: {here})" + (f"; {nearest}" if mapping else ""), where, advice)
    reasons = ", ".join(f"{n} × {CHECKS[r].meaning}" for r, n in dropped.most_common())
    return UserError(
        f"no usable pair: {reasons}",
        where,
        f"columns found: {here}; docs/own-data.md shows the shapes that are read",
    )


def peek(source: Source, validation: Validation, rows: int = 200) -> None:
    """Looks at the first rows only, for errors that can be told before anything starts.

    Raises:
        UserError: As `check_source`, if none of the first rows is usable.
    """
    entry = source.entry
    for name in filter(None, (entry.split, entry.test_split)):
        split, _ = pick_split(source, name, validation.strict)
        if source.kind == "hub":
            continue
        columns: dict[str, None] = {}
        dropped = Counter[str]()
        for row_id, row, generic in adapt(itertools.islice(read_rows(source, split, 0), rows)):
            if isinstance(row, dict):
                columns.update(dict.fromkeys(map(str, row)))
            try:
                if isinstance(generic, Drop):
                    raise generic
                to_pair(generic, entry.id, row_id)
                break
            except Drop as drop:
                dropped[drop.reason] += 1
        else:
            if not dropped:
                raise UserError("there are no rows", f"{entry.id}, split {split}", "write preference pairs into it")
            if not any(CHECKS[name].choice for name in dropped):
                raise no_pairs(entry, split, list(columns), dropped)
