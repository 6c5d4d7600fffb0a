"""What a run would do, told in seconds and without training: `preftune check`."""

import math
from pathlib import Path
from typing import Any

from preftune import accelerate_configs, hardware, keys, remedies, store
from preftune.advice import launch_advice
from preftune.errors import UserError
from preftune.known_keys import snapshot
from preftune.memory import Sharding
from preftune.memory_plan import plan_memory, settings_of
from preftune.model_shape import find_shape
from preftune.models import StartingModel
from preftune.policies import find_policy
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.strict_yaml import load_yaml
from preftune.workspace import Workspace

CPU_SECONDS_PER_TOKEN = 0.01  # SmolLM2-135M, LoRA, float32, two cores, reference included: docs/first-run.md


def training_value(recipe: Recipe, key: str) -> Any:
    """The recipe's value of a TRL key, else TRL's default."""
    return recipe.training.get(key, snapshot()["training"][key]["default"])


def no_batch(pairs: int, batch: int) -> UserError:
    """The message: transformers asks for max_steps then."""
    return UserError(
        f"{pairs} pairs do not fill one batch of {batch}, and dataloader_drop_last drops what does not fill one",
        "dataloader_drop_last",
        "remove it, lower per_device_train_batch_size, or add pairs",
    )


def step_count(pairs: int, recipe: Recipe, processes: int) -> tuple[int, int]:
    """(optimizer steps, effective batch), as transformers' Trainer counts them.

    Raises:
        UserError: If `dataloader_drop_last` leaves nothing.
    """
    batch = int(training_value(recipe, "per_device_train_batch_size")) * processes
    accumulation = int(training_value(recipe, "gradient_accumulation_steps"))
    batches = pairs // batch if recipe.training.get("dataloader_drop_last") else math.ceil(pairs / batch)
    if not batches:
        raise no_batch(pairs, batch)
    an_epoch = max(math.ceil(batches / accumulation), 1)
    limit = int(training_value(recipe, "max_steps"))
    wanted = math.ceil(float(training_value(recipe, "num_train_epochs")) * an_epoch)
    return (limit if limit > 0 else wanted), batch * accumulation


def sharding_of(config: Path) -> Sharding | None:
    """How an accelerate configuration spreads one model over several devices; None if it does not."""
    settings = load_yaml(config.read_text(), str(config))
    stage = (settings.get("deepspeed_config") or {}).get("zero_stage")
    kinds: dict[Any, Sharding] = {("FSDP", None): "fsdp", ("DEEPSPEED", 2): "zero2", ("DEEPSPEED", 3): "zero3"}
    return kinds.get((settings.get("distributed_type"), stage))


def _with_memory(
    plan: dict[str, Any], recipe: Recipe, folder: str | None, sharding: Sharding | None, longest: int | None
) -> None:
    """Adds the memory of a step and the advice; in place.

    Args:
        plan: The plan so far.
        recipe: The resolved recipe.
        folder: Where the starting model's config.json is, if anywhere here.
        sharding: How several devices share the model.
        longest: Tokens of the longest row, where they were counted.
    """
    device = hardware.cpu() if plan["device"] == "cpu" else hardware.present()
    shape, processes = find_shape(recipe.model_name, folder), plan["processes"]
    if shape:
        plan["memory"] = plan_memory(recipe, shape, device, processes, sharding, longest)
    lines = launch_advice(
        recipe,
        shape,
        device,
        batch=plan["effective_batch"],
        processes=processes,
        sharded=sharding is not None,
        memory_plan=plan["memory"],
    )
    lines += remedies.not_improving(recipe)
    lines += remedies.too_slow(recipe, shape, plan["train_pairs"], plan["steps"]) + remedies.better_results(recipe)
    plan["advice"] = [line._asdict() for line in lines]


def checkpointing_of(
    recipe: Recipe, model: StartingModel, lengths: StepResult | None, launch: accelerate_configs.Launch
) -> dict[str, bool]:
    """`gradient_checkpointing` for a training on a GPU of which the recipe says nothing: only where memory needs it.

    TRL's default is on, which costs a second forward pass. It changes no result.

    Returns:
        The key and its value; empty where the recipe decides, on a CPU, and where the model's shape is not known.
    """
    says = {"gradient_checkpointing", "activation_checkpointing"} & recipe.training.keys()
    shape = find_shape(recipe.model_name, model.files or model.path)
    if says or launch.device != "cuda" or shape is None:
        return {}
    counted = lengths.info.get("train") if lengths else None
    longest = counted["longest"] if counted else None
    sharding = sharding_of(launch.config)
    s = settings_of(recipe, shape, hardware.present(), launch.processes, sharding, longest)
    return {"gradient_checkpointing": s.checkpointing}


def make_plan(
    recipe: Recipe,
    workspace: Workspace,
    model: StartingModel | None,
    mixture: StepResult,
    lengths: StepResult | None,
) -> dict[str, Any]:
    """Steps, effective batch, tokens, memory, advice, and which results would be reused.

    Args:
        recipe: The resolved recipe.
        workspace: Where earlier results stand.
        model: The starting model; None if it has yet to be fetched.
        mixture: The mixture.
        lengths: The pairs' tokens; None if the starting model has yet to be fetched.
    """
    counted = lengths.info["train"] if lengths and "train" in lengths.info else None
    pairs = mixture.info["train"] - (sum(counted["counts"].values()) if counted else 0)
    launch = accelerate_configs.launch(workspace, recipe.accelerate_config)
    processes = launch.processes
    count, batch = step_count(pairs, recipe, processes)
    plan: dict[str, Any] = {
        "model": recipe.model_name,
        "train_pairs": pairs,
        "test_pairs": mixture.info["test"],
        "steps": count,
        "effective_batch": batch,
        "processes": processes,
        "device": launch.device,
        "accelerate_config": launch.config.name,
        "tokens": None,
        "memory": None,
        "advice": [],
        "reused": {"source": True, "mixture": True, "baseline": False, "train": False, "policy": False},
        "output_dir": recipe.output_dir,
    }
    longest = counted["longest"] if counted else None
    sharding = sharding_of(launch.config) if plan["device"] == "cuda" else None
    _with_memory(plan, recipe, model.files or model.path if model else None, sharding, longest)
    if model is None:
        return plan
    if counted:
        seen = float(count * batch)
        if int(training_value(recipe, "max_steps")) <= 0:  # an epoch's last batch is smaller
            seen = min(seen, float(training_value(recipe, "num_train_epochs")) * pairs)
        plan["tokens"] = round(counted["tokens"] * seen / pairs)
        plan["pairs_cut"] = counted["cut"]
        if plan["device"] == "cpu" and model.name.endswith("135M-Instruct"):
            plan["training_minutes"] = round(plan["tokens"] * CPU_SECONDS_PER_TOKEN / 60, 1)
    wanted = {
        "baseline": keys.baseline_key(recipe, workspace, model, mixture),
        "train": keys.train_key(recipe, workspace, model, mixture),
    }
    found = {step: store.find(workspace, step, key) for step, key in wanted.items()}
    plan["reused"] |= {step: result is not None for step, result in found.items()}
    if (train := found["train"]) is not None:
        policy = find_policy(str(train.folder(workspace) / "model"), workspace, model)
        key = keys.policy_key(recipe, workspace, model, mixture, policy.digest)
        plan["reused"]["policy"] = store.find(workspace, "policy", key) is not None
    return plan
