"""A model's shape from its config.json: what decides about memory, without loading anything.

Parameters are counted exactly for the architectures below; a test builds each with transformers and compares.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from preftune.strict_yaml import load_yaml

Norm = Literal["rms", "gemma", "layer"]
Reads = Literal["attention_in", "attention_out", "mlp_in", "mlp_out"]


@dataclass(frozen=True)
class Linear:
    """One linear module of a layer.

    Args:
        name: Its path inside the layer, as transformers names it.
        reads: Which tensor it reads; modules that read the same one share it.
        inputs: Width of what it reads.
        outputs: Width of what it writes.
        bias: Whether it has one.
    """

    name: str
    reads: Reads
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.outputs * (self.inputs + self.bias)


@dataclass(frozen=True)
class ModelShape:
    """The shape of a decoder.

    Args:
        model_type: As in config.json.
        prefix: Path of the layers, for module names.
        hidden: Width of the residual stream.
        layers: Number of layers.
        heads: Attention heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        intermediate: Width inside the MLP (of one expert).
        vocab: Rows of the embedding.
        tied: Whether the LM head is the embedding.
        gated: Whether the MLP multiplies two branches.
        linears: The linear modules of a layer.
        norms: Norms over the stream in a layer.
        norm: `rms`: Llama's, in float32 and back; `gemma`: all of it in float32; `layer`: LayerNorm, with a bias.
        softcap: Whether attention scores go through a tanh.
        head_norms: Whether queries and keys are normalised too.
        experts: Experts of a layer; 0: a plain MLP.
        active_experts: Experts that see a token.
    """

    model_type: str
    prefix: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    gated: bool
    linears: tuple[Linear, ...]
    norms: int
    norm: Norm = "rms"
    head_norms: bool = False
    softcap: bool = False
    experts: int = 0
    active_experts: int = 0

    @property
    def embedding(self) -> int:
        """Parameters of the embedding."""
        return self.vocab * self.hidden

    @property
    def linear_parameters(self) -> int:
        """Parameters of all layers' linear modules: what 4-bit loading makes smaller, what LoRA can be put on."""
        return self.layers * sum(m.parameters for m in self.linears)

    @property
    def expert_parameters(self) -> int:
        """Parameters of all layers' experts and routers. transformers 5 keeps them as plain tensors, no modules."""
        one = (3 if self.gated else 2) * self.hidden * self.intermediate
        return self.layers * self.experts * (one + self.hidden)

    @property
    def norm_parameters(self) -> int:
        """Parameters of one norm over the stream."""
        return self.hidden * (2 if self.norm == "layer" else 1)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        norms = self.norms * self.norm_parameters + (2 * self.head_dim if self.head_norms else 0)
        return (self.linear_parameters + self.expert_parameters) // self.layers + norms

    @property
    def parameters(self) -> int:
        """All of them; a tied LM head counts once."""
        heads = 1 if self.tied else 2
        return heads * self.embedding + self.layers * self.layer_parameters + self.norm_parameters

    def module_names(self) -> list[str]:
        """The linear modules' full names."""
        return [f"{self.prefix}.{i}.{m.name}" for i in range(self.layers) for m in self.linears]


@dataclass(frozen=True)
class _Family:
    """How an architecture differs from Llama's. A config key in place of a value: the model's own setting."""

    norms: int = 2
    norm: Norm = "rms"
    head_norms: bool = False
    tied: bool = False
    qkv_bias: bool | str = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    attention: Literal["split", "phi3", "gpt_neox"] = "split"
    mlp: Literal["gated", "phi3", "starcoder2", "gpt_neox", "experts"] = "gated"
    prefix: str = "model.layers"


