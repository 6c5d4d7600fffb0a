"""Sampling the mixture, splitting it by prompt group, and keeping the held-out side out of training.

`weighting: keep` is alignment-handbook's algorithm (each dataset: shuffle with the seed, take the first
`int(rows * weight)`; concatenate; shuffle); its permutations are `datasets.Dataset.shuffle`'s.
`weighting: share` makes the weights shares of the result.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from preftune.data.check_list import CHECKS
from preftune.data.doubles import Line, common_prompts, overlap_findings, repeated, told_apart
from preftune.data.pairs import Pair
from preftune.errors import UserError
from preftune.schema import Mixture, Validation

DEFAULT_TEST_SIZE = 0.1


def load_pairs(path: Path) -> list[Pair]:
    """Reads pairs that a step wrote."""
    with path.open() as f:
        return [Pair.model_validate_json(line) for line in f]


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
    ids = [e.name for e in mixture.datasets]
    overlaps = common_prompts(drawn, ids)
    with (folder / "quarantine.jsonl").open("w") as quarantine:
        test, test_dropped, _ = _apply(held, repeated(held), validation, quarantine, "test")
        found = overlap_findings(drawn, test, validation, evaluation_texts)
        if mixture.weighting == "share":
            dropping = {i for i, name in found.items() if validation.does(name) == "drop"}
            found |= dict.fromkeys(_over_share(drawn, dropping, mixture), "over_share")
        train, dropped, warned = _apply(drawn, found, validation, quarantine, "train")
    for side, lines in (("train", train), ("test", test)):
        if not lines:
            raise _empty(side, len(drawn), len(test), dropped)
        with (folder / f"{side}.jsonl").open("w") as f:
            f.writelines(line.text for line in (told_apart(lines) if side == "test" else lines))
    counts = Counter(line.source for line in train)
    by_source = {i: counts[i] for i in ids}
    info = {
        "drawn": len(drawn),
        "train": len(train),
        "test": len(test),
        "test_dropped": test_dropped,
        "overlap": dropped.get("prompt_held_out", 0),
        "dropped": dropped,
        "warned": warned,
        "by_source": by_source,
        "shares": {i: round(n / len(train), 4) for i, n in by_source.items()},
        "overlaps": overlaps,
        "notices": notices + [_notice(name, n, "left out of training") for name, n in dropped.items()],
    }
    info["notices"] += [_notice(name, n, "kept") for name, n in warned.items()]
    info["notices"] += [_notice(name, n, "left out", "held-out") for name, n in test_dropped.items()]
    (folder / "mixture.json").write_text(json.dumps(info, indent=1))
    return info


def _notice(name: str, count: int, what: str, side: str = "training") -> str:
    return f"mixture: {count} {side} pair{'s' if count > 1 else ''} {what}: {CHECKS[name].meaning} ({name})"


def _empty(side: str, drawn: int, held: int, dropped: dict[str, int]) -> UserError:
    reasons = ", ".join(f"{n} × {CHECKS[name].meaning}" for name, n in dropped.items()) or "none"
    return UserError(
        f"the mixture's {side} side is empty: {drawn} pairs were drawn to train on, of which dropped: {reasons}; "
        f"{held} are held out",
        "dataset_mixture",
        "change what dropped them (test_split, test_split_size, validation), or raise the weights",
    )


def _weight_notices(mixture: Mixture) -> list[str]:
    weights = [e.weight for e in mixture.datasets]
    if mixture.weighting == "keep" and len(weights) > 1 and abs(sum(weights) - 1) < 1e-9:
        return [
            "the keep-weights sum to 1, as shares would: each is a fraction of its own dataset's rows; "
            "for shares of the result write weighting: share"
        ]
    return []


def _over_share(drawn: list[Line], dropping: set[int], mixture: Mixture) -> set[int]:
    """Indices to leave out as well, so that what stays has the shares asked for; none if nothing is dropped."""
    weights = Counter[str]()
    for entry in mixture.datasets:
        weights[entry.name] += entry.weight  # pyright: ignore[reportArgumentType] - a counter of floats
    stay = [i for i in range(len(drawn)) if i not in dropping]
    counts = Counter(drawn[i].source for i in stay)
    if not dropping or any(not counts[name] for name in weights):
        return set()
    total = min(counts[name] / weight for name, weight in weights.items())
    room = {name: round(total * weight) for name, weight in weights.items()}
    over = set()
    for i in stay:
        room[drawn[i].source] -= 1
        if room[drawn[i].source] < 0:
            over.add(i)
    return over


def _apply(
    drawn: list[Line], found: dict[int, str], validation: Validation, quarantine: TextIO, side: str
) -> tuple[list[Line], dict[str, int], dict[str, int]]:
    """(pairs that stay, dropped by reason, kept with a warning by reason)."""
    counts = Counter(found.values())
    for name, count in counts.items():
        if validation.does(name) == "fail":
            first = json.loads(drawn[min(i for i, n in found.items() if n == name)].text)
            raise UserError(
                f"{count} pairs ({side}) fail the check {name}: {CHECKS[name].meaning} "
                f"(for example {first['row_id']} of {first['source']})",
                "dataset_mixture",
                "take them out of the data, or change validation.severity",
            )
    drops = {i: name for i, name in found.items() if validation.does(name) == "drop"}
    for i, name in sorted(drops.items()):
        pair = json.loads(drawn[i].text)
        line = {"source": pair["source"], "split": side, "row_id": pair["row_id"], "reason": name}
        quarantine.write(json.dumps({**line, "meaning": CHECKS[name].meaning, "row": pair}, ensure_ascii=False) + "\n")
    kept = [line for i, line in enumerate(drawn) if i not in drops]
    by_name = dict(sorted(counts.items()))
    return (
        kept,
        {n: c for n, c in by_name.items() if validation.does(n) == "drop"},
        {n: c for n, c in by_name.items() if validation.does(n) == "warn"},
    )
