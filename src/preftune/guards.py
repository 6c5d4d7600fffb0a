"""What stops a training that cannot come to good, before it costs more: each stop names the step and its rows, leaves
the checkpoints, and is never retried, since the same steps would end the same way.

Imported in the training child only.
"""

import json
import math
import shutil
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from preftune import checkpoints
from preftune.errors import StepError, UserError

_SHOWN_ROWS = 8
# Where chosen and rejected cancel out, float32 leaves about 1e-7; at chance a DPO gradient is beta/2 times tens.
_ZERO_GRADIENT = 1e-6
_ZERO_STEPS = 3  # one step of zero gradient may be chance (a hinge that every pair of the batch satisfies)
_BAD_WINDOWS = 2
# A model that knew nothing would give every token ln(vocabulary) nats. Half as much again, twice in a row, is no
# displacement of likelihood (which DPO does, and which the verdict weighs): the model is destroyed.
_WORSE_THAN_NOTHING = 1.5


def rows_of_step(loader: Any, step: int, accumulation: int, processes: int) -> list[int]:
    """The dataset's rows in one optimizer step, of all processes: the sampler is asked again, nothing is recorded.

    Args:
        loader: The trainer's prepared training data loader.
        step: From 1, counted over epochs.
        accumulation: Micro-batches of a process in a step.
        processes: How many processes train.
    """
    epoch, update = divmod(step - 1, math.ceil(len(loader) / accumulation))
    batches = loader.batch_sampler
    batches = copy(getattr(batches, "batch_sampler", batches))  # accelerate's shard wraps the one of all processes
    sampler = batches.sampler = copy(batches.sampler)  # the one in use is not disturbed
    if hasattr(sampler, "set_epoch"):
        sampler.generator = None  # accelerate's sampler seeds a new one with seed + epoch
        sampler.set_epoch(epoch)
    a_step = accumulation * processes
    return [row for batch in islice(batches, update * a_step, (update + 1) * a_step) for row in batch]


