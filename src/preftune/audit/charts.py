"""The audit's charts: histograms that were counted while the pairs streamed by. `plots.py` tells how they are drawn."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from preftune import plots
from preftune.display import number
from preftune.plots import COLOURS, Chart

WIDTH = 4.5
DASHED = (0, (4, 2))


def _whole(value: float) -> str:
    return f"{value:,.0f}".replace("-", "−")


def _beyond(*found: dict[str, Any]) -> str:
    count = sum(f["beyond"] for f in found)
    return f" {count:,} beyond the axis stand in the outermost bars." if count else ""


def _axes(axes: Axes, label: str, what: str) -> None:
    axes.set(xlabel=label, ylabel=what)
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def answers_chart(lengths: dict[str, Any], name: str) -> Chart:
    """Lengths of the chosen and the rejected answers, on the same bins.

    Args:
        lengths: The figures' `lengths`.
        name: Makes the SVG's ids unique in the page.
    """
    sides = {side: lengths[side] for side in ("chosen", "rejected")}
    title = "Length of the answers"
    told = ", ".join(f"{side} {_whole(found['median'])}" for side, found in sides.items())
    caption = f"Median in characters: {told}.{_beyond(*sides.values())}"
    with plots.new_figure(WIDTH) as (figure, axes):
        for side, found in sides.items():
            style: dict[str, Any] = {"color": COLOURS[side], "baseline": 0}
            axes.stairs(found["counts"], found["edges"], fill=True, alpha=0.22, **style)
            line = DASHED if side == "rejected" else "-"
            axes.stairs(found["counts"], found["edges"], linewidth=1.8, linestyle=line, label=side, **style)
        _axes(axes, "characters", "answers")
        plots.add_legend(axes)
        return Chart(plots.to_svg(figure, f"{name}-answers", title, caption), title, caption)


def prompts_chart(lengths: dict[str, Any], name: str) -> Chart:
    """Lengths of the prompts; see `answers_chart`."""
    found = lengths["prompt"]
    title = "Length of the prompts"
    caption = f"Median {_whole(found['median'])} characters, the longest {_whole(found['most'])}.{_beyond(found)}"
    with plots.new_figure(WIDTH) as (figure, axes):
        style: dict[str, Any] = {"color": COLOURS["dpo"], "baseline": 0}
        axes.stairs(found["counts"], found["edges"], fill=True, alpha=0.22, **style)
        axes.stairs(found["counts"], found["edges"], linewidth=1.8, **style)
        _axes(axes, "characters, all turns", "pairs")
        return Chart(plots.to_svg(figure, f"{name}-prompts", title, caption), title, caption)


def _around_zero(found: dict[str, Any], name: str, title: str, caption: str, label: str, sides: list[str]) -> Chart:
    """A histogram whose bars below 0 are rejected's; the mean as a dashed line."""
    edges = found["edges"]
    width = edges[1] - edges[0]
    with plots.new_figure(WIDTH) as (figure, axes):
        colours = [COLOURS["chosen" if edge > -width / 2 else "rejected"] for edge in edges[:-1]]
        axes.bar(edges[:-1], found["counts"], width * 0.92, align="edge", color=colours, alpha=0.85)
        axes.axvline(0, color=COLOURS["fg"], linewidth=1)
        axes.axvline(found["mean"], color=COLOURS["fg"], linewidth=1.4, linestyle=DASHED)
        axes.set_xlim(min(edges[0], found["mean"]), max(edges[-1], found["mean"]))
        _axes(axes, label, "pairs")
        colour = zip(("rejected", "chosen"), sides, strict=True)
        handles: list[Any] = [Line2D([], [], color=COLOURS[c], linewidth=6, label=text) for c, text in colour]
        handles.append(Line2D([], [], color=COLOURS["fg"], linestyle=DASHED, linewidth=1.4, label="mean"))
        plots.add_legend(axes, handles)
        return Chart(plots.to_svg(figure, name, title, caption), title, caption)


def difference_chart(figures: dict[str, Any], name: str) -> Chart:
    """Chosen's length minus rejected's; see `answers_chart`."""
    found, accuracy = figures["difference"], figures["length_accuracy"]
    caption = (
        f"The chosen answer is longer in {accuracy['longer']:,} of {figures['pairs']:,} pairs and as long in "
        f"{accuracy['equal']:,}; the mean difference is {_whole(found['mean'])} characters.{_beyond(found)}"
    )
    label, sides = "characters: chosen − rejected", ["rejected longer", "chosen longer"]
    return _around_zero(found, f"{name}-difference", "Difference of the lengths", caption, label, sides)


def margin_chart(found: dict[str, Any], name: str) -> Chart:
    """The source's own score of chosen minus that of rejected; see `answers_chart`.

    Args:
        found: The figures' `margin`.
    """
    caption = (
        f"{found['pairs']:,} pairs have scores; chosen has the lower one in {found['below_zero']:,}; "
        f"the mean margin is {number(found['mean'])}.{_beyond(found)}"
    )
    label, sides = "score of chosen − score of rejected", ["rejected higher", "chosen higher"]
    return _around_zero(found, f"{name}-margin", "Margin of the scores", caption, label, sides)


def figure_charts(figures: dict[str, Any], name: str) -> list[Chart]:
    """All charts of the figures of one file of pairs."""
    charts = [
        answers_chart(figures["lengths"], name),
        prompts_chart(figures["lengths"], name),
        difference_chart(figures, name),
    ]
    return [*charts, margin_chart(figures["margin"], name)] if figures["margin"] else charts
