"""lm-eval's task files, read without importing lm-eval (which takes seconds): which tasks there are, and what each
of them needs. The rules are those of lm-eval 0.4's `tasks/_index.py` and `_yaml_loader.py`.
"""

import ast
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import UserError

_NAME = re.compile(r"^[\"']?(task|group|class)[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[\]{}]+)", re.MULTILINE)
_TAG = re.compile(r"^[\"']?tag[\"']?[ \t]*:(.*(?:\n[ \t]*-.*)*)", re.MULTILINE)
_INCLUDE = re.compile(r"^[\"']?include[\"']?[ \t]*:(.*(?:\n[ \t]*-.*)*)", re.MULTILINE)
_WORD = re.compile(r"[^\s\"',\[\]-][^\s\"',\[\]]*")


class Function(str):
    """What stands behind `!function`: module and name, joined by dots."""


class _Loader(yaml.SafeLoader if not yaml.__with_libyaml__ else yaml.CSafeLoader):  # type: ignore[misc]
    pass


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


@dataclass
class TaskFiles:
    """A folder's tasks and groups by name, and the tasks that carry a tag."""

    files: dict[str, Path] = field(default_factory=dict)
    tags: dict[str, set[str]] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        return {*self.files, *self.tags}


@dataclass(frozen=True)
class Task:
    """One task (no group): its configuration with everything it includes, and its file."""

    name: str
    config: Mapping[str, Any]
    file: Path


def lm_eval_folder() -> Path:
    """Where lm-eval's own task files are."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tasks"


def scan(folder: Path) -> TaskFiles:
    """Finds names and tags by their lines: 14,000 files in less than a second."""
    found = TaskFiles()
    tags_of: dict[str, list[str]] = {}
    for path in sorted(_yaml_files(folder)):
        text = _text(path)
        names = {kind: name for kind, name in _NAME.findall(text)}
        is_group = "group" in names and "class" not in names  # a task that is a program may name its group
        if (name := names.get("group" if is_group else "task")) is None:
            continue
        found.files.setdefault(name, Path(path))
        if not is_group:
            for tag in _tags(path, text, tags_of):
                found.tags.setdefault(tag, set()).add(name)
    return found


def _yaml_files(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in ("__pycache__", ".ipynb_checkpoints")]
        yield from (os.path.join(place, f) for f in files if f.endswith(".yaml"))  # noqa: PTH118 - speed


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as f:  # noqa: PTH123 - speed
        return f.read()


def _tags(path: str, text: str, known: dict[str, list[str]]) -> list[str]:
    """The file's own tags, else those of what it includes."""
    if found := _TAG.search(text):
        return _WORD.findall(found[1])
    if not (included := _INCLUDE.search(text)):
        return []
    tags: list[str] = []
    for name in _WORD.findall(included[1]):
        other = os.path.normpath(os.path.join(os.path.dirname(path), name))  # noqa: PTH118, PTH120 - speed
        if other not in known:
            known[other] = []  # ends a circle
            known[other] = _tags(other, _text(other), known) if os.path.isfile(other) else []  # noqa: PTH113
        tags = known[other] or tags
    return tags


def read_config(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A task file with what it includes (its own keys win); functions are not resolved.

    Raises:
        UserError: If it, or an included file, is not there or no YAML mapping.
    """
    try:
        config = yaml.load(path.read_bytes(), Loader=_Loader)  # noqa: S506 - a safe loader, with one more tag
    except (OSError, yaml.YAMLError, UnicodeError) as e:
        told = " ".join(str(e).split())
        raise UserError(f"the task file cannot be read: {told}", str(path), "correct the file") from None
    if not isinstance(config, dict):
        raise UserError("the task file is no YAML mapping", str(path), "correct the file")
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in includes if isinstance(includes, list) else [includes]:
        other = (path.parent / str(name)).resolve()
        if other in (*seen, path):
            raise UserError("task files include each other in a circle", str(path), "correct include")
        merged |= {k: v for k, v in read_config(other, (*seen, path)).items() if k != "task_list"}
    return merged | config


def leaves(name: str, places: list[TaskFiles]) -> list[Task]:
    """The tasks behind a name: itself, or the members of a group or a tag.

    Args:
        name: A name that one of the places has.
        places: Where names are looked up, the first that has it wins.
    """
    place = next((p for p in places if name in p.names), None)
    if place is None:  # a group's member that stands nowhere: lm-eval itself will say so
        return []
    if name not in place.files:
        return [leaf for member in sorted(place.tags[name]) for leaf in leaves(member, places)]
    path = place.files[name]
    config = read_config(path)
    if "group" not in config or "class" in config:
        return [Task(name, config, path)]
    members = config.get("task") or []
    return [leaf for m in (members if isinstance(members, list) else [members]) for leaf in _member(m, path, places)]


def _member(member: Any, path: Path, places: list[TaskFiles]) -> list[Task]:
    """A group's member: a name, or a mapping that changes a task or defines one in place."""
    if isinstance(member, str):
        return leaves(member, places)
    if isinstance(member.get("task"), list):
        return [leaf for m in member["task"] for leaf in _member(m, path, places)]
    name = str(member.get("task") or member.get("group"))
    found = leaves(name, places)
    return [Task(t.name, {**t.config, **member}, t.file) for t in found] or [Task(name, member, path)]


def functions(config: Any) -> Iterator[str]:
    """All `!function` entries of a configuration."""
    if isinstance(config, Function):
        yield config
    elif isinstance(config, Mapping):
        for value in config.values():
            yield from functions(value)
    elif isinstance(config, list):
        for value in config:
            yield from functions(value)


def modules(task: Task) -> tuple[set[str], set[Path]]:
    """(packages that the task's functions import when they are loaded, the source files that were read).

    Imports inside a function, and those that the code itself does without, are left out.
    """
    packages: set[str] = set()
    read: set[Path] = set()
    for name in functions(task.config):
        module = name.rpartition(".")[0]
        local = task.file.parent / f"{module.replace('.', '/')}.py"
        _follow(local if local.exists() else module, task.file.parent, packages, read)
    return packages, read


def _follow(where: Path | str, folder: Path, packages: set[str], read: set[Path]) -> None:
    """Reads a source file's imports; those of lm-eval's own task modules are followed."""
    if isinstance(where, str):
        if not where.startswith("lm_eval.tasks."):
            packages.add(where.partition(".")[0])
            return
        base = lm_eval_folder().joinpath(*where.split(".")[2:])
        where = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
    if where in read or not where.exists():
        return
    read.add(where)
    for name in _imports(ast.parse(where.read_text(encoding="utf-8")).body, where):
        top = name.partition(".")[0]
        beside = where.parent / top
        if name.startswith("lm_eval.tasks.") or not (beside.with_suffix(".py").exists() or beside.is_dir()):
            _follow(name, folder, packages, read)


def _imports(body: list[ast.stmt], file: Path) -> Iterator[str]:
    """Modules imported by statements that run when the file is loaded, and whose failure would be an error."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            if node.module.startswith("lm_eval.tasks"):
                yield from (f"{node.module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            base = file.parents[node.level - 1]
            if base.is_relative_to(lm_eval_folder()):
                parts = base.relative_to(lm_eval_folder()).parts
                yield ".".join(("lm_eval", "tasks", *parts, node.module))
        elif isinstance(node, ast.Try) and any(isinstance(n, ast.Raise) for h in node.handlers for n in h.body):
            yield from _imports(node.body, file)
