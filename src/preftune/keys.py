"""What each step's result depends on, as a key: the same key, the same result, on every machine.

The `…_step(s).py` modules make the results; `preftune check` asks for the keys alone.
"""

import itertools
import os
from typing import Any

from preftune import accelerate_configs
from preftune.accelerate_configs import Launch
from preftune.data import check_list
from preftune.data.registry import default_languages
from preftune.data.sources import Source
from preftune.digest import code_version, file_sha256, json_digest, library_versions
from preftune.judges.find import FoundJudge
from preftune.known_keys import snapshot
from preftune.models import StartingModel
from preftune.schema import Mixture, Recipe, Validation
from preftune.store import StepResult, find
from preftune.suites import find_suite
from preftune.workspace import Workspace

# Keys of DPOConfig that change where and how much is written, not what is learned.
_NOT_LEARNED = {
    "run_name",
    "report_to",
    "project",
    "disable_tqdm",
    "log_level",
    "log_level_replica",
    "save_total_limit",
    "dataset_num_proc",
}
_VERDICT_CODE = (
    *("verdict", "comparison_inputs", "measures", "task_losses", "win_rates", "length_control", "mt_bench_scores"),
    *("power", "gate", "decision", "statistics", "verdict_notes"),
)
READING_CODE = (
    *("data/hub", "data/sources", "data/layout", "data/readers", "data/text_rows", "data/arrow_rows", "data/shuffle"),
    *("data/adapters", "data/trees", "data/pairs", "data/labels", "data/languages", "data/checks"),
    "data/check_list",
)
_TEMPLATES = ("templates/style.css.j2", "templates/parts.html.j2")
_REPORT_CODE = (
    *("report", "report_input", "report_tables", "report_answers", "measure_table", "side_by_side", "answer_view"),
    *("plots", "training_plots", "answer_plots", "display", "pages", *_TEMPLATES),
    *("templates/report.html.j2", "templates/report_judge.html.j2", "templates/report_origin.html.j2"),
    "templates/answers.html.j2",
)
_AUDIT_CODE = (
    *("audit/collect", "audit/advice", "audit/measures", "audit/page", "audit/charts", "audit/samples"),
    *("audit/tables", "plots", "display", "statistics", "data/check_list", "data/steps"),
    *("pages", "templates/audit.html.j2", *_TEMPLATES),
)
_MIXTURE_CODE = (
    *("data/mixture", "data/doubles", "data/pairs", "data/overlap", "data/decontamination", "data/check_list"),
    *("lm_tasks/documents", "lm_tasks/facts.jsonl", "lm_tasks/instructions.jsonl"),  # never trained on
)
LENGTHS_CODE = ("data/lengths", "data/pair_tokenizer", "data/tokenizer_files", "data/token_file")
_TRAINING_CODE = (
    *(
        "training",
        "training_setup",
        "trainer",
        "reference_cache",
        "sqlite_file",
        "orpo",
        "callbacks",
        "tokens",
        "checkpoints",
        "fast_path",
        "losses",
        "packing",
        "sorted_batches",
    ),
    *("generation_settings", "reporting", "ranks", "guards"),
    *LENGTHS_CODE,
)
JUDGE_CODE = (
    *("judges/run", "judges/interface", "judges/prompts", "judges/replies", "judges/language_model"),
    "judges/asking",
    *("judges/endpoint", "judges/ledger", "judges/reward_model", "judges/reward_scores"),
)
_LOCAL_TASKS = (
    *("lm_tasks/documents", "lm_tasks/preference_pairs", "lm_tasks/rules"),
    *(f"lm_tasks/{task}{ending}" for task in ("facts", "instructions") for ending in (".py", ".yaml", ".jsonl")),
)
_EVALUATION_CODE = (
    *("evaluation", "loading", "scoring", "generation", "prefix", "lm_in_memory", "tokens", "capability"),
    *_LOCAL_TASKS,
    *LENGTHS_CODE,
)


def threads() -> int:
    """CPU threads of a child: part of what a CPU result depends on, so pinned for its whole life."""
    return int(os.environ.get("PREFTUNE_THREADS") or os.cpu_count() or 1)


def max_length(recipe: Recipe) -> int:
    """The limit of prompt and answer, as in training; null means none."""
    return recipe.training.get("max_length", snapshot()["training"]["max_length"]["default"]) or 10**6


def truncation(recipe: Recipe) -> str:
    """Which end of a sequence is kept, as in training."""
    return recipe.training.get("truncation_mode", "keep_start")


