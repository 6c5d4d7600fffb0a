"""Whether the recipe's lm-eval tasks can run here: said before the run, in a second, without importing lm-eval."""

import difflib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from preftune.data.hub import is_unreachable
from preftune.errors import UserError
from preftune.evaluation_schema import LOCAL_TASKS, Evaluation
from preftune.packages import installed
from preftune.task_files import Task, TaskFiles, leaves, lm_eval_folder, modules, read_config, scan
from preftune.workspace import Workspace

# Readers of `datasets`, not data sets: they take data_files.
_FORMATS = frozenset({"json", "csv", "parquet", "arrow", "text", "xml", "pandas", "sql", "webdataset"})
_PIP = {"antlr4": "antlr4-python3-runtime==4.11", "bs4": "beautifulsoup4", "sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Need:
    """What tasks need and do not find here, and how to get it, if a command can."""

    tasks: tuple[str, ...]
    what: str
    remedy: str | None = None


def check_tasks(evaluation: Evaluation, workspace: Workspace) -> None:
    """Refuses tasks that do not exist, that run a model's code, or whose packages or data sets are out of reach.

    Args:
        evaluation: The recipe's section.
        workspace: `task_folder` is relative to its project.

    Raises:
        UserError: For what is wrong; what is out of reach is told of all tasks at once.
    """
    own = _own_tasks(evaluation, workspace)
    asked = [t for t in evaluation.tasks if t not in LOCAL_TASKS]
    elsewhere = [t for t in asked if t not in own.names]
    if not asked:
        return
    shipped = scan(lm_eval_folder()) if elsewhere else TaskFiles()
    places = [own, shipped]
    if unknown := [t for t in elsewhere if t not in shipped.names]:
        raise _unknown(unknown, [*LOCAL_TASKS, *sorted(own.names), *sorted(shipped.names)])
    found = {name: leaves(name, places) for name in asked}
    _check_twice(found)
    _check_kind(found)
    _check_local_files(found)
    if needs := [*_packages(found), *_splitter(found), *_datasets(found)]:
        raise _unmet(needs, evaluation.tasks)


def _own_tasks(evaluation: Evaluation, workspace: Workspace) -> TaskFiles:
    if evaluation.task_folder is None:
        return TaskFiles()
    where = "evaluation.task_folder"
    folder = workspace.resolve(evaluation.task_folder)
    if not folder.is_dir():
        raise UserError("there is no such folder", f"{where}: {evaluation.task_folder}", "correct the path")
    for path in sorted(folder.rglob("*.yaml")):
        read_config(path)  # lm-eval would pass over a broken file in silence
    own = scan(folder)
    if taken := sorted(own.names & set(LOCAL_TASKS)):
        raise UserError(
            f"a task of your own has the name of one that comes with preftune: {', '.join(taken)}",
            str(own.files.get(taken[0], folder)),
            "give it another name",
        )
    return own


def _unknown(names: list[str], known: list[str]) -> UserError:
    close = {n: difflib.get_close_matches(n, known, n=3, cutoff=0.5) for n in names}
    told = "; ".join(f"{n} (close to it: {', '.join(c)})" if c else n for n, c in close.items())
    return UserError(
        f"no such task: {told}",
        "evaluation.tasks",
        f"{', '.join(LOCAL_TASKS)} come with preftune; others are lm-eval's, or stand in evaluation.task_folder",
    )


def _check_twice(found: dict[str, list[Task]]) -> None:
    first: dict[str, str] = {}
    for name, tasks in found.items():
        for task in tasks:
            if (other := first.setdefault(task.name, name)) != name:
                raise UserError(
                    f"the task {task.name} would run twice: it is part of {other} and of {name}",
                    "evaluation.tasks",
                    f"leave {name} or {other} out",
                )


def _check_kind(found: dict[str, list[Task]]) -> None:
    for name, tasks in found.items():
        for task in tasks:
            if task.config.get("unsafe_code"):
                raise UserError(
                    f"the task {name} runs programs that the model writes, unguarded on this machine",
                    "evaluation.tasks",
                    f"leave {name} out; run it with lm-eval in a sandbox of your own",
                )
            if task.config.get("doc_to_image") or task.config.get("doc_to_audio"):
                raise UserError(
                    f"the task {name} asks about pictures or sound", "evaluation.tasks", f"leave {name} out"
                )


def _unmet(needs: list[Need], tasks: Iterable[str]) -> UserError:
    told = "; ".join(f"the {_tasks(n.tasks)} need{'s' if len(n.tasks) == 1 else ''} {n.what}" for n in needs)
    gone = {name for n in needs for name in n.tasks}
    left = ", ".join(t for t in tasks if t not in gone)
    out = f"leave {'it' if len(gone) == 1 else 'them'} out with --evaluation.tasks='[{left}]'"
    remedies = [n.remedy for n in needs if n.remedy]
    return UserError(told, "evaluation.tasks", "; or ".join([" and ".join(remedies), out] if remedies else [out]))


def _packages(found: dict[str, list[Task]]) -> Iterator[Need]:
    for name, tasks in found.items():
        if missing := sorted({p for t in tasks for p in modules(t)[0] if not installed(p)}):
            several = "packages that are" if len(missing) > 1 else "a package that is"
            what = f"{several} not installed here ({', '.join(missing)})"
            yield Need((name,), what, f"pip install {' '.join(_PIP.get(p, p) for p in missing)}")


def _splitter(found: dict[str, list[Task]]) -> Iterator[Need]:
    sources = {name: {s for t in tasks for s in modules(t)[1]} for name, tasks in found.items()}
    wanting = [n for n, files in sources.items() if any("punkt" in s.read_text(encoding="utf-8") for s in files)]
    if wanting and not _has_punkt():
        yield Need(tuple(wanting), "NLTK's sentence splitter", "python -m nltk.downloader punkt_tab")


def _has_punkt() -> bool:
    """As `nltk.data.find` looks for it; nltk is not imported."""
    named = [p for p in os.environ.get("NLTK_DATA", "").split(os.pathsep) if p]
    inside = [Path(sys.prefix) / p for p in ("nltk_data", "share/nltk_data", "lib/nltk_data")]
    shared = [Path(p) / "nltk_data" for p in ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")]
    places = [*map(Path, named), Path.home() / "nltk_data", *inside, *shared]
    return any((p / "tokenizers" / f"punkt_tab{end}").exists() for p in places for end in ("", ".zip"))


def _check_local_files(found: dict[str, list[Task]]) -> None:
    for tasks in found.values():
        for task in tasks:
            for file in _data_files(task):
                if "://" not in file and not any(c in file for c in "*?[") and not Path(file).exists():
                    raise UserError(
                        f"the data file of the task {task.name} is not there: {file}",
                        f"{task.file}: dataset_kwargs.data_files",
                        f"write an absolute path, or one that starts in {Path.cwd()}",
                    )


def _data_files(task: Task) -> list[str]:
    if task.config.get("dataset_path") not in _FORMATS:
        return []
    files = (task.config.get("dataset_kwargs") or {}).get("data_files") or []
    by_split = files.values() if isinstance(files, dict) else [files]
    return [str(f) for part in by_split for f in (part if isinstance(part, list) else [part])]


def _hub_dataset(task: Task) -> str | None:
    """The hub's data set that the task loads; None if it loads files or makes its own."""
    path = task.config.get("dataset_path")
    if not isinstance(path, str) or task.config.get("custom_dataset") or "class" in task.config:
        return None
    if path in _FORMATS:
        return next((f for f in _data_files(task) if "://" in f), None)
    return None if Path(path).is_dir() else path


def _is_cached(dataset: str, config: str | None) -> bool:
    """Whether `datasets` would find it without the network (its `CachedDatasetModuleFactory`)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(os.environ.get("HF_HOME") or base) / "datasets")
    owner, _, name = dataset.rpartition("/")
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    name = re.sub(r"([a-z\d])([A-Z])", r"\1_\2", name).lower()
    folder = cache.expanduser() / "___".join(filter(None, (owner, name)))
    return any(p.is_dir() for p in folder.glob(f"{config or '*'}/*/*"))


def _datasets(found: dict[str, list[Task]]) -> Iterator[Need]:
    """Data sets that are neither in the cache nor to be had from the hub."""
    wanted: dict[str, dict[str, None]] = defaultdict(dict)  # data set → its tasks, in order
    for name, members in found.items():
        for task in members:
            dataset = _hub_dataset(task)
            if dataset and not _is_cached(dataset, task.config.get("dataset_name")):
                wanted[dataset][name] = None
    unreachable = "is switched off (HF_HUB_OFFLINE)" if wanted and _offline() else None
    out_of_reach: dict[str, None] = {}
    for dataset, names in wanted.items():
        if unreachable is None:
            refused, unreachable = _ask_hub(dataset)
            if refused:
                yield Need(tuple(names), refused)
        if unreachable:
            out_of_reach |= names
    if unreachable:
        yield Need(tuple(out_of_reach), f"the hub, which {unreachable}")


def _offline() -> bool:
    switches = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    return any(s in ("1", "ON", "YES", "TRUE") for s in switches)


def _ask_hub(dataset: str) -> tuple[str | None, str | None]:
    """(why the data set cannot be had, why the hub itself cannot be reached); both None if all is well."""
    if "://" in dataset:  # a file somewhere: for lm-eval to find
        return None, None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        api = HfApi()
        if api.dataset_info(dataset, timeout=4).gated:
            api.auth_check(dataset, repo_type="dataset")
    except GatedRepoError:
        terms = f"accept its terms at huggingface.co/datasets/{dataset} and set HF_TOKEN"
        return f"the data set {dataset}, which is gated ({terms})", None
    except RepositoryNotFoundError:
        return f"the data set {dataset}, which is not on the hub (or your token may not see it)", None
    except Exception as e:
        if not is_unreachable(e):
            raise
        return None, f"cannot be reached ({type(e).__name__})"
    return None, None


def _tasks(names: Iterable[str]) -> str:
    names = list(names)
    return f"task{'s' if len(names) > 1 else ''} {', '.join(names)}"
