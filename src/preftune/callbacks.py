"""What the training tells: local metrics, sealed checkpoints, SIGTERM as a pause. What stops it is in guards.py.

Imported in the training child only.
"""

import json
import signal
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from preftune import checkpoints, progress, ranks
from preftune.children import tell

# Not reproducible, so not among the metrics.
_TIMINGS = ("runtime", "samples_per_second", "steps_per_second", "total_flos", "tokens_per_second")


def metric_name(key: str) -> str | None:
    """TRL's log key → our metric: `eval_rewards/margins` → `eval/rewards/margins`; None for timings."""
    if any(t in key for t in _TIMINGS) or key == "train_loss":
        return None
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


class MetricsCallback(TrainerCallback):
    """Writes every log line to metrics.jsonl and tells the user where the training stands."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "metrics.jsonl"
        self._began, self._from = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began, self._from = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            tell(f"training: {state.max_steps} steps" + (f", from {self._from}" if self._from else ""))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        named = {metric_name(k): float(v) for k, v in (logs or {}).items() if isinstance(v, int | float)}
        metrics = {k: v for k, v in named.items() if k}
        if not state.is_world_process_zero or not ({"train/loss", "eval/loss"} & set(metrics)):
            return
        with self._file.open("a") as f:
            row = {"step": state.global_step, "max_steps": state.max_steps, "metrics": metrics}
            f.write(json.dumps(row) + "\n")
        text = f"step {state.global_step}/{state.max_steps}  {progress.values(row)}"
        if progress.is_training(row):
            a_step = (time.monotonic() - self._began) / max(state.global_step - self._from, 1)
            text += f"  {progress.clock(a_step * (state.max_steps - state.global_step))} left"
        tell(text)


class SealCallback(TrainerCallback):
    """Seals each checkpoint with its manifest and what the training depends on, last of all: when every process has
    written its part."""

    def __init__(self, fingerprint: dict[str, str]) -> None:
        self._fingerprint = fingerprint

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        ranks.wait_for_all()
        if state.is_world_process_zero:
            checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", self._fingerprint)


class StopOnSignal(TrainerCallback):
    """On SIGTERM, or Ctrl-C where a launcher passes it on: finish the step, save a checkpoint, end.

    All processes of a training together: one that stopped a step before the others would leave them waiting.
    """

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if ranks.any_rank(self._asked):  # the signal may reach one process a step earlier: all stop at once
            control.should_save = control.should_training_stop = True


def callbacks(folder: Path, fingerprint: dict[str, str]) -> list[TrainerCallback]:
    """Those that need no trainer, for a training in this folder."""
    return [MetricsCallback(folder), SealCallback(fingerprint), StopOnSignal()]
