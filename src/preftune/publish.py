"""Putting a finished run where the user looks for it: the recipe's `output_dir`, replaced as a whole.

It holds the model or adapter with tokenizer, chat template and generation settings, a model card, the verdict, the
report, the recipe and TensorBoard's logs; a merged model stands in `merged/`, with a card of its own.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preftune.digest import code_version, file_sha256, json_digest
from preftune.errors import UserError
from preftune.models import StartingModel
from preftune.schema import Recipe
from preftune.strict_yaml import dump_yaml
from preftune.workspace import Workspace

MARKER = ".preftune.json"  # hidden: a folder of pairs holds nothing that looks like a split


def check_replaceable(target: Path) -> None:
    """Refuses to replace a folder that preftune did not write.

    Raises:
        UserError: If it holds something else.
    """
    if target.is_dir() and any(target.iterdir()) and not (target / MARKER).exists():
        raise UserError(
            "the output folder holds files that preftune did not write; it would be replaced as a whole",
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


def publish(target: Path, key: str, folders: dict[str, Path], texts: Callable[[], dict[str, str]]) -> bool:
    """Fills `target`, as a whole or not at all.

    Args:
        target: The recipe's output folder.
        key: What it will hold; nothing is done if it holds that already.
        folders: Place in it ("" for itself) → the folder that is copied there; one that is missing is left out.
        texts: Makes name → content of the files that are written beside them.

    Returns:
        Whether anything was written.
    """
    if _is_current(target, key):
        return False
    check_replaceable(target)
    scratch = target.with_name(f".{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    for place, folder in folders.items():
        if folder.is_dir():
            shutil.copytree(folder, scratch / place)
    for name, text in texts().items():
        (scratch / name).write_text(text, encoding="utf-8")
    files = {str(p.relative_to(scratch)): p.stat().st_size for p in scratch.rglob("*") if p.is_file()}
    (scratch / MARKER).write_text(json.dumps({"key": key, "files": files}, indent=1))
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    scratch.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return True


def publish_run(
    workspace: Workspace,
    recipe: Recipe,
    model: StartingModel,
    target: Path,
    results: dict[str, Any],
    repo: str | None = None,
) -> bool:
    """Puts a finished run into its output folder, with a model card; a merged model into `merged/`, with its own.

    Args:
        workspace: Where the steps stand.
        recipe: The resolved recipe.
        model: The starting model.
        target: The output folder.
        results: Step name → its result: `source` (a list), `mixture`, `lengths`, `train`; `merged` where it was asked
            for, `verdict` where there is one already.
        repo: The hub repository that it will be pushed to.

    Returns:
        Whether anything was written.
    """
    train, verdict, merged = (
        results[step].folder(workspace) if step in results else None for step in ("train", "verdict", "merged")
    )
    assert train is not None
    resolved, here = recipe.resolved(), workspace.display(target)
    base_card = Path(model.files) / "README.md"

    def texts() -> dict[str, str]:
        from preftune.model_card import CardInput, render_card

        told = {n: (verdict / n).read_text("utf-8") for n in ("verdict.json", "report.html")} if verdict else {}
        found = json.loads(told["verdict.json"]) if told else None

        def card(kind: str, place: str) -> str:
            return render_card(CardInput(place, kind, recipe, model, results, found))

        made = {**told, "recipe.yaml": dump_yaml(resolved)}
        if merged is None:
            kind = "adapter" if results["train"].info["adapter"] else "full"
            return {**made, "README.md": card(kind, repo or here)}
        made |= {f"merged/{name}": text for name, text in told.items() if name == "verdict.json"}
        made["merged/README.md"] = card("merged", repo or f"{here}/merged")
        return {**made, "README.md": card("adapter", here)}

    key = {
        "steps": {step: result.key for step, result in results.items() if step != "source"},
        "sources": [s.key for s in results["source"]],
        "recipe": resolved,
        "places": [here, repo],
        "base_card": file_sha256(base_card) if base_card.is_file() else None,
        "code": code_version("publish", "model_card", "report", "summary", "templates/model_card.md.j2"),
    }
    folders = {"": train / "model", "runs": train / "runs"} | ({"merged": merged / "model"} if merged else {})
    return publish(target, f"{results['train'].key}-{json_digest(key)}", folders, texts)


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
