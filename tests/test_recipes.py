"""Every YAML under recipes/ goes through the code that reads it."""

from pathlib import Path

import pytest

from preftune.accelerate_configs import processes
from preftune.preflight import preflight
from preftune.recipe import load_recipe
from preftune.workspace import Workspace

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "recipes/accelerate_configs").glob("*.yaml"))
RECIPES = sorted(set((ROOT / "recipes").rglob("*.yaml")) - set(CONFIGS))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_recipe_passes_the_checks_before_a_run(path: Path, tmp_path: Path) -> None:
    recipe, _, sources = preflight(path, {}, Workspace(ROOT, tmp_path))
    assert sources
    assert recipe.notices == (), "a shipped recipe needs no translation"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_resolved_recipe_is_a_recipe_again(path: Path, tmp_path: Path) -> None:
    import yaml

    recipe = load_recipe(path)
    again = tmp_path / path.parent.name / "resolved.yaml"
    again.parent.mkdir()
    again.write_text(yaml.safe_dump(recipe.resolved()))
    assert load_recipe(again).resolved() == recipe.resolved()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_value_carries_a_comment(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    bare = [line for line in lines if line.strip() and not line.rstrip().endswith(":") and " # " not in line]
    assert bare == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_reads_its_config(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_machines == 1
    assert processes(path) >= 1
