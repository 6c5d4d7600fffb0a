"""Writes src/preftune/known_keys.json: the recipe keys of the installed TRL, with types and defaults.

Run it after an upgrade of trl or transformers: `python scripts/snapshot_keys.py`. A test compares the two.
"""

import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "src" / "preftune" / "known_keys.json"
SIMPLE = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}


def simple_types(annotation: Any) -> list[str]:
    """The YAML types that an annotation admits, for example ['float', 'null']."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return sorted({t for a in typing.get_args(annotation) for t in simple_types(a)})
    if origin is typing.Literal:
        return sorted({SIMPLE[type(a)] for a in typing.get_args(annotation)})
    if annotation is type(None):
        return ["null"]
    base = origin or annotation
    if base in SIMPLE:
        return [SIMPLE[base]]
    return ["str"] if isinstance(base, type) and issubclass(base, Enum) else ["dict"]


def choices(field: dataclasses.Field[Any], annotation: Any) -> list[str] | None:
    """The names that the field itself lists, or that an enum among its types admits."""
    options = typing.get_args(annotation) or (annotation,)
    enums = [a for a in options if isinstance(a, type) and issubclass(a, Enum)]
    listed = field.metadata.get("choices") or ()
    return sorted([*listed, *(str(member.value) for enum in enums for member in enum)]) or None


def compared_with(name: str) -> list[str]:
    """The values that TRL's DPOTrainer knows of a setting; they are named nowhere but in its code."""
    from trl.trainer import dpo_trainer

    source = inspect.getsource(dpo_trainer.DPOTrainer._compute_loss)
    return sorted(set(re.findall(rf'{name} == "(\w+)"', source)))


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def fields(config: Any) -> dict[str, Any]:
    """A config class's keys: {key: {types, default, choices}}."""
    hints = typing.get_type_hints(config)
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found = simple_types(hints[field.name])
        value = None if default is dataclasses.MISSING else plain(default)
        if value is None and "null" not in found:
            found = sorted([*found, "null"])
        result[field.name] = {"types": found, "default": value}
        if names := choices(field, hints[field.name]):
            result[field.name]["choices"] = names
    return result


def snapshot() -> dict[str, Any]:
    """Keys of ModelConfig, of DPOConfig, and what ORPOConfig has more and less, with the versions read from."""
    import transformers
    import trl
    from trl.experimental.orpo import ORPOConfig

    training, orpo = fields(trl.DPOConfig), fields(ORPOConfig)
    differing = [k for k in set(training) & set(orpo) if training[k] != orpo[k]]
    if differing:
        raise ValueError(f"DPOConfig and ORPOConfig disagree on {differing}: keys need a type for each method")
    training["loss_type"]["choices"] = compared_with("loss_type")
    training["f_divergence_type"]["choices"] = sorted(
        {training["f_divergence_type"]["default"], *compared_with("f_divergence_type")}
    )
    return {
        "trl": trl.__version__,
        "transformers": transformers.__version__,
        "model": fields(trl.ModelConfig),
        "training": training,
        "orpo_only": {k: spec for k, spec in orpo.items() if k not in training},
        "dpo_only": sorted(set(training) - set(orpo)),
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(snapshot(), indent=1) + "\n")
    sys.stdout.write(f"wrote {TARGET}\n")
