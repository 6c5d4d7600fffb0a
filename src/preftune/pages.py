"""HTML pages from templates/: everything that a dataset or model wrote is escaped."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_CONTROL = dict.fromkeys([*range(9), 11, *range(14, 32), 127], "\ufffd")


def render(template: str, **values: Any) -> str:
    """Renders a template of ours.

    Args:
        template: Its file's name.
        values: What it shows; a missing one is an error.

    Returns:
        One HTML document that can be written to a file.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["svg"] = lambda chart: Markup(chart.svg)  # plots.py: only our own labels and numbers
    environment.filters["count"] = lambda value: f"{value:,.0f}".replace("-", "−")
    page = environment.get_template(template).render(**values)
    # A lone surrogate cannot be written to a file, and control characters are no HTML: a NUL ends some readers' text.
    return page.encode("utf-8", "replace").decode("utf-8").translate(_CONTROL)
