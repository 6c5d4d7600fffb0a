"""How charts are drawn, as inline SVG: for the report, the comparison of runs and the audit.

Their colours are CSS variables of the page (light and dark), their text stays text, and nothing in them comes
from the data but numbers. The same input gives the same bytes.
"""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def add_legend(axes: Axes, handles: list[Any] | None = None, columns: int = 3) -> None:
    """Puts the legend above the plot, where it covers nothing."""
    where: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": columns}
    axes.legend(handles=handles, **where) if handles else axes.legend(**where)


def standalone_svg(chart: Chart) -> str:
    """The chart as a file of its own: real colours instead of the page's variables, on white."""
    text = chart.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:white" ', 1)
    for variable, colour in COLOURS.items():
        text = text.replace(f"var(--{variable})", colour)
    return text
