"""Reference log-probabilities after each change, against TRL: `python -m benchmarks.reference_cache [--json]`; see
README.md beside this file.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.common import QUIET, finish, parser, starter_rows, tiny_model

os.environ |= QUIET

from preftune.digest import files_digest

WRONG = 0.01  # nats; equal values differ by some 1e-4 at most, as batches are padded otherwise
Row = dict[str, list[dict[str, str]]]


def other_weights(model: Path, folder: Path) -> Path:
    """A copy of the model with one weight changed."""
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(model, folder / "other-weights"))
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


class Side:
    """TRL's trainer or ours, with its own folders for what it keeps; both count what goes through the model."""

    def __init__(self, ours: bool, folder: Path) -> None:
        self.ours, self.folder = ours, folder
        self.rows, self.seconds = 0, 0.0

    def build(self, rows: list[Row], model: Path, template: str | None, adapter: int, **keys: Any) -> Any:
        """The trainer with its references computed; `rows` and `seconds` tell what that took.

        The rows are read from a file and the tokenized ones kept on disk, without which TRL's cache never hits.
        """
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoTokenizer
        from trl import DPOConfig, DPOTrainer

        from preftune.trainer import ResumableDPOTrainer

        side = self

        base: Any = ResumableDPOTrainer if self.ours else DPOTrainer

        class Counted(base):
            def _precompute_ref_logps(self, *args: Any) -> Any:
                # The processor's seconds: other work beside it then counts for little. A GPU has a clock of its own.
                clock = time.monotonic if torch.cuda.is_available() else time.process_time
                began = clock()
                done = super()._precompute_ref_logps(*args)
                side.seconds = clock() - began
                return done

            def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
                side.rows += len(inputs["input_ids"]) // 2
                return super().compute_ref_log_probs(model, inputs)

        self.rows, self.seconds = 0, 0.0
        self.folder.mkdir(exist_ok=True)
        data = self.folder / f"{len(rows)}.jsonl"
        if not data.exists():
            data.write_text("".join(json.dumps(r) + "\n" for r in rows))
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.chat_template = template or tokenizer.chat_template
        keys = {
            "output_dir": str(self.folder / "output"),
            "use_cpu": not torch.cuda.is_available(),
            "bf16": torch.cuda.is_available(),
            "activation_checkpointing": False,
            "dataloader_pin_memory": False,
            "report_to": "none",
            "disable_tqdm": True,
            "precompute_ref_log_probs": True,
            **keys,
        }
        kept = {"reference_cache": self.folder / files_digest(model, ["model.safetensors", "config.json"])}
        return Counted(
            model=str(model),
            args=DPOConfig(**keys),
            train_dataset=Dataset.from_json(str(data), cache_dir=str(self.folder / "datasets")),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=adapter, target_modules="all-linear", task_type="CAUSAL_LM"),
            **(kept if self.ours else {}),
        )


