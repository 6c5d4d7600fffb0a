"""Putting a result where the user looks: as a whole, once, and never over somebody else's files."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from preftune.errors import UserError
from preftune.publish import MARKER, check_replaceable, git_revision, holds, publish
from preftune.recipe import load_recipe, resolve
from preftune.strict_yaml import dump_yaml


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    """What a run made: model files (one in a subfolder), TensorBoard logs, a verdict."""
    made = {name: tmp_path / "store" / name for name in ("model", "runs", "verdict")}
    for folder in made.values():
        folder.mkdir(parents=True)
    (made["model"] / "adapter_model.safetensors").write_bytes(b"weights")
    (made["model"] / "sub").mkdir()
    (made["model"] / "sub" / "tokenizer.json").write_text("{}")
    (made["runs"] / "events.1").write_text("log")
    (made["verdict"] / "verdict.json").write_text('{"outcome": "promote"}')
    (made["verdict"] / "report.html").write_text("<html>")
    (made["verdict"] / "comparison.jsonl").write_text("not published")
    return made


def put(target: Path, parts: dict[str, Path], key: str = "k1", recipe: dict[str, Any] | None = None) -> bool:
    def texts() -> dict[str, str]:
        told = {name: (parts["verdict"] / name).read_text() for name in ("verdict.json", "report.html")}
        return told | {"recipe.yaml": dump_yaml(recipe or {"beta": 0.1})}

    return publish(target, key, {"": parts["model"], "runs": parts["runs"]}, texts)


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


WHOLE = {
    "adapter_model.safetensors",
    "sub/tokenizer.json",
    "runs/events.1",
    "verdict.json",
    "report.html",
    "recipe.yaml",
    MARKER,
}


def test_everything_is_there(tmp_path: Path, parts: dict[str, Path]) -> None:
    """Also where the folder's parents are not there yet; nothing else is left beside it."""
    target = tmp_path / "data" / "mine"
    assert put(target, parts) is True
    assert names(target) == WHOLE
    assert yaml.safe_load((target / "recipe.yaml").read_text()) == {"beta": 0.1}
    assert [p.name for p in target.parent.iterdir()] == ["mine"]
    assert names(parts["model"]) == {"adapter_model.safetensors", "sub/tokenizer.json"}


def test_logs_may_be_missing(tmp_path: Path, parts: dict[str, Path]) -> None:
    (parts["runs"] / "events.1").unlink()
    parts["runs"].rmdir()
    put(tmp_path / "mine", parts)
    assert names(tmp_path / "mine") == WHOLE - {"runs/events.1"}


def test_the_second_call_does_nothing(tmp_path: Path, parts: dict[str, Path]) -> None:
    target = tmp_path / "mine"
    put(target, parts)
    before = {p: p.stat().st_mtime_ns for p in target.rglob("*")}
    inode = target.stat().st_ino
    assert put(target, parts) is False
    assert {p: p.stat().st_mtime_ns for p in target.rglob("*")} == before and target.stat().st_ino == inode


def test_another_result_replaces_it_as_a_whole(tmp_path: Path, parts: dict[str, Path]) -> None:
    """A file of the old result does not stay among those of the new one."""
    target = tmp_path / "mine"
    put(target, parts)
    (parts["model"] / "adapter_model.safetensors").rename(parts["model"] / "model.safetensors")
    assert put(target, parts, key="k2") is True
    assert names(target) == WHOLE - {"adapter_model.safetensors"} | {"model.safetensors"}
    assert json.loads((target / MARKER).read_text())["key"] == "k2"
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "store"}


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "report.html", "sub/tokenizer.json", MARKER])
def test_a_file_that_was_deleted_or_cut_comes_back(tmp_path: Path, parts: dict[str, Path], name: str) -> None:
    target = tmp_path / "mine"
    put(target, parts)
    whole = (target / name).read_bytes()
    (target / name).write_bytes(whole[:-1])
    assert put(target, parts) is True
    if name != MARKER:
        assert (target / name).read_bytes() == whole
        (target / name).unlink()
        assert put(target, parts) is True
    assert names(target) == WHOLE


