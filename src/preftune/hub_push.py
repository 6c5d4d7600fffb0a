"""Pushing a policy to the hub, after its verdict: what is checked before the training, and the upload.

huggingface_hub does the work; the token comes from the environment (HF_TOKEN) or `hf auth login`, never from a recipe.
"""

import glob
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preftune.data.hub import is_unreachable
from preftune.errors import StepError, UserError
from preftune.publish import MARKER
from preftune.schema import EMBEDDED_MODEL, Hub, Recipe
from preftune.workspace import Workspace

# What a model is loaded from, its card and verdict. So neither pickles (training_args.bin holds tokens) nor
# report.html, recipe.yaml and runs/, which quote the data and name folders of this machine.
ENDINGS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".md")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json")


def check_push(recipe: Recipe, workspace: Workspace) -> str | None:
    """Finds out before anything is trained whether the result can be pushed.

    Args:
        recipe: The resolved recipe.
        workspace: The project.

    Returns:
        The whole id of the repository; None if the recipe asks for no push.

    Raises:
        UserError: If the push would fail, or nobody could load what it leaves.
    """
    if not recipe.hub.push_to_hub:
        return None
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = recipe.hub.hub_model_id or ""
    try:
        validate_repo_id(name)
    except HFValidationError as e:
        raise UserError(str(e).splitlines()[0], "hub_model_id", "write my-name/my-first-dpo") from None
    local = recipe.model_name == EMBEDDED_MODEL or workspace.resolve(recipe.model_name).is_dir()
    if recipe.model.get("use_peft") and local and not recipe.merge_adapter:
        raise UserError(
            "an adapter for a model in a folder of this machine can be loaded nowhere else",
            "push_to_hub",
            "add merge_adapter: true (the merged model is pushed), or start from a model on the hub",
        )
    if constants.is_offline_mode():
        raise UserError(
            "the hub is switched off (HF_HUB_OFFLINE)", "push_to_hub", "unset it, or push later: --push_to_hub=false"
        )
    if get_token() is None:
        raise UserError(
            "there is no token for the hub", "push_to_hub", "set HF_TOKEN to one that may write, or run: hf auth login"
        )
    with _told(name):
        api = HfApi()
        who = api.whoami()
        repo = name if "/" in name else f"{who['name']}/{name}"
        public = api.repo_exists(repo) and not api.model_info(repo).private
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError("the hub token may only read", "push_to_hub", "make one that may write: hf.co/settings/tokens")
    if recipe.hub.hub_private_repo and public:
        raise UserError(
            f"{repo} exists and is public", "hub_private_repo", "make it private on the hub, or name another one"
        )
    return repo


@contextmanager
def _told(name: str) -> Any:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as e:
        if e.response.status_code != 401:
            raise UserError(f"the hub refuses: {_line(e)}", name, "try again, or push later") from None
        raise UserError("the hub does not accept the token", "push_to_hub", "set HF_TOKEN to a valid one") from None
    except Exception as e:
        if not is_unreachable(e):
            raise
        raise UserError(
            f"the hub cannot be reached ({type(e).__name__})",
            "push_to_hub",
            "connect to the network, or train with --push_to_hub=false and push later: the same recipe with "
            "push_to_hub: true then only uploads",
        ) from None


def _line(error: BaseException) -> str:
    if isinstance(error, RuntimeError) and error.__cause__:  # "Error while uploading FILE", from what went wrong
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def files_to_push(folder: Path) -> list[str]:
    """The files of an output folder that are pushed, relative to it."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.suffix in ENDINGS)
    return sorted(str(p) for p in found if p.parts[0] not in (MARKER, "merged", "runs"))


def push(target: Path, repo: str, hub: Hub, message: str) -> str:
    """Uploads a finished output folder: the merged model where there is one, else the folder itself.

    huggingface_hub leaves out what the repository holds already; with nothing new there is no commit. Weights and
    configurations of an earlier push that this one does not replace are deleted: a leftover adapter would be loaded
    on top of a merged model.

    Args:
        target: The output folder.
        repo: The repository's whole id.
        hub: The recipe's section.
        message: Of the commit.

    Returns:
        The repository's address.

    Raises:
        StepError: If it fails; the result stands on disk, and the same again only uploads.
    """
    from fnmatch import fnmatch

    from huggingface_hub import HfApi

    folder = target / "merged" if (target / "merged").is_dir() else target
    files = files_to_push(folder)
    try:
        api = HfApi()
        url = api.create_repo(repo, private=hub.hub_private_repo, exist_ok=True)
        if hub.hub_revision:
            api.create_branch(repo, branch=hub.hub_revision, exist_ok=True)
        there = api.list_repo_files(repo, revision=hub.hub_revision)
        stale = [n for n in there if n not in files and "/" not in n and any(fnmatch(n, w) for w in WEIGHTS)]
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=hub.hub_revision,
            commit_message=message,
            allow_patterns=[glob.escape(n) for n in files],
            delete_patterns=[glob.escape(n) for n in stale] or None,
        )
    except Exception as e:  # the hub's client, its HTTP library and its transfer library have errors of their own
        raise StepError(
            f"the upload failed: {_line(e)}", repo, f"{target} is whole; run the same command again: it only uploads"
        ) from e
    return str(url)
