"""From a recipe file and overrides to one frozen `Recipe`. Imports neither torch nor trl nor mlflow.

Flat keys carry TRL's own names (alignment-handbook style); a key nobody knows is an error that names the
closest one; a key of an older TRL is translated with a notice or refused with the reason (reading.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.errors import UserError
from preftune.reading import read
from preftune.schema import Recipe
from preftune.strict_yaml import load_yaml


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


def load_keys(path: Path) -> dict[str, Any]:
    """Reads a recipe file's keys and values, without a look at what they mean.

    Raises:
        UserError: If the file is no mapping of keys.
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
    return data


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
    return resolve(load_keys(path), path, overrides)


def resolve(data: dict[str, Any], path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Turns the flat mapping of a recipe into a `Recipe`; see `load_recipe`."""
    reading = read(data, path, overrides)
    if reading.recipe is None:
        raise reading.problems[0][1]
    return reading.recipe
