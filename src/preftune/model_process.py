"""Starting the processes that load a model: their environment, their job, their launch."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preftune import accelerate_configs, keys
from preftune.accelerate_configs import Launch
from preftune.children import launch_command, run_child
from preftune.errors import UserError
from preftune.models import StartingModel
from preftune.schema import Recipe
from preftune.workspace import Workspace

Tell = Callable[[str], None]


def quiet(_: str) -> None:
    """Tells nobody."""


def child_env(launch: Launch) -> dict[str, str]:
    """What a process that loads a model finds in its environment, beside what is there."""
    return {
        **launch.environment(),
        "OMP_NUM_THREADS": str(launch.threads(keys.threads())),
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "true",
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
    }


def run_model_child(
    workspace: Workspace, module: str, job: dict[str, Any], key: str, launch: Launch, tell: Tell
) -> None:
    """Runs a module of ours on a job in its own process(es), and waits.

    Args:
        workspace: For its log.
        module: `preftune.evaluation` for example.
        job: What it is told; `folder` is where it works.
        key: The step's, for the log's name.
        launch: On what, in how many processes.
        tell: Called with each line for the user.

    Raises:
        UserError: If the launch names several machines.
        PreftuneError: What the child reported.
    """
    folder = Path(job["folder"])
    job_file = folder / "job.json"
    job_file.write_text(json.dumps(job))
    what = module.rpartition(".")[2]
    if launch.notice:
        tell(launch.notice)
    if launch.machines > 1:
        raise UserError(
            f"{launch.config.name} names {launch.machines} machines, and a run starts processes on this one only",
            "accelerate_config",
            "train with accelerate launch on each machine (docs/gpu.md); then this command takes the training up",
        )
    run_child(
        launch_command(module, job_file, launch.config, launch.processes, launch.device == "cpu"),
        folder=folder,
        log=workspace.logs / f"{what}-{key}.log",
        env={**os.environ, **child_env(launch)},
        on_line=tell,
        what=what,
    )
    job_file.unlink()


def one_process(workspace: Workspace) -> Launch:
    """How a step that needs one process is launched on this machine."""
    device = accelerate_configs.device()
    return Launch(accelerate_configs.choose(workspace, "cpu" if device == "cpu" else "single_gpu"), 1, device)


def model_job(model: StartingModel, recipe: Recipe) -> dict[str, Any]:
    """What every job says about the starting model."""
    return {
        "model_path": model.path,
        "revision": model.revision,
        "chat_template": recipe.chat_template,
        "threads": keys.threads(),
    }
