"""Putting a finished run where the user looks for it: the recipe's `output_dir`, replaced as a whole."""

import json
import shutil
from pathlib import Path
from typing import Any

from preftune.errors import UserError
from preftune.strict_yaml import dump_yaml

MARKER = "preftune.json"


def check_replaceable(target: Path) -> None:
    """Refuses to replace a folder that preftune did not write.

    Raises:
        UserError: If it holds something else.
    """
    if target.is_dir() and any(target.iterdir()) and not (target / MARKER).exists():
        raise UserError(
            "output_dir holds files that preftune did not write; it would be replaced as a whole",
            str(target),
            "choose an empty or new folder",
        )


def _is_current(target: Path, key: str) -> bool:
    try:
        marker = json.loads((target / MARKER).read_text())
        return marker["key"] == key and all(
            (target / name).stat().st_size == size for name, size in marker["files"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def holds(target: Path, train: str) -> bool:
    """Whether the folder holds the result of this training (its key), whole."""
    try:
        key = json.loads((target / MARKER).read_text())["key"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return isinstance(key, str) and key.startswith(f"{train}-") and _is_current(target, key)


def publish(target: Path, key: str, model: Path, runs: Path, verdict: Path | None, recipe: dict[str, Any]) -> bool:
    """Fills `target` with model files, tokenizer, TensorBoard logs, recipe.yaml, verdict.json, report.html.

    Args:
        target: The recipe's output folder.
        key: What it will hold; nothing is done if it holds that already.
        model: Folder of the trained model or adapter.
        runs: Folder of TensorBoard logs; may be missing.
        verdict: Folder of the verdict; None: there is none yet.
        recipe: The resolved recipe.

    Returns:
        Whether anything was written.
    """
    if _is_current(target, key):
        return False
    check_replaceable(target)
    scratch = target.with_name(f".{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(model, scratch)
    if runs.is_dir():
        shutil.copytree(runs, scratch / "runs")
    if verdict is not None:
        for name in ("verdict.json", "report.html"):
            shutil.copy2(verdict / name, scratch / name)
    (scratch / "recipe.yaml").write_text(dump_yaml(recipe))
    files = {str(p.relative_to(scratch)): p.stat().st_size for p in scratch.rglob("*") if p.is_file()}
    (scratch / MARKER).write_text(json.dumps({"key": key, "files": files}, indent=1))
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    scratch.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return True


def git_revision(project: Path) -> str:
    """The project's commit (with `+` if files differ from it), or `unknown`; git's files are not written."""
    import subprocess

    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
