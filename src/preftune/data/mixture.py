"""Sampling the mixture, splitting it by prompt group, and keeping the held-out side out of training.

`weighting: keep` is alignment-handbook's algorithm (each dataset: shuffle with the seed, take the first
`int(rows * weight)`; concatenate; shuffle); its permutations are `datasets.Dataset.shuffle`'s.
`weighting: share` makes the weights shares of the result.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from preftune.data.check_list import CHECKS
from preftune.data.overlap import near, near_across, shares_words
from preftune.data.pairs import Pair, group_of, text_of
from preftune.errors import UserError
from preftune.schema import Mixture, Validation

DEFAULT_TEST_SIZE = 0.1


def load_pairs(path: Path) -> list[Pair]:
    """Reads pairs that a step wrote."""
    with path.open() as f:
        return [Pair.model_validate_json(line) for line in f]


@dataclass(frozen=True)
class Line:
    """A pair as it stands in a file, and what sampling and splitting look at.

    Args:
        text: The line of JSON.
        source: The dataset's id.
        group_id: Pairs with one group never fall on both sides of a split.
        prompt: Digest of the prompt without regard to case and white space.
    """

    text: str
    source: str
    group_id: str
    prompt: str

    @classmethod
    def read(cls, path: Path) -> "list[Line]":
        """The lines of a file of pairs."""
        with path.open() as f:
            return [cls._parse(text) for text in f]

    @classmethod
    def _parse(cls, text: str) -> "Line":
        pair = json.loads(text)
        return cls(text, pair["source"], pair["group_id"], group_of(pair["prompt"]))


_Pair = TypeVar("_Pair", Pair, Line)


def _shuffled(lines: list[_Pair], seed: int) -> list[_Pair]:
    import numpy as np

    return [lines[i] for i in np.random.default_rng(seed).permutation(len(lines))]


def sample(sources: list[list[_Pair]], mixture: Mixture) -> list[_Pair]:
    """Draws the mixture. Which pairs of a dataset are drawn does not depend on the datasets' order.

    Args:
        sources: The checked pairs of each dataset, in the recipe's order.
        mixture: The recipe's section.

    Returns:
        The drawn pairs, shuffled.
    """
    weights = [e.weight for e in mixture.datasets]
    if mixture.weighting == "keep":
        counts = [int(len(p) * w) for p, w in zip(sources, weights, strict=True)]
    else:
        # The largest mixture in which every dataset can give its share.
        total = min(len(p) * sum(weights) / w for p, w in zip(sources, weights, strict=True))
        counts = [int(total * w / sum(weights) + 1e-9) for w in weights]
    drawn = [p for pairs, n in zip(sources, counts, strict=True) for p in _shuffled(pairs, mixture.seed)[:n]]
    return _shuffled(drawn, mixture.seed)


def split_by_group(lines: list[_Pair], size: float, seed: int) -> tuple[list[_Pair], list[_Pair]]:
    """Splits so that all pairs of one group fall on one side.

    Args:
        lines: What to split.
        size: Held-out pairs: a share (below 1) or a number (1 and above). Whole groups are taken until it
            is reached.
        seed: Of the groups' order.

    Returns:
        (train, test), each in the order of `lines`.
    """
    import numpy as np

    target = size * len(lines) if size < 1 else size
    groups = Counter(line.group_id for line in lines)
    names = sorted(groups)
    held: set[str] = set()
    count = 0
    for i in np.random.default_rng(seed).permutation(len(names)):
        if count >= target:
            break
        held.add(names[i])
        count += groups[names[i]]
    return [p for p in lines if p.group_id not in held], [p for p in lines if p.group_id in held]


def build_mixture(
    sources: list[tuple[Path, Path | None]],
    mixture: Mixture,
    validation: Validation,
    evaluation_texts: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    """Samples, splits, and writes `train.jsonl`, `test.jsonl` and `quarantine.jsonl`.

    Args:
        sources: For each dataset the file of its checked pairs, and of its held-out ones.
        mixture: The recipe's section.
        validation: Which overlaps are looked for, and what is done about them.
        evaluation_texts: Texts that must not be trained on (`validation.decontaminate`).
        folder: Where the files go.

    Returns:
        Realised counts and shares, and notices. `drawn` = `train` + the sum of `dropped`.

    Raises:
        UserError: If either side comes out empty, or a check set to `fail` failed.
    """
    drawn = sample([Line.read(train) for train, _ in sources], mixture)
    held = [p for _, test in sources if test for p in Line.read(test)]
    notices = _weight_notices(mixture)
    size = mixture.test_split_size
    if size is None and not held:
        size = DEFAULT_TEST_SIZE
        notices.append(f"no test split is named: {size:.0%} of the prompts are held out (test_split_size)")
    if size is not None:
        drawn, split_off = split_by_group(drawn, size, mixture.seed)
        held += split_off
    ids = [e.id for e in mixture.datasets]
    overlaps = _overlaps(drawn, ids)
    with (folder / "quarantine.jsonl").open("w") as quarantine:
        found = _overlap_findings(drawn, held, validation, evaluation_texts)
        train, dropped, warned = _apply(drawn, found, validation, quarantine)
    for side, lines in (("train", train), ("test", held)):
        if not lines:
            raise UserError(
                f"the mixture's {side} side is empty",
                "dataset_mixture",
                "raise the weights, or set test_split_size so that both sides get pairs",
            )
        with (folder / f"{side}.jsonl").open("w") as f:
            f.writelines(line.text for line in lines)
    counts = Counter(line.source for line in train)
    by_source = {i: counts[i] for i in ids}
    info = {
        "drawn": len(drawn),
        "train": len(train),
        "test": len(held),
        "overlap": dropped.get("prompt_held_out", 0),
        "dropped": dropped,
        "warned": warned,
        "by_source": by_source,
        "shares": {i: round(n / len(train), 4) for i, n in by_source.items()},
        "overlaps": overlaps,
        "notices": notices + [_notice(name, n, "left out of training") for name, n in dropped.items()],
    }
    info["notices"] += [_notice(name, n, "kept") for name, n in warned.items()]
    (folder / "mixture.json").write_text(json.dumps(info, indent=1))
    return info


def _notice(name: str, count: int, what: str) -> str:
    return f"mixture: {count} training pairs {what}: {CHECKS[name].meaning} ({name})"


def _weight_notices(mixture: Mixture) -> list[str]:
    weights = [e.weight for e in mixture.datasets]
    if mixture.weighting == "keep" and len(weights) > 1 and abs(sum(weights) - 1) < 1e-9:
        return [
            "the keep-weights sum to 1, as shares would: each is a fraction of its own dataset's rows; "
            "for shares of the result write weighting: share"
        ]
    return []


def _overlaps(lines: list[Line], ids: list[str]) -> list[tuple[str, str, int]]:
    """How many prompts two datasets have in common, for each two that have any."""
    prompts = {i: {line.prompt for line in lines if line.source == i} for i in dict.fromkeys(ids)}
    pairs = ((a, b, len(prompts[a] & prompts[b])) for a, b in itertools.combinations(sorted(prompts), 2))
    return [p for p in pairs if p[2]]


def _asked(line: Line) -> str:
    return "\n".join(m["content"] for m in json.loads(line.text)["prompt"] if m["role"] == "user")


def _whole(line: Line) -> str:
    pair = json.loads(line.text)
    return "\n".join(text_of(pair[part]) for part in ("prompt", "chosen", "rejected"))


def _overlap_findings(
    drawn: list[Line], held: list[Line], validation: Validation, evaluation_texts: Sequence[str]
) -> dict[int, str]:
    """Index of a drawn pair → the first check of `check_list.MIXTURE` that it fails."""
    groups = {p.group_id for p in held} | {p.prompt for p in held}
    found = {i: "prompt_held_out" for i, p in enumerate(drawn) if p.group_id in groups or p.prompt in groups}
    if validation.near_duplicates is not None:
        rest = [i for i in range(len(drawn)) if i not in found]
        asked = list(dict.fromkeys(_asked(p) for p in held))
        close = near([_asked(drawn[i]) for i in rest], asked, validation.near_duplicates)
        found |= {rest[i]: "near_held_out" for i in close}
        rest = [i for i in range(len(drawn)) if i not in found]
        if len({drawn[i].source for i in rest}) > 1:
            texts, names = [_whole(drawn[i]) for i in rest], [drawn[i].source for i in rest]
            found |= {rest[i]: "near_duplicate" for i in near_across(texts, names, validation.near_duplicates)}
    if evaluation_texts:
        rest = [i for i in range(len(drawn)) if i not in found]
        shared = shares_words([_asked(drawn[i]) for i in rest], evaluation_texts)
        found |= {rest[i]: "contaminated" for i in shared}
    return found


def _apply(
    drawn: list[Line], found: dict[int, str], validation: Validation, quarantine: TextIO
) -> tuple[list[Line], dict[str, int], dict[str, int]]:
    """(pairs that stay, dropped by reason, kept with a warning by reason)."""
    counts = Counter(found.values())
    for name, count in counts.items():
        if validation.does(name) == "fail":
            first = json.loads(drawn[min(i for i, n in found.items() if n == name)].text)
            raise UserError(
                f"{count} training pairs fail the check {name}: {CHECKS[name].meaning} "
                f"(for example {first['row_id']} of {first['source']})",
                "dataset_mixture",
                "take them out of the data, or change validation.severity",
            )
    drops = {i: name for i, name in found.items() if validation.does(name) == "drop"}
    for i, name in sorted(drops.items()):
        pair = json.loads(drawn[i].text)
        line = {"source": pair["source"], "split": "train", "row_id": pair["row_id"], "reason": name}
        quarantine.write(json.dumps({**line, "meaning": CHECKS[name].meaning, "row": pair}, ensure_ascii=False) + "\n")
    kept = [line for i, line in enumerate(drawn) if i not in drops]
    by_name = dict(sorted(counts.items()))
    return (
        kept,
        {n: c for n, c in by_name.items() if validation.does(n) == "drop"},
        {n: c for n, c in by_name.items() if validation.does(n) == "warn"},
    )
