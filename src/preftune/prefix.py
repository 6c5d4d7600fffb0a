"""What all prompts begin with (mostly the chat template's system text) goes through the model once.

Imported in the evaluation child only.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_WORTH = 8  # tokens; fewer save less than the handling costs


@dataclass(frozen=True)
class Prefix:
    """Tokens that several sequences begin with, and what the model keeps of them.

    Args:
        length: How many; 0: none.
        states: Keys and values of each layer, 1 × heads × length × width.
    """

    length: int
    states: list[tuple[torch.Tensor, torch.Tensor]]

    def fill(self, cache: DynamicCache, rows: int) -> DynamicCache:
        """Puts the states into an empty cache, for so many rows."""
        for layer, (keys, values) in zip(cache.layers, self.states, strict=self.length > 0):
            assert isinstance(layer, DynamicLayer)
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)
        return cache


def read_prefix(model: Any, prompts: Sequence[list[int]], left: int) -> Prefix:
    """Finds what all prompts begin with, and reads it.

    Args:
        model: A causal language model.
        prompts: Token ids.
        left: Tokens of each prompt that the prefix must leave over.
    """
    if len(prompts) < 2 or not takes_any_order(model):
        return Prefix(0, [])
    first, last = min(prompts), max(prompts)  # in their order as lists; what these two share, all share
    common = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    length = min(common, min(map(len, prompts)) - left)
    if length < _WORTH:
        return Prefix(0, [])
    cache = DynamicCache(config=bare_model(model).config)
    ids = torch.tensor([list(prompts[0][:length])], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Prefix(length, [(keys, values) for keys, values, _ in cache if keys is not None and values is not None])


def takes_any_order(model: Any) -> bool:
    """Whether tokens can be read in any order and grouping, given their positions and what each may see: no layer may
    keep a window or a state that runs on."""
    bare = bare_model(model)
    takes = "position_ids" in inspect.signature(bare.forward).parameters
    cache = DynamicCache(config=bare.config)
    plain = bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)
    return takes and plain and bare.config._attn_implementation == "sdpa"


def bare_model(model: Any) -> Any:
    """The model inside PEFT's wrapper; its layers carry the adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
