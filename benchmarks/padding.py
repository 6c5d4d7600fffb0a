"""How many tokens go through the model, padding included: `python -m benchmarks.padding [--json]`; see README.md."""

import random
from typing import Any

from benchmarks.common import finish, parser
from benchmarks.step import ANSWER, PROMPT, lognormal

MICRO, ACCUMULATED, PAIRS = 4, 16, 4096


def slots(max_length: int) -> dict[str, float]:
    """Tokens of TRL's random micro-batches (two rows a pair) and of sorted, packed ones, by the code that trains.

    Args:
        max_length: Of prompt and answer.
    """
    import torch

    from preftune.packing import pack
    from preftune.sorted_batches import SortedWithinSteps

    generator = random.Random(1)
    lengths = zip(*(lognormal(*kind, PAIRS, generator) for kind in (PROMPT, ANSWER, ANSWER)), strict=True)
    rows = [(p, min(c, max_length - p), min(r, max_length - p)) for p, c, r in lengths if p < max_length]
    rows = rows[: len(rows) // (MICRO * ACCUMULATED) * MICRO * ACCUMULATED]
    widths = [sum(row) for row in rows]
    order = list(SortedWithinSteps(range(len(rows)), widths, MICRO * ACCUMULATED))

    def batches(numbers: list[int]) -> list[list[tuple[int, int, int]]]:
        return [[rows[i] for i in numbers[b : b + MICRO]] for b in range(0, len(numbers), MICRO)]

    def tensors(batch: list[tuple[int, int, int]]) -> dict[str, torch.Tensor]:
        longest = max(p + max(c, r) for p, c, r in batch)
        sides = [(p, a[side]) for side in (0, 1) for p, *a in batch]
        attention = torch.tensor([[1] * (p + n) + [0] * (longest - p - n) for p, n in sides])
        answer = torch.tensor([[0] * p + [1] * n + [0] * (longest - p - n) for p, n in sides])
        # The two answers of a pair begin with different tokens, so that only the prompt is shared.
        side = torch.arange(2).repeat_interleave(len(batch))[:, None]
        return {"ids": torch.where(answer == 1, 1 + side, 0), "attention_mask": attention, "completion_mask": answer}

    def packed(batch: list[tuple[int, int, int]]) -> int:
        given = tensors(batch)
        return pack(**given, scored=given["completion_mask"][:, 1:] == 1).ids.numel()

    random_batches = batches(list(range(len(rows))))
    theirs = sum(tensors(batch)["ids"].numel() for batch in random_batches)
    real = sum(2 * p + c + r for p, c, r in rows)
    return {
        "trl": theirs,
        "trl_padding": 1 - real / theirs,
        "packed_random": sum(map(packed, random_batches)),
        "packed_sorted": sum(map(packed, batches(order))),
    }


def measure() -> dict[str, Any]:
    """The ratios at `max_length` 256 and 1024."""
    found: dict[str, Any] = {"pairs": PAIRS, "micro_batch": MICRO, "in_a_step": MICRO * ACCUMULATED}
    for length in (256, 1024):
        counted = slots(length)
        found[f"ratio_{length}"] = counted["packed_sorted"] / counted["trl"]
        found[str(length)] = counted
    return found


def main() -> None:
    arguments = parser("padding", __doc__)
    given = arguments.parse_args()
    finish(measure(), given.json, text_of)


def text_of(found: dict[str, Any]) -> str:
    """The figures in words."""
    lines = []
    for n in (256, 1024):
        ratio, padding = found[f"ratio_{n}"], found[str(n)]["trl_padding"]
        lines.append(f"max_length {n}: {ratio:.3f} of TRL's tokens ({padding:.0%} of TRL's are padding)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
