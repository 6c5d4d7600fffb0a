"""The training child: TRL's DPOTrainer or ORPOTrainer on a job file, resumable after any kill.

Started as `accelerate launch … --module preftune.training JOB.json`. Everything that TRL or transformers can do
is left to them; ours is what stands in trainer.py and callbacks.py.
"""

from preftune.children import die_with_parent

die_with_parent()

import json
import os
import time
from pathlib import Path
from typing import Any

from preftune import checkpoints, ranks
from preftune import training_setup as setup
from preftune.children import child_main, read_json_lines, tell
from preftune.errors import StepError, UserError
from preftune.plan import no_batch
from preftune.reporting import finish_reporting, prepare_reporting


def _resume_point(folder: Path, fingerprint: dict[str, str]) -> Path | None:
    """The checkpoint to go on from; metrics that it will write again are taken back."""
    found = checkpoints.to_resume(folder / "checkpoints", fingerprint)
    step = checkpoints.step_of(found)
    kept = [r for r in read_json_lines(folder / "metrics.jsonl") if r["step"] <= step]
    checkpoints.write_whole(folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))
    if step:
        tell(f"resuming from step {step}")
    return found


def _classes(method: str) -> tuple[Any, Any]:
    """The method's configuration and trainer."""
    if method == "orpo":
        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # it moved there; the warning is for authors, not users
        from trl.experimental.orpo import ORPOConfig

        from preftune.orpo import ResumableORPOTrainer

        return ORPOConfig, ResumableORPOTrainer
    from trl import DPOConfig

    from preftune.trainer import ResumableDPOTrainer

    return DPOConfig, ResumableDPOTrainer


def _build_trainer(job: dict[str, Any], folder: Path) -> tuple[Any, int]:
    """The trainer of the recipe's method, and the number of pairs that it trains on."""
    from accelerate.utils import parse_flag_from_env
    from transformers import AutoTokenizer
    from trl import ModelConfig

    from preftune.callbacks import callbacks

    config_class, trainer_class = _classes(job["method"])
    is_orpo = job["method"] == "orpo"
    arguments = setup.trainer_arguments(job["training"], folder / "checkpoints", setup.this_machine())
    if is_orpo:
        arguments["remove_unused_columns"] = False  # TRL sets it too, with a warning
    asked = ranks.take_launcher_settings()
    try:
        args = config_class(**arguments)
    except ValueError as e:
        raise UserError(str(e).strip().splitlines()[0], "recipe", "correct the key") from None
    _tell_overruled(asked, args)
    prepare_reporting(args.report_to, folder)
    settings = ModelConfig(**job["model"])
    tokenizer = AutoTokenizer.from_pretrained(job["model_path"], revision=job["revision"] or "main")
    if job["chat_template"]:
        tokenizer.chat_template = job["chat_template"]
    if tokenizer.pad_token is None:  # TRL's DPO trainer does this, its ORPO trainer does not
        tokenizer.pad_token = tokenizer.eos_token
    left_out: dict[str, Any] = job["left_out"] or {"train": None, "test": None}
    keep_start = is_orpo or args.truncation_mode == "keep_start"

    def rows(side: str, limit: int | None, dropped: str) -> Any:
        pairs = Path(job[side])
        if job.get("tokens") and not is_orpo:  # TRL's ORPO trainer cuts while it tokenizes
            data = setup.load_tokens(Path(job["tokens"][side]), pairs, left_out[side], tokenizer, limit)
            if data is not None:
                return data
        data = setup.load_pairs(pairs, limit)
        return setup.trainable(data, left_out[side], tokenizer, args.max_length, keep_start, folder / dropped)

    data = rows("train", None, "dropped.jsonl")
    held_out = rows("test", job["eval_pairs"], "dropped-eval.jsonl") if args.eval_strategy != "no" else None
    model, peft_config = setup.load_model(job, settings), setup.lora_config(settings)
    shared: dict[str, Any] = {
        "model": model,
        "args": args,
        "train_dataset": data,
        "eval_dataset": held_out,
        "processing_class": tokenizer,
        "peft_config": peft_config,
        "callbacks": callbacks(folder, job.get("fingerprint", {})),
    }
    shared["fast_path"] = job["fast_path"]
    if is_orpo:
        return trainer_class(**shared), len(data)
    if not peft_config and (not args.precompute_ref_log_probs or parse_flag_from_env("ACCELERATE_USE_FSDP")):
        # A frozen copy of our own (FSDP needs one to precompute): TRL would load it by name, without the revision.
        shared["ref_model"] = setup.load_model(job, settings)
    shared |= {"micro_batch_tokens": job["micro_batch_tokens"], "reference_cache": Path(job["reference"])}
    return trainer_class(**shared), len(data)


