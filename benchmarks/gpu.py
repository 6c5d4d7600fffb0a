"""Training on a GPU against bare TRL: `python -m benchmarks.gpu [--json]`; see README.md beside this file.

Needs torch, transformers, accelerate, peft, datasets and trl (and what these bring), and this repository's files;
nothing else that preftune needs. The models have random weights, made on the device from a configuration.
"""

import argparse
import contextlib
import gc
import json
import math
import os
import random
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

SEED = 42
WARM_STEPS = 2  # not counted: first-time work of kernels and allocator
WAYS = ("trl", "preftune")
TARGETS = {"ratio": 1.5, "mfu": 0.40}


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes.

    Args:
        sizes: For `LlamaConfig`.
        pairs: In a micro-batch at first, by kind of lengths; halved where memory runs out.
    """

    sizes: dict[str, Any]
    pairs: dict[str, int]


def _shape(
    pairs: tuple[int, int], layers: int, width: int, inner: int, heads: tuple[int, int], words: int, tied: bool = True
) -> Shape:
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner, "vocab_size": words}
    sizes |= {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "tie_word_embeddings": tied}
    return Shape(sizes, dict(zip(("hh", "long"), pairs, strict=True)))


SHAPES = {
    "tiny": _shape((4, 2), 2, 32, 64, (2, 1), 512),
    "135m": _shape((16, 8), 30, 576, 1536, (9, 3), 49152),  # SmolLM2-135M
    "1b": _shape((16, 4), 16, 2048, 8192, (32, 8), 128256),  # Llama 3.2 1B
    "8b": _shape((8, 2), 32, 4096, 14336, (32, 8), 128256, tied=False),  # Llama 3.1 8B
}
MAX_LENGTH = {"hh": 1024, "long": 2048}
Lengths = tuple[int, int, int]  # tokens of prompt, chosen, rejected


def pair_lengths(kind: str, count: int) -> list[Lengths]:
    """Lengths of pairs: `hh`, lognormal, 243 tokens a pair in the mean, half of them the prompt, as hh-rlhf's; or
    `long`, 2048 tokens in each of both rows, half of them the prompt."""
    if kind == "long":
        return [(1024, 1024, 1024)] * count
    rng = random.Random(SEED)

    def draw(mean: float, at_most: int) -> int:
        return min(at_most, max(2, round(rng.lognormvariate(0, 0.7) / math.exp(0.7**2 / 2) * mean)))

    return [(draw(122, 640), draw(61, 384), draw(61, 384)) for _ in range(count)]


def pair_flops(shape: Shape, lengths: Lengths, full: bool, reference: bool) -> float:
    """Model FLOPs of one pair as a plain implementation must do them: both rows, prompt + chosen and prompt +
    rejected, hence the prompt twice; no padding, nothing computed again.

    A weight costs 2 FLOPs a token in the forward pass, 2 for the gradient of its input, and where it is trained 2 for
    its own (LoRA's small matrices are left out). Causal attention costs half of 4 · layers · width · length² in the
    forward pass and twice that backwards. The reference's forward pass counts where the measured time holds it.
    """
    s = shape.sizes
    width, layers = s["hidden_size"], s["num_hidden_layers"]
    groups = s["num_key_value_heads"] / s["num_attention_heads"]
    weights = layers * width * (2 * width + 2 * groups * width + 3 * s["intermediate_size"]) + width * s["vocab_size"]
    prompt, *answers = lengths
    rows = [prompt + answer for answer in answers]
    linear, attention = 2 * weights * sum(rows), 2 * layers * width * sum(n * n for n in rows)
    return linear * ((3 if full else 2) + reference) + attention * (3 + reference)


def _tokenizer(vocabulary: int) -> Any:
    """A word for each id, so that texts become the ids that are meant."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, **{f"t{i}": i for i in range(2, vocabulary)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")


