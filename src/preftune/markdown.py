"""Text that a dataset, a model or a recipe wrote, put into Markdown so that it is shown as it is."""

import html
import re
from typing import Any

from markupsafe import Markup


def markdown(text: Any) -> Markup:
    """Text that Markdown shows as it is, on one line."""
    if isinstance(text, Markup):
        return text
    line = html.escape(" ".join(str(text).split()), quote=False)
    return Markup(re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line))


def code(text: Any) -> Markup:
    """Text in a code span, also within a table."""
    line = " ".join(str(text).split()).replace("`", "'")
    return Markup(f"`{line}`".replace("|", "\\|"))