def train(job: dict[str, Any]) -> None:
    """Trains a policy.

    Args:
        job: `folder` (the step's partial folder), `method`, `recipe` (model and training sections), `model` (path,
            revision), `chat_template`, `train`, `test` (files of pairs), `left_out` (side → line numbers from 0, or
            None), `tokens` (side → file with the token ids of the others, or None), `eval_pairs`, `threads`,
            `reference` (folder of the starting model's log-probabilities), `fingerprint` (what a checkpoint must be
            of to be resumed from).

    Raises:
        UserError: If nothing can be learned from these settings and data.
        StepError: If training stopped short.
    """
    import torch

    from preftune.guards import Guard

    torch.set_num_threads(job["threads"])  # the number of threads changes sums' last digits
    started = time.monotonic()
    folder = Path(job["folder"])
    main_process = ranks.rank() == 0
    trainer, pairs = _build_trainer(job, folder)
    built = time.monotonic()
    if trainer.args.dataloader_drop_last and pairs < (batch := trainer.args.train_batch_size * trainer.args.world_size):
        raise no_batch(pairs, batch)
    if trainer.args.fp16 and (job["model"].get("load_in_4bit") or job["model"].get("load_in_8bit")):
        setup.widen_adapter(trainer.model)
    trainer.add_callback(Guard(trainer, folder))
    resume = ranks.from_first(lambda: _resume_point(folder, job.get("fingerprint", {})))
    if resume:
        trainer.restore_metrics(resume)
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except Exception as e:
        e.add_note(f"after {trainer.state.global_step} of {trainer.state.max_steps} steps")  # for faults.named
        raise
    state = trainer.state
    if state.global_step != state.max_steps:
        raise StepError(
            f"training was stopped at step {state.global_step} of {state.max_steps}; a checkpoint is saved",
            str(folder),
            "run the same command again: it goes on from there",
        )
    trainer.save_model(str(folder / "model"))
    if main_process:
        reference = getattr(trainer, "reference_seconds", 0.0)  # ORPO has none
        ended = time.monotonic()
        parts = {"load": built - started - reference, "reference": reference, "steps": ended - built}
        _finish(folder, trainer, pairs, {"seconds": ended - started, **parts})
    ranks.leave()


def _tell_overruled(asked: dict[str, str], args: Any) -> None:
    for key, used in (("mixed_precision", args.mixed_precision), ("dynamo_backend", args.torch_compile_backend)):
        if key in asked and asked[key] != (used or "no"):
            tell(f"{key}: {used or 'no'}, as the recipe says; the launcher's file says {asked[key]}")


def _finish(folder: Path, trainer: Any, pairs: int, timing: dict[str, float]) -> None:
    trainer.processing_class.save_pretrained(folder / "model")
    # An adapter's folder would have none.
    trainer.accelerator.unwrap_model(trainer.model).generation_config.save_pretrained(folder / "model")
    # training_args.bin is a pickle that holds tokens in plain text; the card would name folders of this machine.
    for name in ("training_args.bin", "README.md"):
        (folder / "model" / name).unlink(missing_ok=True)
    finish_reporting(folder)
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
        "fast_path": trainer.fast_path,
    }
    (folder / "train.json").write_text(json.dumps(summary, indent=1))
    (folder / "timing.json").write_text(json.dumps({part: round(s, 1) for part, s in timing.items()}))


if __name__ == "__main__":
    child_main(train)
