"""lm-eval tasks on the model in memory: what it can do, per question, so that two models can be compared pair by pair.

lm-eval runs the tasks and aggregates them; here stands which tasks are loaded from where, which of them get the
chat template, and how its samples become the rows that `verdict.py` joins.
"""

# lm-eval's decorators hide its signatures from the type checker.
# pyright: reportCallIssue=false, reportTypedDictNotRequiredAccess=false

import hashlib
import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.data.pairs import Pair
from preftune.errors import StepError, UserError
from preftune.lm_tasks.documents import FOLDER
from preftune.lm_tasks.preference_pairs import NAME as PAIRS
from preftune.lm_tasks.preference_pairs import preference_pairs

WAYS = ("rendered", "bare", "chat")


def run_tasks(
    lm: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    settings: Mapping[str, Any],
    folder: Path,
    tell: Callable[[str], None],
) -> None:
    """Runs the tasks and writes `lm_eval.jsonl` (a line a document) and `lm_eval.json` (a key a task).

    Tasks that write (`generate_until`) see the chat template, tasks that compare likelihoods do not, as lm-eval has
    it by default; preference_pairs renders its prompts itself. Decoding is greedy where the task does not say else.

    Args:
        lm: An lm-eval `LM` over the model in memory.
        tokenizer: Its tokenizer, for the prompts of preference_pairs.
        pairs: The held-out pairs.
        settings: The recipe's evaluation section: `tasks`, `task_folder`, `task_limit`, `batch_size`.
        folder: Where the two files go.
        tell: Takes a line of progress.

    Raises:
        UserError: If a task file of the user's own cannot be loaded.
        StepError: If one of lm-eval's tasks cannot (its data set, most likely).
    """
    rows: list[dict[str, Any]] = []
    summaries: dict[str, Any] = {}
    if settings["tasks"]:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant
        tell(f"lm-eval: {', '.join(settings['tasks'])}")
        manager, tasks, groups = _load(tokenizer, pairs, settings)
        found = _evaluate(lm, manager, tasks, groups, settings["task_limit"])
        for name, members in _reported(tasks, groups, found).items():
            task_rows, summaries[name] = _collect(name, members, found, tasks)
            rows += task_rows
    with (folder / "lm_eval.jsonl").open("w") as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "lm_eval.json").write_text(json.dumps(summaries, indent=1))


