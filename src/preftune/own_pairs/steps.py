"""How the steps of `preftune pairs` are made: prompts → completions → scores → pairs; plain functions, no Prefect."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from preftune import keys, store
from preftune.children import read_json_lines
from preftune.data.decontamination import evaluation_sources, evaluation_texts, own_texts
from preftune.data.pair_tokenizer import NotCounted, pair_tokenizer
from preftune.data.pairs import Message
from preftune.digest import file_sha256, json_digest
from preftune.errors import UserError
from preftune.judges.endpoint import api_key
from preftune.judges.find import find_judge
from preftune.model_process import Tell, model_job, quiet
from preftune.models import StartingModel, read_json
from preftune.own_pairs import keys as own_keys
from preftune.own_pairs import selection
from preftune.own_pairs.completions import complete, engine
from preftune.own_pairs.dataset import write_dataset
from preftune.own_pairs.labels import LabelFile, LabelTask, score_by_people, tasks_of
from preftune.own_pairs.origin import Plan, tell_origin
from preftune.own_pairs.prompts import find_prompts, read_prompts
from preftune.own_pairs.rule import find_rule
from preftune.own_pairs.scores import score
from preftune.pairs_schema import (
    LocalGenerator,
    Pairs,
    PeopleScorer,
    RuleScorer,
    default_output,
)
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace, output_folder


def required_pairs(recipe: Recipe) -> Pairs:
    """The recipe's section.

    Raises:
        UserError: If it has none.
    """
    if recipe.pairs is None:
        raise UserError(
            "the recipe does not say how pairs are made",
            f"{recipe.path}: pairs",
            "add a section pairs (docs/own-pairs.md)",
        )
    return recipe.pairs


def dataset_folder(workspace: Workspace, recipe: Recipe) -> Path:
    """Where the dataset goes; checked as an output folder."""
    settings = required_pairs(recipe)
    return output_folder(workspace, settings.output or default_output(recipe.name))


def labels_path(workspace: Workspace, settings: Pairs, output: Path) -> Path:
    """The file of labels: beside the dataset's folder (which is replaced as a whole), or where the recipe says."""
    assert isinstance(settings.scorer, PeopleScorer)
    if settings.scorer.labels:
        return workspace.resolve(settings.scorer.labels)
    return output.with_name(f"{output.name}-labels.jsonl")


def label_file(plan: Plan) -> LabelFile:
    """People's labels."""
    return LabelFile(labels_path(plan.workspace, plan.settings, plan.output))


def make_plan(workspace: Workspace, recipe: Recipe, model: StartingModel) -> Plan:
    """Checks all that can be checked before anything is made.

    Raises:
        UserError: If prompts, rule, judge or engine are not there.
    """
    settings, output = required_pairs(recipe), dataset_folder(workspace, recipe)
    if isinstance(settings.generator, LocalGenerator):
        answers = engine(settings.generator)
    else:
        api_key(settings.generator)
        answers = "endpoint"
    prompts = find_prompts(settings.prompts, workspace)
    scorer = _scorer_digest(workspace, settings, output)
    return Plan(workspace, recipe, settings, model, prompts, answers, scorer, output)


def _scorer_digest(workspace: Workspace, settings: Pairs, output: Path) -> str:
    scorer = settings.scorer
    if scorer is None:
        return ""
    if isinstance(scorer, RuleScorer):
        return find_rule(scorer, workspace).digest
    if isinstance(scorer, PeopleScorer):
        path = labels_path(workspace, settings, output)
        return file_sha256(path) if path.exists() else ""
    return find_judge(scorer, workspace).digest


def _rows(workspace: Workspace, result: StepResult) -> list[dict[str, Any]]:
    """The step's main file."""
    return read_json_lines(result.folder(workspace) / f"{result.step}.jsonl")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prompts_step_key(plan: Plan) -> str:
    """Key of the step `prompts`."""
    held_clear = evaluation_sources(plan.recipe.validation, plan.workspace)
    return own_keys.prompts_key(plan.recipe, plan.settings, plan.prompts.digest, plan.model, held_clear)


def make_prompts(plan: Plan, key: str, tell: Tell = quiet) -> StepResult:
    """Reads the prompts. The info: read, kept, left (not drawn), dropped (reason → n), notices."""
    recipe, settings = plan.recipe, plan.settings

    def build(folder: Path) -> dict[str, Any]:
        count, most, notices = _counter(plan)
        texts = [*own_texts(), *evaluation_texts(evaluation_sources(recipe.validation, plan.workspace))]
        kept, dropped, left = read_prompts(
            plan.prompts,
            with_answers=settings.chosen == "dataset",
            near_duplicates=recipe.validation.near_duplicates,
            evaluation_texts=texts,
            seed=settings.seed,
            tokens=count,
            most_tokens=most,
        )
        _write(folder / "prompts.jsonl", kept)
        _write(folder / "quarantine.jsonl", dropped)
        reasons = Counter(row["reason"] for row in dropped)
        counts = {"read": len(kept) + len(dropped) + left, "kept": len(kept), "left": left}
        return {**counts, "dropped": dict(reasons.most_common()), "notices": notices}

    waiting = "another run reads these prompts: waiting"
    return store.make(plan.workspace, "prompts", key, build, on_wait=lambda: tell(waiting))


