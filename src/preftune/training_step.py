"""The step `train`, and merging its adapter, as plain functions; what each depends on is told by `keys.py`."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from preftune import accelerate_configs, keys, store
from preftune.accelerate_configs import Launch
from preftune.children import run_child
from preftune.data.steps import left_out, tokens
from preftune.errors import StepError
from preftune.fitting import LESS, run_fitting
from preftune.model_process import Tell, child_env, model_job, one_process, quiet, run_model_child
from preftune.models import StartingModel
from preftune.plan import checkpointing_of
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace


def training_job(
    workspace: Workspace,
    folder: Path,
    recipe: Recipe,
    model: StartingModel,
    mixture: StepResult,
    lengths: StepResult,
    launch: Launch,
) -> dict[str, Any]:
    """What `training.train` needs to know, in a training's folder."""
    data = mixture.folder(workspace)
    return {
        **model_job(model, recipe),
        "threads": launch.threads(keys.threads()),
        "folder": str(folder),
        "method": recipe.method,
        "model": {k: v for k, v in recipe.model.items() if k != "model_name_or_path"},
        "training": recipe.training | checkpointing_of(recipe, model, lengths, launch),
        "fast_path": recipe.fast_path,
        "micro_batch_tokens": recipe.micro_batch_tokens,
        "train": str(data / "train.jsonl"),
        "test": str(data / "test.jsonl"),
        "left_out": left_out(lengths, workspace),
        "tokens": tokens(lengths, workspace),
        "eval_pairs": recipe.evaluation.training_pairs,
        "reference": str(workspace.home / "reference" / model.weights),
        "fingerprint": keys.fingerprint(recipe, model, mixture),
    }


def make_train(
    workspace: Workspace,
    key: str,
    recipe: Recipe,
    model: StartingModel,
    mixture: StepResult,
    lengths: StepResult,
    tell: Tell = quiet,
    watch: Callable[[Path], AbstractContextManager[Any]] = nullcontext,
    launch: Launch | None = None,
    run: Callable[[dict[str, Any]], None] | None = None,
    check: Callable[[Path], None] | None = None,
) -> StepResult:
    """Trains the policy; goes on from the newest whole checkpoint of an earlier try, with less at a time when memory
    runs out. The info says what was trained, and what was changed for memory (`out_of_memory`).

    Args:
        workspace: Where the store stands.
        key: From `train_key`.
        recipe: The resolved recipe.
        model: The starting model.
        mixture: The pairs.
        lengths: What max_length does to them.
        tell: Called with each line for the user.
        watch: Given the file of metrics; held while the training runs in this process's child.
        launch: How the training is launched; None: as the recipe and this machine say.
        run: Runs the job in processes that are there already; None: launches them.
        check: Given the file of metrics at each line of the child; what it raises ends the training (SIGTERM).
    """
    launched = launch or accelerate_configs.launch(workspace, recipe.accelerate_config)

    def build(folder: Path) -> dict[str, Any]:
        def told(line: str) -> None:
            tell(line)
            if check is not None:
                check(folder / "metrics.jsonl")

        def start(job: dict[str, Any]) -> None:
            run_model_child(workspace, "preftune.training", job, key, launched, told)

        job = training_job(workspace, folder, recipe, model, mixture, lengths, launched)
        with watch(folder / "metrics.jsonl"):
            if run is not None:  # in processes that are there already: they cannot be started afresh with less
                run(job)
                less = []
            else:
                less = run_fitting(start, job, launched.device == "cuda", tell)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # they serve a retry of this step only
        summary = json.loads((folder / "train.json").read_text()) | {"out_of_memory": less}
        (folder / "train.json").write_text(json.dumps(summary, indent=1))
        (folder / LESS).unlink(missing_ok=True)
        return summary

    # adapter_config.json names the base model's folder on this machine.
    volatile = ("timing.json", "runs/*", "model/adapter_config.json", "model/tokenizer_config.json")
    return store.make(
        workspace,
        "train",
        key,
        build,
        volatile=volatile,
        on_wait=lambda: tell("another run trains this: waiting"),
    )


def make_merged(
    workspace: Workspace,
    key: str,
    recipe: Recipe,
    model: StartingModel,
    train: StepResult,
    tell: Tell = quiet,
) -> StepResult:
    """Merges the trained adapter into the starting model, without quantization."""

    def build(folder: Path) -> dict[str, Any]:
        job = {
            "folder": str(folder),
            "model_path": model.path,
            "revision": model.revision,
            "dtype": recipe.model.get("dtype", "float32"),
            "adapter": str(train.folder(workspace) / "model"),
        }
        job_file = folder / "job.json"
        job_file.write_text(json.dumps(job))
        run_child(
            [sys.executable, "-m", "preftune.merge", str(job_file)],
            folder=folder,
            log=workspace.logs / f"merge-{key}.log",
            env={**os.environ, **child_env(one_process(workspace))},
            on_line=tell,
            what="merge",
        )
        job_file.unlink()
        return {"bytes": sum(p.stat().st_size for p in (folder / "model").glob("*.safetensors"))}

    try:
        return store.make(workspace, "merged", key, build, volatile=("model/tokenizer_config.json",))
    except StepError as e:
        advice = "the adapter is trained and kept; with --merge_adapter=false it is published without the merged model"
        raise StepError(e.error, e.where, f"{e.advice}; {advice}") from None
