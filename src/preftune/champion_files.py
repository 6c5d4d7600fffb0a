"""The files of a registered model: up to its MLflow run, and back from there where they are not in the store."""

import shutil
from pathlib import Path
from typing import Any

from preftune import store
from preftune.errors import StepError
from preftune.workspace import Workspace

FOLDER = "model"  # in the run


def uploaded(client: Any, run_id: str, folder: str = FOLDER) -> dict[str, int]:
    """Path in the run's folder → size, of all files below it."""
    found: dict[str, int] = {}
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            found |= uploaded(client, run_id, item.path)
        else:
            found[item.path.removeprefix(f"{FOLDER}/")] = item.file_size
    return found


def upload_model(client: Any, run_id: str, folder: Path) -> None:
    """Puts the model or adapter into the run's folder `model`; what is there already is not sent again.

    Raises:
        StepError: If a file did not arrive whole.
    """
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    sizes = {name: path.stat().st_size for name, path in files.items()}
    there = uploaded(client, run_id)
    for name, path in files.items():
        if there.get(name) != sizes[name]:
            place = f"{FOLDER}/{name}".rpartition("/")[0]
            client.log_artifact(run_id, str(path), place)
    there = uploaded(client, run_id)
    if broken := [name for name, size in sizes.items() if there.get(name) != size]:
        raise StepError(
            f"the model's file {broken[0]} did not arrive whole",
            f"MLflow run {run_id}",
            "nothing was promoted; run the same command again: only the upload is made",
        )


def model_folder(client: Any, workspace: Workspace, run_id: str, train: str | None) -> Path:
    """The folder of a registered model's files: the store's, else fetched from its run and kept.

    Args:
        client: From `tracking.connect`.
        workspace: Where they are looked for, and kept in `champions/`.
        run_id: The run that they were uploaded to.
        train: The key of the training that made them; None if it was not trained here.
    """
    if train and (made := store.find(workspace, "train", train)):
        return made.folder(workspace) / "model"
    final = workspace.home / "champions" / run_id
    with store.locked(final.with_suffix(".lock")):
        sizes = uploaded(client, run_id)
        if final.is_dir() and all((final / n).is_file() and (final / n).stat().st_size == s for n, s in sizes.items()):
            return final
        scratch = final.with_suffix(".partial")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        shutil.rmtree(final, ignore_errors=True)
        Path(client.download_artifacts(run_id, FOLDER, str(scratch))).rename(final)
        shutil.rmtree(scratch, ignore_errors=True)
        if not sizes or any(not (final / n).is_file() for n in sizes):
            raise StepError(
                "the run holds no model", f"MLflow run {run_id}", "run its recipe again and promote it again"
            )
    return final
