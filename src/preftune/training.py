"""The training child: TRL's DPOTrainer on a job file, resumable after any kill.

Started as `accelerate launch … --module preftune.training JOB.json`. Everything that TRL or transformers can do
is left to them; ours is what stands in trainer.py.
"""

from preftune.children import die_with_parent

die_with_parent()

import json
import shutil
import time
from pathlib import Path
from typing import Any

from preftune import checkpoints, ranks
from preftune.children import child_main, read_json_lines, tell
from preftune.errors import StepError, UserError


def trainer_arguments(
    training: dict[str, Any], output_dir: Path, has_cuda: bool, has_bf16: bool = True
) -> dict[str, Any]:
    """The keyword arguments of `DPOConfig`: the recipe's keys and what the machine asks for.

    Args:
        training: `Recipe.training`.
        output_dir: Where checkpoints go.
        has_cuda: Whether there is a CUDA device.
        has_bf16: Whether it computes in bf16.
    """
    # The first process counts tokens and reads caches for all; the others must not give up on it after half an hour.
    machine: dict[str, Any] = {"ddp_timeout": 86_400}
    if has_cuda and not has_bf16 and not {"bf16", "fp16"} & set(training):
        machine["fp16"] = True  # TRL's default is bf16, which older GPUs (T4, V100) imitate slowly
    if not has_cuda:
        # TRL's defaults are for a GPU: bf16 is ~100 times slower than fp32 on most CPUs, and gradient
        # checkpointing costs a second forward pass to save memory that a CPU has.
        machine |= {
            "use_cpu": True,
            "bf16": False,
            "activation_checkpointing": False,
            "dataloader_pin_memory": False,
            "pad_to_multiple_of": None,
            "optim": "adamw_torch",
        }
    # transformers 5.23 calls it activation_checkpointing; recipes (and the TRL default) use the old name.
    renamed = {k.replace("gradient_checkpointing", "activation_checkpointing"): v for k, v in training.items()}
    return {**machine, "disable_tqdm": True, **renamed, "output_dir": str(output_dir)}


def _load_pairs(path: Path, rows: int | None = None) -> Any:
    from datasets import Dataset

    pairs = read_json_lines(path)[:rows]
    return Dataset.from_list([{k: p[k] for k in ("prompt", "chosen", "rejected")} for p in pairs])


def _trainable(
    data: Any, left_out: list[int] | None, tokenizer: Any, max_length: int | None, keep_start: bool, dropped: Path
) -> Any:
    """Leaves out the rows on which nothing can be learned at this max_length.

    The lengths step has counted them (`left_out`); where it could not, the ones that TRL would drop in silence (the
    prompt alone fills max_length) are found here.
    """
    from preftune.tokens import tokenize_prompt

    if left_out is not None:
        gone = set(left_out)
        return data.select([i for i in range(len(data)) if i not in gone])
    if max_length is None or not keep_start:
        return data
    lengths = [len(tokenize_prompt(tokenizer, row["prompt"])) for row in data]
    too_long = [i for i, n in enumerate(lengths) if n >= max_length]
    if ranks.rank() == 0:
        with dropped.open("w") as f:
            for i in too_long:
                told = {"row": i, "reason": "prompt_fills_max_length", "prompt_tokens": lengths[i]}
                f.write(json.dumps(told) + "\n")
    if too_long:
        tell(f"{len(too_long)} of {len(data)} pairs left out: the prompt alone fills max_length={max_length}")
    if len(too_long) == len(data):
        raise UserError(
            f"every prompt is longer than max_length={max_length} tokens (the shortest has {min(lengths)})",
            "max_length",
            f"raise max_length above {min(lengths)}; with answers about {int(min(lengths) * 1.5)}",
        )
    return data.select([i for i, n in enumerate(lengths) if n < max_length])


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
            revision), `chat_template`, `train`, `test` (files of pairs), `left_out` (side → line numbers from 0, or
            None), `eval_pairs`, `threads`.

    Raises:
        UserError: If nothing can be learned from these settings and data.
        StepError: If training stopped short.
    """
    import torch

    torch.set_num_threads(job["threads"])  # the number of threads changes sums' last digits
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, ModelConfig, get_peft_config, get_quantization_config

    from preftune.callbacks import callbacks
    from preftune.trainer import ResumableDPOTrainer

    started = time.monotonic()
    folder = Path(job["folder"])
    main_process = ranks.rank() == 0
    has_cuda = torch.cuda.is_available()
    has_bf16 = has_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    asked = ranks.take_launcher_settings()
    args = DPOConfig(**trainer_arguments(job["training"], folder / "checkpoints", has_cuda, has_bf16))
    _tell_overruled(asked, args)
    settings = ModelConfig(**job["model"])
    source = {"revision": job["revision"]} if job["revision"] else {}
    tokenizer = AutoTokenizer.from_pretrained(job["model_path"], **source)
    if job["chat_template"]:
        tokenizer.chat_template = job["chat_template"]
    if settings.load_in_4bit and not has_cuda:
        raise UserError("load_in_4bit needs a CUDA device", "load_in_4bit", "remove it to train LoRA in float32")
    left_out = job["left_out"] or {"train": None, "test": None}
    data = _trainable(
        _load_pairs(Path(job["train"])),
        left_out["train"],
        tokenizer,
        args.max_length,
        args.truncation_mode == "keep_start",
        folder / "dropped.jsonl",
    )
    held_out = None
    if args.eval_strategy != "no":
        held_out = _trainable(
            _load_pairs(Path(job["test"]), job["eval_pairs"]),
            left_out["test"],
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
    trainer = ResumableDPOTrainer(
        model=model,
        args=args,
        train_dataset=data,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=callbacks(folder),
    )
    resume = ranks.from_first(lambda: _resume_point(folder))
    if resume:
        trainer.restore_metrics(resume)
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
    ranks.leave()


def _tell_overruled(asked: dict[str, str], args: Any) -> None:
    for key, used in (("mixed_precision", args.mixed_precision), ("dynamo_backend", args.torch_compile_backend)):
        if key in asked and asked[key] != (used or "no"):
            tell(f"{key}: {used or 'no'}, as the recipe says; the launcher's file says {asked[key]}")


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


if __name__ == "__main__":
    child_main(train)
