"""How far something is, in words: for logs, the terminal's progress line and Prefect's page."""

import time
from collections.abc import Callable
from typing import Any

SHOWN_SECONDS = 10  # between two lines of progress

# (metric, label, format)
_SHOWN = (
    ("loss", "loss", ".4f"),
    ("rewards/accuracies", "accuracy", ".2f"),
    ("rewards/margins", "margin", "+.3f"),
    ("rewards/chosen", "chosen", "+.3f"),
    ("rewards/rejected", "rejected", "+.3f"),
)


def is_training(row: dict[str, Any]) -> bool:
    """Whether a row of metrics.jsonl is a training step's, not an evaluation's."""
    return "train/loss" in row["metrics"]


def values(row: dict[str, Any]) -> str:
    """`loss 0.6123  accuracy 0.62  margin +0.075  chosen +0.021  rejected -0.054`, of what was logged.

    Args:
        row: A row of metrics.jsonl.
    """
    kind, before = ("train", "") if is_training(row) else ("eval", "held-out ")
    found = {name: row["metrics"].get(f"{kind}/{name}") for name, *_ in _SHOWN}
    return before + "  ".join(
        f"{label} {found[name]:{form}}" for name, label, form in _SHOWN if found[name] is not None
    )


def clock(seconds: float) -> str:
    """`0:42`, `12:05` or `1:02:03`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def count_up(what: str, tell: Callable[[str], None]) -> Callable[[int, int], None]:
    """A function of (done, all), which tells now and then how much is done and how long the rest takes.

    Args:
        what: Of what, as in `scored answers: 40/160 (0:12, about 0:36 left)`.
        tell: Called with each line.
    """
    began = told = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if done == total or now - told > SHOWN_SECONDS:
            told = now
            spent = now - began
            left = f", about {clock(spent / done * (total - done))} left" if 0 < done < total else ""
            tell(f"{what}: {done}/{total} ({clock(spent)}{left})")

    return show
