"""What a training is built from: arguments, rows, model and reference, as the recipe and the machine say.

Imported in the training child only.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune import ranks
from preftune.children import read_json_lines, tell
from preftune.data.pairs import Pair
from preftune.errors import UserError


@dataclass(frozen=True)
class Machine:
    """What the machine can do: a CUDA device, and bfloat16 on it."""

    has_cuda: bool
    has_bf16: bool


def this_machine() -> Machine:
    """The machine that this process runs on."""
    import torch

    has_cuda = torch.cuda.is_available()
    return Machine(has_cuda, has_cuda and torch.cuda.is_bf16_supported(including_emulation=False))


def trainer_arguments(training: dict[str, Any], output_dir: Path, machine: Machine) -> dict[str, Any]:
    """The keyword arguments of `DPOConfig` or `ORPOConfig`: the recipe's keys and what the machine asks for.

    Args:
        training: `Recipe.training`.
        output_dir: Where checkpoints go.
        machine: What the machine can do.

    Raises:
        UserError: If the recipe asks for bfloat16 on a GPU that has none.
    """
    # The first process counts tokens and reads caches for all; the others must not give up on it after half an hour.
    asked: dict[str, Any] = {"ddp_timeout": 86_400}
    if not machine.has_cuda:
        # TRL's defaults are for a GPU: bf16 is ~100 times slower than fp32 on most CPUs, and gradient
        # checkpointing costs a second forward pass to save memory that a CPU has.
        asked |= {
            "use_cpu": True,
            "bf16": False,
            "activation_checkpointing": False,
            "dataloader_pin_memory": False,
        }
    elif not machine.has_bf16 and not training.get("fp16"):
        if training.get("bf16"):
            raise UserError("this GPU has no bfloat16", "bf16", "write fp16: true in its place (a T4 and older)")
        if training.get("bf16") is None:  # TRL's default is bf16: true
            tell("this GPU has no bfloat16: training in float16")
            asked |= {"bf16": False, "fp16": True}
    elif machine.has_bf16:
        asked["tf32"] = True  # the same cards have it; what is not bfloat16 is float32
    # transformers 5.23 calls it activation_checkpointing; recipes (and the TRL default) use the old name.
    renamed = {k.replace("gradient_checkpointing", "activation_checkpointing"): v for k, v in training.items()}
    return {**asked, "disable_tqdm": True, **renamed, "output_dir": str(output_dir)}


def load_pairs(path: Path, rows: int | None = None) -> Any:
    """A file's pairs as a dataset of TRL's columns and `id`, source and row; only the first `rows`, where given."""
    from datasets import Dataset

    pairs = read_json_lines(path)[:rows]
    names = [f"{p['source']} {p['row_id']}" for p in pairs]
    return Dataset.from_dict({"id": names, **{k: [p[k] for p in pairs] for k in ("prompt", "chosen", "rejected")}})


def load_tokens(file: Path, pairs: Path, left_out: list[int], tokenizer: Any, rows: int | None = None) -> Any:
    """The same as token ids, memory-mapped as the lengths step wrote them: TRL's columns, and `id`.

    Args:
        file: From `token_file.write_tokens`.
        pairs: Of which it is.
        left_out: Their line numbers that are not in it.
        tokenizer: The model's.
        rows: Only what is in it of the first lines.

    Returns:
        The dataset; None if the ids are not this tokenizer's.
    """
    from datasets import Dataset

    from preftune.tokens import CHECKED, is_of

    gone = set(left_out)
    with pairs.open() as f:
        first = [line for i, line in zip(range(CHECKED + len(gone)), f, strict=False) if i not in gone][:CHECKED]
    if not is_of(tokenizer, file, [Pair.model_validate_json(line) for line in first]):
        tell("the pairs are tokenized again: the tokenizer or its template gives other ids here and now")
        return None
    data = Dataset.from_file(str(file))
    if rows is None:
        return data
    # From the first row on: any other selection may be written, into the step's finished folder.
    return data.select(range(min(rows - sum(i < rows for i in gone), len(data))))


def trainable(
    data: Any, left_out: list[int] | None, tokenizer: Any, max_length: int | None, keep_start: bool, dropped: Path
) -> Any:
    """Leaves out the rows on which nothing can be learned at this max_length.

    The lengths step has counted them (`left_out`); where it could not, the ones that TRL would drop in silence (the
    prompt alone fills max_length) are found here.
    """
    from preftune.tokens import tokenize_prompt

    if left_out is not None:
        gone = set(left_out)
        return data.select([i for i in range(len(data)) if i not in gone])
    if max_length is None or not keep_start:
        return data
    lengths = [len(tokenize_prompt(tokenizer, row["prompt"])) for row in data]
    too_long = [i for i, n in enumerate(lengths) if n >= max_length]
    if ranks.rank() == 0:
        with dropped.open("w") as f:
            for i in too_long:
                told = {"row": i, "reason": "prompt_fills_max_length", "prompt_tokens": lengths[i]}
                f.write(json.dumps(told) + "\n")
    if too_long:
        tell(f"{len(too_long)} of {len(data)} pairs left out: the prompt alone fills max_length={max_length}")
    if len(too_long) == len(data):
        raise UserError(
            f"every prompt is longer than max_length={max_length} tokens (the shortest has {min(lengths)})",
            "max_length",
            f"raise max_length above {min(lengths)}; with answers about {int(min(lengths) * 1.5)}",
        )
    return data.select([i for i, n in enumerate(lengths) if n < max_length])


def load_model(job: dict[str, Any], settings: Any) -> Any:
    """The starting model, as the recipe wants it.

    Args:
        job: `model_path` and `revision`.
        settings: TRL's `ModelConfig`.

    Raises:
        UserError: If it asks for what this machine has not.
    """
    from transformers import AutoModelForCausalLM
    from trl import get_quantization_config

    from preftune.generation_settings import make_saveable

    quantized = next((k for k in ("load_in_4bit", "load_in_8bit") if getattr(settings, k)), None)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            job["model_path"],
            dtype=settings.dtype,
            attn_implementation=settings.attn_implementation,
            quantization_config=get_quantization_config(settings),
            use_safetensors=True,
            revision=job["revision"] or "main",
        )
    except ImportError as e:  # flash-attn or bitsandbytes
        needed = quantized or "attn_implementation"
        raise UserError(str(e).strip().splitlines()[0], needed, "install it, or change the key") from None
    make_saveable(model.generation_config)
    return model


def lora_config(settings: Any) -> Any:
    """TRL's `LoraConfig` for these settings, None for full fine-tuning; all linear layers where none is named."""
    from peft import LoraConfig
    from trl import get_peft_config

    config = get_peft_config(settings)
    if isinstance(config, LoraConfig) and not settings.lora_target_modules:
        config.target_modules = "all-linear"
    return config


def widen_adapter(model: Any) -> None:
    """Keeps a quantized model's adapter in float32 for training in float16; in place.

    TRL casts it to bfloat16 (the QLoRA paper's), which the gradient scaler of float16 training cannot unscale: a T4
    would stop at its first step (github.com/pytorch/pytorch/issues/127176).
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()
