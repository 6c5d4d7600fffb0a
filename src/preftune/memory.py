"""The memory of a training that lasts: weights, reference, gradients, optimizer. Pure functions, bytes; no torch.

What lives only within a step stands in activations.py. Each docstring names what its formula rests on.
"""

from dataclasses import dataclass
from typing import Literal

from preftune.model_shape import Linear, ModelShape

Sharding = Literal["zero2", "zero3", "fsdp"]


@dataclass(frozen=True)
class Settings:
    """What of a recipe, a device and a launch decides about memory.

    Args:
        pairs: Pairs in a micro-batch (on each device).
        length: Tokens of a row.
        accumulation: Micro-batches before an optimizer step.
        checkpointing: Whether a layer's activations are computed again in the backward pass.
        attention: `sdpa`, `eager` or `flash`.
        weight_bytes: Bytes of a weight that is not quantized: 4 or 2.
        mixed: Whether products are computed in 16 bits under autocast.
        quantized: 4 or 8 bits of the linear modules; None: not quantized.
        nested: Whether the 4-bit scales are quantized too (double quantization).
        lora: The linear modules of a layer that get an adapter; None: all weights are trained.
        lora_on_experts: Whether a mixture's experts and router get one too.
        rank: Rank of the adapters.
        adapter_bytes: Bytes of an adapter's weight.
        optimizer: transformers' name.
        frozen_copy: Whether a frozen copy of the model stands beside it as the reference.
        full_logits: Whether the loss builds all logits (ORPO).
        processes: Devices that train together.
        sharding: How they share the state: `zero2`, `zero3`, `fsdp`; None: each holds all of it.
        on_cpu: Whether it runs on a CPU.
    """

    pairs: int = 1
    length: int = 1024
    accumulation: int = 1
    checkpointing: bool = False
    attention: Literal["sdpa", "eager", "flash"] = "sdpa"
    weight_bytes: int = 4
    mixed: bool = False
    quantized: Literal[4, 8] | None = None
    nested: bool = False
    lora: tuple[Linear, ...] | None = None
    lora_on_experts: bool = False
    rank: int = 16
    adapter_bytes: int = 4
    optimizer: str = "adamw_torch"
    frozen_copy: bool = False
    full_logits: bool = False
    processes: int = 1
    sharding: Sharding | None = None
    on_cpu: bool = False

    @property
    def tokens(self) -> int:
        """Tokens in a micro-batch: two rows for each pair."""
        return 2 * self.pairs * self.length

    @property
    def width(self) -> int:
        """Bytes of a number that products are computed in."""
        return 2 if self.mixed else self.weight_bytes


def lora_parameters(shape: ModelShape, s: Settings) -> int:
    """Parameters of the adapters: r x (inputs + outputs) for each module (Hu et al., arXiv 2106.09685, section 4).

    On experts peft 0.21 puts 2r for each one's gate and up projection together, r for its down projection.
    """
    sides = sum(m.inputs + m.outputs for m in s.lora or ())
    if s.lora_on_experts:
        h, i = shape.hidden, shape.intermediate
        sides += h + shape.experts + shape.experts * (2 * (h + 2 * i) + i + h)
    return shape.layers * s.rank * sides


def trained_parameters(shape: ModelShape, s: Settings) -> int:
    """Parameters that get a gradient."""
    return shape.parameters if s.lora is None else lora_parameters(shape, s)


def base_weights(shape: ModelShape, s: Settings) -> float:
    """Bytes of the model as it is loaded.

    4 bits: half a byte a weight of the linear modules, and a scale for each block of 64: 4 bytes, or with double
    quantization 1 byte and 4 bytes for each 256 of them: 0.127 bits a weight (QLoRA, Dettmers et al., arXiv
    2305.14314, section 3). 8 bits: a byte a weight. Embedding, LM head and norms keep their type, and so do the
    experts of a mixture: transformers 5 holds them as plain tensors.
    """
    if s.quantized is None:
        return shape.parameters * s.weight_bytes
    each = 1.0 if s.quantized == 8 else 0.5 + (1 / 64 + 4 / (64 * 256) if s.nested else 4 / 64)
    return shape.linear_parameters * each + (shape.parameters - shape.linear_parameters) * s.weight_bytes


