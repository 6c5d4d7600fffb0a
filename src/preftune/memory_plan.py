"""What a recipe's training step needs on a device, and what would fit: the plan before the launch.

Nothing here was measured on a GPU: every plan is an estimate, and says so. The formulas are held against what
autograd keeps and what the allocator reports for whole steps on a CPU (tests/test_memory.py).
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from preftune.activations import cast_weights, kept_activations, layer_activations, logits, working
from preftune.hardware import GIB, Device
from preftune.known_keys import specs
from preftune.memory import Settings, Sharding, gathered, gradients, optimizer, reference, weights
from preftune.model_shape import Linear, ModelShape
from preftune.schema import Recipe

# What allocators lose to gaps between blocks of changing sizes, and what a CUDA context with its libraries (on a CPU:
# a Python process with torch and TRL) takes. Guesses, until somebody measures.
FRAGMENTATION, CONTEXT = 1.1, 1 * GIB
# Where a recipe says nothing of gradient checkpointing, it is off if the plan without it takes at most this share.
ROOMY = 0.8
UNLIMITED = 2048  # tokens that are planned for where neither max_length nor a count of the data says how many


@dataclass(frozen=True)
class Memory:
    """What a step needs on one device, in bytes.

    Args:
        parts: Each part's own size; they do not all stand there at the same moment.
        peak: The largest sum that stands at once: what torch's allocator reports as its maximum.
    """

    parts: dict[str, int]
    peak: int

    @property
    def needed(self) -> int:
        """With what the allocator loses and the process itself takes."""
        return round(self.peak * FRAGMENTATION + CONTEXT)

    def fits(self, device: Device) -> bool:
        return self.needed <= device.memory


def step_memory(shape: ModelShape, s: Settings) -> Memory:
    """The memory of a training step after the first one (the optimizer's state exists).

    The peak is the largest of three moments: at the LM head, with all kept activations; inside a layer's backward
    pass, where without accumulation gradients appear as activations go; and in the optimizer's step.
    """
    kept, head, work = kept_activations(shape, s), logits(shape, s), working(shape, s)
    layer = layer_activations(shape, s) if s.checkpointing else 0.0
    copies = cast_weights(shape, s)
    found = gradients(shape, s)
    before = found if s.accumulation > 1 else 0.0
    # Autocast keeps its copies of trained weights until the forward pass ends, and autograd those that it needs.
    at_head = before + kept + head + (copies if s.lora is None or not s.checkpointing else 0)
    in_layers = (before + kept if before else max(found, kept)) + layer + work
    in_layers += copies / shape.layers if s.checkpointing else copies
    at_step = found + (3 * 4 * shape.embedding if s.on_cpu and s.lora is None else 0)  # Adam's terms of one matrix
    parts = {
        "weights": weights(shape, s) + copies,
        "reference": reference(shape, s),
        "gradients": found,
        "optimizer": optimizer(shape, s),
        "activations": kept + layer + work,
        "logits": head,
        "gathered": gathered(shape, s),
    }
    lasting = weights(shape, s) + sum(parts[p] for p in ("reference", "optimizer", "gathered"))
    peak = lasting + max(at_head, in_layers, at_step)
    return Memory({name: round(size) for name, size in parts.items() if size}, round(peak))


def lora_modules(shape: ModelShape, targets: list[str] | str | None) -> tuple[Linear, ...]:
    """The linear modules of a layer that get an adapter, as peft matches names; all of them where none is named.

    TRL turns a list of one name into text, and peft reads text as a pattern for a module's whole path.
    """
    if isinstance(targets, list) and len(targets) == 1:
        targets = targets[0]
    if targets in (None, "all-linear", []):
        return shape.linears
    paths = {m: f"{shape.prefix}.0.{m.name}" for m in shape.linears}
    if isinstance(targets, str):
        return tuple(m for m in shape.linears if re.fullmatch(targets, paths[m]))
    return tuple(m for m in shape.linears if any(paths[m].endswith(f".{t}") for t in targets))


def settings_of(
    recipe: Recipe,
    shape: ModelShape,
    device: Device,
    processes: int = 1,
    sharding: Sharding | None = None,
    longest: int | None = None,
) -> Settings:
    """What the training child will make of a recipe on a device, as far as memory is concerned.

    Args:
        recipe: The resolved recipe.
        shape: The starting model's.
        device: Where it trains.
        processes: Devices that train together.
        sharding: How they share the state; None: each holds all of it.
        longest: Tokens of the longest row, where they were counted; else max_length counts.
    """

    def value(key: str) -> Any:
        found = recipe.training.get(key, recipe.model.get(key))
        return specs()[key]["default"] if found is None else found

    on_cpu = device.kind == "cpu"
    asked = recipe.training.get("gradient_checkpointing", recipe.training.get("activation_checkpointing"))
    mixed = bool(value("fp16") or recipe.training.get("bf16") or (recipe.training.get("bf16") is None and not on_cpu))
    use_lora = bool(value("use_peft"))
    quantized = 4 if value("load_in_4bit") else 8 if value("load_in_8bit") else None
    width = 2 if value("dtype") in ("bfloat16", "float16") else 4
    limit = recipe.training.get("max_length", specs()["max_length"]["default"])
    lengths = [n for n in (limit, longest) if n is not None]
    attention = value("attn_implementation") or ("eager" if shape.model_type == "gemma2" else "sdpa")
    adapter = 2 if quantized and not value("fp16") else 4
    dpo = recipe.method == "dpo"
    cached = dpo and bool(recipe.training.get("precompute_ref_log_probs"))
    s = Settings(
        pairs=int(value("per_device_train_batch_size")),
        length=min(lengths, default=UNLIMITED),
        accumulation=int(value("gradient_accumulation_steps")),
        checkpointing=bool(asked),
        attention="flash" if "fl" in attention else "eager" if attention == "eager" else "sdpa",
        weight_bytes=width,
        mixed=mixed,
        quantized=quantized,
        nested=bool(value("use_bnb_nested_quant")),
        lora=lora_modules(shape, value("lora_target_modules")) if use_lora else None,
        lora_on_experts=bool(use_lora and shape.experts and value("lora_target_modules") in (None, "all-linear")),
        rank=int(value("lora_r")),
        adapter_bytes=width if sharding == "zero3" and not quantized else adapter,
        optimizer=recipe.training.get("optim") or "adamw_torch",
        frozen_copy=dpo and not use_lora and not cached,
        full_logits=not dpo,
        processes=processes,
        sharding=sharding,
        on_cpu=on_cpu,
    )
    if asked is None and not on_cpu:
        s = replace(s, checkpointing=step_memory(shape, s).needed > ROOMY * device.memory)
    return s


def plan_memory(
    recipe: Recipe,
    shape: ModelShape,
    device: Device,
    processes: int = 1,
    sharding: Sharding | None = None,
    longest: int | None = None,
) -> dict[str, Any]:
    """The memory of a recipe's training step on a device, and what would fit there.

    Args:
        recipe: The resolved recipe.
        shape: The starting model's.
        device: Where it trains; each of several.
        processes: Devices that train together.
        sharding: How they share the state; None: each holds all of it.
        longest: Tokens of the longest row, where they were counted; else max_length counts.

    Returns:
        `device`, `device_bytes`, `micro_batch`, `length`, `checkpointing`, `parts` (bytes), `peak`, `needed`, `fits`,
        `largest_micro_batch` (`with_checkpointing`, `without_checkpointing`: pairs, 0 for none), `would_fit` (keys to
        change, the first way that fits, where the recipe does not), `estimated` (always true, so far).
    """
    s = settings_of(recipe, shape, device, processes, sharding, longest)
    memory = step_memory(shape, s)
    return {
        "device": device.name,
        "device_bytes": device.memory,
        "micro_batch": s.pairs,
        "length": s.length,
        "checkpointing": s.checkpointing,
        "parts": memory.parts,
        "peak": memory.peak,
        "needed": memory.needed,
        "fits": memory.fits(device),
        "largest_micro_batch": {
            "with_checkpointing": largest_micro_batch(shape, replace(s, checkpointing=True), device),
            "without_checkpointing": largest_micro_batch(shape, replace(s, checkpointing=False), device),
        },
        "would_fit": None if memory.fits(device) else what_would_fit(shape, s, device),
        "estimated": True,
    }


def largest_micro_batch(shape: ModelShape, s: Settings, device: Device) -> int:
    """The most pairs in a micro-batch that fit, as a power of two up to 64, with accumulation; 0 if not one does."""
    found = 0
    for pairs in (1, 2, 4, 8, 16, 32, 64):
        if not step_memory(shape, replace(s, pairs=pairs, accumulation=max(s.accumulation, 2))).fits(device):
            break
        found = pairs
    return found


def what_would_fit(shape: ModelShape, s: Settings, device: Device) -> dict[str, Any] | None:
    """The recipe keys to change so that a step fits, from the mildest change on; None if nothing helps.

    In this order, each on top of the last: half the micro-batch and twice the accumulation down to one pair, gradient
    checkpointing, shorter rows (1024, 512), LoRA, 4-bit weights (on a GPU). The effective batch stays.
    """
    keys: dict[str, Any] = {}

    def fits() -> bool:
        return step_memory(shape, s).fits(device)

    batch = s.pairs * s.accumulation
    while s.pairs > 1 and not fits():
        s = replace(s, pairs=s.pairs // 2, accumulation=math.ceil(batch / (s.pairs // 2)))
        keys |= {"per_device_train_batch_size": s.pairs, "gradient_accumulation_steps": s.accumulation}
    if not fits() and not s.checkpointing:
        s = replace(s, checkpointing=True)
        keys["gradient_checkpointing"] = True
    for length in (1024, 512):
        if not fits() and s.length > length:
            s = replace(s, length=length)
            keys["max_length"] = length
    if not fits() and s.lora is None:
        s = replace(s, lora=shape.linears, lora_on_experts=shape.experts > 0, frozen_copy=False)
        keys["use_peft"] = True
    if not fits() and s.quantized is None and not s.on_cpu:
        width = 2 if s.mixed else s.weight_bytes
        s = replace(s, quantized=4, nested=True, weight_bytes=width, adapter_bytes=2)
        keys |= {"load_in_4bit": True, "use_bnb_nested_quant": True}
        if width == 2:
            keys["dtype"] = "bfloat16" if device.has_bf16 else "float16"
    return keys if fits() else None
