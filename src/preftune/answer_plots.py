"""Charts of what was measured: margins, lengths and shares. `plots.py` tells how they are drawn."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from preftune.display import number
from preftune.plots import COLOURS, Chart, add_legend, new_figure, to_svg

Triple = tuple[float, float, float]


def _edges(values: Sequence[float], bins: int, from_zero: bool = False) -> list[float]:
    """Edges of equally wide bins, one of them at 0; at least one bin."""
    low, high = (0.0 if from_zero else min(values)), max(values)
    width = (high - low) / bins or max(abs(high) / 10, 1e-3)
    first, last = math.floor(low / width), math.floor(high / width) + 1
    return [i * width for i in range(first, last + 1)]


def _counts(values: Sequence[float], edges: list[float]) -> list[int]:
    width, first = edges[1] - edges[0], round(edges[0] / (edges[1] - edges[0]))
    found = [0] * (len(edges) - 1)
    for value in values:
        found[min(max(math.floor(value / width) - first, 0), len(found) - 1)] += 1
    return found


def margins_chart(margins: Sequence[float]) -> Chart | None:
    """A histogram of the held-out margins, split at 0; None if there is no finite one."""
    values = [m for m in margins if isinstance(m, int | float) and math.isfinite(m)]
    if not values:
        return None
    mean, above = sum(values) / len(values), sum(m > 0 for m in values)
    title = "Distribution of the margins"
    caption = f"{above:,} of {len(values):,} pairs have a margin above 0 (right side); the mean is {number(mean)}."
    if left_out := len(margins) - len(values):
        caption += f" {left_out:,} margins are not finite and not drawn."
    edges = _edges(values, 30)
    with new_figure(width=6.0) as (figure, axes):
        width = edges[1] - edges[0]
        colours = [COLOURS["chosen" if edge > -width / 2 else "rejected"] for edge in edges[:-1]]
        axes.bar(edges[:-1], _counts(values, edges), width * 0.92, align="edge", color=colours, alpha=0.85)
        axes.axvline(0, color=COLOURS["fg"], linewidth=1)
        axes.axvline(mean, color=COLOURS["fg"], linewidth=1.4, linestyle=(0, (4, 2)), label="mean")
        axes.set(xlabel="margin: reward of chosen − reward of rejected", ylabel="pairs")
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        sides = [("rejected", "rejected preferred"), ("chosen", "chosen preferred")]
        handles: list[Any] = [Line2D([], [], color=COLOURS[c], linewidth=6, label=label) for c, label in sides]
        mean_line = Line2D([], [], color=COLOURS["fg"], linestyle=(0, (4, 2)), linewidth=1.4, label="mean")
        add_legend(axes, [*handles, mean_line])
        return Chart(to_svg(figure, "margins", title, caption), title, caption)


def lengths_chart(sft: Sequence[int], policy: Sequence[int], name: str) -> Chart | None:
    """Histograms of the answers' tokens on the same bins; None without answers.

    Args:
        sft: Tokens of each of the SFT model's answers.
        policy: Of the policy's.
        name: What the policy is called.
    """
    if not sft or not policy:
        return None
    title = "Length of the answers"
    both = {"SFT": sft, name: policy}
    told = ", ".join(f"{who} {sorted(found)[len(found) // 2]:,}" for who, found in both.items())
    caption = f"Median length in tokens: {told}."
    edges = _edges([*sft, *policy], 16, from_zero=True)
    with new_figure() as (figure, axes):
        for (label, found), colour, dashes in zip(both.items(), ("sft", "dpo"), ((0, (4, 2)), "-"), strict=True):
            style: dict[str, Any] = {"color": COLOURS[colour], "baseline": 0}
            axes.stairs(_counts(found, edges), edges, fill=True, alpha=0.22, **style)
            axes.stairs(_counts(found, edges), edges, linewidth=1.8, linestyle=dashes, label=label, **style)
        axes.set(xlabel="tokens", ylabel="answers")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="x", visible=False)
        add_legend(axes)
        return Chart(to_svg(figure, "lengths", title, caption), title, caption)


def shares_chart(rows: Sequence[tuple[str, Triple | None, Triple | None]], name: str) -> Chart | None:
    """Shares of SFT and policy with their intervals, one row a measure; None if nothing is measured.

    Args:
        rows: (our own label, SFT's value with its interval or None, the policy's).
        name: What the policy is called.
    """
    if not any(sft or policy for _, sft, policy in rows):
        return None
    title = "Do the answers hold up?"
    kinds = (("SFT", "sft", "s", -0.15), (name, "dpo", "o", 0.15))
    texts = []
    with new_figure() as (figure, axes):
        for row, (label, *both) in enumerate(rows):
            told = []
            for found, (who, colour, marker, offset) in zip(both, kinds, strict=True):
                told.append(f"{who} {found[0]:.1%}" if found else f"{who} not measured")
                if found:
                    value, low, high = found
                    axes.plot([low, high], [row + offset] * 2, color=COLOURS[colour], linewidth=2.4, alpha=0.6)
                    axes.plot([value], [row + offset], color=COLOURS[colour], marker=marker, markersize=7)
            texts.append(f"{label}: {', '.join(told)}")
        caption = "; ".join(texts) + ". Lines are 95% intervals."
        axes.set(xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="y", visible=False)
        add_legend(axes, [Line2D([], [], color=COLOURS[c], marker=m, label=who) for who, c, m, _ in kinds])
        return Chart(to_svg(figure, "shares", title, caption), title, caption)
