"""Datasets on the hub, and in the hub's layout: which files a split has (told by `datasets`), and their bytes."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from preftune.errors import StepError, UserError

PREFIX = "hf://datasets/"  # of a file's address: hf://datasets/<id>@<commit>/<path>

# The HTTP libraries that huggingface_hub has used, and its own errors.
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "huggingface_hub")


def is_unreachable(error: BaseException) -> bool:
    """True if the error comes from the network or the hub's client, not from our code."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _NETWORK


def find_commit(name: str, revision: str | None) -> str:
    """The commit of a dataset on the hub that your token may read.

    Raises:
        UserError: If it is not there, gated, or the hub cannot be reached.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true"):
        raise UserError(
            "no such file or folder here, and the hub is switched off (HF_HUB_OFFLINE)",
            name,
            "correct the path, or unset HF_HUB_OFFLINE",
        )
    from huggingface_hub import HfApi

    with _told(name, revision):
        info = HfApi().dataset_info(name, revision=revision, timeout=4)
        if info.gated:
            HfApi().auth_check(name, repo_type="dataset")
    return str(info.sha)


@contextmanager
def _told(name: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError:
        raise UserError(
            "the dataset is gated and your token has no access",
            name,
            f"accept its terms at huggingface.co/datasets/{name} and set HF_TOKEN",
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            "neither a file or folder here nor a dataset on the hub (or one that your token may not see)",
            name,
            "correct the name; for a private dataset set HF_TOKEN",
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"there is no revision {revision!r}", name, "correct revision: a commit, branch or tag"
        ) from None
    except ValueError as e:  # not an id
        raise UserError(str(e).splitlines()[0], name, "correct the dataset's id") from None
    except Exception as e:
        if not is_unreachable(e):
            raise
        raise UserError(
            f"not a file or folder here, and the hub cannot be reached ({type(e).__name__})",
            name,
            "correct the path, or connect to the network and try again",
        ) from None


def split_files(
    place: str, where: str, config: str | None, data_dir: str | None, commit: str | None = None
) -> dict[str, tuple[str, ...]]:
    """Split name → its files, as the `datasets` library resolves them (README `configs:`, shards, `data_dir`).

    Args:
        place: A folder, or a dataset's address on the hub (`hf://datasets/<id>`).
        where: What messages call it.
        config: The configuration.
        data_dir: The subfolder.
        commit: The hub's commit.

    Returns:
        Local paths or `hf://` addresses, each once; of files of any kind.

    Raises:
        UserError: If there is no such configuration, or nothing that `datasets` knows.
    """
    from datasets import load_dataset_builder
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError

    try:
        # a cache of its own: else an unreachable hub is answered with whatever an earlier run left there
        with tempfile.TemporaryDirectory() as cache:
            builder = load_dataset_builder(place, config, data_dir=data_dir, revision=commit, cache_dir=cache)
    except (EmptyDatasetError, DataFilesNotFoundError):
        return {}
    except RuntimeError as e:
        if "script" not in str(e):
            raise
        raise script_error(where) from None
    except Exception as e:
        if commit and not isinstance(e, ValueError) and is_unreachable(e):
            raise UserError(f"the hub cannot be reached: {e}", where, "try again") from None
        text = " ".join(str(e).splitlines()[:2]).replace("BuilderConfig", "configuration")
        key = "config" if "config" in text.lower() else "its README.md or the files' names"
        raise UserError(f"the splits cannot be told: {text}", where, f"correct {key}") from None
    files = builder.config.data_files or {}
    return {str(split): tuple(dict.fromkeys(map(str, paths))) for split, paths in files.items()}


def script_error(where: str) -> UserError:
    """The error for a dataset that is a program."""
    return UserError(
        "the dataset is a script, and scripts are not run",
        where,
        "on the hub, revision: refs/convert/parquet often holds its rows; else save them as .jsonl or .parquet",
    )


def fetch(address: str) -> str:
    """The local copy of a file on the hub, in huggingface_hub's cache.

    Raises:
        StepError: If the hub fails (a retry may help).
    """
    from huggingface_hub import hf_hub_download

    name, _, rest = address.removeprefix(PREFIX).partition("@")
    commit, _, path = rest.partition("/")
    try:
        return hf_hub_download(name, path, repo_type="dataset", revision=commit)
    except Exception as e:
        if not is_unreachable(e):
            raise
        raise StepError(f"the hub's file could not be read: {e}", f"{name}: {path}", "try again") from e


def open_remote(address: str, seekable: bool = False) -> Any:
    """Opens a file on the hub for reading without a local copy.

    Args:
        address: `hf://datasets/<id>@<commit>/<path>`.
        seekable: For readers that jump (parquet); else it is one request from start to end.
    """
    from huggingface_hub import HfFileSystem

    kind: dict[str, Any] = {"cache_type": "none"} if seekable else {"block_size": 0}
    return HfFileSystem().open(address, "rb", **kind)
