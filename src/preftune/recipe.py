"""From a recipe file and overrides to one frozen `Recipe`. Imports neither torch nor trl nor mlflow.

Flat keys carry TRL's own names (alignment-handbook style); a key nobody knows is an error that names the
closest one; a key of an older TRL is translated with a notice or refused with the reason.
"""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from preftune import known_keys
from preftune.data import registry
from preftune.errors import UserError
from preftune.known_keys import (
    DATASET_SHORTCUT,
    OURS,
    REFUSED,
    REMOVED,
    RENAMED,
    SECTIONS,
    check_value,
    snapshot,
    unknown_key,
)
from preftune.schema import EMBEDDED_MODEL, Recipe
from preftune.strict_yaml import load_yaml
from preftune.workspace import Workspace, find_workspace

# What preftune sets where a recipe is silent, and why TRL's default would not do.
HOUSE_TRAINING: dict[str, Any] = {
    "seed": 42,
    "logging_nan_inf_filter": False,  # TRL's default hides a NaN loss from the logs
    "save_total_limit": 2,  # rotation runs before on_save: with 1 a torn checkpoint would be the only one
    "report_to": "none",
}

_SECRET = re.compile(r"^(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|wandb_v1_\w{20,})$")


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """Turns `["--beta=0.2", "--evaluation.preset", "full"]` into `{"beta": 0.2, "evaluation.preset": "full"}`.

    Values are read as strict YAML, so numbers, lists and null work as in the file.

    Raises:
        UserError: If an argument is no `--key=value`.
    """
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, has_value, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not key:
            raise UserError(
                f"{argument!r} is not an override",
                "command line",
                "write --key=value, for example --beta=0.2",
            )
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"the override {argument} has no value", "command line", f"write {argument}=VALUE")
            text = rest.pop(0)
        overrides[key] = load_yaml(text, argument)
    return overrides


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets `evaluation.preset` or `dataset_mixture.datasets.0.weight` in a nested mapping."""
    *path, last = dotted.split(".")
    node: Any = tree
    for part in path:
        if isinstance(node, list):
            node = node[_index(node, part, dotted)]
            if not isinstance(node, dict | list):
                raise UserError(f"entry {part} of the list holds no keys", dotted, "name the entry itself")
        else:
            if not isinstance(node.get(part), dict | list):
                node[part] = {}
            node = node[part]
    key: Any = _index(node, last, dotted) if isinstance(node, list) else last
    node[key] = copy.deepcopy(value)


def _index(node: list[Any], part: str, dotted: str) -> int:
    if not (part.isascii() and part.isdigit()) or int(part) >= len(node):
        raise UserError(f"no entry {part} in the list (it has {len(node)})", dotted, "count from 0")
    return int(part)


def _translate(flat: dict[str, Any], where: str) -> list[str]:
    """Renames, removes or refuses keys of older versions, in place; returns a notice for each."""
    notices = []
    for old, new in RENAMED.items():
        if old in flat:
            if new in flat:
                raise UserError(f"{old!r} and {new!r} are two names of one key", where, f"keep {new}")
            flat[new] = flat.pop(old)
            notices.append(f"{old} is called {new} now")
    for old, reason in REMOVED.items():
        if old in flat and flat.pop(old) not in (None, False):
            notices.append(f"{old} no longer exists and has no effect: {reason}")
    for key in sorted(set(flat) & set(REFUSED)):
        if flat[key] not in (None, False):
            raise UserError(f"{key} is not taken from a recipe: {REFUSED[key]}", where, f"remove {key}")
        flat.pop(key)
    mixer = flat.pop("dataset_mixer", None)
    if mixer is not None:
        if not isinstance(mixer, dict) or not mixer:
            raise UserError("dataset_mixer must map dataset ids to weights", where, "see docs/recipes.md")
        if "dataset_mixture" in flat:
            raise UserError("dataset_mixer and dataset_mixture both name data", where, "keep dataset_mixture")
        splits = flat.pop("dataset_splits", None) or ["train"]
        splits = [splits] if isinstance(splits, str) else splits
        if not isinstance(splits, list) or not all(isinstance(s, str) for s in splits):
            raise UserError("dataset_splits must be a list of names", where, "see docs/recipes.md")
        train = [s for s in splits if "train" in s] or splits[:1]
        test = [s for s in splits if "test" in s]
        flat.setdefault(
            "dataset_mixture",
            {
                "datasets": [
                    {"id": d, "split": t, "weight": w, "test_split": test[0] if test else None}
                    for d, w in mixer.items()
                    for t in train
                ]
            },
        )
        notices.append("dataset_mixer and dataset_splits are called dataset_mixture now")
    return notices


def _mixture(flat: dict[str, Any], where: str) -> dict[str, Any]:
    """The dataset section, from `dataset_mixture` or from TRL's shortcut for one dataset."""
    shortcut = {k: flat.pop(k) for k in DATASET_SHORTCUT if k in flat}
    mixture = flat.pop("dataset_mixture", None)
    others = mixture if isinstance(mixture, dict) else {}
    if mixture is not None and ("datasets" in others or not shortcut or not others):
        if shortcut:
            raise UserError(f"{next(iter(shortcut))} and dataset_mixture both name data", where, "keep one of them")
        return mixture
    if not shortcut.get("dataset_name"):
        raise UserError("the recipe names no data", where, "write dataset_name: a file, folder or hub dataset id")
    entry = {
        "id": shortcut["dataset_name"],
        "config": shortcut.get("dataset_config"),
        "split": shortcut.get("dataset_train_split") or "train",
        "test_split": shortcut.get("dataset_test_split"),
    }
    return {**others, "datasets": [entry]}


