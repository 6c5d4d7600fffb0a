"""What task runs are called on Prefect's pages: what they do, and on what."""

from pathlib import Path

from prefect.runtime import task_run

from preftune.keys import beta
from preftune.models import StartingModel
from preftune.schema import Recipe


def _experiment(recipe: Recipe) -> str:
    return f"{recipe.name} beta={beta(recipe):g}"


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def baseline() -> str:
    """`evaluate SFT SmolLM2-135M-Instruct`"""
    model: StartingModel = task_run.parameters["model"]
    return f"evaluate SFT {_last(model.name)}"


def train() -> str:
    """`train starter beta=0.1`"""
    return f"train {_experiment(task_run.parameters['recipe'])}"


def policy() -> str:
    """`evaluate starter beta=0.1`, or the folder's name of a policy that was not trained here."""
    folder: Path = task_run.parameters["policy"]
    ours = folder.is_relative_to(task_run.parameters["workspace"].store)
    return f"evaluate {_experiment(task_run.parameters['recipe']) if ours else folder.name}"


def verdict() -> str:
    """`verdict on starter beta=0.1`, or on an evaluated policy."""
    evaluated = task_run.parameters["results"].get("evaluated")
    return f"verdict on {evaluated.folder.name if evaluated else _experiment(task_run.parameters['recipe'])}"


def merge() -> str:
    """`merge starter beta=0.1`"""
    return f"merge {_experiment(task_run.parameters['recipe'])}"


def publish() -> str:
    """`publish data/starter`"""
    return f"publish {task_run.parameters['workspace'].display(task_run.parameters['target'])}"
