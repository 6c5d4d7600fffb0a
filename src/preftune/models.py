"""The starting model: where it is, what it depends on, and what can be said of it without loading it."""

import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.children import run_child
from preftune.data.hub import is_unreachable
from preftune.digest import file_sha256, json_digest
from preftune.errors import UserError
from preftune.schema import EMBEDDED_MODEL, Recipe
from preftune.workspace import Workspace

# Names that are known to be no starting point for DPO, and the chat model of the same family.
_BASE_MODELS: list[tuple[str, str, str]] = [
    (
        r"meta-llama/Llama-2-(7|13|70)b(-chat)?",
        r"meta-llama/Llama-2-\1b-chat-hf",
        "it is Meta's original format, which transformers does not load{base}",
    ),
    (r"meta-llama/Llama-2-(7|13|70)b-hf", r"meta-llama/Llama-2-\1b-chat-hf", "it is a base model"),
    (r"meta-llama/(Meta-Llama-3(?:\.\d)?|Llama-3\.\d)-(\d+B)", r"meta-llama/\1-\2-Instruct", "it is a base model"),
    (r"HuggingFaceTB/SmolLM2-(135M|360M|1\.7B)", r"HuggingFaceTB/SmolLM2-\1-Instruct", "it is a base model"),
    (r"mistralai/Mistral-7B-v0\.(\d)", r"mistralai/Mistral-7B-Instruct-v0.\1", "it is a base model"),
    (r"google/gemma-((?:\d-)?\d+b)", r"google/gemma-\1-it", "it is a base model"),
]

_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "tokenizer*", "README.md")  # the card names the licence
_DIGEST_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")


@dataclass(frozen=True)
class StartingModel:
    """A model that exists.

    Args:
        name: As in the recipe.
        path: Local folder to load it from, or the hub id.
        revision: The hub commit; None for a folder.
        digest: What its weights, configuration, tokenizer and template depend on.
        template: The chat template in force (the recipe's wins).
        files: Local folder of its tokenizer and configuration (a hub model's weights need not be there).
        weights: What its weights and configuration depend on, and nothing else.
    """

    name: str
    path: str
    revision: str | None
    digest: str
    template: str
    files: str = ""
    weights: str = field(kw_only=True)


def embedded_folder(workspace: Workspace) -> Path:
    return workspace.models / EMBEDDED_MODEL.rpartition("/")[2]


def prepare_embedded(workspace: Workspace, on_line: Any) -> Path:
    """Fetches and converts the embedded model if it is not there yet, in a child (it needs torch)."""
    folder = embedded_folder(workspace)
    if not folder.exists():
        workspace.models.mkdir(parents=True, exist_ok=True)
        run_child(
            [sys.executable, "-m", "preftune.embedded", str(folder)],
            folder=workspace.models,
            log=workspace.logs / "embedded-model.log",
            env=dict(os.environ),
            on_line=on_line,
            what="model preparation",
        )
    return folder


def check_name(name: str, method: str = "dpo") -> None:
    """Refuses well-known base models by name, without a network.

    ORPO teaches instructions and preferences at once, so it may start from a base model.

    Raises:
        UserError: With the chat model to use instead.
    """
    for pattern, chat, reason in _BASE_MODELS:
        if match := re.fullmatch(pattern, name):
            is_chat = name.endswith("-chat")
            why = reason.format(base="" if is_chat else ", and a base model")
            if method == "orpo":
                if "original format" not in reason:
                    return
                advice = match.expand(chat) if is_chat else f"{name}-hf"
                why = reason.format(base="")
                raise UserError(f"{name} cannot be trained: {why}", "model_name_or_path", f"use {advice}")
            raise UserError(
                f"{name} cannot be trained with {method.upper()}: {why}. DPO needs a model that already follows "
                "instructions (SFT), with a chat template",
                "model_name_or_path",
                f"use {match.expand(chat)}",
            )


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise UserError("not a JSON object", str(path), "the model's folder is damaged: copy it again")
        return value
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"not JSON: {e}", str(path), "the model's folder is damaged: copy it again") from None


def chat_template_of(folder: Path) -> str | None:
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text()
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named ones
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template