def _no_secrets(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for k, v in value.items():
            _no_secrets(v, f"{where}.{k}")
    elif isinstance(value, list):
        for v in value:
            _no_secrets(v, where)
    elif isinstance(value, str) and _SECRET.match(value):
        raise UserError(
            "this looks like an access token; a recipe is logged and published",
            where,
            "put it into an environment variable (HF_TOKEN, WANDB_API_KEY, …) and remove it here",
        )


def _pydantic_error(e: ValidationError, where: str, fields: Mapping[str, Any]) -> UserError:
    first = e.errors()[0]
    path = ".".join("dataset_mixture" if p == "mixture" else str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        model: Any = Recipe
        for part in first["loc"][:-1]:  # down to the section that holds the unknown key
            if isinstance(part, str):
                model = _section_model(model, part)
        return unknown_key(path, [*(f"{path.rpartition('.')[0]}.{n}".lstrip(".") for n in model.model_fields)], where)
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return UserError(f"{message}{shown}", f"{where}: {path}", "correct this key; docs/recipes.md explains each")


def _section_model(model: Any, field: str) -> Any:
    from preftune import schema

    names = {
        "mixture": schema.Mixture,
        "dataset_mixture": schema.Mixture,
        "datasets": schema.DatasetEntry,
        "validation": schema.Validation,
        "evaluation": schema.Evaluation,
        "gate": schema.Gate,
        "tracking": schema.Tracking,
    }
    return names.get(field, model)


def load_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe file, applies overrides and resolves it.

    Args:
        path: The YAML file.
        overrides: Dotted keys and their values; they win over the file.

    Returns:
        The resolved, frozen recipe.

    Raises:
        UserError: For anything that is wrong in the file or the overrides, naming the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("there is no such recipe", str(path), "preftune init NAME writes one") from None
    except (IsADirectoryError, UnicodeDecodeError, PermissionError) as e:
        raise UserError(f"not a readable text file: {e}", str(path), "name a recipe's YAML file") from None
    data = load_yaml(text, str(path))
    if not isinstance(data, dict) or not data:
        raise UserError("the recipe is not a mapping of keys to values", str(path), "see recipes/starter")
    if bad := [k for k in data if not isinstance(k, str)]:
        raise UserError(f"the key {bad[0]!r} is not text", str(path), "put it in quotes")
    for dotted, value in (overrides or {}).items():
        _set(data, dotted, value)
    return resolve(data, path)


def resolve(data: dict[str, Any], path: Path) -> Recipe:
    """Turns the flat mapping of a recipe into a `Recipe`; see `load_recipe`."""
    where = str(path)
    flat = dict(data)
    _no_secrets(flat, where)
    notices = _translate(flat, where)
    mixture = _mixture(flat, where)
    keys = snapshot()
    for key in flat:
        if key not in known_keys.known():
            raise unknown_key(key, known_keys.known(), where)
    if flat.get("method", "dpo") != "dpo":
        raise UserError(f"{flat['method']!r} is not available", f"{where}: method", "write method: dpo")

    model = {k: check_value(k, flat.pop(k), where) for k in list(flat) if k in keys["model"]}
    if not model.get("model_name_or_path"):
        model["model_name_or_path"] = EMBEDDED_MODEL
        notices.append(f"no model_name_or_path: starting from the embedded model ({EMBEDDED_MODEL})")
    if not model.get("use_peft") and any(k.startswith("lora_") for k in model):
        notices.append("lora_* keys have no effect without use_peft: true (all weights are trained)")

    output_dir = flat.pop("output_dir", None) or f"data/{path.resolve().parent.name}"
    if not isinstance(output_dir, str):
        raise UserError(f"{output_dir!r} is not a path", f"{where}: output_dir", "write data/my-first-dpo")
    training = {k: check_value(k, flat.pop(k), where) for k in list(flat) if k in keys["training"]}
    training = {**HOUSE_TRAINING, **training}
    if training["save_total_limit"] == 1:
        training["save_total_limit"] = 2
        notices.append("save_total_limit is 2: with one checkpoint a torn one would be the only one")
    report_to = training["report_to"]
    named = report_to if isinstance(report_to, list) else [report_to]
    if "all" in named or "mlflow" in named:
        raise UserError(
            "preftune logs to MLflow itself (transformers' own callback loses runs)",
            f"{where}: report_to",
            "leave it out, or name tensorboard or wandb",
        )

    sections = {k: flat.pop(k) for k in SECTIONS + OURS if k in flat}
    for name in SECTIONS:
        if name in sections and not isinstance(sections[name], dict):
            raise UserError("this section must hold keys", f"{where}: {name}", "see docs/recipes.md")
    try:
        recipe = Recipe(
            path=path,
            name=path.resolve().parent.name,
            model=model,
            training=training,
            mixture=mixture,  # pyright: ignore[reportArgumentType] - pydantic builds the section
            output_dir=output_dir,
            notices=tuple(notices),
            **{"evaluation": {}, **sections},
        )
    except ValidationError as e:
        raise _pydantic_error(e, where, flat) from None
    return _with_known_datasets(recipe)


def _is_there(workspace: Workspace, path: str) -> bool:
    try:
        return workspace.resolve(path).exists()
    except (OSError, RuntimeError, ValueError):  # no path: too long, a loop of links, an unknown ~user
        return False


def _with_known_datasets(recipe: Recipe) -> Recipe:
    """The recipe with what the registry knows about its datasets: other ids corrected, notices added."""
    here = find_workspace(recipe=recipe.path)
    applied = [registry.apply(e, recipe.validation.strict, _is_there(here, e.id)) for e in recipe.mixture.datasets]
    mixture = recipe.mixture.model_copy(update={"datasets": tuple(entry for entry, _ in applied)})
    notices = (*recipe.notices, *(n for _, found in applied for n in found))
    return recipe.model_copy(update={"mixture": mixture, "notices": notices})
