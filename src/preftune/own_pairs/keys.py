"""What each step of `preftune pairs` depends on, as a key; as `preftune.keys` for a run's steps."""

from typing import Any

from preftune import keys
from preftune.data.sources import Source
from preftune.digest import code_version, json_digest, library_versions
from preftune.models import StartingModel
from preftune.pairs_schema import OpenAIGenerator, Pairs
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace

PROMPTS_CODE = (
    *("own_pairs/prompts", "data/overlap", "data/decontamination", "data/pair_tokenizer", "data/tokenizer_files"),
    *keys.READING_CODE,
    *("lm_tasks/documents", "lm_tasks/facts.jsonl", "lm_tasks/instructions.jsonl"),  # never trained on
)
COMPLETIONS_CODE = (
    *("own_pairs/completions", "own_pairs/sampling", "own_pairs/endpoint_completions"),
    *("generation", "prefix", "scoring", "loading", "tokens", *keys.LENGTHS_CODE),
    *("judges/asking", "judges/endpoint", "judges/interface", "judges/ledger"),
)
SCORES_CODE = (
    *("own_pairs/scores", "own_pairs/rule", "own_pairs/rule_scores", "own_pairs/labels"),
    "own_pairs/selection",
    *keys.JUDGE_CODE,
)
DATASET_CODE = (
    *("own_pairs/selection", "own_pairs/dataset", "own_pairs/origin", "markdown", "templates/pairs_card.md.j2"),
)


def prompts_key(recipe: Recipe, settings: Pairs, digest: str, model: StartingModel, held_clear: list[Source]) -> str:
    """Key of the prompts: their file or dataset, what is left out, and the tokenizer that counts them.

    Args:
        recipe: The resolved recipe.
        settings: Its section.
        digest: Of the prompts' file or dataset.
        model: The starting model.
        held_clear: The evaluation sets that the recipe names.
    """
    prompts = settings.prompts
    return json_digest(
        {
            "step": "prompts",
            "source": digest,
            "prompts": prompts.model_dump(),
            "seed": settings.seed if prompts.max_prompts else None,
            "answers": settings.chosen == "dataset",
            "near_duplicates": recipe.validation.near_duplicates,
            "evaluation_sets": sorted(s.digest for s in held_clear),
            "tokens": [model.digest, keys.max_length(recipe), settings.max_new_tokens],
            "code": code_version(*PROMPTS_CODE),
        }
    )


def generator_identity(settings: Pairs, model: StartingModel, engine: str) -> str:
    """What answers: the starting model by the engine's name, or the endpoint's model. Part of each answer's key."""
    if isinstance(settings.generator, OpenAIGenerator):
        return json_digest({"url": settings.generator.base_url, "model": settings.generator.model})
    return json_digest({"model": model.digest, "engine": engine})


def completions_key(workspace: Workspace, settings: Pairs, prompts: StepResult, identity: str) -> str:
    """Key of the answers: the prompts, who answers, the sampling."""
    names = ("completions", "temperatures", "top_p", "max_new_tokens", "seed")
    local = not isinstance(settings.generator, OpenAIGenerator)
    depends = {
        "prompts": prompts.digest,
        "generator": identity,
        "sampling": settings.model_dump(include=set(names)),
        "code": code_version(*COMPLETIONS_CODE),
        "libraries": library_versions("torch", "transformers") if local else {},
    }
    return keys.retried_key(workspace, "completions", depends)


def scores_key(workspace: Workspace, settings: Pairs, prompts: StepResult, completions: StepResult, scorer: str) -> str:
    """Key of the scores: the answers and who scores them.

    Args:
        workspace: Where earlier tries stand.
        settings: The recipe's section.
        prompts: The step's result.
        completions: The step's result.
        scorer: The scorer's digest: the rule's, the judge's, the labels'.
    """
    depends: dict[str, Any] = {
        "prompts": prompts.digest,
        "completions": completions.digest,
        "scorer": scorer,
        "chosen": settings.chosen,
        "code": code_version(*SCORES_CODE),
    }
    return keys.retried_key(workspace, "scores", depends)


def pairs_key(
    recipe: Recipe, settings: Pairs, prompts: StepResult, completions: StepResult, scores: StepResult | None
) -> str:
    """Key of the dataset: the scored answers, and how pairs are chosen from them."""
    names = ("chosen", "margin", "per_prompt", "max_length_accuracy", "test_size", "seed")
    return json_digest(
        {
            "step": "pairs",
            "name": recipe.name,
            "steps": [prompts.key, completions.key, scores.key if scores else None],
            "digests": [prompts.digest, completions.digest, scores.digest if scores else None],
            "selection": settings.model_dump(include=set(names)),
            "code": code_version(*DATASET_CODE),
        }
    )
