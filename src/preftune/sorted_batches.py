"""Pairs of like length in one micro-batch: the same optimizer steps with less padding.

The pairs of each optimizer step stay the ones that TRL's random order chose; only among the step's micro-batches (of
all processes) are they dealt out anew. The gradient of a step is a mean over its pairs, so it does not change, except
for losses that look at a micro-batch as a whole.
"""

from collections.abc import Iterator
from copy import copy
from typing import Any

import pyarrow.compute
from torch.utils.data import Sampler


def widths(dataset: Any, max_length: int | None) -> list[int]:
    """Tokens of each pair's packed row: its prompt once, chosen and rejected; each sequence cut to `max_length`.

    Args:
        dataset: With the columns prompt_ids, chosen_ids, rejected_ids.
        max_length: Of prompt and answer; None: no limit.
    """
    limit = max_length or 2**31
    length_of: Any = pyarrow.compute.list_value_length  # pyright: ignore[reportAttributeAccessIssue] - made at import
    found: list[int] = []
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    for table in dataset.select_columns(columns).with_format("arrow").iter(10_000):
        lengths = zip(*(length_of(table[name]).to_pylist() for name in columns), strict=True)
        found += [min(p + c, limit) + min(r, max(limit - p, 0)) for p, c, r in lengths]
    return found


def pieces(inputs: dict[str, Any], tokens: int) -> list[tuple[float, dict[str, Any]]]:
    """Cuts a micro-batch between pairs, so that the packed rows of each piece take at most so many tokens.

    Args:
        inputs: TRL's: rows of all chosen sequences, then of all rejected ones; `ref_…_logps` a number a pair.
        tokens: Rows × the widest of them; a pair that takes more goes alone.

    Returns:
        (its share of the pairs, a piece) each; TRL's rows are padded to the piece's longest.
    """
    attention = inputs["attention_mask"]
    pairs = len(attention) // 2
    prompts = (attention - inputs["completion_mask"]).sum(-1)
    found = (attention.sum(-1)[:pairs] + attention.sum(-1)[pairs:] - prompts[pairs:]).tolist()
    groups: list[list[int]] = [[]]
    for i, width in enumerate(found):
        if groups[-1] and max(width, *(found[j] for j in groups[-1])) * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(i)
    if len(groups) == 1:
        return [(1.0, inputs)]
    cut = []
    for group in groups:
        rows = [*group, *(pairs + i for i in group)]
        longest = int(attention[rows].sum(-1).max())
        part = {k: v[rows][:, :longest] if len(v) == 2 * pairs else v[group] for k, v in inputs.items()}
        cut.append((len(group) / pairs, part))
    return cut


class SortedWithinSteps(Sampler[int]):
    """Another sampler's order, the pairs of each optimizer step sorted by width, the widest first.

    The last step of an epoch, if it has fewer pairs, stays as it is: its last micro-batch may be smaller, and which
    pairs are in it matters.

    Args:
        inner: The sampler whose order decides about the steps.
        widths: Of each row.
        size: Pairs in an optimizer step, of all processes.
    """

    def __init__(self, inner: Any, widths: list[int], size: int) -> None:
        self.inner, self._widths, self._size = inner, widths, size

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[int]:
        step: list[int] = []
        for row in self.inner:
            step.append(row)
            if len(step) == self._size:
                yield from sorted(step, key=lambda r: -self._widths[r])
                step = []
        yield from step

    def __copy__(self) -> "SortedWithinSteps":
        """A copy that can be asked for another epoch's order without disturbing this one (guards.py does)."""
        inner = copy(self.inner)
        inner.generator = None  # accelerate's sampler seeds a new one with seed + epoch
        return SortedWithinSteps(inner, self._widths, self._size)

    def set_epoch(self, epoch: int) -> None:
        """Passed on: accelerate seeds each epoch's order so."""
        if hasattr(self.inner, "set_epoch"):
            self.inner.set_epoch(epoch)
