"""A sweep's parallel coordinates: a line for each measured trial, across an axis for each key and one for the measure.

`plots.py` tells how charts are drawn. Optuna's own plot has fixed colours, of which the light ones vanish on white.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from preftune.display import value_text
from preftune.measure_table import measure_of
from preftune.plots import COLOURS, Chart, new_figure, to_svg
from preftune.sweep_schema import Range, Sweep
from preftune.sweep_space import shown

Axis = tuple[Callable[[Any], float], list[tuple[float, str]]]  # a value's place from 0 to 1; ticks
MOST_TICKS = 8


def _scale(low: float, high: float, text: Callable[[float], str], log: bool = False) -> Axis:
    """An axis from low to high."""
    to, back = (math.log, math.exp) if log else (float, float)
    width = (to(high) - to(low)) or 1.0
    ticks = [(i / 4, text(back(to(low) + width * i / 4))) for i in range(5)] if high > low else [(0.5, text(low))]
    return lambda v: (to(v) - to(low)) / width if high > low else 0.5, ticks


def _axis(wanted: Any, found: Sequence[Any]) -> Axis:
    """The axis of a key: numbers by size, all else side by side."""
    if isinstance(wanted, Range):
        text: Callable[[float], str] = (lambda v: f"{v:.0f}") if wanted.whole else (lambda v: f"{v:.2g}")
        return _scale(wanted.low, wanted.high, text, wanted.log)
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in wanted):
        place, _ = _scale(min(wanted), max(wanted), shown, min(wanted) > 0 and max(wanted) > 20 * min(wanted))
        return place, [(place(v), shown(v)) for v in sorted(wanted)[:: math.ceil(len(wanted) / MOST_TICKS)]]
    steps = max(len(wanted) - 1, 1)
    where = {repr(v): i / steps if len(wanted) > 1 else 0.5 for i, v in enumerate(wanted)}
    return lambda v: where[repr(v)], [(where[repr(v)], shown(v)[:24]) for v in wanted]


def parallel_coordinates(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> Chart | None:
    """The chart; None if fewer than two trials were measured.

    Args:
        sweep: The recipe's section.
        rows: From `sweep_ranking.ranked`.
    """
    done = [row for row in rows if row["state"] == "done"]
    if len(done) < 2:
        return None
    _, measure = measure_of(done[0]["measure"])
    values = [row["value"] for row in done]
    axes_of = {n: _axis(wanted, [row["values"][n] for row in done]) for n, wanted in sweep.parameters.items()}
    axes_of[measure.label] = _scale(min(values), max(values), lambda v: value_text(v, measure.unit))
    title = "Trials across the keys that were swept"
    caption = (
        f"A line for each of {len(done)} measured trials, from its values on the left to its {measure.label.lower()} "
        "on the right. Thick: the first rank; dashed: the verdict is reject."
    )
    with new_figure(width=max(5.2, 2.2 * len(axes_of))) as (figure, axes):
        axes.set_axis_off()
        axes.set_xlim(-0.15, len(axes_of) - 0.6)
        axes.set_ylim(-0.16, 1.1)
        for row in reversed(done):  # the first rank on top
            places = [axes_of[n][0](v) for n, v in row["values"].items()] + [axes_of[measure.label][0](row["value"])]
            first, rejected = row is done[0], row["outcome"] == "reject"
            axes.plot(
                range(len(places)),
                places,
                color=COLOURS["rejected" if rejected else "dpo"],
                linewidth=3.2 if first else 1.3,
                linestyle=(0, (4, 2)) if rejected else "-",
                marker="o",
                markersize=5 if first else 3,
            )
        for i, (name, (_, ticks)) in enumerate(axes_of.items()):
            axes.plot([i, i], [0, 1], color=COLOURS["line"], linewidth=1.2, zorder=0)
            axes.text(i, -0.11, name, ha="center", va="center", color=COLOURS["fg"])
            for place, text in ticks:
                axes.text(i + 0.03, place + 0.015, text, ha="left", va="bottom", color=COLOURS["muted"], fontsize=9.5)
        return Chart(to_svg(figure, "sweep", title, caption), title, caption)