def weights_problem(folder: Path) -> str | None:
    """What is wrong with the weights' files, or None."""
    if any(folder.glob("*.safetensors")):
        return None
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return "its weights are pickled files (.bin, .pt), which can run code when loaded"
    return "it holds no weights (*.safetensors)"


def folder_digests(folder: Path, cache: Path) -> dict[str, str]:
    """The sha256 of each of a model's files; one whose size and time did not change is not read again."""
    files = sorted({p for pattern in _DIGEST_FILES for p in folder.glob(pattern)})
    try:
        known = json.loads(cache.read_text())
    except (FileNotFoundError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    now = {}
    for path in files:
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns]
        old = known.get(str(path))
        now[str(path)] = old if isinstance(old, list) and old[:2] == state else [*state, file_sha256(path)]
    if now != known:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps({**known, **now}))
    return {p.name: now[str(p)][2] for p in files}


def find_model(recipe: Recipe, workspace: Workspace) -> StartingModel:
    """Finds the starting model and checks what can be checked without loading it.

    Raises:
        UserError: If it is not there, known to be a base model, without chat template, or not in safetensors.
    """
    name = recipe.model_name
    revision = recipe.model.get("model_revision")
    if name == EMBEDDED_MODEL:
        folder = embedded_folder(workspace)
    else:
        check_name(name, recipe.method)
        folder = workspace.resolve(name)
    is_hub = not folder.is_dir()
    commit = None
    if is_hub:
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise UserError("there is no such model folder", f"model_name_or_path: {name}", "correct the path")
        folder, commit = hub_snapshot(name, revision)
    if not (folder / "config.json").exists():
        if (folder / "adapter_config.json").exists():
            raise UserError(
                "the folder holds an adapter, not a whole model",
                f"model_name_or_path: {name}",
                "merge the adapter into its base model first, and name the merged folder",
            )
        raise UserError("the folder holds no model (config.json)", f"model_name_or_path: {name}", "correct the path")
    if not is_hub and (problem := weights_problem(folder)):
        raise UserError(problem, f"model_name_or_path: {name}", "convert it with save_pretrained to safetensors")
    template = recipe.chat_template or chat_template_of(folder)
    if not template:
        needed = "" if recipe.method == "orpo" else ". DPO needs a model that already follows instructions"
        raise UserError(
            f"the tokenizer has no chat template: this is a base model, or an SFT model saved without it{needed}",
            f"model_name_or_path: {name}",
            "use the instruct/chat model of the family, or set chat_template to the template it was tuned with",
        )
    if is_hub:
        content = weights = f"{name}@{commit}"
    else:
        digests = folder_digests(folder, workspace.models / "digests.json")
        content = json_digest(digests)
        weights = {n: sha for n, sha in digests.items() if n == "config.json" or n.endswith(".safetensors")}
    digest = json_digest({"content": content, "template": template, "dtype": recipe.model.get("dtype")})
    path = name if is_hub else str(folder)
    return StartingModel(name, path, commit, digest, template, str(folder), weights=json_digest(weights))


def hub_snapshot(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of a hub model's small files, and the commit."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    def from_cache() -> tuple[Path, str] | None:
        try:
            path = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, OSError, ValueError):
            return None
        return path, path.name

    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true")
    if not offline:
        try:
            commit = HfApi().model_info(name, revision=revision, timeout=4).sha
            path = snapshot_download(name, revision=commit, allow_patterns=list(_SMALL_FILES))
            return Path(path), str(commit)
        except GatedRepoError:
            raise UserError(
                "the model is gated and your token has no access",
                f"model_name_or_path: {name}",
                f"accept its terms at huggingface.co/{name} and set HF_TOKEN",
            ) from None
        except RepositoryNotFoundError:
            raise UserError(
                "neither a folder here nor a model on the hub (or one that your token may not see)",
                f"model_name_or_path: {name}",
                "correct the name, or set HF_TOKEN",
            ) from None
        except ValueError as e:
            raise UserError(str(e).splitlines()[0], f"model_name_or_path: {name}", "correct the id") from None
        except Exception as e:
            if not is_unreachable(e):
                raise
    if (found := from_cache()) is not None:
        return found
    raise UserError(
        "neither a folder here nor in the hub's cache, and the hub cannot be reached",
        f"model_name_or_path: {name}",
        "connect to the network, name a local folder, or leave the key out for the embedded model",
    )
