"""The guide's advice as functions: a recipe and its plan in, lines with numbers out. No I/O, nothing heavy.

What a finished training's curves show (over-fitting, a flat margin) is read in training_notes.py; what to do when a
run disappoints is in remedies.py.
"""

from typing import Any, Literal, NamedTuple

from preftune.hardware import GIB, Device
from preftune.known_keys import specs
from preftune.memory_plan import lora_modules
from preftune.model_shape import ModelShape
from preftune.schema import Recipe

EFFECTIVE_BATCH = (16, 64)
BETA = (0.01, 0.5)
# Full fine-tuning: the guide's. A LoRA's: ten times that (Schulman et al., "LoRA Without Regret", 2025; the
# alignment-handbook trains at 5e-7 full, 5e-6 QLoRA). ORPO's: around its paper's 8e-6 (arXiv 2403.07691).
LEARNING_RATE = {
    ("dpo", False): (1e-7, 5e-6),
    ("dpo", True): (1e-6, 5e-5),
    ("orpo", False): (1e-6, 1e-5),
    ("orpo", True): (1e-5, 1e-4),
}
MOST_EPOCHS = 3
# In these losses beta scales a log-ratio, as in DPO; in the others it means something else.
BETA_LOSSES = {"sigmoid", "robust", "exo_pair", "nca_pair", "bco_pair", "apo_zero", "apo_down", "discopop"}
CHECKPOINTING_COST = 1.18  # times a step's duration: measured on a CPU (SmolLM2-135M, float32)


class Line(NamedTuple):
    """One piece of advice.

    Args:
        when: `launch`: now; `not_improving`, `too_slow`, `better_results`: if that is what is seen.
        level: `warning`: change it, or know why not; `note`.
        key: The recipe's key that it is about.
        text: What and why, with numbers.
    """

    when: Literal["launch", "not_improving", "too_slow", "better_results"]
    level: Literal["warning", "note"]
    key: str
    text: str


def value(recipe: Recipe, key: str) -> Any:
    """The recipe's value of a TRL key, else TRL's default."""
    found = recipe.training.get(key, recipe.model.get(key))
    return specs()[key]["default"] if found is None else found


