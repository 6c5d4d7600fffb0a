"""The task that reads the recipe."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from preftune.recipe import load_recipe
from preftune.schema import Recipe


@task(name="recipe", task_run_name="read the recipe")
def read_recipe(path: str, overrides: dict[str, Any]) -> Recipe:
    """Reads, checks and resolves the recipe; not cached, because it takes milliseconds."""
    recipe = load_recipe(Path(path), overrides)
    for notice in recipe.notices:
        get_run_logger().warning(notice)
    return recipe
