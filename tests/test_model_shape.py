"""Shapes from config.json, against the models that transformers itself builds (on the meta device: no memory)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from preftune.model_shape import ModelShape, find_shape, known_shapes, shape_of
from preftune.strict_yaml import load_yaml

SOURCE = Path(__file__).parent.parent / "src/preftune/known_shapes.yaml"
PUBLISHED: dict[str, dict[str, Any]] = load_yaml(SOURCE.read_text(), str(SOURCE))
SMALL = {
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# model_type and what is set beside SMALL: every family, and what its config.json can say about biases, heads, ties
ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 16}),
    ("smollm3", {}),
    ("mistral", {}),
    ("mistral", {"head_dim": 16}),
    ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"head_dim": 16}),
    ("gemma", {"head_dim": 16}),
    ("gemma2", {"head_dim": 16}),
    ("gemma3_text", {"head_dim": 16}),
    ("phi3", {}),
    ("starcoder2", {}),
    ("starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
    ("gpt_neox", {"num_key_value_heads": None}),
    ("gpt_neox", {"num_key_value_heads": None, "attention_bias": False}),
]


def config_of(model_type: str, extra: dict[str, Any]) -> dict[str, Any]:
    """What transformers would write into config.json."""
    settings = {k: v for k, v in {**SMALL, **extra}.items() if v is not None}
    return AutoConfig.for_model(model_type, **settings).to_dict()


def on_meta(config: dict[str, Any]) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


def shape(config: dict[str, Any]) -> ModelShape:
    found = shape_of(config)
    assert found is not None
    return found


@pytest.mark.parametrize(("model_type", "extra"), ARCHITECTURES, ids=lambda v: v if isinstance(v, str) else "")
def test_parameters_and_modules_are_transformers_own(model_type: str, extra: dict[str, Any]) -> None:
    config = config_of(model_type, extra)
    model, ours = on_meta(config), shape(config)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not n.endswith("head")}
    linears = {n: m for n, m in linears.items() if n not in ("lm_head", "embed_out")}
    assert ours.parameters == sum(p.numel() for p in model.parameters())
    assert ours.linear_parameters == sum(p.numel() for m in linears.values() for p in m.parameters())
    assert sorted(ours.module_names()) == sorted(linears)
    widths = {f"{ours.prefix}.{i}.{m.name}": (m.inputs, m.outputs) for i in range(ours.layers) for m in ours.linears}
    assert widths == {n: (m.in_features, m.out_features) for n, m in linears.items()}


@pytest.mark.parametrize(("model_type", "extra"), ARCHITECTURES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_file_that_leaves_the_defaults_out(model_type: str, extra: dict[str, Any]) -> None:
    """Keys that say what the architecture's default says need not be there."""
    config = config_of(model_type, extra)
    default = AutoConfig.for_model(model_type).to_dict()
    optional = ("attention_bias", "mlp_bias", "use_bias", "tie_word_embeddings")
    short = {k: v for k, v in config.items() if k not in optional or v != default.get(k)}
    assert shape(short) == shape(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_models_have_the_published_parameters(name: str) -> None:
    """The config that is kept for them, built by transformers, and the number on their cards."""
    config = {k: v for k, v in PUBLISHED[name].items() if k != "parameters"}
    model = on_meta({**config, "pad_token_id": 0})
    assert (
        known_shapes()[name].parameters == PUBLISHED[name]["parameters"] == sum(p.numel() for p in model.parameters())
    )


def test_an_unknown_architecture_has_no_shape() -> None:
    assert shape_of({"model_type": "mamba", **SMALL}) is None
    assert shape_of({**SMALL}) is None
    assert shape_of({"model_type": "llama", "hidden_size": 48}) is None


def test_the_models_own_file_wins(tmp_path: Path) -> None:
    """A folder's config.json, a known id, or nothing."""
    name = "HuggingFaceTB/SmolLM2-1.7B-Instruct"
    config = {k: v for k, v in PUBLISHED[name].items() if k != "parameters"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    there = find_shape(name, str(tmp_path))
    assert there is not None and there.layers == 2
    assert find_shape(name, None) == find_shape(name, str(tmp_path / "nowhere")) == known_shapes()[name]
    assert find_shape("mine/unknown", None) is None