_LLAMA = _Family(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")
_FAMILIES = {
    "llama": _LLAMA,
    "smollm3": _Family(**{**_LLAMA.__dict__, "tied": True}),
    "mistral": _Family(),
    "mixtral": _Family(mlp="experts"),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(qkv_bias="attention_bias", out_bias="attention_bias", head_norms=True),
    "gemma": _Family(norm="gemma", tied=True, qkv_bias="attention_bias", out_bias="attention_bias"),
    "gemma2": _Family(norms=4, norm="gemma", tied=True, qkv_bias="attention_bias", out_bias="attention_bias"),
    "gemma3_text": _Family(
        norms=4, norm="gemma", tied=True, qkv_bias="attention_bias", out_bias="attention_bias", head_norms=True
    ),
    "phi3": _Family(attention="phi3", mlp="phi3"),
    "starcoder2": _Family(
        norm="layer", tied=True, qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", mlp="starcoder2"
    ),
    "gpt_neox": _Family(
        norm="layer",
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias=True,
        attention="gpt_neox",
        mlp="gpt_neox",
        prefix="gpt_neox.layers",
    ),
}
# What a config.json without the key means, where it is not "no bias".
_BIASED_BY_DEFAULT = {("starcoder2", "use_bias"), ("gpt_neox", "attention_bias")}


def _linears(family: _Family, bias: dict[str, bool], h: int, q: int, kv: int, i: int) -> tuple[Linear, ...]:
    """One layer's linear modules: `h` stream, `q` all query heads, `kv` all key heads, `i` MLP."""
    qkv, out, mlp = bias["qkv"], bias["out"], bias["mlp"]
    attention = {
        "split": (
            Linear("self_attn.q_proj", "attention_in", h, q, qkv),
            Linear("self_attn.k_proj", "attention_in", h, kv, qkv),
            Linear("self_attn.v_proj", "attention_in", h, kv, qkv),
            Linear("self_attn.o_proj", "attention_out", q, h, out),
        ),
        "phi3": (
            Linear("self_attn.qkv_proj", "attention_in", h, q + 2 * kv),
            Linear("self_attn.o_proj", "attention_out", q, h),
        ),
        "gpt_neox": (
            Linear("attention.query_key_value", "attention_in", h, q + 2 * kv, qkv),
            Linear("attention.dense", "attention_out", q, h, out),
        ),
    }[family.attention]
    feed_forward = {
        "gated": (
            Linear("mlp.gate_proj", "mlp_in", h, i, mlp),
            Linear("mlp.up_proj", "mlp_in", h, i, mlp),
            Linear("mlp.down_proj", "mlp_out", i, h, mlp),
        ),
        "phi3": (
            Linear("mlp.gate_up_proj", "mlp_in", h, 2 * i),
            Linear("mlp.down_proj", "mlp_out", i, h),
        ),
        "starcoder2": (
            Linear("mlp.c_fc", "mlp_in", h, i, mlp),
            Linear("mlp.c_proj", "mlp_out", i, h, mlp),
        ),
        "gpt_neox": (
            Linear("mlp.dense_h_to_4h", "mlp_in", h, i, mlp),
            Linear("mlp.dense_4h_to_h", "mlp_out", i, h, mlp),
        ),
        "experts": (),
    }[family.mlp]
    return (*attention, *feed_forward)


def shape_of(config: dict[str, Any]) -> ModelShape | None:
    """The shape that a config.json describes; None for an architecture that is not known here."""
    model_type = config.get("model_type")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    if family is None or not isinstance(model_type, str) or any(not isinstance(config.get(k), int) for k in needed):
        return None
    h, layers, heads, i, vocab = (config[k] for k in needed)
    head_dim = config.get("head_dim") or h // heads
    kv_heads = config.get("num_key_value_heads") or heads

    def flag(value: bool | str) -> bool:
        default = (model_type, value) in _BIASED_BY_DEFAULT
        return bool(config.get(value, default)) if isinstance(value, str) else value

    bias = {"qkv": flag(family.qkv_bias), "out": flag(family.out_bias), "mlp": flag(family.mlp_bias)}
    tied = config.get("tie_word_embeddings")
    return ModelShape(
        model_type=model_type,
        prefix=family.prefix,
        hidden=h,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=i,
        vocab=vocab,
        tied=family.tied if tied is None else bool(tied),
        gated=family.mlp in ("gated", "phi3", "experts"),
        linears=_linears(family, bias, h, heads * head_dim, kv_heads * head_dim, i),
        norms=family.norms,
        norm=family.norm,
        softcap=bool(config.get("attn_logit_softcapping", 50.0)) if model_type == "gemma2" else False,
        head_norms=family.head_norms,
        experts=config.get("num_local_experts", 8) if family.mlp == "experts" else 0,
        active_experts=config.get("num_experts_per_tok", 2) if family.mlp == "experts" else 0,
    )


@functools.cache
def known_shapes() -> dict[str, ModelShape]:
    """Model id → shape, of the models that the shipped recipes name: they can be planned for without a network."""
    path = Path(__file__).parent / "known_shapes.yaml"
    found = {name: shape_of(config) for name, config in load_yaml(path.read_text(), str(path)).items()}
    return {name: shape for name, shape in found.items() if shape}


def find_shape(name: str, folder: str | None) -> ModelShape | None:
    """The shape of the model in a folder, else of a known id; None if neither tells.

    Args:
        name: The id or path in the recipe.
        folder: Local folder that holds its config.json, if there is one.
    """
    path = Path(folder) / "config.json" if folder else None
    if path and path.is_file():
        return shape_of(json.loads(path.read_text()))
    return known_shapes().get(name)