def _counter(plan: Plan) -> tuple[Any, int, list[str]]:
    """(what counts a prompt's tokens, how many it may have, notices).

    Of a longer prompt nothing could be learned at the recipe's max_length, or the model has no room for an answer."""
    context = read_json(Path(plan.model.files) / "config.json").get("max_position_embeddings")
    most = keys.max_length(plan.recipe) - 1
    if isinstance(context, int) and plan.engine != "endpoint":
        most = min(most, context - plan.settings.max_new_tokens)
    if most < 1:
        raise UserError(
            f"there is no room for a prompt: the model reads {context} tokens, and an answer may have "
            f"{plan.settings.max_new_tokens}",
            "pairs.max_new_tokens",
            "lower it",
        )
    try:
        tokenizer = pair_tokenizer(Path(plan.model.files), plan.model.template)
        tokenizer.prompt_tokens([{"role": "user", "content": "?"}])
    except NotCounted as e:
        return None, most, [f"long prompts are not left out: their tokens cannot be counted ({e})"]

    def count(prompt: list[Message]) -> int:
        try:
            return tokenizer.prompt_tokens(prompt)
        except NotCounted:  # the template refuses this one: told when it is to be answered
            return 0

    return count, most, []


def completions_step_key(plan: Plan, prompts: StepResult) -> str:
    """Key of the step `completions`."""
    identity = own_keys.generator_identity(plan.settings, plan.model, plan.engine)
    return own_keys.completions_key(plan.workspace, plan.settings, prompts, identity)


def make_completions(plan: Plan, key: str, prompts: StepResult, tell: Tell = quiet) -> StepResult:
    """Has the prompts answered. The info: what was made, what came from earlier runs, errors by reason, `again`."""
    identity = own_keys.generator_identity(plan.settings, plan.model, plan.engine)

    def build(folder: Path) -> dict[str, Any]:
        job = {
            **model_job(plan.model, plan.recipe),
            "folder": str(folder),
            "dtype": plan.recipe.model.get("dtype", "float32"),
            "policy": None,
        }
        rows, counts = complete(_rows(plan.workspace, prompts), plan.settings, identity, job, plan.workspace, key, tell)
        _write(folder / "completions.jsonl", rows)
        (folder / "completions.json").write_text(json.dumps(counts, indent=1))
        whole, blank = sum(r["whole"] for r in rows), sum(not r["text"].strip() for r in rows if r["error"] is None)
        return {**counts, "answers": len(rows), "whole": whole, "blank": blank}

    waiting = "another run has these prompts answered: waiting"
    volatile = ("completions.json", "timing.json")
    return store.make(plan.workspace, "completions", key, build, volatile=volatile, on_wait=lambda: tell(waiting))


def label_tasks(plan: Plan, prompts: StepResult, completions: StepResult) -> list[LabelTask]:
    """What people compare."""
    return tasks_of(_rows(plan.workspace, prompts), _rows(plan.workspace, completions))


def scores_step_key(plan: Plan, prompts: StepResult, completions: StepResult) -> str:
    """Key of the step `scores`."""
    return own_keys.scores_key(plan.workspace, plan.settings, prompts, completions, plan.scorer)


def make_scores(plan: Plan, key: str, prompts: StepResult, completions: StepResult, tell: Tell = quiet) -> StepResult:
    """Has the answers scored. The info is scores.json: counts of the scorer's kind, and `again`."""
    workspace = plan.workspace

    def build(folder: Path) -> dict[str, Any]:
        if isinstance(plan.settings.scorer, PeopleScorer):
            rows, counts = score_by_people(label_tasks(plan, prompts, completions), label_file(plan).read(tell))
        else:
            asked, answered = _rows(workspace, prompts), _rows(workspace, completions)
            log = workspace.logs / f"scores-{key}.log"
            rows, counts = score(asked, answered, plan.settings, workspace, folder, log, tell)
        counts = {"again": 0, **counts}
        _write(folder / "scores.jsonl", rows)
        (folder / "scores.json").write_text(json.dumps(counts, indent=1))
        return counts

    waiting = "another run has these answers scored: waiting"
    return store.make(workspace, "scores", key, build, volatile=("scores.json",), on_wait=lambda: tell(waiting))


def make_pairs(
    plan: Plan,
    key: str,
    prompts: StepResult,
    completions: StepResult,
    scores: StepResult | None,
    tell: Tell = quiet,
) -> StepResult:
    """Chooses the pairs and writes the dataset into `dataset/`. The info: `dataset.write_dataset`'s counts."""
    workspace = plan.workspace

    def build(folder: Path) -> dict[str, Any]:
        asked, answered = _rows(workspace, prompts), _rows(workspace, completions)
        scored = _rows(workspace, scores) if scores else []
        chosen, without = selection.choose(asked, selection.answers_of(asked, answered, scored), plan.settings)
        dropped = read_json_lines(prompts.folder(workspace) / "quarantine.jsonl")
        left = [{"step": "prompts", **row} for row in dropped] + _failed(answered, scored)
        left += [{"step": "selection", **row} for row in without]
        told = tell_origin(plan, prompts, completions, scores)
        return write_dataset(folder / "dataset", chosen, left, plan.settings, told)

    waiting = "another run chooses these pairs: waiting"
    volatile = ("dataset/about/lineage.json",)
    return store.make(workspace, "pairs", key, build, volatile=volatile, on_wait=lambda: tell(waiting))


def _failed(answered: list[dict[str, Any]], scored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers that failed, and answers without a score, with the reasons."""
    texts = {(row["id"], row["number"]): row["text"] for row in answered}
    rows = [
        {"step": "completions", "reason": r["error"], "id": r["id"], "number": r["number"]}
        for r in answered
        if r["error"]
    ]
    return rows + [
        {"step": "scores", "reason": r["error"], **{n: v for n, v in r.items() if n not in ("error", "score")}}
        | {"text": texts.get((r["id"], r["number"]), "")}
        for r in scored
        if r["error"]
    ]


def published_key(pairs: StepResult) -> str:
    """What the output folder holds."""
    return f"{pairs.key}-{json_digest(pairs.digest)}"