def weights(shape: ModelShape, s: Settings) -> float:
    """Bytes of weights and adapters on one device.

    ZeRO-3 holds bfloat16 weights, and their float32 copy with the optimizer; accelerate's FSDP keeps the trained
    weights themselves in float32 (ZeRO, Rajbhandari et al., arXiv 1910.02054, section 3; accelerate's FSDP guide).
    """
    adapters = lora_parameters(shape, s) * s.adapter_bytes
    if s.sharding in ("zero3", "fsdp"):
        each = {"zero3": 2, "fsdp": 4}[s.sharding]
        whole = shape.parameters * each if s.lora is None else base_weights(shape, s)
        return (whole + adapters) / s.processes
    if s.sharding == "zero2" and s.lora is None:
        return shape.parameters * 2
    return base_weights(shape, s) + adapters


def reference(shape: ModelShape, s: Settings) -> float:
    """Bytes of the reference: a frozen copy, or nothing where it is the model without its adapter, or cached."""
    if not s.frozen_copy:
        return 0
    return shape.parameters * s.weight_bytes / (s.processes if s.sharding in ("zero3", "fsdp") else 1)


def gradients(shape: ModelShape, s: Settings) -> float:
    """Bytes of the gradients, as wide as what is trained.

    Several processes without sharding hold them twice: DDP's communication buckets are as large again (PyTorch's
    DistributedDataParallel, `gradient_as_bucket_view`). ZeRO shards them in bfloat16.
    """
    trained = trained_parameters(shape, s)
    each = s.weight_bytes if s.lora is None else s.adapter_bytes
    if s.sharding in ("zero2", "zero3"):
        return trained * 2 / s.processes
    if s.sharding == "fsdp":
        return trained * 4 / s.processes
    return trained * each * (2 if s.processes > 1 else 1)


def optimizer(shape: ModelShape, s: Settings) -> float:
    """Bytes of the optimizer's state.

    AdamW: two averages as wide as the weight; 8-bit AdamW (Dettmers et al., arXiv 2110.02861): a byte each and a
    4-byte scale for each 256, embeddings in float32 as transformers sets it; Adafactor (Shazeer and Stern, arXiv
    1804.04235): a row and a column of each matrix. ZeRO adds its float32 copy of the weights. Paged optimizers may
    move theirs to the computer's memory; they are counted in full.
    """
    trained = trained_parameters(shape, s)
    each = s.weight_bytes if s.lora is None else s.adapter_bytes
    name = s.optimizer
    if s.sharding in ("zero2", "zero3"):
        return 12 * trained / s.processes
    if s.sharding == "fsdp":
        return 8 * trained / s.processes
    if name == "adafactor":
        if s.lora is None:
            sides = shape.layers * sum(m.inputs + m.outputs for m in shape.linears)
            sides += (1 if shape.tied else 2) * (shape.vocab + shape.hidden)
        else:
            sides = shape.layers * sum(m.inputs + m.outputs + 2 * s.rank for m in s.lora)
        return 4.0 * sides
    if name == "sgd":
        return 0.0
    averages = 1 if "lion" in name or "rmsprop" in name else 2
    if "8bit" in name:
        embeddings = shape.embedding if s.lora is None else 0
        return averages * ((trained - embeddings) * (1 + 4 / 256) + 4 * embeddings)
    return float(averages * each * trained)


def gathered(shape: ModelShape, s: Settings) -> float:
    """Bytes of sharded weights that stand whole for a moment, and of the buckets they travel in.

    ZeRO-3: up to 10^9 live parameters and two buckets of 5·10^8 (DeepSpeed's defaults, stage3_max_live_parameters and
    reduce_bucket_size). FSDP: two layers and the embeddings, with their gradients (PyTorch FSDP's prefetching).
    """
    if s.sharding == "zero3":
        return 2 * min(shape.parameters, 10**9) + 2 * 2 * min(trained_parameters(shape, s), 5 * 10**8)
    if s.sharding == "zero2":
        return 2 * 2 * min(trained_parameters(shape, s), 5 * 10**8)
    if s.sharding == "fsdp":
        heads = 1 if shape.tied else 2
        return 2 * (2 * shape.layer_parameters + heads * shape.embedding) * (2 if s.lora is None else 1)
    return 0
