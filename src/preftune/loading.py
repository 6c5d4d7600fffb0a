"""The model that an evaluation measures, and the SFT model that its answers are held against.

Imported in the evaluation child only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.errors import UserError
from preftune.faults import is_out_of_memory


def load_tokenizer(job: dict[str, Any]) -> Any:
    """The starting model's tokenizer, with the recipe's chat template: both models are asked in the same way."""
    tokenizer = AutoTokenizer.from_pretrained(job["model_path"], **_source(job))
    if job["chat_template"]:
        tokenizer.chat_template = job["chat_template"]
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(job: dict[str, Any], tokenizer: Any) -> Any:
    """The model to measure, in eval mode on the device: the starting model, or the policy in `job["policy"]`.

    Args:
        job: As in `evaluation.evaluate`.
        tokenizer: The starting model's.

    Raises:
        UserError: If the policy's folder holds no model, or one that does not go with the starting model.
    """
    policy = job.get("policy")
    if not policy:
        return _starting_model(job)
    is_adapter = _is_adapter(policy)
    if not is_adapter and not (Path(policy) / "config.json").exists():
        raise UserError(
            "the folder holds neither a model (config.json) nor an adapter (adapter_config.json)",
            policy,
            "name the folder that a training saved",
        )
    base = _starting_model(job) if is_adapter else None
    try:
        if base is not None:
            from peft import PeftModel

            model = _placed(PeftModel.from_pretrained(base, policy))
        else:
            model = _placed(AutoModelForCausalLM.from_pretrained(policy, dtype=job["dtype"], use_safetensors=True))
    except (OSError, ValueError, RuntimeError, KeyError) as e:
        if is_out_of_memory(e):
            raise
        raise UserError(
            f"the policy cannot be loaded: {str(e).strip().partition(chr(10))[0][:300]}",
            policy,
            "an adapter needs the starting model that it was trained on; a model its weights as safetensors",
        ) from e
    if (rows := model.get_input_embeddings().weight.shape[0]) < len(tokenizer):
        raise UserError(
            f"the policy knows {rows} tokens, the starting model's tokenizer {len(tokenizer)}",
            policy,
            "name a policy that was trained from this starting model",
        )
    return model


@contextmanager
def as_sft(job: dict[str, Any], model: Any) -> Iterator[Any]:
    """The SFT model: the measured model without its adapter, or, for a policy of its own weights, the starting model
    in its place. The policy's weights are given up for that: both together may not fit into memory.

    Args:
        job: As in `evaluation.evaluate`.
        model: From `load_model`; of no more use afterwards if it is a policy of its own weights.
    """
    if not job.get("policy"):
        yield model
    elif _is_adapter(job["policy"]):
        with model.disable_adapter():
            yield model
    else:
        model.to("meta")
        yield _starting_model(job)


def _is_adapter(folder: str) -> bool:
    return (Path(folder) / "adapter_config.json").exists()


def _source(job: dict[str, Any]) -> dict[str, Any]:
    return {"revision": job["revision"]} if job["revision"] else {}


def _starting_model(job: dict[str, Any]) -> Any:
    options = {"dtype": job["dtype"], "use_safetensors": True, **_source(job)}
    return _placed(AutoModelForCausalLM.from_pretrained(job["model_path"], **options))


def _placed(model: Any) -> Any:
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def end_ids(tokenizer: Any, model: Any) -> set[int]:
    """The tokens that end an answer: the model's generation settings and the tokenizer name them."""
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return {i for i in ids if i is not None}
