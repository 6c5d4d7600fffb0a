"""The judge that a recipe names: is it there, and can it judge? Found out before anything is computed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.digest import json_digest
from preftune.errors import UserError
from preftune.evaluation_schema import Judge, OpenAIJudge, RewardModelJudge
from preftune.judges.endpoint import api_key
from preftune.models import chat_template_of, folder_digests, hub_snapshot, read_json, weights_problem
from preftune.workspace import Workspace

_NOT_JUDGED = {"concurrency", "timeout", "retries", "api_key_env"}  # how it is asked, not what it says


@dataclass(frozen=True)
class FoundJudge:
    """A judge that can be asked.

    Args:
        settings: The recipe's section.
        digest: What its judgements depend on, as far as it can be known beforehand.
        path: A reward model's folder or hub id.
        revision: A reward model's hub commit; None for a folder.
    """

    settings: Judge
    digest: str
    path: str = ""
    revision: str | None = None


def find_judge(settings: Judge, workspace: Workspace) -> FoundJudge:
    """Checks what can be checked without asking or loading it.

    Raises:
        UserError: If the key is missing, or if the reward model is not there or none (no weights in safetensors,
            not exactly one output, no chat template).
    """
    if isinstance(settings, OpenAIJudge):
        api_key(settings)
        return FoundJudge(settings, json_digest(settings.model_dump(exclude=_NOT_JUDGED)))
    return _reward_model(settings, workspace)


def _reward_model(settings: RewardModelJudge, workspace: Workspace) -> FoundJudge:
    name, where = settings.model, f"{settings.place}.model: {settings.model}"
    folder, commit = workspace.resolve(name), None
    is_hub = not folder.is_dir()
    if is_hub:
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise UserError("there is no such folder with a reward model", where, "correct the path")
        try:
            folder, commit = hub_snapshot(name, settings.revision)
        except UserError as e:
            advice = "name a folder, or an id on the hub; a gated one needs HF_TOKEN and its terms accepted"
            raise UserError(e.error, where, advice) from None
    _check(folder, where, is_hub)
    content: Any = (
        f"{name}@{commit}" if is_hub else list(folder_digests(folder, workspace.models / "digests.json").items())
    )
    digest = json_digest({"content": content, "dtype": settings.dtype, "max_length": settings.max_length})
    return FoundJudge(settings, digest, name if is_hub else str(folder), commit)


def _check(folder: Path, where: str, is_hub: bool) -> None:
    if not (folder / "config.json").exists():
        what = (
            "an adapter, not a whole model" if (folder / "adapter_config.json").exists() else "no model (config.json)"
        )
        raise UserError(f"the folder holds {what}", where, "name a whole reward model")
    config = read_json(folder / "config.json")
    kinds = config.get("architectures") or ["no architecture"]
    if not any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
        raise UserError(
            f"not a reward model: it holds {kinds[0]}, and a reward model is a …ForSequenceClassification",
            where,
            "name a reward model (a sequence classifier with one output)",
        )
    labels = config.get("id2label")
    outputs = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)  # transformers' default
    if outputs != 1:
        raise UserError(f"it has {outputs} outputs, and a reward model has one", where, "name a reward model")
    if not is_hub and (problem := weights_problem(folder)):
        raise UserError(problem, where, "convert it with save_pretrained to safetensors")
    if not chat_template_of(folder):
        raise UserError(
            "the reward model's tokenizer has no chat template, so nobody knows how it was shown conversations",
            where,
            "put the template that it was trained with into chat_template.jinja in its folder",
        )
