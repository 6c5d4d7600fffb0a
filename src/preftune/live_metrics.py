"""Sending a training's metrics to MLflow while they come; an outage delays them and is remembered, nothing more."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from preftune.workspace import Workspace


class MetricSender:
    """Sends metrics.jsonl rows to one run, each (name, step) once, also across processes."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._sent: set[tuple[str, int]] = set()
        self._asked: set[str] = set()

    def send(self, rows: Iterable[dict[str, Any]]) -> None:
        """Sends rows of the form {"step": n, "metrics": {name: value}}; NaN included, as MLflow keeps it."""
        try:
            self._send(rows)
        except Exception:
            self._asked.clear()  # the server may have taken what it never confirmed: ask it before sending again
            raise

    def _send(self, rows: Iterable[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        new = []
        now = int(time.time() * 1000)
        for row in rows:
            for name, value in row["metrics"].items():
                if value is None:
                    continue
                if name not in self._asked:
                    history = self._client.get_metric_history(self._run_id, name)
                    self._sent |= {(name, m.step) for m in history}
                    self._asked.add(name)
                if (name, row["step"]) not in self._sent:
                    new.append(Metric(name, float(value), now, row["step"]))
        for start in range(0, len(new), 500):
            batch = new[start : start + 500]
            self._client.log_batch(self._run_id, metrics=batch)
            self._sent |= {(m.key, m.step) for m in batch}


class LiveMetrics:
    """What `children.Tail` calls while a training runs.

    Args:
        open_sender: Finds or makes the MLflow run; called in the tail's thread, with the first rows.
        note: Where an outage is noted, for `outage`.
        say: Tells the user.
    """

    def __init__(self, open_sender: Callable[[], MetricSender], note: Path, say: Callable[[str], None]) -> None:
        self._open, self._note, self._say = open_sender, note, say
        self._sender: MetricSender | None = None
        self._away, self._step = False, 0

    def send(self, rows: list[dict[str, Any]]) -> None:
        """Sends new rows."""
        self._step = rows[0]["step"]
        if self._sender is None:
            self._sender = self._open()
        self._sender.send(rows)
        if self._away:
            self._away = False
            self._say("MLflow answers again: the metrics kept meanwhile are sent")

    def failed(self, error: Exception) -> None:
        """Notes the first failure of an outage."""
        self._away = True
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        if not self._note.exists():
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._note.write_text(json.dumps({"step": self._step, "reason": reason}))
        self._say(
            f"MLflow cannot be reached ({reason}): training goes on, its metrics from step {self._step} on are kept "
            "and sent later"
        )


def outage_note(workspace: Workspace, identity: str) -> Path:
    """Where an outage during the training of this run is noted."""
    return workspace.home / "tracked" / f"outage-{identity}.json"


def outage(note: Path) -> str | None:
    """The noted outage as a sentence; None if there was none."""
    try:
        found = json.loads(note.read_text())
        return (
            f"MLflow could not be reached during training, from step {found['step']} on ({found['reason']}): "
            "metrics were kept and sent later"
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None
