"""TRL's forward passes, on packed rows.

TRL reads a pair's prompt twice, pads all sequences to the longest, and (on a CPU) multiplies every token by the
vocabulary. Here the rows are packed (packing.py) on their way into the model, and only tokens that an answer's token
is asked of go on to TRL's own LM head, in its tiles. What comes back has TRL's shape: losses, metrics and reference
stay TRL's code. `fast_path: off` switches it off; `reason_against` says where it does not apply.

Imported in the training child only.
"""

import inspect
import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import DistributedType
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from trl.trainer.utils import FusedCausalLMOutput

from preftune.children import tell
from preftune.packing import Packed, pack, sees, sees_in_blocks

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # nats a token; others: 16 bits round by some hundredths
_MASKS = {"sdpa": sees, "flex_attention": sees_in_blocks}  # by transformers' attn_implementation
_PROBED = 64  # tokens of each sequence that the first batch is compared on


def switch_on(trainer: Any, prepare: Callable[[Any], None] | None = None) -> str:
    """Lets a trainer's model and its reference read packed rows, where they can; says so where they can't.

    Args:
        trainer: TRL's DPO or ORPO trainer, its models made.
        prepare: Gives a model TRL's fused LM head, if the trainer has not done so.

    Returns:
        `on`, or the reason against it.
    """
    limit = getattr(trainer, "max_length", trainer.args.max_length)  # ORPO's trainer has a default of its own
    models = [trainer.model, *([trainer.ref_model] if getattr(trainer, "ref_model", None) is not None else [])]
    models = [trainer.accelerator.unwrap_model(m) for m in models]
    reason = next((r for m in models if (r := reason_against(m, limit))), None)
    if trainer.aux_loss_enabled:
        reason = "the router's loss would count a prompt once"
    elif trainer.accelerator.parallelism_config is not None:
        reason = "the launcher splits sequences or tensors over several devices"
    if reason:
        tell(f"fast path: off, {reason}")
        return reason
    whole = trainer.accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if trainer.accelerator.device.type == "cpu":
        # With a mask transformers repeats keys and values for each group of heads; torch's kernel for CPUs need not.
        os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
    for model in map(_bare, models):
        if prepare:
            prepare(model)
        install(model, probes=whole)
    return "on"


def reason_against(model: Any, max_length: int | None) -> str | None:
    """Why a model cannot read packed rows; None: it can.

    Args:
        model: A causal language model, with or without an adapter, as it will be trained (dropout switched off or on).
        max_length: Of prompt and answer; None: no limit.
    """
    bare = _bare(model)
    config = bare.config.get_text_config(decoder=True)
    if getattr(model, "active_peft_config", None) is not None and model.active_peft_config.is_prompt_learning:
        return "the adapter puts tokens of its own before the prompt"
    if isinstance(bare.get_output_embeddings(), BaseTunerLayer):
        return "an adapter on the LM head"
    if bare.config is not config:
        return "a model for more than text"
    if "position_ids" not in inspect.signature(bare.base_model.forward).parameters:
        return f"{bare.config.model_type} counts positions by itself"
    for layer in (layers := DynamicCache(config=bare.config).layers):
        if type(layer) is DynamicSlidingWindowLayer:
            window = int(config.sliding_window)
            if max_length is None or max_length > window:
                return f"its sliding window of {window} tokens is shorter than max_length"
        elif type(layer) is not DynamicLayer:
            return f"{bare.config.model_type} keeps a state that runs from token to token"
    if not layers:
        return f"{bare.config.model_type} keeps a state that runs from token to token"
    if (attention := config._attn_implementation) not in _MASKS:
        return f"attn_implementation: {attention} takes no mask for packed rows (sdpa and flex_attention do)"
    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    rates += [getattr(config, name, 0.0) or 0.0 for name in ("attention_dropout", "attn_pdrop")]
    if any(rates):
        return "dropout: chosen and rejected would share what is dropped of their prompt"
    return None


