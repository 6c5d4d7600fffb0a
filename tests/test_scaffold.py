"""`preftune init`: a recipe that can be run at once."""

from pathlib import Path

import pytest

from preftune.errors import UserError
from preftune.recipe import load_recipe
from preftune.scaffold import STARTER, write_recipe
from preftune.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, tmp_path / ".preftune")


def test_a_new_recipe_in_another_project(workspace: Workspace) -> None:
    """The starter's with its own output folder; the shipped pairs are named where they stand."""
    path = write_recipe(workspace, "my-first-dpo")
    assert path == Path("recipes/my-first-dpo/config_starter.yaml")
    recipe = load_recipe(workspace.project / path)
    starter = load_recipe(STARTER)
    assert recipe.name == recipe.experiment == "my-first-dpo"
    assert recipe.output_dir == "data/my-first-dpo"
    assert (recipe.training, recipe.model) == (starter.training, starter.model)
    assert Path(recipe.mixture.datasets[0].id) == STARTER.parent / "pairs"
    assert (Path(recipe.mixture.datasets[0].id) / "train.jsonl").is_file()


def test_a_new_recipe_in_this_project(workspace: Workspace) -> None:
    """Where the pairs are part of the project, the recipe names them relative to it."""
    (workspace.project / "recipes" / "starter" / "pairs").mkdir(parents=True)
    recipe = load_recipe(workspace.project / write_recipe(workspace, "mine"))
    assert recipe.mixture.datasets[0].id == "recipes/starter/pairs"


def test_only_two_lines_differ_from_the_starter(workspace: Workspace) -> None:
    """The comments come along."""
    lines = (workspace.project / write_recipe(workspace, "mine")).read_text().splitlines()
    pairs = list(zip(STARTER.read_text().splitlines(), lines, strict=True))
    assert {old.split(":")[0].strip(" -") for old, new in pairs if old != new} == {"id", "output_dir"}


@pytest.mark.parametrize("name", ["a", "A-1", "my.recipe_2", "2024-06"])
def test_plain_names(workspace: Workspace, name: str) -> None:
    assert (workspace.project / write_recipe(workspace, name)).is_file()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/abs", ".hid", "-x", "a b", "é", "a\n", "$(x)", "a\\1"]
)
def test_names_that_are_refused(workspace: Workspace, name: str) -> None:
    """Nothing is written."""
    with pytest.raises(UserError, match="no plain name"):
        write_recipe(workspace, name)
    assert list(workspace.project.iterdir()) == []


def test_an_existing_recipe_is_kept(workspace: Workspace) -> None:
    path = workspace.project / write_recipe(workspace, "mine")
    path.write_text("mine\n")
    with pytest.raises(UserError, match="exists") as e:
        write_recipe(workspace, "mine")
    assert e.value.where == "recipes/mine/config_starter.yaml"
    assert path.read_text() == "mine\n"
