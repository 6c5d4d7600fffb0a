"""Checkpoints that can be trusted: a manifest of sha256 is written last, and only whole ones are resumed from.

transformers takes the folder with the highest number, also when the process died while writing it.
"""

import json
import os
import re
import shutil
from pathlib import Path

from preftune.digest import file_sha256

MANIFEST = "preftune_manifest.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def seal(checkpoint: Path) -> None:
    """Writes the manifest of a finished checkpoint, last and as a whole."""
    files = {
        str(p.relative_to(checkpoint)): file_sha256(p)
        for p in sorted(checkpoint.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    }
    scratch = checkpoint / (MANIFEST + ".partial")
    with scratch.open("w") as f:
        json.dump(files, f)
        f.flush()
        os.fsync(f.fileno())
    scratch.replace(checkpoint / MANIFEST)


def is_whole(checkpoint: Path) -> bool:
    """True if the manifest is there and every file in it has its sha256."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())
        return bool(files) and all(file_sha256(checkpoint / name) == sha for name, sha in files.items())
    except (OSError, ValueError, AttributeError):  # a file is gone, or the manifest is torn
        return False


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; broken ones are set aside as `broken-…`.

    Args:
        folder: The trainer's output folder.
    """
    found = sorted((int(m[1]), p) for p in folder.glob("checkpoint-*") if (m := _NAME.match(p.name)) and p.is_dir())
    for _, path in reversed(found):
        if is_whole(path):
            return path
        aside = path.with_name(f"broken-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return None