def _rows(lengths: list[Lengths], vocabulary: int) -> Any:
    from datasets import Dataset

    rng = random.Random(SEED)

    def text(count: int) -> str:
        return "".join(f" t{rng.randrange(2, vocabulary)}" for _ in range(count))

    # TRL ends each answer with the token that ends a text.
    return Dataset.from_list(
        [{"prompt": text(p), "chosen": text(c - 1), "rejected": text(r - 1)} for p, c, r in lengths]
    )


def _model(shape: Shape, kind: str, device: str) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            config = LlamaConfig(**shape.sizes, max_position_embeddings=MAX_LENGTH[kind], eos_token_id=1)
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def _trainer(way: str, shape: Shape, kind: str, full: bool, given: Any, at_once: int, folder: Path) -> Any:
    """The way's trainer: TRL's as it comes, with an online reference; ours with its cache, empty at first."""
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    from preftune.trainer import ResumableDPOTrainer

    on_gpu = given.device == "cuda"
    options: dict[str, Any] = {}
    if way == "preftune":
        options["reference_cache"] = folder / "reference"
    elif full:
        options["ref_model"] = _model(shape, kind, given.device)
    base: Any = ResumableDPOTrainer if way == "preftune" else DPOTrainer

    class Timed(base):
        cold_seconds = 0.0

        def _precompute_ref_logps(self, *args: Any) -> Any:
            began = _now(on_gpu)
            done = super()._precompute_ref_logps(*args)
            Timed.cold_seconds += _now(on_gpu) - began
            return done

    return Timed(
        model=_model(shape, kind, given.device),
        args=DPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=given.batch // at_once,
            max_steps=given.steps + WARM_STEPS,
            max_length=MAX_LENGTH[kind],
            learning_rate=1e-6 if full else 1e-4,
            precompute_ref_log_probs=way == "preftune",
            precompute_ref_batch_size=at_once,
            use_cpu=not on_gpu,
            bf16=on_gpu,
            tf32=True if on_gpu else None,
            activation_checkpointing=False,
            dataloader_pin_memory=on_gpu,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            seed=SEED,
        ),
        train_dataset=_rows(pair_lengths(kind, given.batch * (given.steps + WARM_STEPS)), shape.sizes["vocab_size"]),
        processing_class=_tokenizer(shape.sizes["vocab_size"]),
        peft_config=None
        if full
        else LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        **options,
    )


