"""What is made by `preftune pairs`, from what, and how that is told: in the dataset's card and in lineage.json."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from preftune.model_card import without_folders
from preftune.models import StartingModel
from preftune.own_pairs import prompts as prompt_rows
from preftune.own_pairs import selection
from preftune.own_pairs.prompts import FoundPrompts
from preftune.pairs_schema import OpenAIGenerator, OpenAIScorer, Pairs, PeopleScorer, RuleScorer
from preftune.publish import git_revision
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace

# Why an answer failed or has no score.
_WORDS = {
    "timeout": "no answer in time",
    "rate_limit": "the endpoint was busy",
    "server_error": "the endpoint failed",
    "connection": "the connection broke",
    "bad_reply": "no reply of the protocol",
    "budget": "the budget was spent",
    "given_up": "the endpoint was given up",
    "refused": "the endpoint refused it",
    "too_long": "too long for the model",
    "bad_request": "the endpoint took it for a wrong request",
    "no_verdict": "the judge gave no verdict",
    "raised": "the rule raised an exception",
    "not_a_number": "the rule returned no finite number",
    "crashed": "the rule ended its process",
    "template": "the reward model's template refuses it",
    "not_finite": "the reward model's score is not finite",
    "not_labelled": "nobody has decided yet",
    "skipped": "skipped by all who saw it",
}


@dataclass(frozen=True)
class Plan:
    """What is made, and from what: all that can be known before the first step.

    Args:
        workspace: Where the store stands.
        recipe: The resolved recipe.
        settings: Its section `pairs`.
        model: The starting model.
        prompts: The prompts' file or dataset.
        engine: `transformers` or `vllm`; `endpoint` where another machine answers.
        scorer: The scorer's digest; the labels', as they are now.
        output: The dataset's folder.
    """

    workspace: Workspace
    recipe: Recipe
    settings: Pairs
    model: StartingModel
    prompts: FoundPrompts
    engine: str
    scorer: str
    output: Path


def tell_origin(plan: Plan, prompts: StepResult, completions: StepResult, scores: StepResult | None) -> dict[str, Any]:
    """What the card and lineage.json tell of the steps before."""
    settings, recipe = plan.settings, plan.recipe
    counts = _without_names({k: v for k, v in (scores.info if scores else {}).items() if k not in ("seconds", "cost")})
    steps = [s for s in (prompts, completions, scores) if s is not None]
    generator = settings.generator
    answers = (
        f"{generator.model} behind {generator.base_url or 'OpenAI'}"
        if isinstance(generator, OpenAIGenerator)
        else f"{without_folders(plan.model.name)} ({plan.engine})"
    )
    origin = {"name": without_folders(settings.prompts.id), "digest": plan.prompts.digest, "read": prompts.info["read"]}
    lineage = {
        "recipe": recipe.name,
        "pairs": without_folders(settings.model_dump(mode="json", exclude={"output"})),
        "prompts": {**origin, "kept": prompts.info["kept"]},
        "model": {"name": without_folders(plan.model.name), "digest": plan.model.digest, "weights": plan.model.weights},
        "answers": answers,
        "scorer": plan.scorer,
        "scores": counts,
        "steps": {s.step: {"key": s.key, "digest": s.digest} for s in steps},
        "preftune": version("preftune"),
        "git": git_revision(plan.workspace.project),
    }
    return {
        "name": plan.output.name,
        "prompts": {**origin, "kept": prompts.info["kept"]},
        "generator": answers,
        "scorer": _scorer_words(settings),
        "figures": _figures(counts),
        "lineage": lineage,
        "left_words": {
            "prompts": prompt_rows.REASONS,
            "completions": _WORDS,
            "scores": _WORDS,
            "selection": selection.REASONS,
        },
    }


def _scorer_words(settings: Pairs) -> str:
    scorer = settings.scorer
    if scorer is None:
        return "none"
    if isinstance(scorer, RuleScorer):
        return f"the Python function {without_folders(scorer.function)}"
    if isinstance(scorer, PeopleScorer):
        return "people, blind and in random order"
    kind = "a judge, both orders" if isinstance(scorer, OpenAIScorer) else "a reward model"
    return f"{without_folders(scorer.model)}, {kind}"


def _without_names(counts: dict[str, Any]) -> dict[str, Any]:
    """The scorer's counts with numbers for labellers' names: a dataset may go further than its labellers like."""
    if "labellers" not in counts:
        return counts
    number = {name: i for i, name in enumerate(sorted(counts["labellers"]), 1)}
    agreement = [{**row, "labellers": [number[name] for name in row["labellers"]]} for row in counts["agreement"]]
    return {
        **counts,
        "labellers": {number[n]: count for n, count in counts["labellers"].items()},
        "agreement": agreement,
    }


def _figures(counts: dict[str, Any]) -> dict[str, str]:
    """What the card tells of the scoring."""
    shown = ("comparisons", "without_verdict", "flips", "labelled", "skipped")
    found = {name.replace("_", " "): f"{counts[name]:,}" for name in shown if name in counts}
    if "labellers" in counts:
        found["labellers"] = f"{len(counts['labellers'])}"
    for row in counts.get("agreement", []):
        kappa = "undefined" if row["kappa"] is None else f"{row['kappa']:.2f}"
        who = " and ".join(f"labeller {number}" for number in row["labellers"])
        found[f"Cohen's kappa of {who}"] = f"{kappa} ({row['tasks']} tasks, {row['agreed']:.0%} agreed)"
    return found