def source_key(source: Source, validation: Validation, seed: int) -> str:
    """Key of a checked dataset: its bytes, how they are read, the checks; the seed where it draws."""
    entry = source.entry.model_dump(exclude={"weight", "id"})
    return json_digest(
        {
            "id": source.entry.id,
            "digest": source.digest,
            "entry": entry,
            "seed": seed if source.entry.max_rows is not None else None,
            "validation": validation.model_dump(exclude={"near_duplicates", "decontaminate"}),
            "languages": validation.languages or default_languages(source.entry.id),
            "code": code_version(*READING_CODE),
        }
    )


def mixture_key(
    sources: list[StepResult], mixture: Mixture, validation: Validation, evaluation_sets: list[Source]
) -> str:
    """Key of a mixture: the checked pairs, weights, seed, split, and what they must not overlap with."""
    entries = [{"name": e.name, "weight": e.weight, "held_out": bool(e.test_split)} for e in mixture.datasets]
    return json_digest(
        {
            "sources": [s.digest for s in sources],
            "entries": entries,
            "mixture": mixture.model_dump(exclude={"datasets"}),
            "near_duplicates": validation.near_duplicates,
            "severity": {name: validation.does(name) for name in (*check_list.MIXTURE, "duplicate", "contradiction")},
            "evaluation_sets": sorted(s.digest for s in evaluation_sets),
            "code": code_version(*_MIXTURE_CODE),
        }
    )


def lengths_key(recipe: Recipe, model: StartingModel, mixture: StepResult) -> str:
    """Key of the token ids and their counts: the pairs, tokenizer and template, and where sequences are cut."""
    severity = {name: recipe.validation.does(name) for name in check_list.TOKENS}
    return json_digest(
        {
            "step": "lengths",
            "model": model.digest,
            "pairs": [mixture.info["train_sha256"], mixture.info["test_sha256"]],
            "max_length": max_length(recipe),
            "truncation": truncation(recipe),
            "validation": [recipe.validation.max_dropped, severity],
            "code": code_version(*LENGTHS_CODE, "data/pairs", "data/steps"),
            "libraries": library_versions("tokenizers"),
        }
    )


def audit_key(recipe: Recipe, lengths: StepResult | None, sources: list[StepResult], mixture: StepResult) -> str:
    """Key of an audit: what it shows."""
    return json_digest(
        {
            "step": "audit",
            "sources": [s.key for s in sources],
            "mixture": mixture.key,
            "lengths": lengths.key if lengths else None,
            "notices": recipe.notices,
            "seed": recipe.mixture.seed,
            "code": code_version(*_AUDIT_CODE),
        }
    )


def _own_tasks(folder: str | None, workspace: Workspace) -> dict[str, str]:
    """The content of the user's own lm-eval task files."""
    if folder is None:
        return {}
    place = workspace.resolve(folder)
    return {str(p.relative_to(place)): file_sha256(p) for p in sorted(place.rglob("*")) if p.is_file()}


def _evaluation_key(recipe: Recipe, workspace: Workspace, model: StartingModel, mixture: StepResult) -> dict[str, Any]:
    return {
        "model": model.digest,
        "pairs": mixture.info["test_sha256"],
        "evaluation": recipe.evaluation.model_dump(exclude={"preset", "training_pairs", "judge", "suites"}),
        "suites": [find_suite(s, workspace).digest for s in recipe.evaluation.suites],
        "tasks": _own_tasks(recipe.evaluation.task_folder, workspace),
        "truncation": truncation(recipe),
        "device": accelerate_configs.device(),
        "max_length": max_length(recipe),
        "threads": threads(),
        "code": code_version(*_EVALUATION_CODE),
        "libraries": library_versions("torch", "transformers", "peft", "lm-eval"),
    }


def baseline_key(recipe: Recipe, workspace: Workspace, model: StartingModel, mixture: StepResult) -> str:
    """Key of the SFT model's evaluation: the model, the held-out side, the evaluation's settings. Not the
    training's: every recipe that starts from this model and holds out these pairs shares it."""
    return json_digest({"step": "baseline", **_evaluation_key(recipe, workspace, model, mixture)})


