"""Pairs that stand in two places of a mixture: in two datasets, on both sides of the split, in an evaluation set."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preftune.data.overlap import near, near_across, shares_words, similarity
from preftune.data.pairs import group_of, text_of
from preftune.schema import Validation


@dataclass(frozen=True)
class Line:
    """A pair as it stands in a file, and what sampling and splitting look at.

    Args:
        text: The line of JSON.
        source: The dataset's id.
        group_id: Pairs with one group never fall on both sides of a split.
        prompt: Digest of the prompt without regard to case and white space.
        row_id: Where it stands in its source.
        answers: Digests of chosen and rejected.
    """

    text: str
    source: str
    group_id: str
    prompt: str
    row_id: str = ""
    answers: tuple[int, int] = (0, 0)

    @classmethod
    def read(cls, path: Path) -> "list[Line]":
        """The lines of a file of pairs."""
        with path.open() as f:
            return [cls._parse(text) for text in f]

    @classmethod
    def _parse(cls, text: str) -> "Line":
        pair = json.loads(text)
        # within one process only: whether two are equal matters, not the value
        answers = hash(text_of(pair["chosen"])), hash(text_of(pair["rejected"]))
        return cls(text, pair["source"], pair["group_id"], group_of(pair["prompt"]), pair["row_id"], answers)


def common_prompts(lines: list[Line], ids: list[str]) -> list[tuple[str, str, int]]:
    """How many prompts two datasets have in common, for each two that have any."""
    prompts = {i: {line.prompt for line in lines if line.source == i} for i in dict.fromkeys(ids)}
    pairs = ((a, b, len(prompts[a] & prompts[b])) for a, b in itertools.combinations(sorted(prompts), 2))
    return [p for p in pairs if p[2]]


def _asked(line: Line) -> str:
    return "\n".join(m["content"] for m in json.loads(line.text)["prompt"] if m["role"] == "user")


def _whole(line: Line) -> str:
    pair = json.loads(line.text)
    return "\n".join(text_of(pair[part]) for part in ("prompt", "chosen", "rejected"))


def repeated(lines: list[Line]) -> dict[int, str]:
    """Index → `duplicate` or `contradiction`, for pairs that stand in two sources; the source that sorts first wins."""
    found: dict[int, str] = {}
    seen: set[tuple[str, int, int]] = set()
    for i in sorted(range(len(lines)), key=lambda i: (lines[i].source, lines[i].row_id)):
        prompt, (chosen, rejected) = lines[i].prompt, lines[i].answers
        if (prompt, chosen, rejected) in seen:
            found[i] = "duplicate"
        elif chosen != rejected and (prompt, rejected, chosen) in seen:
            found[i] = "contradiction"
        else:
            seen.add((prompt, chosen, rejected))
    return found


def _is_swapped(line: Line, other: Line) -> bool:
    """Whether nearly equal pairs prefer different answers."""
    a, b = ([text_of(json.loads(p.text)[side]) for side in ("chosen", "rejected")] for p in (line, other))
    return similarity(a[0], b[1]) + similarity(a[1], b[0]) > similarity(a[0], b[0]) + similarity(a[1], b[1])


def overlap_findings(
    drawn: list[Line], held: list[Line], validation: Validation, evaluation_texts: Sequence[str]
) -> dict[int, str]:
    """Index of a drawn pair → the first check of `check_list.MIXTURE` that it fails."""
    groups = {p.group_id for p in held} | {p.prompt for p in held}
    found = repeated(drawn)
    found |= {i: "prompt_held_out" for i, p in enumerate(drawn) if p.group_id in groups or p.prompt in groups}

    def staying() -> list[int]:
        return [i for i in range(len(drawn)) if i not in found or validation.does(found[i]) != "drop"]

    if validation.near_duplicates is not None:
        rest = staying()
        asked = list(dict.fromkeys(_asked(p) for p in held))
        close = near([_asked(drawn[i]) for i in rest], asked, validation.near_duplicates)
        found |= {rest[i]: "near_held_out" for i in close}
        rest = staying()
        if len({drawn[i].source for i in rest}) > 1:
            texts, names = [_whole(drawn[i]) for i in rest], [drawn[i].source for i in rest]
            for i, j in near_across(texts, names, validation.near_duplicates).items():
                swapped = _is_swapped(drawn[rest[i]], drawn[rest[j]])
                found[rest[i]] = "contradiction" if swapped else "near_duplicate"
    if evaluation_texts:
        rest = staying()
        shared = shares_words([_asked(drawn[i]) for i in rest], evaluation_texts)
        found |= {rest[i]: "contaminated" for i in shared}
    return found


def told_apart(lines: list[Line]) -> list[Line]:
    """The lines with row ids that occur once: two datasets may each have a `test.jsonl:7`, and what two models do on
    the held-out side is joined by row id."""
    often = Counter(line.row_id for line in lines)
    if len(often) == len(lines):
        return lines
    found = []
    for line in lines:
        if often[line.row_id] > 1:
            pair = json.loads(line.text)
            row_id = f"{line.source}/{line.row_id}"
            text = json.dumps({**pair, "row_id": row_id}, ensure_ascii=False, separators=(",", ":")) + "\n"
            line = replace(line, row_id=row_id, text=text)
        found.append(line)
    return found