def _now(on_gpu: bool) -> float:
    """The clock, when the device has done all that it was asked for."""
    import torch

    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def _train(way: str, shape: Shape, kind: str, full: bool, given: Any, at_once: int) -> dict[str, Any]:
    """Trains one way: seconds of the counted steps and of the reference, losses, peak memory in GiB."""
    import torch
    from transformers import PrinterCallback, TrainerCallback

    on_gpu = given.device == "cuda"
    began = [0.0]

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARM_STEPS:
                began[0] = _now(on_gpu)

    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(way, shape, kind, full, given, at_once, Path(folder))
        trainer.add_callback(Clock())
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        seconds = _now(on_gpu) - began[0]
        return {
            "seconds": seconds,
            "cold_seconds": trainer.cold_seconds / (given.steps + WARM_STEPS) * given.steps,
            "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        }


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _both(shape: Shape, kind: str, full: bool, given: Any) -> tuple[int, dict[str, list[dict[str, Any]]]] | None:
    """Both ways in turns, with as many pairs at once as fit for both; None if not even one does."""
    import torch

    at_once = min(shape.pairs[kind], given.batch)
    while at_once:
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        try:
            for _ in range(given.rounds):
                for way in WAYS:
                    found[way].append(_train(way, shape, kind, full, given, at_once))
                    _free()
            return at_once, found
        except torch.OutOfMemoryError:
            print(f"  out of memory with {at_once} pairs at once", file=sys.stderr)
        _free()
        at_once //= 2
    return None


def compare(name: str, kind: str, full: bool, given: Any) -> dict[str, Any]:
    """One line of the table."""
    shape = SHAPES[name]
    line: dict[str, Any] = {"shape": name, "training": "full" if full else "lora", "lengths": kind}
    both = _both(shape, kind, full, given)
    if both is None:
        return {**line, "error": "out of memory with one pair"}
    at_once, found = both
    least = {way: min(runs, key=lambda r: r["seconds"]) for way, runs in found.items()}
    reference = min(r["cold_seconds"] for r in found["preftune"])
    seconds = {"trl": least["trl"]["seconds"], "preftune_cached": least["preftune"]["seconds"]}
    seconds["preftune_cold"] = seconds["preftune_cached"] + reference
    pairs = given.steps * given.batch
    lengths = pair_lengths(kind, given.batch * (given.steps + WARM_STEPS))

    def mfu(way: str) -> float:
        flops = sum(pair_flops(shape, n, full, reference=way != "preftune_cached") for n in lengths) / len(lengths)
        return flops * pairs / seconds[way] / (given.peak_tflops * 1e12)

    losses = [least[way]["losses"] for way in WAYS]
    return {
        **line,
        "pairs_at_once": at_once,
        "pairs_per_second": {way: round(pairs / s, 3) for way, s in seconds.items()},
        "mfu": {way: round(mfu(way), 4) for way in seconds},
        "ratio_cached": round(seconds["trl"] / seconds["preftune_cached"], 3),
        "ratio_cold": round(seconds["trl"] / seconds["preftune_cold"], 3),
        "max_abs_loss_diff": max(abs(a - b) for a, b in zip(*losses, strict=True)),
        "peak_gib": {way: least[way]["peak_gib"] and round(least[way]["peak_gib"], 1) for way in WAYS},
    }


def measure(given: Any) -> dict[str, Any]:
    """All lines, each told when it is there."""
    import torch
    from datasets import disable_progress_bars

    disable_progress_bars()
    lines = []
    for name in given.shapes:
        for training in given.training:
            for kind in given.lengths:
                lines.append(compare(name, kind, training == "full", given))
                print(json.dumps(lines[-1]), file=sys.stderr)
                _free()
    device = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    return {
        "device": device,
        "peak_tflops": given.peak_tflops,
        "steps": given.steps,
        "batch": given.batch,
        "lines": lines,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: float32, to see that it runs")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["135m", "1b", "8b"])
    parser.add_argument("--training", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument("--lengths", nargs="+", choices=MAX_LENGTH, default=["hh", "long"])
    parser.add_argument("--steps", type=int, default=8, help=f"that count, after {WARM_STEPS} that do not")
    parser.add_argument("--batch", type=int, default=16, help="pairs in an optimizer step; a power of two")
    parser.add_argument("--rounds", type=int, default=3, help="of each way, in turns; the least seconds count")
    parser.add_argument("--peak-tflops", type=float, default=790, help="what utilisation is counted against")
    given = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # here: the tests import this file
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # of several, transformers would spread each batch over all
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):  # what the trainers tell is no figure
        found = measure(given)
    print(json.dumps(found, indent=1) if given.json else text_of(found))


def text_of(found: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    ways = ("trl", "preftune_cold", "preftune_cached")
    head = "model | training | lengths | at once | pairs/s: TRL | cold | cached | times TRL: cold | cached"
    head += " | MFU: TRL | cold | cached | loss differs by | peak GiB: TRL | preftune"
    lines = [f"{found['device']}, {found['peak_tflops']:.0f} TFLOP/s", "", f"| {head} |"]
    lines.append("|" + "---|" * (head.count("|") + 1))
    for row in found["lines"]:
        cells = [row["shape"], row["training"], row["lengths"]]
        if "error" in row:
            cells.append(row["error"])
        else:
            cells += [row["pairs_at_once"], *(row["pairs_per_second"][w] for w in ways)]
            cells += [row["ratio_cold"], row["ratio_cached"], *(f"{row['mfu'][w]:.1%}" for w in ways)]
            cells += [f"{row['max_abs_loss_diff']:.1e}", *(row["peak_gib"][w] or "" for w in WAYS)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    targets = f"targets: {TARGETS['ratio']} times TRL, {TARGETS['mfu']:.0%} utilisation at 8b"
    return "\n".join([*lines, "", targets])


if __name__ == "__main__":
    main()