def train_key(
    recipe: Recipe, workspace: Workspace, model: StartingModel, mixture: StepResult, launch: Launch | None = None
) -> str:
    """Key of a training: the model, the training side, what is learned, how, and on how many devices.

    Args:
        recipe: The resolved recipe.
        workspace: Where the launch configurations are.
        model: The starting model.
        mixture: The pairs.
        launch: How the training is launched, if it is already; None: as a run on this machine would.
    """
    launch = launch or accelerate_configs.launch(workspace, recipe.accelerate_config)
    learned = {k: v for k, v in recipe.training.items() if k not in _NOT_LEARNED}
    evaluates = learned.get("eval_strategy", "no") != "no"
    return json_digest(
        {
            "step": "train",
            "method": recipe.method,
            "model": model.digest,
            "pairs": mixture.info["train_sha256"],
            "held_out": mixture.info["test_sha256"] if evaluates else None,
            "eval_pairs": recipe.evaluation.training_pairs if evaluates else None,
            "training": learned,
            "fast_path": [recipe.fast_path, recipe.micro_batch_tokens],
            "model_settings": {k: v for k, v in recipe.model.items() if k != "model_name_or_path"},
            "launch": launch.identity,
            "tensorboard": sorted(recipe.training["report_to"]),
            "threads": launch.threads(threads()),
            "code": code_version(*_TRAINING_CODE),
            "libraries": library_versions("torch", "transformers", "trl", "peft", "accelerate"),
        }
    )


def fingerprint(recipe: Recipe, model: StartingModel, mixture: StepResult) -> dict[str, str]:
    """What a checkpoint may only be resumed with, by part: sealed into it."""
    learned = {k: v for k, v in recipe.training.items() if k not in _NOT_LEARNED}
    settings = {k: v for k, v in recipe.model.items() if k != "model_name_or_path"}
    return {
        "the recipe": json_digest(
            [recipe.method, learned, settings, recipe.chat_template, recipe.fast_path, recipe.micro_batch_tokens]
        ),
        "the data": mixture.info["train_sha256"][:20],
        "the base model": model.digest,
        "the code": json_digest([code_version(*_TRAINING_CODE), library_versions("torch", "transformers", "trl")]),
    }


def policy_key(recipe: Recipe, workspace: Workspace, model: StartingModel, mixture: StepResult, policy: str) -> str:
    """Key of a policy's evaluation: as the baseline's, and the policy's weights (`policies.Policy.digest`)."""
    return json_digest({"step": "policy", "policy": policy, **_evaluation_key(recipe, workspace, model, mixture)})


def judge_key(judge: FoundJudge, workspace: Workspace, baseline: StepResult, policy: StepResult) -> str:
    """Key of a judge's work: both models' answers, and the judge."""
    answers = {"baseline": baseline.digest, "policy": policy.digest}
    return retried_key(workspace, "judge", {**answers, "judge": judge.digest, "code": code_version(*JUDGE_CODE)})


def retried_key(workspace: Workspace, step: str, depends: dict[str, Any]) -> str:
    """Key of a step that asks others, who may not have answered all.

    Where an earlier try lacks answers that could still be had (time-outs, the budget: its info's `again`), it is a new
    key: the same command asks again, and only for what is missing.
    """
    for tries in itertools.count():
        key = json_digest({"step": step, **depends, "tries": tries})
        found = find(workspace, step, key)
        if found is None or not found.info["again"]:
            return key
    raise AssertionError("counting has no end")


def merged_key(recipe: Recipe, model: StartingModel, train: StepResult) -> str:
    """Key of a merged model: the trained adapter, and the weights that it is merged into."""
    return json_digest(
        {
            "step": "merged",
            "model": model.digest,
            "adapter": train.digest,
            "dtype": recipe.model.get("dtype"),
            "code": code_version("merge"),
            "libraries": library_versions("torch", "transformers", "peft"),
        }
    )


def beta(recipe: Recipe) -> float:
    """The β of the implicit reward: the recipe's, else TRL's default."""
    return float(recipe.training.get("beta", snapshot()["training"]["beta"]["default"]))


def run_identity(recipe: Recipe, baseline: str, policy: str) -> str:
    """What makes one MLflow run, known before the training starts.

    Args:
        recipe: The resolved recipe.
        baseline: The baseline's key.
        policy: The training's key, or the digest of a policy on disk.
    """
    judge = recipe.evaluation.judge.model_dump() if recipe.evaluation.judge else None
    bars = [recipe.gate.model_dump(), judge]
    return json_digest({"policy": policy, "baseline": baseline, "bars": bars, "code": code_version(*_VERDICT_CODE)})


def verdict_key(recipe: Recipe, results: dict[str, Any]) -> str:
    """Key of a verdict: both evaluations, the training, the judge's verdicts, β and the bars."""
    steps = ("baseline", "train", "policy", "judge")
    return json_digest(
        {
            **{step: results[step].digest for step in steps if step in results},
            "beta": beta(recipe),
            "gate": recipe.gate.model_dump(),
            "code": code_version(*_VERDICT_CODE, "training_notes", *_REPORT_CODE),
        }
    )
