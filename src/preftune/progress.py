"""Where a training stands, in words: for its log, the terminal's progress line and Prefect's page."""

from typing import Any

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
