"""Packages that a recipe's settings need and that preftune does not bring along: told before anything is computed."""

import importlib.util

from preftune.errors import UserError
from preftune.old_keys import Problem
from preftune.schema import Recipe

# Beginning of an optimizer's name → module, name for pip. The first that fits counts.
_OPTIMIZERS = (
    ("adamw_torch_4bit", "torchao", "torchao"),
    ("adamw_torch_8bit", "torchao", "torchao"),
    ("galore_", "galore_torch", "galore-torch"),
    ("apollo_", "apollo_torch", "apollo-torch"),
    ("lomo", "lomo_optim", "lomo-optim"),
    ("adalomo", "lomo_optim", "lomo-optim"),
    ("grokadamw", "grokadamw", "grokadamw"),
    ("schedule_free_", "schedulefree", "schedulefree"),
    ("stable_adamw", "optimi", "torch-optimi"),
    *((name, "bitsandbytes", "'preftune[gpu]'") for name in ("adamw_8bit", "adamw_bnb_8bit", "ademamix", "lion_")),
    *((name, "bitsandbytes", "'preftune[gpu]'") for name in ("paged_", "rmsprop_bnb")),
)


def installed(module: str) -> bool:
    """Whether a module could be imported; nothing is imported."""
    return importlib.util.find_spec(module) is not None


def missing_packages(recipe: Recipe) -> list[Problem]:
    """The recipe's keys that this machine cannot serve for want of a package.

    Args:
        recipe: The resolved recipe.

    Returns:
        Key and error of each.
    """
    wanted: list[tuple[str, str, str, str]] = []
    optimizer = recipe.training.get("optim", "")
    for start, module, package in _OPTIMIZERS:
        if optimizer.startswith(start):
            wanted.append(("optim", optimizer, module, package))
            break
    wanted += [
        (key, "true", "bitsandbytes", "'preftune[gpu]'")
        for key in ("load_in_4bit", "load_in_8bit")
        if recipe.model.get(key)
    ]
    if "wandb" in recipe.training["report_to"]:
        wanted.append(("report_to", "wandb", "wandb", "'preftune[wandb]'"))
    return [
        (
            key,
            UserError(
                f"{key}: {value} needs the package {module}, which is not installed here",
                f"{recipe.path}: {key}",
                f"pip install {package}",
            ),
        )
        for key, value, module, package in wanted
        if not installed(module)
    ]


def check_dask(workers: int) -> None:
    """Refuses several workers where Dask is not installed.

    Raises:
        UserError: Then.
    """
    if workers > 1 and not installed("prefect_dask"):
        raise UserError(
            f"{workers} workers need the package prefect-dask, which is not installed here",
            "workers",
            "pip install 'preftune[dask]', or leave workers at 1: the trials run one after another",
        )
