"""What a run would do, told in seconds and without training: `preftune check`."""

import json
import math
from pathlib import Path
from typing import Any

from preftune import accelerate_configs, keys, store
from preftune.known_keys import snapshot
from preftune.mixture import load_pairs
from preftune.models import StartingModel
from preftune.pairs import Pair
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace

CPU_SECONDS_PER_TOKEN = 0.018  # SmolLM2-135M, LoRA, float32, two cores: measured, see docs/first-run.md


def training_value(recipe: Recipe, key: str) -> Any:
    """The recipe's value of a TRL key, else TRL's default."""
    return recipe.training.get(key, snapshot()["training"][key]["default"])


def step_count(pairs: int, recipe: Recipe, processes: int) -> tuple[int, int]:
    """(optimizer steps, effective batch), as transformers' Trainer counts them."""
    batch = int(training_value(recipe, "per_device_train_batch_size")) * processes
    accumulation = int(training_value(recipe, "gradient_accumulation_steps"))
    batches = pairs // batch if recipe.training.get("dataloader_drop_last") else math.ceil(pairs / batch)
    an_epoch = max(math.ceil(batches / accumulation), 1)
    limit = int(training_value(recipe, "max_steps"))
    wanted = math.ceil(float(training_value(recipe, "num_train_epochs")) * an_epoch)
    return (limit if limit > 0 else wanted), batch * accumulation


def count_tokens(pairs: list[Pair], model: StartingModel, folder: Path) -> list[tuple[int, int]] | None:
    """Tokens of each pair's two sequences (prompt + chosen, prompt + rejected); None without tokenizer.json.

    The chat template is rendered in jinja2's sandbox, so that nothing heavy is imported.
    """
    if not (folder / "tokenizer.json").exists():
        return None
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from tokenizers import Tokenizer

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    settings = folder / "tokenizer_config.json"
    special = json.loads(settings.read_text()) if settings.exists() else {}
    names = {k: special.get(k) for k in ("bos_token", "eos_token", "pad_token", "unk_token")}
    tokens = {k: v["content"] if isinstance(v, dict) else v or "" for k, v in names.items()}
    environment.globals["strftime_now"] = lambda _: ""
    try:
        template = environment.from_string(model.template)
        texts = [
            template.render(messages=p.prompt + answer, add_generation_prompt=False, **tokens)
            for p in pairs
            for answer in (p.chosen, p.rejected)
        ]
    except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError):  # an estimate is not worth an error
        return None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    lengths = [len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    return list(zip(lengths[::2], lengths[1::2], strict=True))


def make_plan(
    recipe: Recipe, workspace: Workspace, model: StartingModel | None, sources: list[StepResult], mixture: StepResult
) -> dict[str, Any]:
    """Steps, effective batch, tokens, and which results would be reused.

    Args:
        recipe: The resolved recipe.
        workspace: Where earlier results stand.
        model: The starting model; None if it has yet to be fetched.
        sources: The checked datasets.
        mixture: The mixture.
    """
    config = accelerate_configs.choose(workspace, recipe.accelerate_config)
    processes = accelerate_configs.processes(config)
    count, batch = step_count(mixture.info["train"], recipe, processes)
    plan: dict[str, Any] = {
        "model": recipe.model_name,
        "train_pairs": mixture.info["train"],
        "test_pairs": mixture.info["test"],
        "steps": count,
        "effective_batch": batch,
        "processes": processes,
        "device": accelerate_configs.device(),
        "accelerate_config": config.name,
        "tokens": None,
        "reused": {"source": True, "mixture": True, "baseline": False, "train": False, "policy": False},
        "output_dir": recipe.output_dir,
    }
    if model is None:
        return plan
    if (folder := Path(model.path)).is_dir():
        pairs = load_pairs(mixture.folder(workspace) / "train.jsonl")
        if (tokens := count_tokens(pairs, model, folder)) is not None:
            limit = int(training_value(recipe, "max_length") or 10**6)
            used = sum(min(t, limit) for both in tokens for t in both)
            seen = float(count * batch)
            if int(training_value(recipe, "max_steps")) <= 0:  # an epoch's last batch is smaller
                seen = min(seen, float(training_value(recipe, "num_train_epochs")) * len(pairs))
            plan["tokens"] = round(used * seen / len(pairs))
            plan["pairs_cut"] = sum(max(both) > limit for both in tokens)
            if plan["device"] == "cpu" and model.name.endswith("135M-Instruct"):
                plan["training_minutes"] = round(plan["tokens"] * CPU_SECONDS_PER_TOKEN / 60, 1)
    wanted = {
        "baseline": keys.baseline_key(recipe, model, mixture),
        "train": keys.train_key(recipe, workspace, model, mixture),
    }
    found = {step: store.find(workspace, step, key) for step, key in wanted.items()}
    plan["reused"] |= {step: result is not None for step, result in found.items()}
    if (train := found["train"]) is not None:
        key = keys.policy_key(recipe, model, mixture, train)
        plan["reused"]["policy"] = store.find(workspace, "policy", key) is not None
    return plan
