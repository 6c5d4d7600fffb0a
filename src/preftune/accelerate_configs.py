"""Which accelerate configuration a child is launched with: the recipe's, else what the machine has."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from preftune.errors import UserError
from preftune.strict_yaml import load_yaml
from preftune.workspace import Workspace

NAMES = ("cpu", "single_gpu", "ddp")


@cache
def gpu_count() -> int:
    """CUDA devices that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    if not shutil.which("nvidia-smi"):
        return 0
    done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0


def device() -> str:
    """`cuda` or `cpu`."""
    return "cuda" if gpu_count() else "cpu"


def processes(config: Path) -> int:
    """How many processes a configuration asks for; a multi-GPU one gets as many as there are devices."""
    settings = load_yaml(config.read_text(), str(config))
    if settings.get("distributed_type") in (None, "NO") or settings.get("use_cpu"):
        return int(settings.get("num_processes", 1))
    return max(gpu_count(), 1)


def choose(workspace: Workspace, wanted: str | None) -> Path:
    """The configuration file for `accelerate launch`.

    Args:
        workspace: The project's own `recipes/accelerate_configs` wins over the shipped one.
        wanted: A name (`cpu`, `single_gpu`, `ddp`) or a path from the recipe; None: by the machine.

    Raises:
        UserError: If there is no such file.
    """
    name = wanted or ("cpu" if gpu_count() == 0 else "single_gpu" if gpu_count() == 1 else "ddp")
    shipped = Path(__file__).parents[2] / "recipes" / "accelerate_configs"
    for folder in (workspace.project / "recipes" / "accelerate_configs", shipped):
        if (path := folder / f"{name}.yaml").is_file():
            return path
    if (path := workspace.resolve(name)).is_file():
        return path
    raise UserError(
        f"there is no accelerate configuration {name!r}",
        "accelerate_config",
        f"use {', '.join(NAMES)} or a path",
    )
