"""What can be known to be wrong before anything starts: seconds, no training, no Prefect."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.accelerate_configs import device, launch
from preftune.data.checks import peek
from preftune.data.sources import Source, find_source
from preftune.errors import UserError
from preftune.judges.find import find_judge
from preftune.models import StartingModel, check_name, embedded_folder, find_model
from preftune.packages import missing_packages
from preftune.pairs_schema import default_output
from preftune.publish import check_replaceable
from preftune.recipe import load_recipe
from preftune.reporting import check_reporting
from preftune.schema import EMBEDDED_MODEL, Recipe
from preftune.suites import find_suite, read_suite
from preftune.task_check import check_tasks
from preftune.tracking_address import check_tracking
from preftune.workspace import Workspace, output_folder


def preflight(
    path: Path, overrides: Mapping[str, Any], workspace: Workspace, replaces_output: bool = True
) -> tuple[Recipe, StartingModel | None, list[Source]]:
    """Checks recipe, output folder, model and the head of every dataset.

    Args:
        path: The recipe.
        overrides: Keys that win over it.
        workspace: The project and its workspace.
        replaces_output: Whether the recipe's output folder will be written.

    Returns:
        The recipe, the starting model (None if the embedded one has yet to be fetched), the datasets.

    Raises:
        UserError: For the first thing that is wrong.
    """
    recipe = load_recipe(path, overrides)
    _check_machine(recipe, path)
    check_reporting(recipe.training.get("report_to"))
    check_tracking(workspace)
    if replaces_output:
        check_replaceable(output_folder(workspace, recipe.output_dir))
    launch(workspace, recipe.accelerate_config)
    check_name(recipe.model_name, recipe.method)
    workspace.make()
    check_tasks(recipe.evaluation, workspace)
    for suite in recipe.evaluation.suites:
        read_suite(find_suite(suite, workspace))
    if recipe.evaluation.judge is not None:
        find_judge(recipe.evaluation.judge, workspace)
    check_built(recipe, workspace)
    sources = [find_source(e, workspace) for e in recipe.mixture.datasets]
    for source in sources:
        peek(source, recipe.validation)
    if recipe.model_name == EMBEDDED_MODEL and not embedded_folder(workspace).exists():
        return recipe, None, sources
    return recipe, find_model(recipe, workspace), sources


def check_built(recipe: Recipe, workspace: Workspace) -> None:
    """Raises a UserError if the recipe's own pairs are not there yet: their folder would pass for a hub dataset."""
    if recipe.pairs is None:
        return
    folder = recipe.pairs.output or default_output(recipe.name)
    if any(e.id == folder for e in recipe.mixture.datasets) and not workspace.resolve(folder).is_dir():
        raise UserError(
            "the pairs are not built yet", f"{recipe.path}: pairs", f"preftune pairs {workspace.display(recipe.path)}"
        )


def _check_machine(recipe: Recipe, path: Path) -> None:
    """Refuses what this machine, or its Python environment, cannot do."""
    quantized = next((k for k in ("load_in_4bit", "load_in_8bit") if recipe.model.get(k)), None)
    if quantized and device() == "cpu":
        raise UserError(
            "quantized training needs a CUDA device", f"{path}: {quantized}", f"remove {quantized} on a CPU"
        )
    for _, error in missing_packages(recipe):
        raise error