def _load(
    tokenizer: Any, pairs: Sequence[Pair], settings: Mapping[str, Any]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(a manager of local tasks, tasks by name, groups by name).

    lm-eval's own folder of 14,000 files is only read (15 s) if a task stands nowhere else.
    """
    from lm_eval.tasks import TaskManager

    own = settings["task_folder"]
    manager = TaskManager(include_path=[str(FOLDER), *([own] if own else [])], include_defaults=False)
    everything: Any = None
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name in settings["tasks"]:
        source, spec = manager, name
        if name == PAIRS:
            spec = preference_pairs(tokenizer, pairs[: settings["task_limit"]])
        elif name not in manager.all_tasks:
            everything = source = everything or TaskManager(include_path=[own] if own else None)
        try:
            loaded = source.load([spec])
        except Exception as e:  # whatever a task file's functions, or the library that loads its data, raise
            text = f"the task {name} cannot be loaded: {type(e).__name__}: {' '.join(str(e).split())[:300]}"
            if source is manager:
                raise UserError(text, "evaluation.task_folder", "correct the task's file") from None
            raise StepError(text, "evaluation.tasks", f"try again, or leave {name} out") from None
        tasks |= loaded["tasks"]
        groups |= loaded.get("groups", {})
    return manager, tasks, groups


def _evaluate(
    lm: Any, manager: Any, tasks: Mapping[str, Any], groups: Mapping[str, Any], limit: int | None
) -> dict[str, Any]:
    """lm-eval's results and samples: a call for each way of asking."""
    import lm_eval

    merged: dict[str, Any] = {"results": {}, "samples": {}, "higher_is_better": {}}
    inside = {t.task_name for g in groups.values() for t in g.get_all_tasks()}
    for way in WAYS:
        alone = [t for n, t in tasks.items() if n not in inside and _way(t) == way]
        # a group goes where its first task goes: lm-eval takes it whole
        whole = [g for g in _roots(groups) if _way(g.get_all_tasks()[0]) == way]
        if not alone and not whole:
            continue
        if hasattr(lm, "add_bos_token"):  # HFLM's: None is the tokenizer's own way; a template brings its own start
            lm.add_bos_token = None if way == "bare" else False
        found = lm_eval.simple_evaluate(
            model=lm,
            tasks=[*alone, *whole],
            task_manager=manager,  # else lm-eval reads all of its task files
            limit=limit,
            apply_chat_template=way == "chat",
            log_samples=True,
            bootstrap_iters=0,
            random_seed=0,
            numpy_random_seed=0,
            torch_random_seed=0,
            fewshot_random_seed=0,
        )
        assert found is not None
        for part in merged:
            merged[part] |= found[part]
    return merged


def _way(task: Any) -> str:
    """How a task is asked: in the chat template, as a text that is rendered already, or as bare text."""
    if task.OUTPUT_TYPE == "generate_until":
        return "chat"
    return "rendered" if task.task_name == PAIRS else "bare"


def _roots(groups: Mapping[str, Any]) -> list[Any]:
    """The groups that are part of no other."""
    inner = {g.name for group in groups.values() for g in group.get_all_groups()}
    return [g for n, g in groups.items() if n not in inner]


def _reported(tasks: Mapping[str, Any], groups: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Name → its tasks: a group that lm-eval aggregates is one task of many; all others stand for themselves."""
    whole = {
        g.name: [t.task_name for t in g.get_all_tasks()]
        for g in _roots(groups)
        if any("," in key for key in found["results"].get(g.name, {}))
    }
    inside = {name for members in whole.values() for name in members}
    return {name: [name] for name in tasks if name not in inside} | whole


def _number(value: Any) -> float | None:
    """A per-document metric as a number; None if it is none (a list, a tuple for an aggregation)."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    return float(value) if isinstance(value, bool | int | float) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # NaN is no JSON


def _metric(name: str, filter_name: str, filters: int) -> str:
    """lm-eval's metric; with its filter where there are several (gsm8k: strict-match, flexible-extract)."""
    return name if filters == 1 else f"{name}_{filter_name}".replace("-", "_")


def _collect(
    name: str, members: Sequence[str], found: Mapping[str, Any], tasks: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(rows by document, summary) of one task, or of a group's tasks together."""
    rows: list[dict[str, Any]] = []
    filters: list[str] = []
    for member in members:
        documents: dict[int, dict[str, Any]] = {}
        samples = found["samples"][member]
        filters = list(dict.fromkeys(s["filter"] for s in samples))
        for sample in samples:
            metrics = {_metric(m, sample["filter"], len(filters)): _number(sample[m]) for m in sample["metrics"]}
            row = documents.setdefault(sample["doc_id"], _document(sample, member if len(members) > 1 else None))
            row["metrics"] |= {m: _finite(v) for m, v in metrics.items() if v is not None}
        rows += [documents[i] for i in sorted(documents)]
    if len({row["id"] for row in rows}) < len(rows):
        rows = [{**row, "id": str(i)} for i, row in enumerate(rows)]
    rows = [{"task": name, "doc_id": i, **row} for i, row in enumerate(rows)]

    better = tasks[members[0]].higher_is_better()
    better = {_metric(m, f, len(filters)): bool(up) for f in filters for m, up in better.items()}
    values: dict[str, list[float | None]] = defaultdict(list)
    for row in rows:
        for metric, value in row["metrics"].items():
            values[metric].append(value)
    aggregated = {
        _metric(*key.split(",", 1), len(filters)): _finite(value)
        for key, value in found["results"][name].items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }
    candidates = [m for m, up in better.items() if up and m in values]
    flexible = [m for m in candidates if m.endswith("_flexible_extract")]
    summary = {
        "metrics": aggregated,
        "main": next(iter(flexible + candidates), None),
        "higher_is_better": {m: better[m] for m in aggregated if m in better},
        "binary": {m: set(v) <= {0.0, 1.0} for m, v in values.items()},
        "n": len(rows),
    }
    return rows, summary


def _document(sample: Mapping[str, Any], member: str | None) -> dict[str, Any]:
    """What is known of a document without any metric: `member` is its task within a group."""
    document = sample["doc"]
    own = str(document.get("row_id", document.get("id", sample["doc_id"])))
    asked = json.dumps(sample["arguments"], sort_keys=True, default=str)
    return {
        "id": own if member is None else f"{member}/{own}",
        "digest": hashlib.sha256(asked.encode()).hexdigest()[:16],
        "cluster": member if member is not None else document.get("cluster"),
        "metrics": {},
    }
