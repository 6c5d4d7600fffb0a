"""The report's charts, as inline SVG.

Their colours are CSS variables of the page (light and dark), their text stays text, and nothing in them comes
from the data but numbers. The same input gives the same bytes.
"""

import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

# What matplotlib draws with → the page's CSS variable that takes its place.
COLOURS = {
    "fg": "#0a0b01",
    "muted": "#0a0b02",
    "line": "#0a0b03",
    "sft": "#0a0b04",
    "dpo": "#0a0b05",
    "chosen": "#0a0b06",
    "rejected": "#0a0b07",
    "margin": "#0a0b08",
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "preftune",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": COLOURS["fg"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.xmargin": 0.02,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.borderaxespad": 0.2,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.8,
}
Point = tuple[float, float]


class Chart(NamedTuple):
    """A chart and what it says.

    Args:
        svg: Safe markup.
        title: Its heading.
        caption: Its message in words, for those who cannot see it too.
    """

    svg: str
    title: str
    caption: str


def number(value: float) -> str:
    """A number for people: mostly three decimals, a real minus sign, powers of ten only where needed."""
    if value == 0:
        return "0"
    size = abs(value)
    text = f"{value:.2g}" if size < 0.0005 or size >= 1e6 else f"{value:,.0f}" if size >= 1000 else f"{value:.3f}"
    return text.replace("-", "−")


@contextmanager
def new_figure(width: float = 5.2) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure in our style; the width is in inches."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, 3.1), layout="constrained")
        axes = figure.add_subplot()
        axes.tick_params(length=0)
        yield figure, axes


