"""Where things stand on disk: the project, its `.preftune/` workspace, and the recipe's output folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from preftune.errors import UserError


@dataclass(frozen=True)
class Workspace:
    """The project's folder and the workspace in it.

    Args:
        project: The folder that relative paths in recipes start from.
        home: `.preftune/` under it, or `PREFTUNE_HOME`.
    """

    project: Path
    home: Path

    @property
    def store(self) -> Path:
        return self.home / "store"

    @property
    def partial(self) -> Path:
        return self.home / "partial"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def prefect(self) -> Path:
        return self.home / "prefect"

    @property
    def mlflow_uri(self) -> str:
        """`MLFLOW_TRACKING_URI`, else SQLite in the workspace; always absolute."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.home / "mlartifacts"

    def make(self) -> "Workspace":
        """Creates the workspace's folders.

        Raises:
            UserError: If they cannot be written.
        """
        try:
            for folder in (self.store, self.partial, self.models, self.logs, self.prefect):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(
                f"the workspace cannot be written: {e.strerror}",
                str(self.home),
                "set PREFTUNE_HOME to a folder that you can write to",
            ) from None
        return self

    def resolve(self, path: str) -> Path:
        """A path from a recipe: absolute, or relative to the project."""
        return (self.project / Path(path).expanduser()).resolve()

    def display(self, path: Path) -> str:
        """The path as a user would type it in the project's folder."""
        return str(path.relative_to(self.project)) if path.is_relative_to(self.project) else str(path)


def find_workspace(start: Path | None = None, recipe: Path | None = None) -> Workspace:
    """The workspace that belongs to the current folder, or else to a recipe.

    The project is the nearest folder upwards that holds `prefect.yaml`, `.preftune` or `recipes`; where the current
    folder is in none, the recipe's; else the current folder itself.
    """
    start = (start or Path.cwd()).resolve()
    marks = ("prefect.yaml", ".preftune", "recipes")
    places = [start, *start.parents] + (list(recipe.resolve().parents) if recipe else [])
    project = next((p for p in places if any((p / m).exists() for m in marks)), start)
    home = os.environ.get("PREFTUNE_HOME")
    return Workspace(project, Path(home).expanduser().resolve() if home else project / ".preftune")


def output_folder(workspace: Workspace, output_dir: str) -> Path:
    """The recipe's `output_dir`, checked: inside the project (symbolic links followed) and writable.

    Raises:
        UserError: If it leaves the project, is a file, or cannot be written.
    """
    try:
        path = workspace.resolve(output_dir)
        path.exists()
    except (OSError, ValueError, RuntimeError) as e:  # a name too long, a NUL, an unknown ~user
        raise UserError(f"output_dir {output_dir!r} is no path: {e}", "output_dir", "choose another folder") from None
    if not path.is_relative_to(workspace.project) or path == workspace.project:
        raise UserError(
            f"output_dir {output_dir!r} leaves the project ({workspace.project})",
            "output_dir",
            "choose a folder inside the project, for example data/my-first-dpo",
        )
    for part in (".git", ".preftune", "recipes", "src", "flows", "tasks", "tests", "docs", "scripts"):
        if path.is_relative_to(workspace.project / part):
            raise UserError(
                f"output_dir {output_dir!r} lies in the project's own {part}/ folder",
                "output_dir",
                "choose a folder under data/, for example data/my-first-dpo",
            )
    if path.is_relative_to(workspace.home) or workspace.home.is_relative_to(path):
        raise UserError(
            "output_dir lies in the workspace, or the workspace in it", "output_dir", "choose a folder under data/"
        )
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"output_dir {output_dir!r} cannot be written ({existing} is not a folder that you can write to)",
            "output_dir",
            "choose another folder or change its permissions",
        )
    return path
