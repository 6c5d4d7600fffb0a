"""Checkpoints that can be trusted: a manifest of sha256 is written last, and only whole ones are resumed from.

transformers takes the folder with the highest number, also when the process died while writing it, and resumes under
another recipe or on other data without a word. So the seal holds what the training depends on, too.
"""

import json
import os
import re
import shutil
from pathlib import Path

from preftune.digest import file_sha256
from preftune.errors import UserError

MANIFEST = "preftune_manifest.json"
FINGERPRINT = "preftune_fingerprint.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def write_whole(path: Path, text: str) -> None:
    """Writes a small file such that it is there as a whole or not at all, whatever happens meanwhile."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with scratch.open("w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    scratch.replace(path)


def seal(checkpoint: Path, fingerprint: dict[str, str]) -> None:
    """Writes the manifest of a finished checkpoint, last and as a whole.

    Args:
        checkpoint: Its folder.
        fingerprint: What the training depends on, part → digest (`keys.fingerprint`).
    """
    (checkpoint / FINGERPRINT).write_text(json.dumps(fingerprint))
    files = {
        str(p.relative_to(checkpoint)): file_sha256(p)
        for p in sorted(checkpoint.rglob("*"))
        if p.is_file() and not p.name.startswith(MANIFEST)
    }
    write_whole(checkpoint / MANIFEST, json.dumps(files))


def is_whole(checkpoint: Path) -> bool:
    """True if the manifest is there and every file in it has its sha256."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())
        return bool(files) and all(file_sha256(checkpoint / name) == sha for name, sha in files.items())
    except (OSError, ValueError, AttributeError):  # a file is gone, or the manifest is torn
        return False


def _by_step(folder: Path) -> list[Path]:
    found = [(int(m[1]), p) for p in folder.glob("checkpoint-*") if (m := _NAME.match(p.name)) and p.is_dir()]
    return [p for _, p in sorted(found)]


def step_of(checkpoint: Path | None) -> int:
    """The number of the last step in it; 0 for None."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def newest_sealed(folder: Path, before: int) -> Path | None:
    """The newest checkpoint with a seal from before this step; its bytes are not read."""
    sealed = [p for p in _by_step(folder) if (p / MANIFEST).exists() and step_of(p) < before]
    return sealed[-1] if sealed else None


def remove_torn(folder: Path) -> None:
    """Deletes checkpoints without a seal: half-written ones, of no use to anybody, that hold disk space."""
    for path in _by_step(folder):
        if not (path / MANIFEST).exists():
            shutil.rmtree(path, ignore_errors=True)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; broken ones are set aside as `broken-…`.

    Args:
        folder: The trainer's output folder.
    """
    for path in reversed(_by_step(folder)):
        if is_whole(path):
            return path
        aside = path.with_name(f"broken-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return None


def to_resume(folder: Path, fingerprint: dict[str, str]) -> Path | None:
    """The checkpoint to go on from: the newest whole one, which must be of this very training.

    Args:
        folder: The trainer's output folder.
        fingerprint: What this training depends on, part → digest.

    Raises:
        UserError: If it was written by another recipe, on other data, from another base, or by other code.
    """
    found = newest_whole(folder)
    if found is None:
        return None
    try:
        written = json.loads((found / FINGERPRINT).read_text())
    except FileNotFoundError:
        written = {}
    changed = [part for part in {**fingerprint, **written} if fingerprint.get(part) != written.get(part)]
    if changed:
        raise UserError(
            f"{found.name} is of another training: {' and '.join(changed)} changed since it was written",
            str(found),
            f"to start from step 0, delete {folder}; to go on from the checkpoint, undo the change",
        )
    return found
