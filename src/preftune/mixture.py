"""Sampling the mixture and splitting it by prompt group.

`weighting: keep` is alignment-handbook's algorithm (each dataset: shuffle with the seed, take the first
`int(rows * weight)`; concatenate; shuffle); its permutations are `datasets.Dataset.shuffle`'s.
`weighting: share` makes the weights shares of the result.
"""

import json
from pathlib import Path
from typing import Any

from preftune.errors import UserError
from preftune.pairs import Pair
from preftune.schema import Mixture

DEFAULT_TEST_SIZE = 0.1


def load_pairs(path: Path) -> list[Pair]:
    """Reads pairs that a step wrote."""
    with path.open() as f:
        return [Pair.model_validate_json(line) for line in f]


def _shuffled(pairs: list[Pair], seed: int) -> list[Pair]:
    import numpy as np

    return [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]


def sample(sources: list[list[Pair]], mixture: Mixture) -> list[Pair]:
    """Draws the mixture.

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


def split_by_group(pairs: list[Pair], size: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Splits so that all pairs of one prompt fall on one side.

    Args:
        pairs: What to split.
        size: Held-out pairs: a share (below 1) or a number (1 and above). Whole groups are taken until it
            is reached.
        seed: Of the groups' order.

    Returns:
        (train, test), each in the order of `pairs`.
    """
    import numpy as np

    target = size * len(pairs) if size < 1 else size
    groups: dict[str, int] = {}
    for pair in pairs:
        groups[pair.group_id] = groups.get(pair.group_id, 0) + 1
    names = sorted(groups)
    held: set[str] = set()
    count = 0
    for i in np.random.default_rng(seed).permutation(len(names)):
        if count >= target:
            break
        held.add(names[i])
        count += groups[names[i]]
    return [p for p in pairs if p.group_id not in held], [p for p in pairs if p.group_id in held]


def build_mixture(sources: list[tuple[Path, Path | None]], mixture: Mixture, folder: Path) -> dict[str, Any]:
    """Samples, splits, and writes `train.jsonl` and `test.jsonl`.

    Args:
        sources: For each dataset the file of its checked pairs, and of its held-out ones.
        mixture: The recipe's section.
        folder: Where the files go.

    Returns:
        Realised counts and shares, and notices.

    Raises:
        UserError: If either side comes out empty.
    """
    notices: list[str] = []
    drawn = sample([load_pairs(train) for train, _ in sources], mixture)
    held = [p for _, test in sources if test for p in load_pairs(test)]
    keep = [e.weight for e in mixture.datasets]
    if mixture.weighting == "keep" and len(keep) > 1 and abs(sum(keep) - 1) < 1e-9:
        notices.append(
            "the keep-weights sum to 1, as shares would: each is a fraction of its own dataset's rows; "
            "for shares of the result write weighting: share"
        )
    size = mixture.test_split_size
    if size is None and not held:
        size = DEFAULT_TEST_SIZE
        notices.append(f"no test split is named: {size:.0%} of the prompts are held out (test_split_size)")
    if size is not None:
        drawn, split_off = split_by_group(drawn, size, mixture.seed)
        held += split_off
    groups = {p.group_id for p in held}
    train = [p for p in drawn if p.group_id not in groups]
    overlap = len(drawn) - len(train)
    if overlap:
        notices.append(f"{overlap} training pairs have a prompt that is held out: left out of training")
    for side, pairs in (("train", train), ("test", held)):
        if not pairs:
            raise UserError(
                f"the mixture's {side} side is empty",
                "dataset_mixture",
                "raise the weights, or set test_split_size so that both sides get pairs",
            )
        with (folder / f"{side}.jsonl").open("w") as f:
            f.writelines(p.model_dump_json() + "\n" for p in pairs)
    ids = [e.id for e in mixture.datasets]
    by_source = {i: sum(p.source == i for p in train) for i in ids}
    info = {
        "train": len(train),
        "test": len(held),
        "overlap": overlap,
        "by_source": by_source,
        "shares": {i: round(n / len(train), 4) for i, n in by_source.items()},
        "notices": notices,
    }
    (folder / "mixture.json").write_text(json.dumps(info, indent=1))
    return info
