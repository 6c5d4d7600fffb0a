"""The steps `baseline` and `policy`, as plain functions; what each depends on is told by `keys.py`."""

import json
from pathlib import Path
from typing import Any

from preftune import keys, store
from preftune.data.steps import left_out, tokens
from preftune.judges.find import FoundJudge
from preftune.model_process import Tell, model_job, one_process, quiet, run_model_child
from preftune.models import StartingModel
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.suites import find_suite, read_suite
from preftune.workspace import Workspace


def make_baseline(
    workspace: Workspace,
    key: str,
    recipe: Recipe,
    model: StartingModel,
    mixture: StepResult,
    lengths: StepResult,
    tell: Tell = quiet,
) -> StepResult:
    """Evaluates the starting model on the held-out side."""
    return _make_evaluation(workspace, "baseline", key, recipe, model, mixture, lengths, None, tell)


def make_policy(
    workspace: Workspace,
    key: str,
    recipe: Recipe,
    model: StartingModel,
    mixture: StepResult,
    lengths: StepResult,
    policy: Path,
    tell: Tell = quiet,
) -> StepResult:
    """Evaluates a policy (the folder of a model or adapter) on the same pairs and prompts as the baseline."""
    return _make_evaluation(workspace, "policy", key, recipe, model, mixture, lengths, policy, tell)


def make_judge(
    workspace: Workspace,
    key: str,
    judge: FoundJudge,
    baseline: StepResult,
    policy: StepResult,
    tell: Tell = quiet,
) -> StepResult:
    """Has the judge compare both models' answers. The info is judge.json, and `again`: how many verdicts are missing
    for reasons that may have passed when the same is asked again."""

    def build(folder: Path) -> dict[str, Any]:
        from preftune.judges.run import run_judge

        places = baseline.folder(workspace), policy.folder(workspace), folder
        log = workspace.logs / f"judge-{key}.log"
        found = run_judge(judge, *places, workspace.home / "judgements", log, tell)
        return {**found, "again": sum(n for reason, n in found["errors"].items() if reason != "malformed")}

    waiting = "another run has these answers judged: waiting"
    return store.make(workspace, "judge", key, build, volatile=("judge.json",), on_wait=lambda: tell(waiting))


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
            **model_job(model, recipe),
            "folder": str(folder),
            "dtype": recipe.model.get("dtype", "float32"),
            "policy": str(policy) if policy else None,
            "pairs": str(mixture.folder(workspace) / "test.jsonl"),
            "evaluation": _settings(recipe, workspace),
            "suites": _questions(recipe, workspace, folder, tell),
            "left_out": left_out(lengths, workspace),
            "tokens": tokens(lengths, workspace),
            "max_length": keys.max_length(recipe),
            "truncation": keys.truncation(recipe),
        }
        run_model_child(workspace, "preftune.evaluation", job, key, one_process(workspace), tell)
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


def _settings(recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    """The recipe's section, with the folder of the user's own tasks as a child finds it."""
    section = recipe.evaluation
    folder = str(workspace.resolve(section.task_folder)) if section.task_folder else None
    return section.model_dump(exclude={"judge", "suites"}) | {"task_folder": folder}


def _questions(recipe: Recipe, workspace: Workspace, folder: Path, tell: Tell) -> str | None:
    """Writes the suites' questions for the child; None if there are none."""
    if not recipe.evaluation.suites:
        return None
    file = folder / "questions.jsonl"
    with file.open("w", encoding="utf-8") as f:
        for suite in recipe.evaluation.suites:
            questions, notices = read_suite(find_suite(suite, workspace))
            f.writelines(json.dumps(q, ensure_ascii=False) + "\n" for q in questions)
            for notice in notices:
                tell(notice)
    return str(file)


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
