"""The steps that load a model, and the verdict, as plain functions (the data's stand in data/steps.py). What each
depends on is told by `keys.py`; `tasks/` wraps each in a Prefect task.
"""

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
from preftune.children import launch_command, read_json_lines, run_child
from preftune.data.steps import left_out
from preftune.errors import StepError, UserError
from preftune.fitting import LESS, run_fitting
from preftune.models import StartingModel
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.summary import length_notices
from preftune.workspace import Workspace

Tell = Callable[[str], None]


def _quiet(_: str) -> None:
    pass


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


def _run(workspace: Workspace, module: str, job: dict[str, Any], key: str, launch: Launch, tell: Tell) -> None:
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


def _one_process(workspace: Workspace) -> Launch:
    device = accelerate_configs.device()
    return Launch(accelerate_configs.choose(workspace, "cpu" if device == "cpu" else "single_gpu"), 1, device)


def _model_job(model: StartingModel, recipe: Recipe) -> dict[str, Any]:
    return {
        "model_path": model.path,
        "revision": model.revision,
        "chat_template": recipe.chat_template,
        "threads": keys.threads(),
    }


def _make_evaluation(
    workspace: Workspace,
    step: str,
    key: str,
    recipe: Recipe,
    model: StartingModel,
    mixture: StepResult,
    lengths: StepResult,
    policy: Path | None,
    tell: Tell,
) -> StepResult:
    def build(folder: Path) -> dict[str, Any]:
        job = {
            **_model_job(model, recipe),
            "folder": str(folder),
            "dtype": recipe.model.get("dtype", "float32"),
            "policy": str(policy) if policy else None,
            "pairs": str(mixture.folder(workspace) / "test.jsonl"),
            "evaluation": recipe.evaluation.model_dump(),
            "left_out": left_out(lengths, workspace),
            "max_length": keys.max_length(recipe),
            "truncation": keys.truncation(recipe),
        }
        _run(workspace, "preftune.evaluation", job, key, _one_process(workspace), tell)
        counts = {n: sum(1 for _ in (folder / f"{n}.jsonl").open()) for n in ("pairs", "answers")}
        return {**counts, "notices": _probe(folder)}

    volatile = ("timing.json", "lm_eval_task/*")
    return store.make(
        workspace,
        step,
        key,
        build,
        volatile=volatile,
        on_wait=lambda: tell(f"another run makes this {step}: waiting"),
    )


def _probe(folder: Path) -> list[str]:
    """What the answers say about the model itself."""
    answers = [json.loads(line) for line in (folder / "answers.jsonl").open()]
    stopped = sum(a["stopped"] for a in answers)
    if answers and stopped == 0:
        return [
            f"none of {len(answers)} answers stopped by itself: this may be a base model, or "
            "evaluation.max_new_tokens is too short for it"
        ]
    return []


def make_baseline(
    workspace: Workspace,
    key: str,
    recipe: Recipe,
    model: StartingModel,
    mixture: StepResult,
    lengths: StepResult,
    tell: Tell = _quiet,
) -> StepResult:
    """Evaluates the starting model on the held-out side."""
    return _make_evaluation(workspace, "baseline", key, recipe, model, mixture, lengths, None, tell)


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
        **_model_job(model, recipe),
        "threads": launch.threads(keys.threads()),
        "folder": str(folder),
        "method": recipe.method,
        "model": {k: v for k, v in recipe.model.items() if k != "model_name_or_path"},
        "training": recipe.training,
        "train": str(data / "train.jsonl"),
        "test": str(data / "test.jsonl"),
        "left_out": left_out(lengths, workspace),
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
    tell: Tell = _quiet,
    watch: Callable[[Path], AbstractContextManager[Any]] = nullcontext,
    launch: Launch | None = None,
    run: Callable[[dict[str, Any]], None] | None = None,
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
    """
    launched = launch or accelerate_configs.launch(workspace, recipe.accelerate_config)

    def build(folder: Path) -> dict[str, Any]:
        def start(job: dict[str, Any]) -> None:
            _run(workspace, "preftune.training", job, key, launched, tell)

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


def make_policy(
    workspace: Workspace,
    key: str,
    recipe: Recipe,
    model: StartingModel,
    mixture: StepResult,
    lengths: StepResult,
    train: StepResult,
    tell: Tell = _quiet,
) -> StepResult:
    """Evaluates the trained policy on the same pairs and prompts as the baseline."""
    policy = train.folder(workspace) / "model"
    return _make_evaluation(workspace, "policy", key, recipe, model, mixture, lengths, policy, tell)


def make_merged(
    workspace: Workspace,
    key: str,
    recipe: Recipe,
    model: StartingModel,
    train: StepResult,
    tell: Tell = _quiet,
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
            env={**os.environ, **child_env(_one_process(workspace))},
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


def make_verdict(
    workspace: Workspace,
    key: str,
    recipe: Recipe,
    results: dict[str, Any],
    steps: dict[str, str],
    lineage: dict[str, str],
) -> StepResult:
    """Compares, decides and writes the report.

    Args:
        workspace: Where the store stands.
        key: From `verdict_key`.
        recipe: The resolved recipe.
        results: Step name → its result; `source` holds a list.
        steps: Step name → `cached` or `run`.
        lineage: For the report: label → text.
    """

    def build(folder: Path) -> dict[str, Any]:
        from preftune.plots import standalone_svg
        from preftune.report import ReportInput, render_report, report_charts
        from preftune.training_notes import notes_of
        from preftune.verdict import compare

        places = {step: results[step].folder(workspace) for step in ("mixture", "baseline", "train", "policy")}
        curves = read_json_lines(places["train"] / "metrics.jsonl")
        found = compare(
            places["baseline"],
            places["policy"],
            results["train"].info,
            keys.beta(recipe),
            recipe.gate,
            folder,
            notes_of(curves, recipe),
        )
        mixture = results["mixture"].info
        answers = [read_json_lines(places[s] / "answers.jsonl") for s in ("baseline", "policy")]
        report = ReportInput(
            name=recipe.name,
            verdict=found,
            curves=curves,
            margins=[m for row in read_json_lines(folder / "comparison.jsonl") if (m := row["margin"]) is not None],
            answers=list(zip(*answers, strict=True)),
            sources=[s.info for s in results["source"]],
            mixture={**mixture, "notices": mixture["notices"] + length_notices(results["lengths"])},
            training=results["train"].info,
            recipe=recipe.resolved(),
            steps=steps,
            lineage=lineage,
        )
        (folder / "report.html").write_text(render_report(report), encoding="utf-8")
        (folder / "plots").mkdir(exist_ok=True)
        for name, chart in report_charts(report).items():
            (folder / "plots" / f"{name}.svg").write_text(standalone_svg(chart), encoding="utf-8")
        return {k: found[k] for k in ("outcome", "reasons", "metrics", "training_notes")}

    return store.make(workspace, "verdict", key, build, volatile=("report.html", "plots/*"))
