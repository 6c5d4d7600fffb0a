"""Out of memory: the same training with less at a time, until it fits. Runs in the parent; each try is a fresh child,
since a process that ran out of device memory does not get all of it back.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preftune.checkpoints import newest_whole, step_of, write_whole
from preftune.errors import OutOfMemory, UserError
from preftune.known_keys import snapshot

LESS = "less_memory.json"  # what has been changed so far, for a later try

_BATCH, _ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
_EVAL_BATCH, _CHECKPOINTING = "per_device_eval_batch_size", "gradient_checkpointing"


def _value(training: dict[str, Any], key: str) -> Any:
    return training.get(key, snapshot()["training"][key]["default"])


def less_at_a_time(training: dict[str, Any], is_cuda: bool) -> dict[str, Any] | None:
    """The next smaller way to make the same optimizer steps; None if there is none.

    Micro-batch times accumulation stays what it is, so the steps and the pairs in each stay, too: an even micro-batch
    is halved, an odd one divided by its smallest factor. (Not with dataloader_drop_last: what an epoch drops depends
    on the micro-batch.) Gradient checkpointing comes last.

    Args:
        training: Keys of `DPOConfig` or `ORPOConfig`.
        is_cuda: Whether TRL's default for gradient checkpointing (on) is in force; on a CPU ours is off.

    Returns:
        The keys that change, with their new values.
    """
    batch = _value(training, _BATCH)
    others = {k: training[k] for k in ("precompute_ref_batch_size",) if training.get(k)}
    if training.get("eval_strategy", "no") != "no":
        others[_EVAL_BATCH] = _value(training, _EVAL_BATCH)

    def follow(limit: int) -> dict[str, Any]:
        """Without gradients as many pairs need less than in a training step."""
        return {k: limit for k, size in others.items() if size > limit}

    if batch > 1 and not training.get("dataloader_drop_last"):
        factor = next(n for n in range(2, batch + 1) if batch % n == 0)
        changed = {_BATCH: batch // factor, _ACCUMULATION: _value(training, _ACCUMULATION) * factor}
        return changed | follow(batch // factor)
    if less := follow(1):
        return less
    if not training.get(_CHECKPOINTING, training.get("activation_checkpointing", is_cuda)):
        return {_CHECKPOINTING: True}
    return None


def _told(before: dict[str, Any], changed: dict[str, Any], step: int) -> str:
    parts = [
        "gradient_checkpointing on" if k == _CHECKPOINTING else f"{k} {_value(before, k)} → {v}"
        for k, v in changed.items()
    ]
    return f"{', '.join(parts)}, from step {step}"


def _nothing_less(training: dict[str, Any], model: dict[str, Any], error: OutOfMemory) -> UserError:
    limit, batch = _value(training, "max_length"), _value(training, _BATCH)
    ways = [f"shorten max_length ({limit}), which activations and logits grow with"] if limit else ["set max_length"]
    if not model.get("use_peft"):
        ways.append("use_peft: true (LoRA trains about 1 % of the weights: gradients and optimizer almost vanish)")
    if not model.get("load_in_4bit"):
        ways.append("on CUDA load_in_4bit with use_peft (QLoRA: the weights take a quarter of bfloat16's)")
    if batch > 1:
        ways.append("no dataloader_drop_last (with it the micro-batch cannot be changed under way)")
    ways.append("a smaller model or a larger device")
    return UserError(
        f"{error.error} (although with per_device_train_batch_size {batch} and gradient checkpointing)",
        error.where,
        "what needs less: " + "; ".join(ways),
    )


def run_fitting(
    run: Callable[[dict[str, Any]], None], job: dict[str, Any], is_cuda: bool, tell: Callable[[str], None]
) -> list[str]:
    """Runs a training to its end; when it runs out of memory, goes on from its newest whole checkpoint with less.

    Args:
        run: Runs the job in a fresh child.
        job: As `training.train` takes it.
        is_cuda: Whether it trains on CUDA.
        tell: Told of each change.

    Returns:
        Every change, also of earlier tries, as it was told: ["per_device_train_batch_size 4 → 2, … from step 12"].

    Raises:
        UserError: If it does not fit with one pair at a time and gradient checkpointing.
    """
    folder = Path(job["folder"])
    kept = folder / LESS
    less = json.loads(kept.read_text()) if kept.exists() else {"keys": {}, "told": []}
    while True:
        training = {**job["training"], **less["keys"]}
        try:
            run({**job, "training": training})
        except OutOfMemory as e:
            changed = less_at_a_time(training, is_cuda)
            if changed is None:
                raise _nothing_less(training, job["model"], e) from None
            told = _told(training, changed, step_of(newest_whole(folder / "checkpoints")))
            tell(f"{e.error}: the same steps with less at a time ({told})")
            less = {"keys": {**less["keys"], **changed}, "told": [*less["told"], told]}
            write_whole(kept, json.dumps(less))
        else:
            return less["told"]
