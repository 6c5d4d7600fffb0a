"""Where things stand on disk, and which output folders are refused."""

import os
from pathlib import Path

import pytest

from preftune.errors import UserError
from preftune.workspace import Workspace, find_workspace, output_folder


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, tmp_path / ".preftune")


@pytest.mark.parametrize("mark", ["prefect.yaml", ".preftune", "recipes"])
def test_the_project_is_found_upwards(tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest folder with a mark; the workspace is its `.preftune`."""
    monkeypatch.delenv("PREFTUNE_HOME", raising=False)
    below = tmp_path / "project" / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / "prefect.yaml").touch()
    (tmp_path / "project" / mark).mkdir()
    found = find_workspace(below)
    assert found == Workspace(tmp_path / "project", tmp_path / "project" / ".preftune")
    monkeypatch.chdir(below)
    assert find_workspace() == found


def test_a_home_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PREFTUNE_HOME is taken relative to the current folder, and made absolute."""
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFTUNE_HOME", "elsewhere")
    assert find_workspace() == Workspace(tmp_path, tmp_path / "elsewhere")
    monkeypatch.setenv("PREFTUNE_HOME", "")
    assert find_workspace().home == tmp_path / ".preftune"


def test_mlflow_s_address_is_absolute(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert workspace.mlflow_uri == f"sqlite:///{workspace.home}/mlflow.db"
    assert workspace.mlflow_uri.startswith("sqlite:////")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert workspace.mlflow_uri == "http://localhost:5000"


def test_make(workspace: Workspace) -> None:
    """All folders, again without harm."""
    assert workspace.make() is workspace
    workspace.make()
    for folder in (workspace.store, workspace.partial, workspace.models, workspace.logs, workspace.prefect):
        assert folder.is_dir() and folder.parent == workspace.home


def test_a_workspace_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="workspace cannot be written") as e:
        Workspace(tmp_path, tmp_path / "file" / "home").make()
    assert "PREFTUNE_HOME" in e.value.advice and e.value.where == str(tmp_path / "file" / "home")


def test_resolve_and_display(workspace: Workspace, tmp_path: Path) -> None:
    assert workspace.resolve("data/x") == tmp_path / "data" / "x"
    assert workspace.resolve("/etc/x") == Path("/etc/x")
    assert workspace.resolve("~/x") == Path.home() / "x"
    assert workspace.display(tmp_path / "data" / "x") == "data/x"
    assert workspace.display(Path("/etc/x")) == "/etc/x"


# --- output folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data/my-first-dpo", "out", "./out", "a/../data/x", "data/new/deep/er", "srcs/x"])
def test_folders_inside_the_project(workspace: Workspace, name: str) -> None:
    found = output_folder(workspace, name)
    assert found == (workspace.project / name).resolve() and not found.exists()


def test_an_absolute_path_inside_the_project(workspace: Workspace) -> None:
    assert output_folder(workspace, str(workspace.project / "data" / "x")) == workspace.project / "data" / "x"


@pytest.mark.parametrize("name", ["../x", "../../x", "/tmp/x", "/", "~/x", "data/../../x", ".", "", "data/.."])
def test_folders_outside_of_the_project(workspace: Workspace, name: str) -> None:
    with pytest.raises(UserError, match="leaves the project") as e:
        output_folder(workspace, name)
    assert e.value.where == "output_dir"


def test_a_symbolic_link_out_of_the_project(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (workspace.project / "data").symlink_to(outside)
    with pytest.raises(UserError, match="leaves the project"):
        output_folder(workspace, "data/x")


@pytest.mark.parametrize("part", [".git", ".preftune", "recipes", "src", "flows", "tasks", "tests", "docs", "scripts"])
def test_the_project_s_own_folders(workspace: Workspace, part: str) -> None:
    """They would be replaced as a whole."""
    for name in (part, f"{part}/x", f"data/../{part}/x"):
        with pytest.raises(UserError, match="own"):
            output_folder(workspace, name)


def test_the_workspace_itself(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, tmp_path / "data" / "home")
    for name in ("data/home", "data/home/x"):
        with pytest.raises(UserError, match="lies in the workspace"):
            output_folder(workspace, name)
    with pytest.raises(UserError):
        output_folder(workspace, "data")  # the workspace would be replaced with it
    assert output_folder(workspace, "data/homes") == tmp_path / "data" / "homes"


@pytest.mark.parametrize("name", ["data/file", "data/file/x/y"])
def test_a_file_in_the_way(workspace: Workspace, name: str) -> None:
    (workspace.project / "data").mkdir()
    (workspace.project / "data" / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        output_folder(workspace, name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(workspace: Workspace) -> None:
    (workspace.project / "data").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        output_folder(workspace, "data/x")


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "a\0b", "x" * 300])
def test_paths_that_no_system_takes(workspace: Workspace, name: str) -> None:
    """An unknown user, a NUL, a name that is too long: our message, not Python's."""
    with pytest.raises(UserError):
        output_folder(workspace, name)
