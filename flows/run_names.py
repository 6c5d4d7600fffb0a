"""What flow runs are called: the recipe, and what was changed in it."""

from pathlib import Path
from typing import Any

_LENGTH = 80


def run_name(kind: str, what: str, overrides: dict[str, Any] | None) -> str:
    """`dpo starter beta=0.2`: the kind of run, what it works on, the overrides but for where the result goes."""
    changed = [f"{k}={v}" for k, v in (overrides or {}).items() if k != "output_dir"]
    name = " ".join([kind, what, *changed])
    return name if len(name) <= _LENGTH else name[: _LENGTH - 1] + "…"


def recipe_name(path: str) -> str:
    """The recipe's folder, as its experiment is called."""
    return Path(path).parent.name
