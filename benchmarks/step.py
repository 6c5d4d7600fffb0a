"""What a training step costs beside TRL's: `python -m benchmarks.step [--json]`; see README.md beside this file."""

import math
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.common import cpu_seconds, finish, parser, starter_model, starter_rows

MICRO, ACCUMULATED = 4, 8
PROMPT, ANSWER = (121.5, 0.9), (60.75, 0.9)  # mean of tokens, sigma of their logarithms: hh-rlhf's, about


def lognormal(mean: float, sigma: float, count: int, generator: random.Random) -> list[int]:
    """So many quantiles of a lognormal distribution, in random order: few draws would depend on chance."""
    normal, mu = statistics.NormalDist(), math.log(mean) - sigma**2 / 2
    quantiles = [math.exp(mu + sigma * normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
    scale = mean / statistics.mean(quantiles)
    found = [max(4, round(q * scale)) for q in quantiles]
    generator.shuffle(found)
    return found


def made_pairs(tokenizer: Any, count: int, seed: int = 1) -> list[dict[str, list[int]]]:
    """Token ids of pairs of hh-rlhf's lengths, cut out of the starter recipe's texts.

    Args:
        tokenizer: Of the model.
        count: How many.
        seed: Of the order.
    """
    generator = random.Random(seed)
    texts = [m["content"] for row in starter_rows("train") for side in ("chosen", "rejected") for m in row[side]]
    stream = [t for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for t in ids]

    def words(length: int) -> list[int]:
        begin = generator.randrange(len(stream) - length)
        return stream[begin : begin + length]

    lengths = zip(*(lognormal(*kind, count, generator) for kind in (PROMPT, ANSWER, ANSWER)), strict=True)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{name: words(n) for name, n in zip(names, of_pair, strict=True)} for of_pair in lengths]


def trainer_of(
    kind: str, model_path: Path, pairs: list[dict[str, list[int]]], folder: Path, max_length: int, lora: bool
) -> Any:
    """A trainer of one optimizer step over all pairs, in micro-batches of four.

    Args:
        kind: `trl` (online reference), `trl-precompute`, or `preftune`.
        model_path: Of the starting model.
        pairs: From `made_pairs`.
        folder: Of its output and its reference cache.
        max_length: Of prompt and answer.
        lora: Adapter of rank 16 on all linear layers; else all weights.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from preftune.trainer import ResumableDPOTrainer

    class Tokenized(DPOTrainer):
        """TRL's trainer on pairs that are tokens already."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    args = DPOConfig(
        output_dir=str(folder / "output"),
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
        max_length=max_length,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=len(pairs) // MICRO,
        max_steps=1,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        seed=1,
        precompute_ref_log_probs=kind != "trl",
    )
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    shared: dict[str, Any] = {
        "model": AutoModelForCausalLM.from_pretrained(model_path, dtype="float32"),
        "args": args,
        "train_dataset": Dataset.from_list(pairs),
        "processing_class": tokenizer,
    }
    if lora:
        shared["peft_config"] = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    if kind == "preftune":
        return ResumableDPOTrainer(reference_cache=folder / "reference", **shared)
    if not lora and kind == "trl":
        shared["ref_model"] = AutoModelForCausalLM.from_pretrained(model_path, dtype="float32")
    return Tokenized(**shared)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU-seconds of a piece of work, and what it gives."""
    before = cpu_seconds()
    found = work()
    return cpu_seconds() - before, found


def row_logps(trainer: Any, pairs: list[dict[str, list[int]]]) -> list[float]:
    """The reference's log-probability of each answer, four pairs at a time."""
    found: list[float] = []
    for begin in range(0, len(pairs), MICRO):
        batch = trainer.data_collator(pairs[begin : begin + MICRO])
        for side in trainer.compute_ref_log_probs(trainer.model, batch):
            found += side.tolist()
    return found


def measure(model_path: Path, count: int, rounds: int, max_length: int, lora: bool) -> dict[str, Any]:
    """CPU-seconds of an optimizer step each way, in turns, and what a cold reference costs; the least of all rounds."""
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    pairs = made_pairs(AutoTokenizer.from_pretrained(model_path), count)
    steps: dict[str, list[float]] = {"trl": [], "trl-precompute": [], "preftune": []}
    cold: dict[str, list[float]] = {"trl-precompute": [], "preftune": []}
    logps: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        building = 0.0  # a trainer, without a reference: what TRL's takes
        for turn in range(rounds):
            for kind in steps:
                folder = Path(name) / f"{kind}-{turn}"
                seconds, trainer = timed(lambda f=folder, k=kind: trainer_of(k, model_path, pairs, f, max_length, lora))
                if kind == "trl":
                    building = seconds
                else:
                    cold[kind].append(seconds - building)
                if turn == 0 and kind != "trl-precompute":
                    logps[kind] = row_logps(trainer, pairs)
                steps[kind].append(timed(trainer.train)[0])
                print(kind, turn, steps[kind][-1], cold.get(kind, [0])[-1], file=sys.stderr, flush=True)
                del trainer
    least = {kind: min(of_kind) for kind, of_kind in steps.items()}
    reference = {kind: min(of_kind) for kind, of_kind in cold.items()}
    widths = [sum(map(len, p.values())) for p in pairs]
    return {
        "pairs": count,
        "max_length": max_length,
        "tuning": "lora" if lora else "full",
        "tokens_a_pair": statistics.mean(widths),
        "prompt_share": statistics.mean(len(p["prompt_ids"]) for p in pairs) / statistics.mean(widths),
        "cpu_seconds": {"step": least, "reference": reference},
        "cached_ratio": least["preftune"] / least["trl"],
        "cold_ratio": (least["preftune"] + reference["preftune"]) / least["trl"],
        "precompute_ratio": (least["preftune"] + reference["preftune"])
        / (least["trl-precompute"] + reference["trl-precompute"]),
        "max_abs_logp_diff": max(abs(a - b) for a, b in zip(logps["trl"], logps["preftune"], strict=True)),
    }


def main() -> None:
    arguments = parser("step", __doc__)
    arguments.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct")
    arguments.add_argument("--pairs", type=int, default=MICRO * ACCUMULATED, help="in the optimizer step")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--max-length", type=int, default=256)
    arguments.add_argument("--full", action="store_true", help="all weights, in place of LoRA")
    given = arguments.parse_args()
    found = measure(starter_model(given.model), given.pairs, given.rounds, given.max_length, not given.full)
    finish(found, given.json, text_of)


def text_of(found: dict[str, Any]) -> str:
    """The figures in words."""
    names = ("cached_ratio", "cold_ratio", "precompute_ratio")
    lines = [f"{name}: {found[name]:.3f}" for name in names]
    return "\n".join([*lines, f"max_abs_logp_diff: {found['max_abs_logp_diff']:.1e}"])


if __name__ == "__main__":
    main()
