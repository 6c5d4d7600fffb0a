"""A policy on disk: the folder of a whole model or of an adapter on the recipe's starting model."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from preftune.digest import json_digest
from preftune.errors import UserError
from preftune.models import StartingModel, folder_digests, weights_problem
from preftune.workspace import Workspace

_WHERE = "--policy"


class Policy(BaseModel):
    """A policy that can be measured.

    Args:
        folder: Where it stands.
        digest: Its weights and what decides how they are used; the same for each copy of it.
        adapter: Whether it is an adapter, to be put on the starting model.
    """

    model_config = ConfigDict(frozen=True)
    folder: Path
    digest: str
    adapter: bool


def find_policy(name: str, workspace: Workspace, model: StartingModel) -> Policy:
    """Finds a policy and checks what can be checked without loading it.

    Args:
        name: The folder, absolute or relative to the project.
        workspace: For the project's folder, and the digests that are known already.
        model: The starting model, whose tokenizer and chat template the policy is asked with.

    Raises:
        UserError: If it is not there, holds no model in safetensors, or has another vocabulary.
    """
    folder = workspace.resolve(name)
    if not folder.is_dir():
        raise UserError("there is no such folder", f"{_WHERE} {name}", "name the folder of a model or an adapter")
    adapter = (folder / "adapter_config.json").exists()
    if not adapter and not (folder / "config.json").exists():
        raise UserError(
            "the folder holds neither a model (config.json) nor an adapter (adapter_config.json)",
            f"{_WHERE} {name}",
            "name the folder that save_pretrained wrote, for example data/starter",
        )
    if problem := weights_problem(folder):
        raise UserError(problem, f"{_WHERE} {name}", "save it with save_pretrained, which writes safetensors")
    if not adapter:
        _check_vocabulary(folder, model, name)
    return read_policy(folder, workspace)


def read_policy(folder: Path, workspace: Workspace) -> Policy:
    """The policy in a folder that holds one."""
    adapter = (folder / "adapter_config.json").exists()
    digests = folder_digests(folder, workspace.models / "digests.json")
    if adapter:  # whole models beside it (a merged one stands in a folder of its own) do not count
        counted: dict[str, Any] = {n: sha for n, sha in digests.items() if n.startswith("adapter_model")}
        counted["adapter_config.json"] = _adapter_settings(folder)
    else:
        names = ("config.json", "generation_config.json")
        counted = {n: sha for n, sha in digests.items() if n in names or n.endswith(".safetensors")}
    return Policy(folder=folder, digest=json_digest(counted), adapter=adapter)


def _adapter_settings(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says, without where the base model stood on the machine that trained it."""
    settings = _json(folder / "adapter_config.json")
    return {k: v for k, v in settings.items() if k not in ("base_model_name_or_path", "revision")}


def _check_vocabulary(folder: Path, model: StartingModel, name: str) -> None:
    ours, theirs = (_json(p / "config.json").get("vocab_size") for p in (Path(model.files), folder))
    if isinstance(ours, int) and isinstance(theirs, int) and theirs < ours:
        raise UserError(
            f"it knows {theirs:,} tokens and the recipe's SFT model {ours:,}: it cannot read the same prompts",
            f"{_WHERE} {name}",
            "name a model that was tuned from the recipe's model_name_or_path",
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"not readable as JSON: {e}", str(path), "the folder is damaged: copy it again") from None
    if not isinstance(found, dict):
        raise UserError("not a JSON object", str(path), "the folder is damaged: copy it again")
    return found