def longer_sides(model: Path, rows: list[Row]) -> list[int]:
    """Tokens of the longer side of each pair, prompt included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def length(row: Row, side: str) -> int:
        return len(tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=True)["input_ids"])

    return [max(length(row, "chosen"), length(row, "rejected")) for row in rows]


def changes(model: Path, rows: list[Row], new: list[Row], folder: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """Each change: its name, how many pairs it must compute after those before it, and the settings; what they do not
    name stays as at first."""
    lengths = sorted(longer_sides(model, rows))
    limit, longer = lengths[len(lengths) * 3 // 4], lengths[len(lengths) * 9 // 10]
    cut, still_cut, all_rows = sum(n > limit for n in lengths), sum(n > longer for n in lengths), len(rows)
    template = (model / "chat_template.jinja").read_text().replace("assistant", "helper")
    end: dict[str, Any] = {"truncation_mode": "keep_end"}
    steps: list[tuple[str, int, dict[str, Any]]] = [
        ("first time", all_rows, {}),
        ("the same again", 0, {}),
        ("output folder", 0, {"output_dir": str(folder / "elsewhere")}),
        ("beta", 0, {"beta": 0.5}),
        ("learning rate", 0, {"learning_rate": 1e-5}),
        ("seed", 0, {"seed": 7}),
        ("LoRA rank", 0, {"adapter": 16}),
        ("loss type", 0, {"loss_type": ["ipo"]}),
        ("batch size", 0, {"per_device_train_batch_size": 4}),
        (f"{len(new)} more pairs", len(new), {"rows": rows + new}),
        (f"max_length {limit} → {longer}", cut, {"max_length": longer}),
        ("keep_end", cut, end),
        # A pair that fits is the same at both ends.
        (f"keep_end, max_length {limit} → {longer}", still_cut, {**end, "max_length": longer}),
        ("keep_end, ld_alpha", all_rows, {**end, "ld_alpha": 0.5}),
        ("ld_alpha", cut, {"ld_alpha": 0.5}),
        ("template", all_rows, {"template": template}),
        ("weights", all_rows, {"model": other_weights(model, folder)}),
    ]
    first = {"rows": rows, "model": model, "template": None, "adapter": 8, "max_length": limit}
    return [(name, must, {**first, **settings}) for name, must, settings in steps]


def worst_error(trainer: Any) -> float:
    """How far the trainer's references are from those that it computes anew, at most, in nats."""
    import torch

    rows, worst = trainer.train_dataset, 0.0
    for begin in range(0, len(rows), 8):
        batch = [rows[i] for i in range(begin, min(begin + 8, len(rows)))]
        anew = trainer.compute_ref_log_probs(trainer.model, trainer.data_collator(batch))
        kept = [torch.tensor([row[f"ref_{side}_logps"] for row in batch]) for side in ("chosen", "rejected")]
        worst = max(worst, *(float((a.cpu() - k).abs().max()) for a, k in zip(anew, kept, strict=True)))
    return worst


def measure(model: Path, count: int) -> dict[str, Any]:
    """Builds both trainers after each change."""
    found, folder = [], Path(tempfile.mkdtemp())
    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in starter_rows("train", count + count // 10)]
    sides = {name: Side(name == "preftune", folder / name) for name in ("preftune", "trl")}
    for change, must, settings in changes(model, rows[:count], rows[count:], folder):
        result: dict[str, Any] = {"change": change, "must": must}
        for name, side in sides.items():
            trainer = side.build(**settings)
            result[name] = {"computed": side.rows, "seconds": round(side.seconds, 2)}
            # Values that were not all computed just now may be wrong.
            error = worst_error(trainer) if side.rows < len(trainer.train_dataset) else 0.0
            result[name] |= {"pairs": len(trainer.train_dataset), "worst_error": round(error, 5)}
        print(json.dumps(result), file=sys.stderr)
        found.append(result)
    shutil.rmtree(folder)
    later = {name: sum(r[name]["seconds"] for r in found[1:]) for name in sides}
    return {
        "model": model.name,
        "pairs": count,
        "changes": found,
        "seconds_after_the_first": {name: round(s, 1) for name, s in later.items()},
        "ratio": round(later["trl"] / later["preftune"], 1),
    }


def main() -> None:
    arguments = parser("reference_cache", __doc__)
    arguments.add_argument("--model", type=Path, help="model folder (default: the tests' tiny model)")
    arguments.add_argument("--pairs", type=int, default=40, help="pairs at first, of the starter recipe (at most 300)")
    given = arguments.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result = measure(given.model or tiny_model(Path(folder) / "tiny"), given.pairs)
    finish(result, given.json, text_of)


def text_of(result: dict[str, Any]) -> str:
    """The figures in words."""
    lines = [f"{result['model']}, {result['pairs']} pairs; computed (seconds), must, change"]
    for row in result["changes"]:
        told = ""
        for name in ("preftune", "trl"):
            wrong = "WRONG" if row[name]["worst_error"] > WRONG else ""
            told += f"{name} {row[name]['computed']:4} ({row[name]['seconds']:6.2f} s) {wrong:5}  "
        lines.append(f"  {told} must {row['must']:4}  {row['change']}")
    return "\n".join(
        [*lines, f"  after the first time: {result['seconds_after_the_first']} s, ratio {result['ratio']}"]
    )


if __name__ == "__main__":
    main()
