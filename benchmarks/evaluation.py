"""What a standard evaluation costs beside plain TRL's training: `python -m benchmarks.evaluation [--json]`; see
README.md beside this file.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import QUIET, RECIPE, ROOT, cpu_seconds, finish, parser, starter_model, starter_rows

Work = Callable[[], Any]


def in_a_process(threads: int, *arguments: str) -> float:
    """Runs a module of this folder or the evaluation child to its end; its CPU-seconds, imports included."""
    before = cpu_seconds(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, **QUIET, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
    return cpu_seconds(resource.RUSAGE_CHILDREN) - before


def train(model: Path, folder: Path) -> None:
    """Plain TRL on the starter's training pairs with its recipe, without evaluations and checkpoints in between, and
    without activation checkpointing, which would only make it slower. Leaves the adapter in the folder."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    from preftune.recipe import load_recipe

    recipe = load_recipe(RECIPE)
    used = ("beta", "loss_type", "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "seed")
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length")
    rows = starter_rows("train", recipe.mixture.datasets[0].max_rows)
    trainer = DPOTrainer(
        model=str(model),
        args=DPOConfig(
            output_dir=str(folder / "output"),
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **{name: recipe.training[name] for name in (*used, *sizes)},
        ),
        train_dataset=Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows]),
        peft_config=LoraConfig(
            r=recipe.model["lora_r"], lora_alpha=recipe.model["lora_alpha"], lora_dropout=0.0, task_type="CAUSAL_LM"
        ),
    )
    before = cpu_seconds()
    trainer.train()
    told = {"cpu_seconds": cpu_seconds() - before, "steps": trainer.state.global_step, "pairs": len(rows)}
    trainer.save_model(str(folder / "adapter"))
    (folder / "train.json").write_text(json.dumps(told))


