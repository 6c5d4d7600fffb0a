"""What a trained model came from: recipe, data and starting model, as digests. When none of them changed, there is
nothing to retrain; a change of preftune's own code is none of them."""

import json

from preftune.data.decontamination import evaluation_sources
from preftune.data.sources import Source
from preftune.digest import json_digest
from preftune.models import StartingModel
from preftune.schema import Recipe
from preftune.workspace import Workspace

# Where a run is recorded and put, and what is made of it after the verdict.
_NOT_TRAINED = {"tracking", "output_dir", "sweep", "pairs", "merge_adapter"}


def lineage(recipe: Recipe, workspace: Workspace, model: StartingModel, sources: list[Source]) -> dict[str, str]:
    """The lineage, as tags.

    Args:
        recipe: The resolved recipe.
        workspace: Where the evaluation sets are that the pairs are kept clear of.
        model: The starting model.
        sources: The datasets: bytes or hub commit.

    Returns:
        `recipe` (digest), `sources` (JSON: name → digest), `sft_model` (its name and digest), `sft_weights` (digest),
        and `lineage`, one digest of them all.
    """
    resolved = recipe.resolved()
    trained = {k: v for k, v in resolved.items() if k not in _NOT_TRAINED and k not in type(recipe.hub).model_fields}
    held_clear = evaluation_sources(recipe.validation, workspace)
    digests = {s.entry.name: s.digest for s in sources}
    digests |= {f"decontaminate {s.entry.name}": s.digest for s in held_clear}
    parts = {
        "recipe": json_digest(trained),
        "sources": json.dumps(digests, ensure_ascii=False, sort_keys=True),
        "sft_model": f"{model.name} ({model.digest})",
    }
    every = [parts["recipe"], [s.digest for s in (*sources, *held_clear)], model.digest]
    return {**parts, "sft_weights": model.weights, "lineage": json_digest(every)}
