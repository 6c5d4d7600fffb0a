"""The training child: TRL's DPOTrainer on a job file, resumable after any kill.

Started as `accelerate launch … --module preftune.training JOB.json`. Everything that TRL or transformers can do
is left to them; ours are the callbacks that make checkpoints trustworthy, metrics local, and NaN an error.
"""

from preftune.children import die_with_parent

die_with_parent()

import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from preftune import checkpoints
from preftune.children import read_json_lines, report_error, tell
from preftune.errors import PreftuneError, StepError, UserError

# Not reproducible, so not among the metrics.
_TIMINGS = ("runtime", "samples_per_second", "steps_per_second", "total_flos", "tokens_per_second")


def metric_name(key: str) -> str | None:
    """TRL's log key → our metric: `eval_rewards/margins` → `eval/rewards/margins`; None for timings."""
    if any(t in key for t in _TIMINGS):
        return None
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def trainer_arguments(training: dict[str, Any], output_dir: Path, has_cuda: bool) -> dict[str, Any]:
    """The keyword arguments of `DPOConfig`: the recipe's keys and what the machine asks for.

    Args:
        training: `Recipe.training`.
        output_dir: Where checkpoints go.
        has_cuda: Whether there is a CUDA device.
    """
    machine: dict[str, Any] = {}
    if not has_cuda:
        # TRL's defaults are for a GPU: bf16 is ~100 times slower than fp32 on most CPUs, and gradient
        # checkpointing costs a second forward pass to save memory that a CPU has.
        machine = {
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "pad_to_multiple_of": None,
            "optim": "adamw_torch",
        }
    return {**machine, "disable_tqdm": True, **training, "output_dir": str(output_dir)}


def _load_pairs(path: Path, rows: int | None = None) -> Any:
    from datasets import Dataset

    pairs = read_json_lines(path)[:rows]
    return Dataset.from_list([{k: p[k] for k in ("prompt", "chosen", "rejected")} for p in pairs])


def _without_too_long(data: Any, tokenizer: Any, max_length: int | None, keep_start: bool, dropped: Path) -> Any:
    """Leaves out the rows that TRL would drop in silence (the prompt alone fills max_length), counted."""
    from preftune.tokens import tokenize_prompt

    if max_length is None or not keep_start:
        return data
    lengths = [len(tokenize_prompt(tokenizer, row["prompt"])) for row in data]
    too_long = [i for i, n in enumerate(lengths) if n >= max_length]
    with dropped.open("w") as f:
        for i in too_long:
            f.write(json.dumps({"row": i, "reason": "prompt_fills_max_length", "prompt_tokens": lengths[i]}) + "\n")
    if too_long:
        tell(f"{len(too_long)} of {len(data)} pairs left out: the prompt alone fills max_length={max_length}")
    if len(too_long) == len(data):
        raise UserError(
            f"every prompt is longer than max_length={max_length} tokens (the shortest has {min(lengths)})",
            "max_length",
            f"raise max_length above {min(lengths)}; with answers about {int(min(lengths) * 1.5)}",
        )
    return data.select([i for i, n in enumerate(lengths) if n < max_length])