def to_svg(figure: Figure, name: str, title: str, caption: str) -> str:
    """Draws, and makes the result fit for a page that holds several of them."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata.*?</metadata>", "", text, flags=re.S)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    view = re.search(r'viewBox="[^"]*"', text)
    assert view, "matplotlib's SVG has a viewBox"
    head = f'<svg {view[0]} role="img" aria-labelledby="{name}-title {name}-desc">'
    names = f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-desc">{html.escape(caption)}</desc>'
    body = re.sub(r"<svg[^>]*>", "", text, count=1)
    return re.sub(r"\s*\n\s*", "\n", head + names + body).strip()


def series(curves: Sequence[dict[str, Any]], name: str) -> list[Point]:
    """The finite values of one metric over the steps.

    Args:
        curves: Rows of metrics.jsonl.
        name: As logged, for example `train/loss`.
    """
    rows = [(row.get("step"), (row.get("metrics") or {}).get(name)) for row in curves]
    points = [(s, v) for s, v in rows if isinstance(s, int | float) and isinstance(v, int | float)]
    return sorted((float(s), float(v)) for s, v in points if math.isfinite(v))


def _line(axes: Axes, points: list[Point], colour: str, held_out: bool = False, label: str = "") -> None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    marker = "o" if held_out or len(points) == 1 else None
    style = (0, (4, 2)) if held_out else "-"
    axes.plot(xs, ys, color=COLOURS[colour], linestyle=style, marker=marker, markersize=4, label=label)


def add_legend(axes: Axes, handles: list[Any] | None = None, columns: int = 3) -> None:
    """Puts the legend above the plot, where it covers nothing."""
    where: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": columns}
    axes.legend(handles=handles, **where) if handles else axes.legend(**where)


def _over_steps(axes: Axes) -> None:
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def _told(found: dict[str, list[Point]], share: bool = False) -> str:
    """First and last value of each, in words."""

    def text(value: float) -> str:
        return f"{value:.1%}" if share else number(value)

    ends = {name: (points[0][1], points[-1][1], len(points)) for name, points in found.items() if points}
    return "; ".join(f"{n} {text(a)}" + (f" to {text(b)}" if many > 1 else "") for n, (a, b, many) in ends.items())


def _pair_chart(curves: Sequence[dict[str, Any]], metric: str, name: str, title: str, share: bool) -> Chart | None:
    found = {"training": series(curves, f"train/{metric}"), "held-out": series(curves, f"eval/{metric}")}
    if not any(found.values()):
        return None
    caption = f"First to last logged value: {_told(found, share)}."
    with new_figure(width=4.5) as (figure, axes):
        for label, colour in (("training", "dpo"), ("held-out", "margin")):
            if found[label]:
                _line(axes, found[label], colour, held_out=label == "held-out", label=label)
        _over_steps(axes)
        if share:
            axes.axhline(0.5, color=COLOURS["fg"], linewidth=1.2, linestyle=":")
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            caption += " The dotted line is chance (50%)."
        add_legend(axes)
        return Chart(to_svg(figure, name, title, caption), title, caption)


def loss_chart(curves: Sequence[dict[str, Any]]) -> Chart | None:
    """The loss over the steps, training and held-out; None if it was never logged."""
    title = "ORPO loss" if series(curves, "train/log_odds_ratio") else "DPO loss"
    return _pair_chart(curves, "loss", "loss", title, share=False)


def accuracy_chart(curves: Sequence[dict[str, Any]]) -> Chart | None:
    """The reward accuracy over the steps; None if it was never logged."""
    return _pair_chart(curves, "rewards/accuracies", "accuracy", "Reward accuracy", share=True)


def rewards_chart(curves: Sequence[dict[str, Any]]) -> Chart | None:
    """Rewards of chosen and rejected answers and their margin over the steps; None if never logged."""
    names = {"chosen": "chosen", "rejected": "rejected", "margins": "margin"}
    train = {label: series(curves, f"train/rewards/{n}") for n, label in names.items()}
    held = {label: series(curves, f"eval/rewards/{n}") for n, label in names.items()}
    if not any([*train.values(), *held.values()]):
        return None
    title = "Rewards"
    which = "solid: training, dashed: held-out" if any(held.values()) and any(train.values()) else ""
    told = _told(train if any(train.values()) else held)
    caption = f"First to last logged value: {told}." + (f" Lines: {which}." if which else "")
    with new_figure(width=4.5) as (figure, axes):
        axes.axhline(0, color=COLOURS["fg"], linewidth=1.2, linestyle=":")
        for found, is_held in ((train, False), (held, True)):
            for label, points in found.items():
                if points:
                    _line(axes, points, label, held_out=is_held)
        _over_steps(axes)
        add_legend(axes, [Line2D([], [], color=COLOURS[c], label=c) for c in names.values()])
        return Chart(to_svg(figure, "rewards", title, caption), title, caption)


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


def lengths_chart(sft: Sequence[int], policy: Sequence[int]) -> Chart | None:
    """Histograms of the answers' tokens, SFT and DPO on the same bins; None without answers."""
    if not sft or not policy:
        return None
    title = "Length of the answers"
    median = {who: sorted(found)[len(found) // 2] for who, found in (("SFT", sft), ("DPO", policy))}
    caption = f"Median length in tokens: SFT {median['SFT']:,}, DPO {median['DPO']:,}."
    edges = _edges([*sft, *policy], 16, from_zero=True)
    with new_figure() as (figure, axes):
        for label, colour, found in (("SFT", "sft", sft), ("DPO", "dpo", policy)):
            style: dict[str, Any] = {"color": COLOURS[colour], "baseline": 0}
            axes.stairs(_counts(found, edges), edges, fill=True, alpha=0.22, **style)
            dashes = (0, (4, 2)) if label == "SFT" else "-"
            axes.stairs(_counts(found, edges), edges, linewidth=1.8, linestyle=dashes, label=label, **style)
        axes.set(xlabel="tokens", ylabel="answers")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="x", visible=False)
        add_legend(axes)
        return Chart(to_svg(figure, "lengths", title, caption), title, caption)


def shares_chart(rows: Sequence[tuple[str, dict[str, tuple[float, float, float] | None]]]) -> Chart | None:
    """Shares of SFT and DPO with their intervals, one row a measure; None if nothing is measured.

    Args:
        rows: (our own label, {"SFT": (value, low, high) or None, "DPO": …}).
    """
    if not any(value for _, both in rows for value in both.values()):
        return None
    title = "Do the answers hold up?"
    texts = [
        f"{label}: " + ", ".join(f"{who} {v[0]:.1%}" if v else f"{who} not measured" for who, v in both.items())
        for label, both in rows
    ]
    caption = "; ".join(texts) + ". Lines are 95% intervals."
    with new_figure() as (figure, axes):
        for row, (_, both) in enumerate(rows):
            for who, colour, marker, offset in (("SFT", "sft", "s", -0.15), ("DPO", "dpo", "o", 0.15)):
                if found := both.get(who):
                    value, low, high = found
                    axes.plot([low, high], [row + offset] * 2, color=COLOURS[colour], linewidth=2.4, alpha=0.6)
                    axes.plot([value], [row + offset], color=COLOURS[colour], marker=marker, markersize=7)
        axes.set(xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="y", visible=False)
        kinds = (("SFT", "sft", "s"), ("DPO", "dpo", "o"))
        add_legend(axes, [Line2D([], [], color=COLOURS[c], marker=m, label=who) for who, c, m in kinds])
        return Chart(to_svg(figure, "shares", title, caption), title, caption)


def standalone_svg(chart: Chart) -> str:
    """The chart as a file of its own: real colours instead of the page's variables, on white."""
    text = chart.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:white" ', 1)
    for variable, colour in COLOURS.items():
        text = text.replace(f"var(--{variable})", colour)
    return text
