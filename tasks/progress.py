"""A training's progress while it runs: one line at the bottom of a terminal, and Prefect's progress artifact.

The log has a line for each logged step, too; in a terminal the progress line shows them instead. It is drawn on
the console that Prefect logs to, so that log lines pass above it.
"""

import logging
import time
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.theme import Theme

from preftune.progress import clock, is_training, values

ARTIFACT_SECONDS = 5.0  # an update takes the server about 20 ms


def _console_handler() -> PrefectConsoleHandler | None:
    """Prefect's console handler, if it writes to a terminal."""
    loggers = [logging.getLogger(name) for name in ("prefect", "")]
    handlers = [h for logger in loggers for h in logger.handlers if isinstance(h, PrefectConsoleHandler)]
    return next((h for h in handlers if h.console.is_terminal), None)


def _not_a_step(record: logging.LogRecord) -> bool:
    """Hides what the progress line shows: `step 3/16  loss …`; held-out losses stay."""
    text = record.getMessage()
    return not (text.startswith("step ") and "  loss " in text)


class TerminalLine:
    """`training ━━━━ 12/120 0:42 left loss 0.61 …`, below Prefect's log lines; a narrow terminal cuts its end."""

    def __init__(self, handler: PrefectConsoleHandler) -> None:
        self._handler, self._console = handler, handler.console
        self._progress = _columns(self._console)
        self._bar = self._progress.add_task("starting", total=None, left="")

    def start(self) -> None:
        self._console.push_theme(Theme())  # Prefect's own theme has no colours for a bar
        self._handler.addFilter(_not_a_step)
        self._progress.start()

    def show(self, row: dict[str, Any], left: str) -> None:
        text = values(row)
        self._progress.update(self._bar, total=row["max_steps"], completed=row["step"], description=text, left=left)

    def stop(self) -> None:
        self._progress.stop()
        self._handler.removeFilter(_not_a_step)
        self._console.pop_theme()


def _columns(console: Console) -> Progress:
    columns = (TextColumn("training"), BarColumn(12), MofNCompleteColumn(), TimeElapsedColumn())
    left = TextColumn("{task.fields[left]}")
    rest = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    return Progress(*columns, left, rest, console=console, refresh_per_second=2, expand=True)


class TrainingProgress:
    """Shows rows of metrics.jsonl as they come; made and left in the task's own thread.

    Prefect's server may be away: then the artifact stands still until it is back, and the training goes on.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._artifact: UUID | None = None
        self._away = False
        self._updated, self._text = -ARTIFACT_SECONDS, "done"
        self._first: tuple[int, float] | None = None
        handler = _console_handler()
        self._line = TerminalLine(handler) if handler else None

    def __enter__(self) -> "TrainingProgress":
        try:  # here and not in `show`: the tail's thread is in no task
            created: Any = create_progress_artifact(0.0, key="training", description="starting")
            self._artifact = created
        except Exception as e:
            self._logger.warning("no progress on Prefect's page: %s", e)
        if self._line:
            self._line.start()
        return self

    def show(self, rows: list[dict[str, Any]]) -> None:
        """What `children.Tail` calls with new rows."""
        steps = [row for row in rows if is_training(row)]
        if not steps:
            return
        row, now = steps[-1], time.monotonic()
        left = self._left(row, now)
        if self._line:
            self._line.show(row, left)
        self._text = f"step {row['step']} of {row['max_steps']}  {values(row)}"
        if now - self._updated >= ARTIFACT_SECONDS:
            self._updated = now
            self._update(100 * row["step"] / row["max_steps"], f"{self._text}  {left}".rstrip())

    def _left(self, row: dict[str, Any], now: float) -> str:
        """The time left, from the second look on: the rows of an earlier try come all at once."""
        if self._first is None or row["step"] <= self._first[0]:
            self._first = (row["step"], now)
            return ""
        step, began = self._first
        return clock((now - began) / (row["step"] - step) * (row["max_steps"] - row["step"])) + " left"

    def _update(self, percent: float, text: str) -> None:
        if self._artifact is None:
            return
        try:
            update_progress_artifact(self._artifact, percent, description=text)
            self._away = False
        except Exception as e:
            if not self._away:
                self._logger.warning("the progress on Prefect's page stands still: %s", e)
            self._away = True

    def __exit__(self, kind: Any, *_: object) -> None:
        if self._line:
            self._line.stop()
        if kind is None:
            self._update(100.0, self._text)
