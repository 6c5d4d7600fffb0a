"""How a training is launched: which accelerate configuration, in how many processes, on what.

The recipe names a configuration, or the machine chooses. What of it a training's result depends on is
`Launch.identity`: the same for a file of another name, and for `accelerate launch … scripts/run_dpo.py`.
"""

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from preftune.errors import UserError
from preftune.strict_yaml import load_yaml
from preftune.workspace import Workspace

NAMES = ("cpu", "single_gpu", "ddp", "fsdp", "zero3")
_ONE_PROCESS = (None, "NO", False)  # False: what YAML makes of an unquoted NO
_SHARDING = {"FSDP": "fsdp_config", "DEEPSPEED": "deepspeed_config"}


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


def first_gpu() -> str:
    """`CUDA_VISIBLE_DEVICES` for a single process: it would spread over all devices it sees (DataParallel)."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def gpu_shares(workers: int) -> list[str | None]:
    """`CUDA_VISIBLE_DEVICES` of each of several processes that work at once; None where there are no devices.

    Each has as many as the others; where there are fewer devices than processes, some share one.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(str(i) for i in range(gpu_count()))
    devices = visible.split(",") if gpu_count() else []
    if not devices:
        return [None] * workers
    each = max(len(devices) // workers, 1)
    return [",".join(devices[i * each % len(devices) :][:each]) for i in range(workers)]


@dataclass(frozen=True)
class Launch:
    """How a training is started.

    Args:
        config: The file for `accelerate launch`.
        processes: How many, on all machines together.
        device: `cuda` or `cpu`.
        sharding: The file's `fsdp_config` or `deepspeed_config`; None where each process holds the whole model.
        machines: How many.
        notice: What is otherwise than the configuration asks for; empty if nothing.
    """

    config: Path
    processes: int
    device: str
    sharding: dict[str, Any] | None = None
    machines: int = 1
    notice: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """What of it the result depends on. Not the mixed precision: the recipe decides that."""
        return {"processes": self.processes, "device": self.device, "sharding": self.sharding}

    def threads(self, cores: int) -> int:
        """CPU threads of each process, where they share so many cores."""
        return max(1, cores * self.machines // self.processes)

    def environment(self) -> dict[str, str]:
        """What its processes must see of the devices, where that is not all of them."""
        if self.device == "cpu":
            return {"CUDA_VISIBLE_DEVICES": ""}
        return {"CUDA_VISIBLE_DEVICES": first_gpu()} if self.processes == 1 else {}


def _settings(config: Path) -> dict[str, Any]:
    settings = load_yaml(config.read_text(), str(config))
    if not isinstance(settings, dict):
        raise UserError("not an accelerate configuration", str(config), "write one with `accelerate config`")
    return settings


def _number(settings: dict[str, Any], key: str, default: int, config: Path) -> int:
    value = settings.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{key}: {value!r} is not a number of at least 1", str(config), f"write {key}: {default}")
    return value


def sharding(config: Path) -> dict[str, Any] | None:
    """How the file spreads one model over several devices; None if it does not."""
    settings = _settings(config)
    section = _SHARDING.get(str(settings.get("distributed_type")))
    return {str(settings["distributed_type"]): settings.get(section) or {}} if section else None


def processes(config: Path) -> int:
    """How many processes a configuration gets on this machine: as many as it asks for, but one for each GPU."""
    settings = _settings(config)
    gpus = gpu_count() if str(settings.get("gpu_ids") or "all") == "all" else len(str(settings["gpu_ids"]).split(","))
    wanted = _number(settings, "num_processes", max(gpus, 1), config)
    if settings.get("use_cpu"):
        return wanted
    if settings.get("distributed_type") in _ONE_PROCESS:
        return 1
    return max(min(wanted, gpus), 1)


def choose(workspace: Workspace, wanted: str | None) -> Path:
    """The configuration file that the recipe or the machine asks for.

    Args:
        workspace: The project's own `recipes/accelerate_configs` wins over the shipped one.
        wanted: One of `NAMES` or a path from the recipe; None: by the machine.

    Raises:
        UserError: If there is no such file, or it cannot be used here.
    """
    name = wanted or ("cpu" if gpu_count() == 0 else "single_gpu" if gpu_count() == 1 else "ddp")
    shipped = Path(__file__).parents[2] / "recipes" / "accelerate_configs"
    places = [folder / f"{name}.yaml" for folder in (workspace.project / "recipes" / "accelerate_configs", shipped)]
    path = next((p for p in (*places, workspace.resolve(name)) if p.is_file()), None)
    if path is None:
        raise UserError(
            f"there is no accelerate configuration {name!r}",
            "accelerate_config",
            f"use {', '.join(NAMES)} or a path",
        )
    settings = _settings(path)
    processes(path)
    if settings.get("distributed_type") == "DEEPSPEED" and gpu_count() and not importlib.util.find_spec("deepspeed"):
        raise UserError(
            "this configuration needs DeepSpeed, which is not installed",
            f"accelerate_config: {path}",
            "pip install deepspeed, or use accelerate_config: fsdp, which needs nothing more",
        )
    return path


def launch(workspace: Workspace, wanted: str | None) -> Launch:
    """How a run on this machine launches its training; see `choose`.

    A configuration for GPUs means one CPU process where there are none. One process needs no process group, so it
    is launched plainly, whichever file asked for it.
    """
    config = choose(workspace, wanted)
    settings, count = _settings(config), processes(config)
    if (machines := _number(settings, "num_machines", 1, config)) > 1:
        count = _number(settings, "num_processes", machines, config)
        return Launch(config, count, "cpu" if settings.get("use_cpu") else "cuda", sharding(config), machines)
    if settings.get("use_cpu"):
        return Launch(config, count, "cpu")
    if not gpu_count():
        notice = f"no GPU here: one process on the CPU ({config.name} asks for GPUs)"
        return Launch(choose(workspace, "cpu"), 1, "cpu", notice=notice)
    found = Launch(config, count, "cuda", sharding(config))
    if count < gpu_count() and settings.get("distributed_type") not in _ONE_PROCESS:
        found = replace(found, notice=f"{count} of {gpu_count()} GPUs are used ({config.name} asks for no more)")
    if count == 1 and found.sharding is None:
        return replace(found, config=choose(workspace, "single_gpu"))
    return found