def evaluation_job(model: Path, folder: Path, policy: Path | None, threads: int, standard: bool) -> Path:
    """The child's job on the starter's held-out pairs: the standard preset, or the starter's own sizes."""
    from preftune.data.pairs import to_pair
    from preftune.evaluation_schema import Evaluation
    from preftune.recipe import load_recipe

    settings = Evaluation.model_validate({"preset": "standard"}) if standard else load_recipe(RECIPE).evaluation

    folder.mkdir()
    pairs = [to_pair(row, "starter", str(i)) for i, row in enumerate(starter_rows("test"))]
    (folder / "test.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in pairs))
    job = {
        "folder": str(folder),
        "model_path": str(model),
        "revision": None,
        "chat_template": None,
        "dtype": "float32",
        "policy": str(policy) if policy else None,
        "pairs": str(folder / "test.jsonl"),
        "suites": None,
        "evaluation": settings.model_dump(),
        "left_out": None,
        "max_length": 256,
        "truncation": "keep_start",
        "threads": threads,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path


def side_by_side(model: Path, folder: Path, count: int) -> None:
    """Our way and transformers' and lm-eval's own on the same prompts and documents: CPU-seconds of each."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from preftune.capability import run_tasks
    from preftune.data.pairs import to_pair
    from preftune.generation import Decoding, generate
    from preftune.lm_in_memory import ModelInMemory
    from preftune.tokens import tokenize_prompt

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
    pairs = [to_pair(row, "starter", str(i)) for i, row in enumerate(starter_rows("test", count))]
    prompts = sorted((tokenize_prompt(tokenizer, p.prompt) for p in pairs), key=len)
    ends = {tokenizer.eos_token_id}

    def theirs() -> list[list[int]]:
        """`model.generate` on batches of 32 prompts of similar length, each to the end of its longest answer."""
        found = []
        for begin in range(0, len(prompts), 32):
            batch = tokenizer.pad({"input_ids": prompts[begin : begin + 32]}, padding_side="left", return_tensors="pt")
            out = loaded.generate(**batch, max_new_tokens=256, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            for row in out[:, batch["input_ids"].shape[1] :].tolist():
                end = next((n for n, t in enumerate(row) if t in ends), len(row))
                found.append(row[: end + 1])
        return found

    def ours() -> list[list[int]]:
        return [a.ids for a in generate(loaded, prompts, Decoding(256), eos_ids=ends, batch_size=8)]

    def tasks(lm: Any, name: str) -> list[str]:
        settings = {
            "tasks": ("preference_pairs", "facts", "instructions"),
            "task_folder": None,
            "task_limit": count,
        }
        (folder / name).mkdir()
        run_tasks(lm, tokenizer, pairs, settings, folder / name, lambda _: None)
        return (folder / name / "lm_eval.jsonl").read_text().splitlines()

    def told(work: Work) -> tuple[float, Any]:
        before = cpu_seconds()
        found = work()
        return round(cpu_seconds() - before, 1), found

    old, expected = told(theirs)
    new, answers = told(ours)
    result: dict[str, Any] = {
        "answers": {"prompts": count, "tokens": sum(map(len, answers)), "transformers": old, "preftune": new},
    }
    result["answers"]["same"] = sum(a == e for a, e in zip(answers, expected, strict=True))
    hflm: Any = HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=16)  # pyright: ignore
    memory: Any = ModelInMemory(loaded, tokenizer, batch_size=8, progress=lambda _: lambda *_: None)  # pyright: ignore
    old, expected = told(lambda: tasks(hflm, "theirs"))
    new, found = told(lambda: tasks(memory, "ours"))
    result["tasks"] = {"documents": len(found), "lm_eval": old, "preftune": new}
    result["tasks"]["same"] = sum(a == e for a, e in zip(found, expected, strict=True))
    (folder / "side_by_side.json").write_text(json.dumps(result))


def measure(model: Path, threads: int, count: int) -> dict[str, Any]:
    """Training, both evaluations, and a subset both ways, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        whole = in_a_process(threads, "benchmarks.evaluation", "--part=train", f"--model={model}", f"--folder={folder}")
        found: dict[str, Any] = {
            "model": model.name,
            "threads": threads,
            "training": {**json.loads((folder / "train.json").read_text()), "with_imports": whole},
        }
        for who in ("baseline, standard", "policy, standard", "baseline, starter", "policy, starter"):
            policy = folder / "adapter" if who.startswith("policy") else None
            job = evaluation_job(model, folder / who, policy, threads, who.endswith("standard"))
            seconds = in_a_process(threads, "preftune.evaluation", str(job))
            lines = {p.stem: p.read_text().count("\n") for p in sorted((folder / who).glob("*.jsonl"))}
            timing = json.loads((folder / who / "timing.json").read_text())
            row = {"cpu_seconds": seconds, "ratio": seconds / found["training"]["cpu_seconds"]}
            found.setdefault("evaluations", {})[who] = {**row, "lines": lines, "wall_seconds": timing}
            print(json.dumps(found), file=sys.stderr)
        found["standard_ratio"] = max(
            found["evaluations"][f"{who}, standard"]["ratio"] for who in ("baseline", "policy")
        )
        if count:
            part = ("--part=side_by_side", f"--model={model}", f"--folder={folder}", f"--subset={count}")
            in_a_process(threads, "benchmarks.evaluation", *part)
            found["side_by_side"] = json.loads((folder / "side_by_side.json").read_text())
        found["wall_seconds"] = time.monotonic() - began
    return found


def main() -> None:
    arguments = parser("evaluation", __doc__)
    arguments.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct")
    arguments.add_argument("--threads", type=int, default=1, help="of the processor, in each process")
    arguments.add_argument("--subset", type=int, default=32, help="prompts and documents that go both ways; 0: none")
    arguments.add_argument("--part", choices=("train", "side_by_side"), help=SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=SUPPRESS)
    given = arguments.parse_args()
    if given.part == "train":
        train(given.model, given.folder)
    elif given.part == "side_by_side":
        side_by_side(given.model, given.folder, given.subset)
    else:
        finish(measure(starter_model(given.model), given.threads, given.subset), given.json, text_of)


def text_of(found: dict[str, Any]) -> str:
    """The figures in words."""
    training = found["training"]
    lines = [
        f"{found['model']}, CPU-seconds, {found['threads']} thread(s)",
        f"  plain TRL: {training['cpu_seconds']:.0f} for {training['steps']} steps on {training['pairs']} pairs",
    ]
    for who, row in found["evaluations"].items():
        lines.append(f"  {who}: {row['cpu_seconds']:.0f}, {row['ratio']:.2f} of the training; {row['lines']}")
    for what, row in found.get("side_by_side", {}).items():
        lines.append(f"  {what}, both ways: {row}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