def effective_batch(batch: int, micro_batch: int, processes: int) -> list[Line]:
    """Pairs in an optimizer step, against 16 to 64.

    Args:
        batch: Micro-batch x accumulation x processes.
        micro_batch: Pairs on each device.
        processes: Devices.
    """
    low, high = EFFECTIVE_BATCH
    key, at_once = "gradient_accumulation_steps", micro_batch * processes
    if batch < low:
        steps = -(-low // at_once)
        text = f"effective batch {batch} is below {low}–{high}: {key}: {steps} makes it {at_once * steps}"
        return [Line("launch", "warning", key, text)]
    if batch > high:
        steps = max(high // at_once, 1)
        how = (
            f"{key}: {steps} makes it {at_once * steps}" if at_once <= high else "use fewer devices or smaller batches"
        )
        return [Line("launch", "warning", key, f"effective batch {batch} is above {low}–{high}: {how}")]
    return []


def beta(recipe: Recipe) -> list[Line]:
    """Beta against 0.01 to 0.5, where it is DPO's."""
    found, (low, high) = float(value(recipe, "beta")), BETA
    losses = recipe.training.get("loss_type") or ["sigmoid"]
    if recipe.method != "dpo" or not set(losses) & BETA_LOSSES or low <= found <= high:
        return []
    if found < low:
        text = f"beta {found:g} is below {low}–{high}: the policy may go far from the SFT model; 0.1 is a good start"
    else:
        text = f"beta {found:g} is above {low}–{high}: the policy will hardly leave the SFT model; 0.1 is a good start"
    return [Line("launch", "warning", "beta", text)]


def learning_rate(recipe: Recipe) -> list[Line]:
    """The learning rate against the range of the method, for all weights or an adapter."""
    found, lora = float(value(recipe, "learning_rate")), bool(value(recipe, "use_peft"))
    low, high = LEARNING_RATE[recipe.method, lora]
    if low <= found <= high:
        return []
    what = "a LoRA adapter" if lora else "training all weights"
    side = "below" if found < low else "above"
    risk = "little will be learned" if found < low else "the model may forget, or the loss become NaN"
    if lora and found > high:
        risk += " (small models stand more: the starter's 135M is trained at 2e-4)"
    name = recipe.method.upper()
    text = f"learning_rate {found:g} is {side} {low:g}–{high:g}, the range for {what} with {name}: {risk}"
    return [Line("launch", "warning" if found < low or not lora else "note", "learning_rate", text)]


def epochs(recipe: Recipe) -> list[Line]:
    """More than three epochs, and no held-out loss to see over-fitting by."""
    count = float(value(recipe, "num_train_epochs"))
    lines = []
    if count > MOST_EPOCHS and int(value(recipe, "max_steps")) <= 0:
        text = f"num_train_epochs {count:g} is above {MOST_EPOCHS}: pairs are soon learned by heart; start with 1"
        lines.append(Line("launch", "warning", "num_train_epochs", text))
    if count > 1 and value(recipe, "eval_strategy") == "no":
        text = f"{count:g} epochs without a held-out loss: over-fitting stays unseen; eval_strategy: steps shows it"
        lines.append(Line("launch", "note", "eval_strategy", text))
    return lines


def precision(recipe: Recipe, device: Device, sharded: bool) -> list[Line]:
    """Number formats that the device has not, or that lose what is learned.

    Args:
        recipe: The resolved recipe.
        device: Where it trains.
        sharded: Whether DeepSpeed or FSDP keeps float32 copies of the weights.
    """
    training, dtype = recipe.training, value(recipe, "dtype")
    full = not value(recipe, "use_peft")
    wants_bf16 = bool(training.get("bf16")) or dtype == "bfloat16"
    lines = []

    def tell(key: str, text: str) -> None:
        lines.append(Line("launch", "warning", key, text))

    if device.kind == "cpu" and wants_bf16:
        key = "bf16" if training.get("bf16") else "dtype"
        tell(
            key, "bfloat16 on a CPU without AVX512-bf16 or AMX ran about 100 times slower than float32: dtype: float32"
        )
    if device.kind == "cuda" and not device.has_bf16 and (wants_bf16 or training.get("bf16") is None):
        if wants_bf16:
            tell("bf16", f"{device.name}: use fp16, no bf16 (it has none in hardware): fp16: true, dtype: float16")
        elif not training.get("fp16"):
            text = f"{device.name}: fp16 will be used (it has no bf16); write fp16: true to say so"
            lines.append(Line("launch", "note", "fp16", text))
    if full and dtype == "bfloat16" and not sharded:
        tell(
            "dtype",
            "all weights are trained in bfloat16, which keeps 8 bits: a step smaller than 0.4 % of a weight is lost, "
            f"and Adam's steps are about {float(value(recipe, 'learning_rate')):g}; dtype: float32 (bf16 still "
            "computes in 16 bits), or accelerate_config: zero3 or fsdp",
        )
    if full and dtype == "float16" and training.get("fp16"):
        tell("dtype", "fp16 cannot unscale gradients of float16 weights: write dtype: float32 and keep fp16: true")
    return lines


def lora_targets(recipe: Recipe, shape: ModelShape) -> list[Line]:
    """Adapter targets that name no module of this architecture."""
    targets = recipe.model.get("lora_target_modules")
    if not recipe.model.get("use_peft") or targets in (None, [], "all-linear") or shape.experts:
        return []
    there = ", ".join(sorted({m.name.rpartition(".")[2] for m in shape.linears}))
    names = targets if isinstance(targets, list) else [targets]
    if len(names) == 1:
        if lora_modules(shape, names):
            return []
        text = f"TRL reads a list of one name as a pattern for a module's whole path: write '.*{names[0]}'"
        text += "" if lora_modules(shape, f".*{names[0]}") else f"; and {names[0]} is no module of {shape.model_type}"
        return [Line("launch", "warning", "lora_target_modules", f"{text} (it has {there})")]
    missing = [n for n in names if not lora_modules(shape, [n, n])]
    if not missing:
        return []
    text = f"no module of {shape.model_type} is called {', '.join(missing)} (it has {there})"
    return [Line("launch", "warning", "lora_target_modules", text)]


def gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / GIB:.2f} GiB" if count < GIB else f"{count / GIB:.1f} GiB"


def memory(plan: dict[str, Any]) -> list[Line]:
    """Whether a step fits on the device, and what would.

    Args:
        plan: As `plan_memory` returns it.
    """
    needed = f"a step needs about {gib(plan['needed'])} of {gib(plan['device_bytes'])} (estimated)"
    most = plan["largest_micro_batch"]
    with_it, without = most["with_checkpointing"], most["without_checkpointing"]
    key, size = "per_device_train_batch_size", plan["micro_batch"]
    if not plan["fits"]:
        change = plan["would_fit"]
        if change is None:
            how = "no setting of ours makes it fit: take a smaller model, or several GPUs (accelerate_config: fsdp)"
        else:
            how = "it would fit with " + ", ".join(f"{k}: {str(v).lower()}" for k, v in change.items())
        lines = [Line("launch", "warning", key, f"{plan['device']}: does not fit: {needed}; {how}")]
        if not plan["checkpointing"] and with_it >= size:
            text = f"micro-batch {size} fits with gradient_checkpointing, not without"
            lines.append(Line("launch", "note", "gradient_checkpointing", text))
        return lines
    lines = []
    if plan["checkpointing"]:
        if without >= size:
            text = (
                f"it fits without gradient_checkpointing, too: {CHECKPOINTING_COST} times as fast (measured on a CPU)"
            )
        else:
            text = f"micro-batch {size} fits with gradient_checkpointing, not without"
        lines.append(Line("launch", "note", "gradient_checkpointing", text))
    most_now = with_it if plan["checkpointing"] else without
    if 0 < most_now < 64:
        text = f"{plan['device']}: micro-batch {most_now} fits, {2 * most_now} does not (estimated)"
        lines.append(Line("launch", "note", key, text))
    return lines


def launch_advice(
    recipe: Recipe,
    shape: ModelShape | None,
    device: Device,
    *,
    batch: int,
    processes: int,
    sharded: bool,
    memory_plan: dict[str, Any] | None,
) -> list[Line]:
    """What to know before the launch: warnings first.

    Args:
        recipe: The resolved recipe.
        shape: The starting model's, if it is known.
        device: Where it trains.
        batch: Effective batch.
        processes: Devices.
        sharded: Whether they share weights or optimizer.
        memory_plan: As `plan_memory` returns it, if the shape is known.
    """
    lines = effective_batch(batch, int(value(recipe, "per_device_train_batch_size")), processes)
    lines += beta(recipe) + learning_rate(recipe) + epochs(recipe) + precision(recipe, device, sharded)
    if shape is None:
        text = "memory is not planned: this model's architecture, or its config.json, is not known here"
        lines.append(Line("launch", "note", "model_name_or_path", text))
    lines += lora_targets(recipe, shape) if shape else []
    lines += memory(memory_plan) if memory_plan else []
    return sorted(lines, key=lambda line: line.level != "warning")
