"""Shared fixtures: a tiny model with a real tokenizer and chat template, a project folder, the real command line.

The tiny model is a randomly initialised Llama of 60 thousand parameters: everything but its answers is real.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same examples in every run, so that a red run is the change's fault. To search on: HYPOTHESIS_PROFILE=default.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# Two files of tests run at a time (Makefile), and threads that wait for each other on busy cores cost minutes.
ONE_THREAD = {"PREFTUNE_THREADS": "1", "OMP_NUM_THREADS": "1"}
os.environ.update(ONE_THREAD)

ROOT = Path(__file__).parent.parent
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tiny_model(folder: Path) -> Path:
    """Writes the model; run in a child, so that the tests' own process stays free of torch."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    text = (ROOT / "recipes/starter/pairs/test.jsonl").read_text().splitlines()
    raw.train_from_iterator(text, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def attention_as_it_was() -> Iterator[None]:
    """The fast path chooses a kernel for its whole process, a training child; here other tests follow."""
    yield
    os.environ.pop("TRANSFORMERS_SDPA_FORCE_GQA", None)


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """A training in this very process takes the signals for itself, and would keep them for all tests after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that transformers loads, with tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-instruct"
    code = f"import conftest, pathlib; conftest.build_tiny_model(pathlib.Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", check=True, capture_output=True)
    return folder


def write_pairs(path: Path, count: int, seed: int) -> None:
    """Easy pairs: the chosen answer counts upwards, the rejected one repeats a word."""
    rng = random.Random(seed)
    with path.open("w") as f:
        for i in range(count):
            a, b = rng.randrange(100), rng.randrange(100)
            row = {
                "prompt": [{"role": "user", "content": f"Case {seed}-{i}: what comes after {a} and {b}?"}],
                "chosen": [{"role": "assistant", "content": f"After {a} comes {a + 1}, after {b} comes {b + 1}."}],
                "rejected": [{"role": "assistant", "content": "Well well well, who is to say, who is to say."}],
            }
            f.write(json.dumps(row) + "\n")


@pytest.fixture(scope="session")
def make_project(tiny_model: Path) -> Callable[..., Path]:
    """Fills a folder with a recipe on the tiny model; extra keys win. Returns the recipe's path."""

    def make(folder: Path, **keys: Any) -> Path:
        data = folder / "recipes" / "tiny" / "pairs"
        data.mkdir(parents=True)
        write_pairs(data / "train.jsonl", 24, 1)
        write_pairs(data / "test.jsonl", 12, 2)
        recipe = {
            "model_name_or_path": str(tiny_model),
            "dataset_name": "recipes/tiny/pairs",
            "dataset_test_split": "test",
            "beta": 0.1,
            "learning_rate": 0.01,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "max_length": 128,
            "logging_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "save_strategy": "steps",
            "save_steps": 2,
            "evaluation": {
                "max_prompts": 4,
                "max_new_tokens": 8,
                "tasks": ["preference_pairs"],
                "task_limit": 6,
                "training_pairs": 4,
            },
            **keys,
        }
        path = folder / "recipes" / "tiny" / "config.yaml"
        path.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
        return path

    return make


def child_env(**extra: str) -> dict[str, str]:
    """The environment of a real command: no Prefect or MLflow settings of the machine leak in."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW", "PREFTUNE"))}
    return {**env, **ONE_THREAD, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "true", **extra}


def preftune(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the real command line to its end."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=child_env(**env), capture_output=True, text=True, timeout=800)


@pytest.fixture(scope="session")
def trl_trainer() -> Callable[..., Any]:
    """TRL's own trainer, as bare as it goes: the independent reference."""

    def make(model: Path, pairs: list[Any], folder: Path, *, peft_config: Any = None, **keys: Any) -> Any:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        rows = Dataset.from_list([p.model_dump(include={"prompt", "chosen", "rejected"}) for p in pairs])
        config = DPOConfig(
            **{
                "output_dir": str(folder),
                "use_cpu": True,
                "bf16": False,
                "activation_checkpointing": False,
                "dataloader_pin_memory": False,
                "per_device_eval_batch_size": len(pairs),
                "max_length": 256,
                "report_to": "none",
                "disable_tqdm": True,
                **keys,
            }
        )
        return DPOTrainer(model=str(model), args=config, train_dataset=rows, eval_dataset=rows, peft_config=peft_config)

    return make


def our_trainer(
    model: Path,
    pairs: list[Any],
    folder: Path,
    *,
    reference: Path,
    settings: dict[str, Any] | None = None,
    template: str | None = None,
    method: str = "dpo",
    fast_path: str = "auto",
    micro_batch_tokens: int | None = None,
    **training: Any,
) -> Any:
    """The trainer as the training child builds it from a job, before its first step."""
    from preftune.training import _build_trainer

    common = {"max_length": 256, "report_to": "none"} | ({"precompute_ref_log_probs": True} if method == "dpo" else {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in pairs))
    job = {
        "folder": str(folder),
        "model_path": str(model),
        "revision": None,
        "chat_template": template,
        "threads": 1,
        "method": method,
        "model": settings or {},
        "fast_path": fast_path,
        "micro_batch_tokens": micro_batch_tokens,
        "training": {**common, **training},
        "train": str(folder / "pairs.jsonl"),
        "test": str(folder / "pairs.jsonl"),
        "left_out": None,
        "eval_pairs": None,
        "reference": str(reference),
    }
    return _build_trainer(job, folder)[0]


# What docs/reliability.md promises; each test that injects one is marked with its number.
PROMISES = {
    1: "SIGKILL in the middle of a step",
    2: "SIGKILL twice",
    3: "killed between the files of a checkpoint",
    4: "torn file",
    5: "deleted optimizer file",
    6: "flipped bytes",
    7: "disk full, then space freed",
    8: "SIGTERM",
    9: "out of memory at the first step",
    10: "out of memory mid-run",
    11: "NaN",
    12: "recipe changed on resume",
    13: "data changed on resume",
    14: "out of memory with one pair",
    15: "half-trained exit",
    16: "training killed under a worker",
    17: "flow killed under a worker",
    18: "run cancelled",
    19: "worker and flow killed",
    20: "Prefect's server away for a minute",
    21: "concurrent duplicate",
    22: "stale lock",
    23: "MLflow away all run",
    24: "artifact write fails",
    25: "two runs of one deployment at once",
    26: "MLflow's database locked for 30 s",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hands each test's promise to its report."""
    for item in items:
        item.user_properties += [("promise", number) for mark in item.iter_markers("promise") for number in mark.args]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of promises, if any of them was tried."""
    outcomes: dict[int, set[str]] = {}
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            for name, number in getattr(report, "user_properties", ()):
                if name == "promise" and outcome in ("passed", "failed", "error", "skipped"):
                    outcomes.setdefault(number, set()).add(outcome)
    if not outcomes:
        return
    terminalreporter.section("promises")
    words = {frozenset({"passed"}): "survived", frozenset(): "not tried"}
    told = {n: words.get(frozenset(outcomes.get(n, ())), "FAILED") for n in PROMISES}
    for number, what in PROMISES.items():
        found = "not injected here" if outcomes.get(number) == {"skipped"} else told[number]
        terminalreporter.write_line(f"{number:>3}  {what:<42} {found}")
    survived = sum(t == "survived" for t in told.values())
    terminalreporter.write_line(f"{survived} of {len(PROMISES)} survived")
