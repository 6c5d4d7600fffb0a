"""The model card, README.md: where a policy comes from, what was measured, what the verdict says, how to load it.

The same for the same run: no times, no folders of this machine, no tokens. Whatever a recipe or dataset names is
escaped.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from preftune.data.registry import known
from preftune.digest import library_versions
from preftune.known_keys import specs
from preftune.markdown import code, markdown
from preftune.models import StartingModel
from preftune.schema import EMBEDDED_MODEL, Recipe
from preftune.store import StepResult
from preftune.strict_yaml import dump_yaml
from preftune.summary import length_notices, mixture_line

EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PAPERS = {"dpo": "2305.18290", "orpo": "2403.07691"}
MEANING = {
    "promote": "It moved towards the better answers and shows no damage: it can replace the starting model.",
    "reject": "It is worse than the starting model, damaged, or not completely measured: use the starting model.",
    "inconclusive": "These measurements do not decide whether it is better than the starting model.",
}


@dataclass(frozen=True)
class CardInput:
    """All that a card tells.

    Args:
        place: What to load it by: a hub id, or the output folder as a user types it.
        kind: What the folder holds: `adapter`, `merged` (the model with the adapter in it), or `full` (trained as a
            whole).
        recipe: The resolved recipe.
        model: The starting model.
        results: Step name → its result; `source` holds a list.
        verdict: verdict.json; None before there is one.
    """

    place: str
    kind: str
    recipe: Recipe
    model: StartingModel
    results: dict[str, Any]
    verdict: dict[str, Any] | None


def block(text: str, language: str = "") -> Markup:
    """Text in a fenced block; the fence is longer than any in the text."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def without_folders(value: Any) -> Any:
    """The value with every absolute path in it cut to its last part."""
    if isinstance(value, dict):
        return {k: without_folders(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(v) for v in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return f"…/{Path(value).name}"
    return value


def _licence(model: StartingModel) -> dict[str, Any]:
    """What the starting model's card says in its head: `license`, and its name and link where it is a special one."""
    if model.name == EMBEDDED_MODEL:
        return {"license": "apache-2.0"}
    import yaml
    from huggingface_hub import ModelCard

    try:
        head = ModelCard.load(Path(model.files) / "README.md", ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, TypeError, yaml.YAMLError):  # none, or none that can be read
        return {}
    found = {k: head.get(k) for k in ("license", "license_name", "license_link")}
    return {k: v for k, v in found.items() if isinstance(v, str)} if found["license"] else {}


def _base(model: StartingModel) -> dict[str, Any]:
    on_hub = EMBEDDED_HUB_ID if model.name == EMBEDDED_MODEL else model.name if model.revision else None
    return {
        "name": on_hub or without_folders(model.name),
        "hub_id": on_hub,
        "revision": model.revision,
        "embedded": model.name == EMBEDDED_MODEL,
        "digest": model.digest,
    }


def _dataset(entry: Any, info: dict[str, Any]) -> dict[str, Any]:
    """One row of the table of data for each split that was read."""
    is_hub = info["source_digest"].startswith(f"{entry.id}@")
    found = known(entry.id, folders=not is_hub)
    sides = [{"use": use, **info[side]} for side, use in (("train", "train"), ("test", "held out")) if side in info]
    return {
        "name": without_folders(entry.name),
        "hub_id": entry.id if is_hub else None,
        "version": info["source_digest"].rpartition("@")[2][:20] if is_hub else f"sha256 {info['source_digest'][:20]}",
        "licence": (found.licence or "its card states none") if found else "unknown",
        "sides": sides,
    }


def _mixture(card: CardInput) -> list[str]:
    """What was mixed, and what max_length did to it, a line each."""
    lengths = card.results["lengths"]
    lines = [mixture_line(card.results["mixture"].info, lengths)]
    lines += [] if "not_counted" in lengths.info else length_notices(lengths)
    for entry in card.recipe.mixture.datasets:
        lines = [line.replace(entry.name, without_folders(entry.name)) for line in lines]
    return lines


def _metadata(card: CardInput, datasets: list[dict[str, Any]], licence: dict[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    base = _base(card.model)["hub_id"]
    data = ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if card.kind == "adapter" else "finetune") if base else None,
        datasets=list(dict.fromkeys(d["hub_id"] for d in datasets if d["hub_id"])) or None,
        library_name="peft" if card.kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=[card.recipe.method, "trl", "preftune", *(["lora"] if card.results["train"].info["adapter"] else [])],
        **licence,
    )
    return data.to_yaml()


def _settings(recipe: Recipe) -> str:
    """The recipe as it was resolved, without where results go and how runs are named."""
    left_out = {"tracking", "output_dir", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision"}
    plain = json.loads(json.dumps(recipe.resolved(), default=str))
    return dump_yaml(without_folders({k: v for k, v in plain.items() if k not in left_out}))


def _main_settings(recipe: Recipe) -> str:
    """The settings that are compared first, the ones that TRL chose included."""
    names = ["beta", "learning_rate", "loss_type", "max_length", "seed"]
    names += ["lora_r", "lora_alpha"] if recipe.model.get("use_peft") else []
    given = {**recipe.model, **recipe.training}
    values = {n: given.get(n, specs()[n]["default"]) for n in names if n != "loss_type" or recipe.method == "dpo"}
    return ", ".join(f"{n}: {'+'.join(v) if isinstance(v, list) else v}" for n, v in values.items())


def _lineage(card: CardInput) -> dict[str, str]:
    results: dict[str, StepResult] = {k: v for k, v in card.results.items() if k != "source"}
    versions = library_versions("torch", "transformers", "trl", "peft")
    return {
        "starting model": card.model.digest,
        "training pairs": results["mixture"].info["train_sha256"][:20],
        "held-out pairs": results["mixture"].info["test_sha256"][:20],
        "training": results["train"].key,
        "trained weights": results["train"].digest,
        "libraries": ", ".join(f"{k} {v}" for k, v in versions.items()),
    }


def render_card(card: CardInput) -> str:
    """Renders the card.

    Args:
        card: What it tells.

    Returns:
        README.md: a YAML head that the hub reads, and Markdown.
    """
    from preftune.report import measure_rows, training_sentence

    entries, sources = card.recipe.mixture.datasets, card.results["source"]
    datasets = [_dataset(e, s.info) for e, s in zip(entries, sources, strict=True)]
    licence = _licence(card.model)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=markdown,  # escapes what is put in
    )
    environment.filters |= {"code": code, "block": block, "python": lambda text: Markup(json.dumps(text))}
    text = environment.get_template("model_card.md.j2").render(
        head=Markup(_metadata(card, datasets, licence)),
        name=card.recipe.name,
        place=card.place,
        kind=card.kind,
        method=card.recipe.method,
        paper=PAPERS[card.recipe.method],
        base=_base(card.model),
        licence=licence,
        meaning=MEANING[card.verdict["outcome"]] if card.verdict else "",
        verdict=card.verdict,
        groups=measure_rows(card.verdict) if card.verdict else {},
        datasets=datasets,
        mixture=_mixture(card),
        training=training_sentence(card.results["train"].info),
        main_settings=_main_settings(card.recipe),
        settings=_settings(card.recipe),
        lineage=_lineage(card),
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be written to a file
