"""The content-addressed store: a finished step is whole and immutable, an unfinished one is not there.

A step is made in `partial/<step>/<key>/` under an `flock` (which the kernel releases when the process dies,
also by SIGKILL) and renamed into `store/<step>/<key>/` when its manifest is written.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from preftune.digest import file_sha256, json_digest
from preftune.workspace import Workspace

MANIFEST = "manifest.json"


class StepResult(BaseModel):
    """What a step hands to the next one: names and numbers, never data.

    Args:
        step: `source`, `mixture`, `lengths`, `baseline`, `train`, `policy` or `verdict`.
        key: What the result depends on, as a digest.
        digest: What came out, as a digest of the files' bytes (without logs and timings).
        info: Counts and figures.
    """

    model_config = ConfigDict(frozen=True)
    step: str
    key: str
    digest: str
    info: dict[str, Any]

    def folder(self, workspace: Workspace) -> Path:
        return workspace.store / self.step / self.key


def _intact(folder: Path, files: dict[str, dict[str, Any]]) -> bool:
    for name, expected in files.items():
        try:
            stat = (folder / name).stat()
        except OSError:
            return False
        if stat.st_size != expected["size"]:
            return False
        # An untouched file is believed; one whose time changed is read again.
        if stat.st_mtime_ns != expected["mtime_ns"] and file_sha256(folder / name) != expected["sha256"]:
            return False
    return True


def find(workspace: Workspace, step: str, key: str) -> StepResult | None:
    """The finished result of a step, if its files are all there and intact."""
    folder = workspace.store / step / key
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not _intact(folder, manifest["files"]):
            return None
        return StepResult(step=step, key=key, digest=manifest["digest"], info=manifest["info"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # gone, torn, or not a manifest of ours
        return None


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds an `flock` on the file; calls `on_wait` once if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as f:
        waiting = False
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    on_wait()
                waiting = True
                time.sleep(0.5)
        yield


def _write_manifest(folder: Path, info: dict[str, Any], volatile: tuple[str, ...]) -> str:
    files = {}
    (folder / MANIFEST).unlink(missing_ok=True)  # of a try that was killed before the rename
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        files[str(path.relative_to(folder))] = {
            "sha256": file_sha256(path),
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
        }
    digest = json_digest(
        {n: f["sha256"] for n, f in files.items() if not any(fnmatch(n, pattern) for pattern in volatile)}
    )
    text = json.dumps({"digest": digest, "info": info, "files": files}, indent=1)
    with (folder / MANIFEST).open("w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    return digest


def make(
    workspace: Workspace,
    step: str,
    key: str,
    build: Callable[[Path], dict[str, Any]],
    *,
    volatile: tuple[str, ...] = (),
    on_wait: Callable[[], None] = lambda: None,
) -> StepResult:
    """Returns the finished result of a step; builds it if it is not there.

    Two processes that want the same key: one builds, the other waits and finds it done.

    Args:
        workspace: Where the store stands.
        step: Name of the step.
        key: What the result depends on.
        build: Fills the folder it is given (which may hold what a killed try left) and returns the counts
            for `StepResult.info`.
        volatile: Patterns of files that do not count for the digest (logs, timings).
        on_wait: Called once if another process holds the lock.
    """
    lock = workspace.partial / step / f"{key}.lock"
    with locked(lock, on_wait):
        if (done := find(workspace, step, key)) is not None:
            return done
        final, partial = workspace.store / step / key, workspace.partial / step / key
        if final.exists():  # its files were deleted or damaged: it does not count
            shutil.rmtree(final)
        partial.mkdir(parents=True, exist_ok=True)
        info = build(partial)
        digest = _write_manifest(partial, info, volatile)
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(final)
    return StepResult(step=step, key=key, digest=digest, info=info)


def discard(workspace: Workspace, step: str, key: str) -> None:
    """Deletes what an unfinished step has made so far: nobody will go on with it."""
    with locked(workspace.partial / step / f"{key}.lock"):
        shutil.rmtree(workspace.partial / step / key, ignore_errors=True)