def _bare(model: Any) -> Any:
    """The model inside PEFT's wrapper; its layers carry the adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def install(model: Any, probes: bool) -> None:
    """Lets a causal language model that has TRL's fused LM head read pairs as packed rows, in place.

    Only calls with `fused_lm_head=True` are changed. If `probes`, the first batch goes both ways, a few tokens of one
    pair; if their log-probabilities differ, packing is given up, with a line that says so.

    Args:
        model: After `trl.trainer.utils.add_fused_lm_head`; without PEFT's wrapper, which calls its `forward`.
        probes: Not where the weights lie in pieces on several devices.
    """
    original = model.forward
    state = {"works": None if probes else True}

    def forward(
        self: Any,
        input_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        fused_lm_head: bool = False,
        scored: Any = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head:
            given = {"attention_mask": attention_mask, "labels": labels}
            return original(input_ids, **{k: v for k, v in given.items() if v is not None}, **kwargs)
        if state["works"] is None:
            state["works"] = _agrees(original, self, input_ids, attention_mask, labels)
        if not state["works"]:
            return original(input_ids, attention_mask=attention_mask, labels=labels, fused_lm_head=True, **kwargs)
        packed = pack(input_ids, attention_mask, labels != -100, (labels != -100)[:, 1:] if scored is None else scored)
        return _unpack(_packed_forward(original, self, packed, input_ids, **kwargs), packed)

    model.forward = types.MethodType(forward, model)


def _packed_forward(original: Any, model: Any, packed: Packed, input_ids: torch.Tensor, **kwargs: Any) -> Any:
    """TRL's output with one row of N tokens: those that are scored."""
    targets = input_ids[:, 1:][packed.scored]
    with _only(model.base_model, packed.at):
        return original(
            packed.ids,
            attention_mask=_mask(model, packed.parts),
            position_ids=packed.positions,
            shift_labels=targets[None],
            fused_lm_head=True,
            **kwargs,
        )


def _mask(model: Any, parts: torch.Tensor) -> Any:
    mask = _MASKS[model.config._attn_implementation](parts)
    if parts.device.type == "cpu" and model.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        # SDPA would make such a mask of the other in each layer, and keep it for the backward pass.
        return torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf) if isinstance(mask, torch.Tensor) else mask
    return mask


@contextmanager
def _only(backbone: torch.nn.Module, at: torch.Tensor) -> Iterator[None]:
    """The backbone hands on the hidden states of these tokens alone: 1 × N × width."""

    def select(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[at][None]
        return output

    handle = backbone.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()


def _unpack(output: Any, packed: Packed) -> FusedCausalLMOutput:
    """TRL's shape again: 2B × (T−1), zero where nothing is scored."""

    def spread(of_tokens: torch.Tensor | None) -> torch.Tensor | None:
        if of_tokens is None:
            return None
        return of_tokens.new_zeros(packed.scored.shape).masked_scatter(packed.scored, of_tokens[0])

    names = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    fields = {name: spread(getattr(output, name)) for name in names}
    return FusedCausalLMOutput(**fields, label_mask=packed.scored)


@torch.no_grad()
def _agrees(original: Any, model: Any, ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether the first pair's tokens get the same log-probabilities both ways."""
    pair = [0, len(ids) // 2]
    given = [tensor[pair] for tensor in (ids, attention_mask, labels)]
    begins = (given[2] != -100).int().argmax(-1)
    cut = slice(max(int(begins.min()) - _PROBED, 0), int(begins.max()) + _PROBED)
    ids, attention_mask, labels = (tensor[:, cut] for tensor in given)
    plain = original(ids, attention_mask=attention_mask, labels=labels, fused_lm_head=True).log_probs
    packed = pack(ids, attention_mask, labels != -100, (labels != -100)[:, 1:])
    try:
        found = _unpack(_packed_forward(original, model, packed, ids), packed).log_probs
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as e:
        tell(f"fast path: off, the model takes no packed rows ({str(e).strip().splitlines()[0][:200]})")
        return False
    assert found is not None
    apart = float((found - plain).abs().max())
    if apart <= _TOLERANCE.get(model.dtype, 0.3):
        return True
    tell(f"fast path: off, the model reads packed rows otherwise (by {apart:.2g} nats a token)")
    return False