def _callbacks(folder: Path, started: float) -> list[Any]:
    from transformers import TrainerCallback

    class Metrics(TrainerCallback):
        """Writes every log line to metrics.jsonl and tells the user where the training stands."""

        def __init__(self) -> None:
            self.first: tuple[float, int] | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.first = (time.monotonic(), state.global_step)
            if state.is_world_process_zero:
                tell(f"training: {state.max_steps} steps" + (f", from {state.global_step}" * bool(state.global_step)))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not state.is_world_process_zero or not logs:
                return
            named = {metric_name(k): float(v) for k, v in logs.items() if isinstance(v, int | float)}
            metrics = {k: v for k, v in named.items() if k and k != "train/train_loss"}
            if not metrics or set(metrics) <= {"train/epoch", "eval/epoch"}:
                return
            with (folder / "metrics.jsonl").open("a") as f:
                f.write(json.dumps({"step": state.global_step, "metrics": metrics}) + "\n")
            if "train/loss" in metrics and self.first:
                began, at = self.first
                left = (
                    (time.monotonic() - began) / max(state.global_step - at, 1) * (state.max_steps - state.global_step)
                )
                tell(
                    f"step {state.global_step}/{state.max_steps}  loss {metrics['train/loss']:.4f}"
                    f"  accuracy {metrics.get('train/rewards/accuracies', math.nan):.2f}"
                    f"  margin {metrics.get('train/rewards/margins', math.nan):+.3f}"
                    f"  {int(left) // 60}:{int(left) % 60:02d} left"
                )
            elif "eval/loss" in metrics:
                tell(
                    f"step {state.global_step}/{state.max_steps}  held-out loss {metrics['eval/loss']:.4f}"
                    f"  accuracy {metrics.get('eval/rewards/accuracies', math.nan):.2f}"
                )

    class Seal(TrainerCallback):
        """Seals each checkpoint with its manifest."""

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    class Finite(TrainerCallback):
        """Stops at the first gradient that is not finite, before it reaches the weights."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            import torch

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
            self.asked = False
            signal.signal(signal.SIGTERM, self._ask)

        def _ask(self, *_: Any) -> None:
            self.asked = True

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.asked:
                control.should_save = control.should_training_stop = True

    return [Metrics(), Seal(), Finite(), StopOnSignal()]


def _resume_point(folder: Path) -> Path | None:
    """The checkpoint to go on from; metrics that it will write again are taken back."""
    found = checkpoints.newest_whole(folder / "checkpoints")
    step = int(found.name.rpartition("-")[2]) if found else 0
    kept = [r for r in read_json_lines(folder / "metrics.jsonl") if r["step"] <= step]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    if found:
        tell(f"resuming from step {step}")
    return found


def train(job: dict[str, Any]) -> None:
    """Trains a policy.

    Args:
        job: `folder` (the step's partial folder), `recipe` (model and training sections), `model` (path,
            revision), `chat_template`, `train`, `test` (files of pairs), `eval_pairs`, `threads`.

    Raises:
        UserError: If nothing can be learned from these settings and data.
        StepError: If training stopped short.
    """
    import torch

    torch.set_num_threads(job["threads"])  # the number of threads changes sums' last digits
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, ModelConfig, get_peft_config, get_quantization_config

    started = time.monotonic()
    folder = Path(job["folder"])
    main_process = os.environ.get("RANK", "0") == "0"
    has_cuda = torch.cuda.is_available()
    args = DPOConfig(**trainer_arguments(job["training"], folder / "checkpoints", has_cuda))
    settings = ModelConfig(**job["model"])
    source = {"revision": job["revision"]} if job["revision"] else {}
    tokenizer = AutoTokenizer.from_pretrained(job["model_path"], **source)
    if job["chat_template"]:
        tokenizer.chat_template = job["chat_template"]
    if settings.load_in_4bit and not has_cuda:
        raise UserError("load_in_4bit needs a CUDA device", "load_in_4bit", "remove it to train LoRA in float32")
    data = _without_too_long(
        _load_pairs(Path(job["train"])),
        tokenizer,
        args.max_length,
        args.truncation_mode == "keep_start",
        folder / "dropped.jsonl",
    )
    held_out = None
    if args.eval_strategy != "no":
        held_out = _without_too_long(
            _load_pairs(Path(job["test"]), job["eval_pairs"]),
            tokenizer,
            args.max_length,
            args.truncation_mode == "keep_start",
            folder / "dropped-eval.jsonl",
        )
    model = AutoModelForCausalLM.from_pretrained(
        job["model_path"],
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        quantization_config=get_quantization_config(settings),
        use_safetensors=True,
        **source,
    )
    peft_config = get_peft_config(settings)
    if isinstance(peft_config, LoraConfig) and not settings.lora_target_modules:
        peft_config.target_modules = "all-linear"
    reference = None
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=data,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=_callbacks(folder, started),
    )
    resume = _resume_point(folder) if main_process else checkpoints.newest_whole(folder / "checkpoints")
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    state = trainer.state
    if state.global_step != state.max_steps:
        raise StepError(
            f"training was stopped at step {state.global_step} of {state.max_steps}; a checkpoint is saved",
            str(folder),
            "run the same command again: it goes on from there",
        )
    trainer.save_model(str(folder / "model"))
    if main_process:
        _finish(folder, trainer, tokenizer, len(data), time.monotonic() - started)


def _finish(folder: Path, trainer: Any, tokenizer: Any, pairs: int, seconds: float) -> None:
    tokenizer.save_pretrained(folder / "model")
    # training_args.bin is a pickle that holds tokens in plain text; the card would name folders of this machine.
    for name in ("training_args.bin", "README.md"):
        (folder / "model" / name).unlink(missing_ok=True)
    runs = folder / "checkpoints" / "runs"
    if runs.exists():  # TensorBoard's, where report_to asked for it
        shutil.copytree(runs, folder / "runs", dirs_exist_ok=True)
    parameters = list(trainer.model.parameters())
    summary = {
        "steps": trainer.state.global_step,
        "max_steps": trainer.state.max_steps,
        "pairs": pairs,
        "epochs": trainer.state.epoch,
        "tokens": trainer.state.num_input_tokens_seen or None,
        "adapter": trainer.model.__class__.__name__.startswith("Peft"),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "parameters": sum(p.numel() for p in parameters),
        "world_size": trainer.args.world_size,
    }
    (folder / "train.json").write_text(json.dumps(summary, indent=1))
    (folder / "timing.json").write_text(json.dumps({"seconds": round(seconds, 1)}))


def main() -> None:
    """The child's entry: reads the job file, trains, and leaves an error.json if it failed."""
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        train(job)
    except PreftuneError as e:
        report_error(Path(job["folder"]), e)
        sys.exit(1)


if __name__ == "__main__":
    main()
