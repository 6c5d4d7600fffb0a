"""Which flat keys a recipe may hold and what they may be; what became of older versions' keys is in old_keys.py.

The names, types and defaults come from `known_keys.json`, a snapshot of the installed TRL
(`scripts/snapshot_keys.py`); a test compares the two.
"""

import difflib
import functools
import json
import math
import re
from pathlib import Path
from typing import Any

from preftune.errors import UserError
from preftune.old_keys import ALIASES, NO_EFFECT, REFUSED

SECTIONS = ("dataset_mixture", "validation", "evaluation", "gate", "tracking", "sweep", "pairs")
OURS = ("method", "chat_template", "accelerate_config", "merge_adapter", "fast_path", "micro_batch_tokens")
HUB = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")
DATASET_SHORTCUT = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split")

# A value outside of these trains wrongly or not at all, and TRL accepts most of it in silence.
# (lowest, may it be equal, highest)
BOUNDS: dict[str, tuple[float, bool, float]] = {
    "beta": (0, False, 100),
    "learning_rate": (0, False, 1),
    "per_device_train_batch_size": (1, True, math.inf),
    "per_device_eval_batch_size": (1, True, math.inf),
    "gradient_accumulation_steps": (1, True, math.inf),
    "num_train_epochs": (0, False, math.inf),
    "max_length": (8, True, math.inf),
    "max_grad_norm": (0, True, math.inf),
    "warmup_steps": (0, True, math.inf),
    "weight_decay": (0, True, math.inf),
    "label_smoothing": (0, True, 1),
    "logging_steps": (0, False, math.inf),
    "save_steps": (0, False, math.inf),
    "eval_steps": (0, False, math.inf),
    "lora_r": (1, True, math.inf),
    "lora_alpha": (1, True, math.inf),
    "lora_dropout": (0, True, 1),
    "seed": (0, True, math.inf),
    "max_steps": (-1, True, math.inf),
    "precompute_ref_batch_size": (1, True, math.inf),
    "ld_alpha": (0, True, 1),
    "discopop_tau": (0, False, math.inf),
    "ref_model_mixup_alpha": (0, True, 1),
    "ref_model_sync_steps": (1, True, math.inf),
    "save_total_limit": (1, True, math.inf),
    "torch_empty_cache_steps": (1, True, math.inf),
    "dataset_num_proc": (1, True, math.inf),
    "dataloader_num_workers": (0, True, math.inf),
    "dataloader_prefetch_factor": (1, True, math.inf),
    "eval_delay": (0, True, math.inf),
    "eval_accumulation_steps": (1, True, math.inf),
    "adam_beta1": (0, True, 1),
    "adam_beta2": (0, True, 1),
    "adam_epsilon": (0, False, 1),
}


@functools.cache
def snapshot() -> dict[str, Any]:
    """The keys of the installed TRL, as recorded."""
    return json.loads((Path(__file__).parent / "known_keys.json").read_text())


@functools.cache
def specs() -> dict[str, dict[str, Any]]:
    """TRL key → its types, default and choices, of all methods together."""
    return {**snapshot()["model"], **snapshot()["training"], **snapshot()["orpo_only"]}


def training_keys(method: str) -> set[str]:
    """The keys of the method's own config class: DPOConfig or ORPOConfig."""
    keys = set(snapshot()["training"])
    return keys if method == "dpo" else (keys | set(snapshot()["orpo_only"])) - set(snapshot()["dpo_only"])


def known() -> list[str]:
    """Every top-level key a recipe may hold."""
    keys = {*specs(), *SECTIONS, *OURS, *DATASET_SHORTCUT}
    return sorted(keys - {*REFUSED, *NO_EFFECT, *ALIASES})


def unknown_key(key: str, candidates: list[str], where: str) -> UserError:
    """The error for a key nobody knows, with the closest known one."""
    close = difflib.get_close_matches(key, candidates, n=1, cutoff=0.6)
    advice = f"did you mean {close[0]}?" if close else "docs/recipes.md lists the keys"
    return UserError(f"unknown key {key!r}", where, advice)


_PYTHON = {"bool": bool, "int": int, "float": (int, float), "str": str, "list": list, "dict": dict}


def check_value(key: str, value: Any, where: str) -> Any:
    """Checks one TRL key's value against its type and bounds.

    Args:
        key: A key of the snapshot.
        value: As read from YAML.
        where: File, for messages.

    Returns:
        The value, an integer turned into a float where TRL wants one, and `loss_type` into a list.

    Raises:
        UserError: If the type or the range is wrong.
    """
    spec = specs()[key]
    types = spec["types"]
    where = f"{where}: {key}"
    if value is None and "null" in types:
        return None
    if value is False and key.endswith("_strategy"):
        value = "no"  # YAML reads a bare no as false
    if "list" in types and isinstance(value, str) and "str" not in types:
        value = [value]
    fits = any(
        isinstance(value, _PYTHON[t]) and (t == "bool" or not isinstance(value, bool)) for t in types if t != "null"
    )
    if not fits:
        names = " or ".join(t for t in types if t != "null")
        advice = f"for example {key}: {spec['default']!r}" if spec["default"] is not None else f"write a {names}"
        if isinstance(value, str) and {"int", "float"} & set(types) and re.fullmatch(r"[-+.\deE]+", value):
            advice = f"take the quotes off: {key}: {value}"
        raise UserError(f"{value!r} is {type(value).__name__}, {names} is needed", where, advice)
    if "choices" in spec:
        for name in value if isinstance(value, list) else [value]:
            if name not in spec["choices"]:
                close = difflib.get_close_matches(str(name), spec["choices"], n=1)
                hint = f"did you mean {close[0]}?" if close else f"one of: {', '.join(spec['choices'])}"
                raise UserError(f"{name!r} is not known", where, hint)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) > 1e300 or not math.isfinite(value):  # an integer may be too large for a float
            raise UserError("not a finite number, or one too large", where, f"TRL's default is {spec['default']}")
        low, inclusive, high = BOUNDS.get(key, (-math.inf, True, math.inf))
        if value < low or (value == low and not inclusive) or value > high:
            bound = f"at least {low:g}" if inclusive else f"above {low:g}"
            top = f" and at most {high:g}" if math.isfinite(high) else ""
            raise UserError(
                f"{value:g} is out of range: it must be {bound}{top}",
                where,
                f"TRL's default is {spec['default']}",
            )
        if "float" in types and "int" not in types:
            value = float(value)
    return value
