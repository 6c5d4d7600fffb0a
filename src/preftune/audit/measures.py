"""What the audit measures while pairs stream by: lengths, turns, scores and prompts, as counters and one digest
a prompt.
"""

import math
from bisect import bisect_right
from collections import Counter
from typing import Any

from preftune.audit.samples import Gallery, shared_ends, text_of_answer
from preftune.data.pairs import Pair, group_of

BARS = 30
ALIKE = 0.9  # share of the longer answer that both have in common, from which they count as nearly the same

NARROWEST = 1e-6  # width of a bar, as a share of the values: narrower ones drown in the values' rounding
ROUNDING = 1e-6  # of a bar's width


def quantile(counter: Counter[Any], share: float) -> float:
    """The smallest value that at least this share of the counted values does not exceed."""
    wanted, seen = share * counter.total(), 0
    for value in sorted(counter):
        seen += counter[value]
        if seen >= wanted - 1e-9:
            return value
    return math.nan


def edges_of(*counters: Counter[Any]) -> list[float]:
    """Round edges of at most about `BARS` bars that cover all values but the outermost hundredth on each side."""
    both: Counter[Any] = sum(counters, Counter())
    low, high = quantile(both, 0.01), quantile(both, 0.99)
    if 0 <= low < high / 2:
        low = 0
    least = max((high - low) / BARS, NARROWEST * max(abs(low), abs(high))) or 0.1
    if all(isinstance(value, int) for value in both):
        least = max(least, 1.0)
    power = 10.0 ** math.floor(math.log10(least))
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9))
    first, last = math.floor(low / width + ROUNDING), math.floor(high / width + ROUNDING) + 1
    return [i * width for i in range(first, last + 1)]


def histogram(counter: Counter[Any], edges: list[float]) -> dict[str, Any]:
    """Counts between the edges; what lies beyond them stands in the outermost bars and is counted as `beyond`."""
    nudge = ROUNDING * (edges[1] - edges[0])  # a value that stands on an edge belongs to the bar after it
    bars = [0] * (len(edges) - 1)
    beyond = 0
    for value, count in counter.items():
        place = bisect_right(edges, value + nudge) - 1
        beyond += 0 if 0 <= place < len(bars) else count
        bars[min(max(place, 0), len(bars) - 1)] += count
    return {"edges": edges, "counts": bars, "beyond": beyond}


class Figures:
    """Lengths, turns, scores and prompts of the pairs of one file."""

    def __init__(self) -> None:
        self.pairs = self.systems = self.alike = 0
        self.lengths = {part: Counter[int]() for part in ("prompt", "chosen", "rejected")}
        self.difference, self.turns = Counter[int](), Counter[int]()
        self.margins: Counter[float] = Counter()
        self.prompts: set[int] = set()

    def add(self, pair: Pair, prompt: int, chosen: str, rejected: str, shared: float) -> None:
        """Counts one pair; see `Gallery.add`."""
        self.pairs += 1
        self.lengths["prompt"][sum(len(m["content"]) for m in pair.prompt)] += 1
        self.lengths["chosen"][len(chosen)] += 1
        self.lengths["rejected"][len(rejected)] += 1
        self.difference[len(chosen) - len(rejected)] += 1
        self.turns[sum(m["role"] == "user" for m in pair.prompt)] += 1
        self.systems += any(m["role"] == "system" for m in pair.prompt)
        self.alike += shared >= ALIKE
        self.prompts.add(prompt)
        if pair.score_chosen is not None and pair.score_rejected is not None:
            self.margins[pair.score_chosen - pair.score_rejected] += 1

    def result(self) -> dict[str, Any] | None:
        """The figures as plain numbers; None without pairs."""
        if not self.pairs:
            return None
        answers = edges_of(self.lengths["chosen"], self.lengths["rejected"])
        edges = {"prompt": edges_of(self.lengths["prompt"]), "chosen": answers, "rejected": answers}
        return {
            "pairs": self.pairs,
            "prompts": len(self.prompts),
            "turns": sorted(self.turns.items()),
            "with_system": self.systems,
            "alike": self.alike,
            "lengths": {part: _spread(found, edges[part]) for part, found in self.lengths.items()},
            "difference": _spread(self.difference, edges_of(self.difference)),
            "length_accuracy": self._length_accuracy(),
            "margin": self._margin(),
        }

    def _length_accuracy(self) -> dict[str, Any]:
        """How often the better one of "the longer is chosen" and "the shorter is chosen" is right."""
        from preftune.statistics import wilson

        longer = sum(n for value, n in self.difference.items() if value > 0)
        equal = self.difference[0]
        shorter = self.pairs - longer - equal
        right = max(longer, shorter) + equal / 2
        low, high = wilson(right, self.pairs)
        which = "longer" if longer >= shorter else "shorter"
        return {"value": right / self.pairs, "low": low, "high": high, "which": which, "longer": longer, "equal": equal}

    def _margin(self) -> dict[str, Any] | None:
        if not self.margins:
            return None
        below = sum(n for value, n in self.margins.items() if value < 0)
        return _spread(self.margins, edges_of(self.margins)) | {"pairs": self.margins.total(), "below_zero": below}


def _spread(found: Counter[Any], edges: list[float]) -> dict[str, Any]:
    mean = sum(value * n for value, n in found.items()) / found.total()
    quantiles = {"median": quantile(found, 0.5), "p95": quantile(found, 0.95)}
    return {"mean": mean, **quantiles, "least": min(found), "most": max(found)} | histogram(found, edges)


def measure(pair: Pair, side: str, figures: Figures, gallery: Gallery | None = None) -> None:
    """Counts one pair and, with a gallery, looks whether it is one to show."""
    chosen, rejected = text_of_answer(pair.chosen), text_of_answer(pair.rejected)
    shared = sum(shared_ends(chosen, rejected)) / max(len(chosen), len(rejected), 1)
    digest = int(group_of(pair.prompt), 16)
    figures.add(pair, digest, chosen, rejected, shared)
    if gallery is not None:
        gallery.add(pair, side, digest, chosen, rejected, shared)
