"""What the training tells and watches: local metrics, sealed checkpoints, NaN as an error, SIGTERM as a pause.

Imported in the training child only.
"""

import json
import signal
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from preftune import checkpoints, progress
from preftune.children import tell
from preftune.errors import UserError

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
    """Seals each checkpoint with its manifest, last of all."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class FiniteCallback(TrainerCallback):
    """Stops at the first gradient that is not finite, before it reaches the weights."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise UserError(
                    f"the gradient is not finite at step {state.global_step + 1} (first in {name})",
                    "learning_rate",
                    "lower learning_rate, set max_grad_norm, or look for broken pairs around this step",
                )


class StopOnSignal(TrainerCallback):
    """On SIGTERM: finish the step, save a checkpoint, end."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._asked:
            control.should_save = control.should_training_stop = True


def callbacks(folder: Path) -> list[TrainerCallback]:
    """All of them, for a training in this folder."""
    return [MetricsCallback(folder), SealCallback(), FiniteCallback(), StopOnSignal()]