def checkpoint_bytes(model: Any, optimizer_name: str) -> tuple[int, int]:
    """(bytes of one checkpoint, bytes of the saved model): what is saved, and two moments a trained weight.

    Args:
        model: With its frozen and trainable parameters.
        optimizer_name: `args.optim`; an 8-bit one keeps a byte a moment.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    has_adapter = hasattr(model, "peft_config")
    saved = sum(p.numel() * p.element_size() for p in (trained if has_adapter else model.parameters()))
    a_moment = {p: 1 if "8bit" in optimizer_name else p.element_size() for p in trained}
    return saved + 2 * sum(p.numel() * size for p, size in a_moment.items()), saved


def space_needed(checkpoint: int, model: int, limit: int | None, saves: int, there: int) -> int:
    """Bytes that a training will still write: while a checkpoint is written, those that it replaces are still there.

    Args:
        checkpoint: Bytes of one.
        model: Bytes of the final model.
        limit: `save_total_limit`; None keeps all.
        saves: Checkpoints that are still to come.
        there: Bytes of those that are on disk already.
    """
    most = saves if limit is None else min(saves, limit + 1)
    return max(most * checkpoint - there, 0) + model


class Guard(TrainerCallback):
    """Stops at the first gradient or loss that is not finite, at a loss of exactly 0, where nothing is learned, and
    when the chosen answers have become less likely than by guessing.

    Args:
        trainer: Asked for its data and settings when something is wrong.
        folder: The training's; `stopped.json` in it gets all rows of the step.
    """

    def __init__(self, trainer: Any, folder: Path) -> None:
        self._trainer, self._folder = trainer, folder
        self._logged = self._zero_steps = self._bad_windows = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._logged = state.global_step
        if not state.is_world_process_zero:
            return
        output = Path(args.output_dir)
        checkpoint, final = checkpoint_bytes(model, str(args.optim).lower())
        a_save = state.save_steps if args.save_strategy == "steps" else state.max_steps / args.num_train_epochs
        saves = 0 if args.save_strategy == "no" else math.ceil((state.max_steps - state.global_step) / a_save)
        there = sum(f.stat().st_size for f in output.glob("checkpoint-*/**/*") if f.is_file())
        needed = space_needed(checkpoint, final, args.save_total_limit, saves, there)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise StepError(
                f"not enough disk space: checkpoints and model take {needed / 1e9:.3g} GB of {free / 1e9:.3g} free",
                str(self._folder),
                f"free {(needed - free) / 1e9:.3g} GB, or lower save_total_limit ({args.save_total_limit})",
            )

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        if not gradients:  # DeepSpeed keeps them elsewhere; on_log sees their norm
            return
        largest = torch.nn.utils.get_total_norm(list(gradients.values()), math.inf).item()
        self._zero_steps = self._zero_steps + 1 if largest < _ZERO_GRADIENT else 0
        scaler = self._trainer.accelerator.scaler
        if math.isfinite(largest) or (scaler is not None and scaler.get_scale() >= 1):
            return  # float16's scaler finds its scale by overflows, and skips those steps itself
        first = next((n for n, g in gradients.items() if not torch.isfinite(g).all()), "the sum of all")
        self._stop(
            f"the gradient is not finite at step {state.global_step + 1} (first in {first})",
            "learning_rate",
            "lower learning_rate, set max_grad_norm, or look at these pairs",
            state.global_step + 1,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._zero_steps == _ZERO_STEPS:
            control.should_log = True  # on_log decides, also where logging_steps is large

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in (logs or {}):
            return
        step, first, self._logged = state.global_step, self._logged + 1, state.global_step
        steps = f"at step {step}" if first >= step else f"in steps {first} to {step}"
        if not math.isfinite(logs["loss"]):
            self._stop(
                f"the loss is {logs['loss']} {steps}",
                "learning_rate",
                "lower learning_rate, or look at these pairs",
                first,
            )
        if logs["loss"] == 0 and "hinge" not in getattr(args, "loss_type", []):
            self._stop(
                f"the loss is exactly 0 {steps}: the margin is beyond what numbers can tell apart",
                "learning_rate",
                "lower learning_rate (a LoRA's is about 1e-5 to 2e-4, a full fine-tune's 5e-7 to 5e-6)",
                first,
            )
        if self._zero_steps >= _ZERO_STEPS and logs.get("rewards/accuracies", 1.0) <= 0.5:
            self._stop(
                f"nothing is learned {steps}: the gradient is 0 and the accuracy at chance",
                "dataset_mixture",
                "chosen and rejected may be the same for the model, or no weight that matters is trained",
                first,
            )
        floor = -_WORSE_THAN_NOTHING * math.log(self._trainer.model.config.get_text_config().vocab_size)
        chosen = self._chosen_logp_per_token(logs, first, step)
        self._bad_windows = self._bad_windows + 1 if chosen < floor else 0
        if self._bad_windows == _BAD_WINDOWS:
            self._stop(
                f"the chosen answers' log-probability has collapsed to {chosen:.1f} per token {steps} "
                f"(guessing gives {floor / _WORSE_THAN_NOTHING:.1f})",
                "learning_rate",
                "lower learning_rate, raise beta, or train for fewer steps",
                first,
            )

    def _rows(self, first: int, last: int) -> list[int]:
        trainer, args = self._trainer, self._trainer.args
        loader = trainer.callback_handler.train_dataloader
        each = [
            rows_of_step(loader, step, args.gradient_accumulation_steps, args.world_size)
            for step in range(first, last + 1)
        ]
        return [row for rows in each for row in rows]

    def _chosen_logp_per_token(self, logs: dict[str, float], first: int, last: int) -> float:
        """Mean over the window; ORPO logs it as such, DPO the sums of whole answers."""
        if "logps/chosen" not in logs or "log_odds_ratio" in logs:
            return logs.get("logps/chosen", 0.0)
        rows = self._trainer.train_dataset[self._rows(first, last)]
        limit = self._trainer.args.max_length or math.inf
        tokens = [
            min(len(chosen), max(limit - len(prompt), 1))
            for prompt, chosen in zip(rows["prompt_ids"], rows["chosen_ids"], strict=True)
        ]
        return logs["logps/chosen"] * len(tokens) / sum(tokens)

    def _stop(self, what: str, where: str, advice: str, first: int) -> None:
        last = max(self._trainer.state.global_step, first)
        ids = self._trainer.train_dataset[self._rows(first, last)]["id"]
        good = checkpoints.newest_sealed(Path(self._trainer.args.output_dir), before=first)
        more = f" and {len(ids) - _SHOWN_ROWS} more" if len(ids) > _SHOWN_ROWS else ""
        told = {"stopped": what, "steps": [first, last], "rows": ids, "checkpoint": str(good) if good else None}
        checkpoints.write_whole(self._folder / "stopped.json", json.dumps(told, indent=1))
        kept = f"; the checkpoint of step {checkpoints.step_of(good)} is kept" if good else ""
        raise UserError(f"{what}; rows {', '.join(ids[:_SHOWN_ROWS])}{more}{kept}", where, advice)
