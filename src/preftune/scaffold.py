"""`preftune init`: a new recipe, made from the starter."""

import re
from pathlib import Path

from preftune.errors import UserError
from preftune.workspace import Workspace

STARTER = Path(__file__).parents[2] / "recipes" / "starter" / "config_starter.yaml"


def write_recipe(workspace: Workspace, name: str) -> Path:
    """Writes `recipes/NAME/config_starter.yaml`, whose result goes to `data/NAME`.

    Returns:
        The file, relative to the project where it can be.

    Raises:
        UserError: If the name is no plain folder name, or the recipe exists.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"{name!r} is no plain name", "init", "use letters, digits, dots and dashes: my-first-dpo")
    path = workspace.project / "recipes" / name / "config_starter.yaml"
    if path.exists():
        raise UserError("this recipe exists", workspace.display(path), "choose another name, or edit it")
    text = STARTER.read_text()
    text, n = re.subn(r"(?m)^output_dir: data/starter\b", f"output_dir: data/{name}", text)
    assert n == 1
    if not (workspace.project / "recipes/starter/pairs").is_dir():  # another project: name the shipped pairs
        text = text.replace("id: recipes/starter/pairs", f"id: {STARTER.parent / 'pairs'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return Path(workspace.display(path))
