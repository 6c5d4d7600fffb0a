"""The training's curves: loss, rewards and accuracy over the steps. `plots.py` tells how they are drawn."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from preftune.display import number
from preftune.plots import COLOURS, Chart, add_legend, new_figure, to_svg

Point = tuple[float, float]
MARKERS = {"chosen": "^", "rejected": "v", "margin": "D"}  # not by colour alone


def series(curves: Sequence[dict[str, Any]], name: str) -> list[Point]:
    """The finite values of one metric over the steps.

    Args:
        curves: Rows of metrics.jsonl.
        name: As logged, for example `train/loss`.
    """
    rows = [(row.get("step"), (row.get("metrics") or {}).get(name)) for row in curves]
    points = [(s, v) for s, v in rows if isinstance(s, int | float) and isinstance(v, int | float)]
    return sorted((float(s), float(v)) for s, v in points if math.isfinite(v))


def _line(
    axes: Axes, points: list[Point], colour: str, held_out: bool = False, label: str = "", marker: str = ""
) -> None:
    """A curve; one without a marker of its own gets dots where the points are few."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    style: dict[str, Any] = {"linestyle": (0, (4, 2)) if held_out else "-", "markersize": 5 if marker else 4}
    style["marker"] = marker or ("o" if held_out or len(points) == 1 else None)
    if marker and not held_out:
        style["markevery"] = max(len(points) // 8, 1)
    axes.plot(xs, ys, color=COLOURS[colour], label=label, **style)


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
                    _line(axes, points, label, held_out=is_held, marker=MARKERS[label])
        _over_steps(axes)
        add_legend(axes, [Line2D([], [], color=COLOURS[c], label=c, marker=MARKERS[c]) for c in names.values()])
        return Chart(to_svg(figure, "rewards", title, caption), title, caption)