@pytest.mark.parametrize("text", ["[]", "null", "3", "{}", '{"key": "k1"}', '{"key": "k1", "files": []}'])
def test_a_marker_that_says_something_else(tmp_path: Path, parts: dict[str, Path], text: str) -> None:
    target = tmp_path / "mine"
    put(target, parts)
    (target / MARKER).write_text(text)
    assert put(target, parts) is True
    assert names(target) == WHOLE


def test_which_training_stands_there(tmp_path: Path, parts: dict[str, Path]) -> None:
    target = tmp_path / "mine"
    assert not holds(target, "abc")
    put(target, parts, key="abc-1")
    assert holds(target, "abc") and not holds(target, "ab")
    (target / "report.html").unlink()
    assert not holds(target, "abc"), "not whole"
    (target / MARKER).write_text("[]")
    assert not holds(target, "abc")


def test_a_foreign_folder_is_refused(tmp_path: Path, parts: dict[str, Path]) -> None:
    """Its files stay."""
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    for action in (lambda: put(target, parts), lambda: check_replaceable(target)):
        with pytest.raises(UserError, match="did not write") as e:
            action()
        assert e.value.where == str(target)
    assert names(target) == {"thesis.tex"}
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "store"}


def test_empty_and_missing_folders_are_fine(tmp_path: Path, parts: dict[str, Path]) -> None:
    check_replaceable(tmp_path / "not there")
    (tmp_path / "mine").mkdir()
    check_replaceable(tmp_path / "mine")
    assert put(tmp_path / "mine", parts) is True
    check_replaceable(tmp_path / "mine")


def test_what_a_killed_try_left_is_cleared(tmp_path: Path, parts: dict[str, Path]) -> None:
    """Killed while copying, and between the two renames."""
    target = tmp_path / "mine"
    (tmp_path / ".mine.partial").mkdir()
    (tmp_path / ".mine.partial" / "half").write_text("x")
    (tmp_path / ".mine.old").mkdir()
    assert put(target, parts) is True
    assert names(target) == WHOLE
    target.rename(tmp_path / ".mine.old")
    assert put(target, parts) is True
    assert names(target) == WHOLE
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "store"}


def test_a_failure_leaves_the_old_result(tmp_path: Path, parts: dict[str, Path]) -> None:
    target = tmp_path / "mine"
    put(target, parts)
    (parts["verdict"] / "report.html").unlink()
    with pytest.raises(FileNotFoundError):
        put(target, parts, key="k2")
    assert names(target) == WHOLE and json.loads((target / MARKER).read_text())["key"] == "k1"


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"learning_rate": 5e-7, "beta": 1e-05, "loss_type": ["sigmoid", "ipo"], "max_length": None},
        {"run_name": "Grüße: 'x' # 1"},
        # text that our reader would take for a number, were it not in quotes
        {"model_revision": "4e55127"},
        {"run_name": "1e5"},
        {"run_name": "5E-7"},
        {"run_name": "123"},
        {"run_name": "null"},
        {"run_name": "yes"},
    ],
)
def test_the_published_recipe_can_be_run_again(tmp_path: Path, parts: dict[str, Path], more: dict[str, Any]) -> None:
    """recipe.yaml is read by the strict reader, and gives the same run."""
    recipe = resolve({"dataset_name": "pairs.jsonl", **more}, Path("recipes/demo/config.yaml"))
    put(tmp_path / "mine", parts, recipe=recipe.resolved())
    again = load_recipe(tmp_path / "mine" / "recipe.yaml")
    same = {"model", "training", "mixture", "evaluation", "gate", "validation", "output_dir", "experiment"}
    assert {k: getattr(again, k) for k in same} == {k: getattr(recipe, k) for k in same}


def test_git_revision(tmp_path: Path) -> None:
    """The commit, a plus when a tracked file differs, `unknown` outside of a repository."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    below = tmp_path / "below"
    below.mkdir()
    assert git_revision(tmp_path / "not there") == "unknown"
    git("init", "-q")
    assert git_revision(tmp_path) == "unknown"  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD")[:12]
    assert git_revision(tmp_path) == git_revision(below) == head
    (tmp_path / "untracked").touch()
    assert git_revision(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert git_revision(tmp_path) == head + "+"
