"""The training child with a fault in it: the product's code, with one of its libraries' functions made to fail.

Started by tests as `python faulty.py JOB.json` (the fault in $FAULT), or forked from a warm process (`attempt`).
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune import keys, store, training_step
from preftune.data.steps import make_data, make_lengths
from preftune.models import StartingModel
from preftune.preflight import preflight
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace, find_workspace

_WARM = multiprocessing.get_context("forkserver")  # torch and trl are imported once for all attempts
_WARM.set_forkserver_preload(["preftune.training", "preftune.trainer", "preftune.guards", "peft"])


def _before(owner: Any, name: str, do: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        do(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def kill_in_step(step: int, sign: int = signal.SIGKILL) -> None:
    """A signal after the first micro-batch of a step, whose gradient is half there."""
    from transformers import Trainer

    calls: dict[int, int] = {}

    def do(trainer: Any, *_: Any, **__: Any) -> None:
        now = trainer.state.global_step + 1
        calls[now] = calls.get(now, 0) + 1
        if now == step and calls[now] == 2:
            os.kill(os.getpid(), sign)

    _before(Trainer, "training_step", do)


def kill_in_checkpoint(step: int, before: str) -> None:
    """SIGKILL while the checkpoint of a step is written: before this function of transformers, or before the seal."""
    from transformers import Trainer

    from preftune import checkpoints

    def do(subject: Any, *_: Any) -> None:
        now = subject.state.global_step if isinstance(subject, Trainer) else checkpoints.step_of(subject)
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    _before(checkpoints if before == "seal" else Trainer, before, do)


def out_of_memory(step: int, fits: int) -> None:
    """From this step on, a micro-batch of more than `fits` pairs asks torch's allocator for a million gigabytes."""
    from transformers import Trainer

    def do(trainer: Any, *_: Any, **__: Any) -> None:
        import torch

        if trainer.state.global_step + 1 >= step and trainer.args.per_device_train_batch_size > fits:
            torch.empty(10**15)

    _before(Trainer, "training_step", do)


def fill_disk(step: int, filler: str, leave: int) -> None:
    """Somebody else's file takes all space but `leave` bytes, when the checkpoint of this step is to be written; with
    nothing left already when the step begins."""
    from transformers import Trainer

    def do(trainer: Any, *_: Any, **__: Any) -> None:
        if trainer.state.global_step + (not leave) == step:
            fill(Path(filler), leave)

    _before(Trainer, "_save_checkpoint" if leave else "training_step", do)


def fill(filler: Path, leave: int) -> None:
    """Writes zeros until the disk is full, and gives `leave` bytes back."""
    with filler.open("wb", buffering=0) as f:
        for size in (2**20, 2**12):
            with suppress(OSError):
                while True:
                    f.write(bytes(size))
        f.truncate(max(f.tell() - leave, 0))


def broken_weight(step: int) -> None:
    """One weight becomes NaN, as after a bad kernel: loss and gradient follow."""
    from transformers import Trainer

    def do(trainer: Any, *_: Any, **__: Any) -> None:
        if trainer.state.global_step + 1 == step:
            next(p for p in trainer.model.parameters() if p.requires_grad).data.view(-1)[0] = float("nan")

    _before(Trainer, "training_step", do)


def stop_early(step: int) -> None:
    """Somebody's callback ends the training half-way, without an error."""
    from transformers import Trainer

    def do(trainer: Any, *_: Any, **__: Any) -> None:
        trainer.control.should_training_stop = trainer.state.global_step + 1 >= step

    _before(Trainer, "training_step", do)


def run(job: dict[str, Any], fault: dict[str, Any] | None) -> None:
    """Trains as the child does, with the fault: {"kind": name of a function above, its arguments}."""
    from preftune.children import child_main
    from preftune.training import train

    if fault:
        globals()[fault["kind"]](**{k: v for k, v in fault.items() if k != "kind"})
    path = Path(job["folder"]) / "job.json"
    path.write_text(json.dumps(job))
    sys.argv = ["training", str(path)]
    child_main(train)


def attempt(job: dict[str, Any], **fault: Any) -> tuple[int, dict[str, Any]]:
    """One try of a training in a process of its own: its exit code (−9: SIGKILL) and what it reported."""
    error = Path(job["folder"]) / "error.json"
    error.unlink(missing_ok=True)
    process = _WARM.Process(target=run, args=(job, fault or None))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    told = error.read_text() if error.exists() else ""
    return process.exitcode, json.loads(told) if told else {}  # on a full disk there is no space for it


@dataclass
class Prepared:
    """A project whose data is done, ready to train."""

    workspace: Workspace
    recipe: Recipe
    model: StartingModel
    mixture: StepResult
    lengths: StepResult

    @property
    def key(self) -> str:
        return keys.train_key(self.recipe, self.workspace, self.model, self.mixture)

    @property
    def folder(self) -> Path:
        return self.workspace.partial / "train" / self.key

    @property
    def registered(self) -> bool:
        return store.find(self.workspace, "train", self.key) is not None

    def train(self, told: list[str]) -> StepResult:
        data = (self.recipe, self.model, self.mixture, self.lengths)
        return training_step.make_train(self.workspace, self.key, *data, told.append)


def prepare(project: Path, **overrides: Any) -> Prepared:
    """Checks, mixes and counts the project's data, as the flow does."""
    workspace = find_workspace(project)
    recipe, model, sources = preflight(project / "recipes/tiny/config.yaml", overrides, workspace)
    assert model is not None
    mixture = make_data(workspace, recipe, sources)[1]
    return Prepared(workspace, recipe, model, mixture, make_lengths(workspace, recipe, model, mixture))


def _train_project(project: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    told: list[str] = []
    result = prepare(project).train(told)
    (project / f"told-{os.getpid()}.json").write_text(json.dumps({"told": told, "digest": result.digest}))


def train_in_process(project: Path) -> Any:
    """A process of its own that trains a project, as a flow's does."""
    process = _WARM.Process(target=_train_project, args=(project, dict(os.environ)))
    process.start()
    return process


if __name__ == "__main__":
    with Path(sys.argv[1]).open() as f:
        run(json.load(f), json.loads(os.environ["FAULT"]))
