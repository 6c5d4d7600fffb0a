"""What a recipe's mapping means: translated, checked, filled in. It reads on past an error, so that all of them can be
told (`preftune check --keys`); a run stops at the first.
"""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from preftune import evaluation_schema, pairs_schema, schema, sweep_schema
from preftune.conflicts import conflicts
from preftune.data import registry
from preftune.errors import UserError
from preftune.house import fill_in
from preftune.known_keys import (
    DATASET_SHORTCUT,
    HUB,
    OURS,
    SECTIONS,
    check_value,
    known,
    snapshot,
    specs,
    training_keys,
    unknown_key,
)
from preftune.old_keys import Change, Kind, Problem, is_off
from preftune.pairs_schema import default_output
from preftune.schema import Recipe
from preftune.translate import translate
from preftune.workspace import Workspace, find_workspace

_SECRET = re.compile(r"^(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|wandb_v1_\w{20,})$")

_WITHOUT = {
    "dpo": "it is a key of ORPO",
    "orpo": "ORPO knows no such key (it has no reference model and one loss)",
}


@dataclass
class Reading:
    """What was understood of a recipe.

    Args:
        changes: What became of the keys that did not stay as they were.
        problems: All that is wrong.
        method: `dpo` or `orpo`.
        recipe: Only if nothing is wrong.
    """

    changes: list[Change] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    method: str = "dpo"
    recipe: Recipe | None = None

    def attempt(self, key: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result, or None with its error noted."""
        try:
            return function(*arguments)
        except UserError as e:
            self.problems.append((key, e))
            return None

    def tell(self, key: str, kind: Kind, became: str, notice: str) -> None:
        """Notes what became of a key."""
        self.changes.append(Change(key, kind, became, notice))


def read(data: dict[str, Any], path: Path, overrides: Mapping[str, Any] | None = None) -> Reading:
    """Reads all of a recipe's mapping.

    Args:
        data: Flat keys and sections; not changed.
        path: The file, for names and messages.
        overrides: Dotted keys and their values; they win over the file, by whichever of its names a key is called.
    """
    where, flat, found = str(path), copy.deepcopy(data), Reading()
    _translate(flat, overrides or {}, where, found)
    method = found.method = _method(flat, path, found)
    for key in [k for k in DATASET_SHORTCUT if k in flat]:
        found.tell(key, "moved", f"dataset_mixture.datasets.0.{_SHORTCUT[key]}", "")
    mixture = found.attempt("dataset_mixture", _mixture, flat, path)
    for key in [k for k in flat if k not in known()]:
        found.problems.append((key, unknown_key(key, known(), where)))
        flat.pop(key)
    values = _values(flat, method, where, found)
    output_dir = values.pop("output_dir", None) or f"data/{path.resolve().parent.name}"
    found.changes += fill_in(values, method, output_dir)
    found.problems += conflicts(
        method, {**values, **{k: flat.get(k) for k in ("merge_adapter", "micro_batch_tokens")}}, where
    )
    sections = {k: flat.pop(k) for k in SECTIONS + OURS if k in flat}
    for name in [n for n in SECTIONS if n in sections and not isinstance(sections[n], dict)]:
        error = UserError("this section must hold keys", f"{where}: {name}", "see docs/recipes.md")
        found.problems.append((name, error))
        sections.pop(name)
    try:
        recipe = Recipe(
            path=path,
            name=path.resolve().parent.name,
            model={k: v for k, v in values.items() if k in snapshot()["model"]},
            training={k: v for k, v in values.items() if k in training_keys(method) and k not in HUB},
            hub={k: v for k, v in values.items() if k in HUB},  # pyright: ignore[reportArgumentType]
            mixture=mixture if mixture is not None else {"datasets": [{"id": "?"}]},  # pyright: ignore[reportArgumentType]
            output_dir=output_dir,
            **{"evaluation": {}, **sections, "method": method},
        )
    except ValidationError as e:
        # a misspelt key first: the one that it stands for is missing then
        told = sorted(e.errors(), key=lambda error: error["type"] != "extra_forbidden")
        wrong = [_pydantic_error(error, where) for error in told]
        # a list whose entries are all wrong is called empty, too
        found.problems += [(k, e) for k, e in wrong if not any(other.startswith(f"{k}.") for other, _ in wrong)]
        return found
    if mixture is None:
        return found
    _data_notices(recipe, found)
    recipe = _with_known_datasets(recipe, found)
    if not found.problems:
        notices = tuple(dict.fromkeys(c.notice for c in found.changes if c.notice))
        found.recipe = recipe.model_copy(update={"notices": notices})
    return found


def _translate(flat: dict[str, Any], overrides: Mapping[str, Any], where: str, found: Reading) -> None:
    """Brings file and overrides to today's names, each for itself, then lets the overrides win; in place."""
    for values, place in ((flat, where), (dict(overrides), "command line")):
        for key, value in values.items():
            found.attempt(key, _no_secrets, value, f"{where}.{key}")
        changes, problems = translate(values, place)
        found.changes += changes
        found.problems += problems
        if values is not flat:
            for dotted, value in values.items():
                found.attempt(dotted, _set, flat, dotted, value)


def _values(flat: dict[str, Any], method: str, where: str, found: Reading) -> dict[str, Any]:
    """TRL's keys, checked one by one; taken out of `flat`."""
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
    return values


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


def _data_notices(recipe: Recipe, found: Reading) -> None:
    """What handbook recipes say about data, and what is made of it."""
    held_out = {(e.id.casefold(), e.test_split) for e in recipe.mixture.datasets}
    for i, entry in enumerate(recipe.mixture.datasets):
        place = f"dataset_mixture.datasets.{i}"
        if isinstance(entry.columns, list) and (unread := [c for c in entry.columns if c in _ROW_SETTINGS]):
            names = ", ".join(unread)
            notice = f"{entry.id}: column {names} is not read: a chat template gets no settings of single rows"
            found.tell(f"{place}.columns", "no effect", "", notice)
        if "test" in entry.split and (entry.id.casefold(), entry.split) not in held_out:
            notice = (
                f"{entry.id}: split {entry.split} is trained on, as the recipe says; to hold it out, write it as "
                "test_split of the entry for the training split"
            )
            found.tell(f"{place}.split", "kept", f"{place}.split", notice)


_ROW_SETTINGS = ("chat_template_kwargs", "tools", "images", "image")


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


_SHORTCUT: dict[str, str] = dict(zip(DATASET_SHORTCUT, ("id", "config", "split", "test_split"), strict=True))


def _mixture(flat: dict[str, Any], path: Path) -> dict[str, Any]:
    """The dataset section, from `dataset_mixture` or from TRL's shortcut for one dataset; a recipe that makes pairs
    and names no others is trained on these."""
    where = str(path)
    shortcut = {k: flat.pop(k) for k in DATASET_SHORTCUT if k in flat}
    mixture = flat.pop("dataset_mixture", None)
    others = mixture if isinstance(mixture, dict) else {}
    if mixture is not None and ("datasets" in others or not shortcut or not others):
        if shortcut:
            raise UserError(f"{next(iter(shortcut))} and dataset_mixture both name data", where, "keep one of them")
        return mixture
    made = flat.get("pairs")
    if not shortcut.get("dataset_name") and isinstance(made, dict):
        entry = {"id": made.get("output") or default_output(path.resolve().parent.name)}
        return {**others, "datasets": [{**entry, **({} if made.get("test_size") == 0 else {"test_split": "test"})}]}
    if not shortcut.get("dataset_name"):
        raise UserError("the recipe names no data", where, "write dataset_name: a file, folder or hub dataset id")
    entry = {_SHORTCUT[key]: value for key, value in shortcut.items() if value not in (None, "")}
    return {**others, "datasets": [entry]}


def holds_secret(value: Any) -> bool:
    """Whether an access token stands anywhere in a value."""
    if isinstance(value, dict):
        return any(holds_secret(v) for v in value.values())
    if isinstance(value, list):
        return any(holds_secret(v) for v in value)
    return isinstance(value, str) and bool(_SECRET.match(value))


def _no_secrets(value: Any, where: str) -> None:
    if holds_secret(value):
        raise UserError(
            "this looks like an access token; a recipe is logged and published",
            where,
            "put it into an environment variable (HF_TOKEN, WANDB_API_KEY, …) and remove it here",
        )


def _pydantic_error(error: Any, where: str) -> Problem:
    loc = _without_tags(error["loc"])
    path = ".".join("dataset_mixture" if p == "mixture" else str(p) for p in loc)
    if error["type"] == "extra_forbidden":
        model: Any = Recipe
        for i, part in enumerate(error["loc"][:-1]):  # down to the section that holds the unknown key
            kinds = _KINDS.get(error["loc"][i - 1], {}) if i else {}
            model = {**_SECTIONS, **kinds}.get(part, model)
        names = [f"{path.rpartition('.')[0]}.{n}".lstrip(".") for n in model.model_fields]
        return path, unknown_key(path, names, where)
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        section = path.rpartition(".")[2]
        page = "docs/own-pairs.md" if path.startswith("pairs") else "docs/judges.md"
        kinds = " or ".join(_KINDS[section])
        return path, UserError(f"a {section} needs kind: {kinds}", f"{where}: {path}.kind", f"{page} has examples")
    message = error["msg"].removeprefix("Value error, ")
    given = None if path.endswith("base_url") else error.get("input")  # it may hold a password
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return path, UserError(f"{message}{shown}", f"{where}: {path}", "correct this key; docs/recipes.md explains each")


_JUDGES = {"openai": evaluation_schema.OpenAIJudge, "reward_model": evaluation_schema.RewardModelJudge}
_KINDS: dict[Any, dict[str, Any]] = {
    "judge": _JUDGES,
    "generator": pairs_schema.GENERATORS,
    "scorer": pairs_schema.SCORERS,
}
_SECTIONS = {
    "suites": evaluation_schema.Suite,
    "mixture": schema.Mixture,
    "dataset_mixture": schema.Mixture,
    "datasets": schema.DatasetEntry,
    "validation": schema.Validation,
    "evaluation": evaluation_schema.Evaluation,
    "gate": evaluation_schema.Gate,
    "tracking": schema.Tracking,
    "sweep": sweep_schema.Sweep,
    "range": sweep_schema.Range,
    "pairs": pairs_schema.Pairs,
    "prompts": pairs_schema.Prompts,
}


def _without_tags(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """pydantic's path without the names of a union's members: `evaluation.judge.openai.x` → `evaluation.judge.x`."""
    if loc[:2] == ("sweep", "parameters"):
        return loc[:3] + loc[4:]
    return tuple(p for i, p in enumerate(loc) if not (i and p in _KINDS.get(loc[i - 1], {})))


def _is_there(workspace: Workspace, path: str) -> bool:
    try:
        return workspace.resolve(path).exists()
    except (OSError, RuntimeError, ValueError):  # no path: too long, a loop of links, an unknown ~user
        return False


def _with_known_datasets(recipe: Recipe, found: Reading) -> Recipe:
    """The recipe with what the registry knows about its datasets: other ids corrected, notices added."""
    here = find_workspace(recipe=recipe.path)
    own = (recipe.pairs.output or default_output(recipe.name)) if recipe.pairs else None  # it may yet have to be made
    entries = []
    for i, entry in enumerate(recipe.mixture.datasets):
        place = f"dataset_mixture.datasets.{i}.id"
        local = entry.id == own or _is_there(here, entry.id)
        known_as = found.attempt(place, registry.apply, entry, recipe.validation.strict, local)
        if known_as is not None:
            entries.append(known_as[0])
            for notice in known_as[1]:
                found.tell(place, *_corrected(entry.id, known_as[0].id), notice)
    return recipe.model_copy(update={"mixture": recipe.mixture.model_copy(update={"datasets": tuple(entries)})})


def _corrected(written: str, found: str) -> tuple[Kind, str]:
    return ("kept", "") if written == found else ("changed", found)
