"""From a recipe file and overrides to one frozen `Recipe`. Imports neither torch nor trl nor mlflow.

Flat keys carry TRL's own names (alignment-handbook style); a key nobody knows is an error that names the
closest one; a key of an older TRL is translated with a notice or refused with the reason.
"""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from preftune import known_keys
from preftune.conflicts import conflicts
from preftune.data import registry
from preftune.errors import UserError
from preftune.known_keys import (
    DATASET_SHORTCUT,
    HUB,
    OURS,
    SECTIONS,
    check_value,
    snapshot,
    specs,
    training_keys,
    unknown_key,
)
from preftune.old_keys import Change, Kind, Problem, is_off, translate
from preftune.schema import EMBEDDED_MODEL, Recipe
from preftune.strict_yaml import load_yaml
from preftune.workspace import Workspace, find_workspace

# What preftune sets where a recipe is silent, and why TRL's default would not do.
HOUSE_TRAINING: dict[str, Any] = {
    "seed": 42,
    "logging_nan_inf_filter": False,  # TRL's default hides a NaN loss from the logs
    "save_total_limit": 2,  # rotation runs before on_save: with 1 a torn checkpoint would be the only one
    "report_to": ["none"],
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


def _pydantic_error(error: Any, where: str) -> Problem:
    path = ".".join("dataset_mixture" if p == "mixture" else str(p) for p in error["loc"])
    key = path.partition(".")[0]
    if error["type"] == "extra_forbidden":
        model: Any = Recipe
        for part in error["loc"][:-1]:  # down to the section that holds the unknown key
            if isinstance(part, str):
                model = _section_model(model, part)
        names = [f"{path.rpartition('.')[0]}.{n}".lstrip(".") for n in model.model_fields]
        return key, unknown_key(path, names, where)
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return key, UserError(f"{message}{shown}", f"{where}: {path}", "correct this key; docs/recipes.md explains each")


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
    reading = read(data, path)
    if reading.recipe is None:
        raise reading.problems[0][1]
    return reading.recipe


@dataclass
class Reading:
    """What was understood of a recipe: what changed keys became, all that is wrong, and the recipe if nothing is."""

    changes: list[Change] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    recipe: Recipe | None = None

    def attempt(self, key: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result, or None with its error noted."""
        try:
            return function(*arguments)
        except UserError as e:
            self.problems.append((key, e))
            return None

    def tell(self, key: str, kind: Kind, became: str, notice: str) -> None:
        self.changes.append(Change(key, kind, became, notice))


def read(data: dict[str, Any], path: Path) -> Reading:
    """Reads all of a recipe's mapping, past its errors, so that every one of them can be told.

    Args:
        data: Flat keys and sections; not changed.
        path: The file, for names and messages.
    """
    where, flat, found = str(path), dict(data), Reading()
    for key, value in data.items():
        found.attempt(key, _no_secrets, value, f"{where}.{key}")
    found.changes, wrong = translate(flat, where)
    found.problems += wrong
    method = _method(flat, path, found)
    mixture = found.attempt("dataset_mixture", _mixture, flat, where)
    for key in [k for k in flat if k not in known_keys.known()]:
        found.problems.append((key, unknown_key(key, known_keys.known(), where)))
        flat.pop(key)
    values: dict[str, Any] = {}
    for key in [k for k in flat if k in specs()]:
        value = flat.pop(key)
        if key not in training_keys(method) and key not in snapshot()["model"]:
            notice = "" if is_off(value) else f"{key} has no effect: {_WITHOUT[method]}"
            found.tell(key, "no effect", "", notice)
            continue
        before = len(found.problems)
        value = found.attempt(key, check_value, key, value, where)
        if len(found.problems) == before:
            values[key] = value
    output_dir = values.pop("output_dir", None) or f"data/{path.resolve().parent.name}"
    _house(values, method, found)
    found.problems += conflicts(method, {**values, "merge_adapter": flat.get("merge_adapter")}, where)
    sections = {k: flat.pop(k) for k in SECTIONS + OURS if k in flat}
    for name in [n for n in SECTIONS if n in sections and not isinstance(sections[n], dict)]:
        error = UserError("this section must hold keys", f"{where}: {name}", "see docs/recipes.md")
        found.problems.append((name, error))
        sections.pop(name)
    notices = tuple(c.notice for c in found.changes if c.notice)
    try:
        recipe = Recipe(
            path=path,
            name=path.resolve().parent.name,
            model={k: v for k, v in values.items() if k in snapshot()["model"]},
            training={k: v for k, v in values.items() if k in training_keys(method) and k not in HUB},
            hub={k: v for k, v in values.items() if k in HUB},  # pyright: ignore[reportArgumentType]
            mixture=mixture if mixture is not None else {"datasets": [{"id": "?"}]},  # pyright: ignore[reportArgumentType]
            output_dir=output_dir,
            notices=notices,
            **{"evaluation": {}, **sections, "method": method},
        )
    except ValidationError as e:
        found.problems += [_pydantic_error(error, where) for error in e.errors()]
        return found
    if not found.problems:
        found.recipe = found.attempt("dataset_mixture", _with_known_datasets, recipe)
    return found


_WITHOUT = {
    "dpo": "it is a key of ORPO",
    "orpo": "ORPO knows no such key (it has no reference model and one loss)",
}


def _method(flat: dict[str, Any], path: Path, found: Reading) -> str:
    """The recipe's method; one in a folder `orpo` (handbook style) that names none is ORPO."""
    if "method" in flat:
        method = flat.pop("method")
        if method in ("dpo", "orpo"):
            return method
        error = UserError(f"{method!r} is not available", f"{path}: method", "write method: dpo or method: orpo")
        found.problems.append(("method", error))
        return "dpo"
    if "orpo" not in path.resolve().parent.parts:
        return "dpo"
    found.tell("method", "changed", "orpo", "method: orpo, because the recipe stands in a folder named orpo")
    return "orpo"


def _house(values: dict[str, Any], method: str, found: Reading) -> None:
    """Fills in what preftune sets where the recipe is silent, and what it changes; in place."""
    if not values.get("model_name_or_path"):
        values["model_name_or_path"] = EMBEDDED_MODEL
        notice = f"no model_name_or_path: starting from the embedded model ({EMBEDDED_MODEL})"
        found.tell("model_name_or_path", "changed", EMBEDDED_MODEL, notice)
    if not values.get("use_peft") and (unused := [k for k in values if k.startswith("lora_")]):
        for i, key in enumerate(unused):
            notice = "" if i else "lora_* keys have no effect without use_peft: true (all weights are trained)"
            found.tell(key, "no effect", "", notice)
    if values.get("save_total_limit") == 1:
        values["save_total_limit"] = 2
        notice = "save_total_limit is 2: with one checkpoint a torn one would be the only one"
        found.tell("save_total_limit", "changed", "2", notice)
    named = values.get("report_to")
    if named is not None:
        names = named if isinstance(named, list) else [named]
        if "mlflow" in names:
            notice = "report_to: mlflow is left out: preftune always records in MLflow itself"
            found.tell("report_to", "changed", "without mlflow", notice)
        values["report_to"] = [n for n in names if n != "mlflow"] or ["none"]
    for key, value in HOUSE_TRAINING.items():
        if values.get(key) is None:
            values[key] = value
    if method == "dpo":
        values.setdefault("precompute_ref_log_probs", not values.get("sync_ref_model", False))


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
