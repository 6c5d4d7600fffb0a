"""lm-eval tasks, both models on the same documents: measures, differences, and what counts as a lost ability."""

import math
from typing import Any

from preftune.comparison_inputs import Task
from preftune.gate import Damage
from preftune.measures import Triple, lower_bound, mean, share
from preftune.schema import Gate
from preftune.statistics import mcnemar, paired_t


def _values(task: Task, metric: str, who: int) -> list[float]:
    return [both[who]["metrics"][metric] for both in task.rows]


def _paired(task: Task) -> list[str]:
    """The metrics that every document has a value of."""
    rows = [row["metrics"].keys() for both in task.rows for row in both]
    return sorted(set.intersection(*map(set, rows))) if rows else []


def _is_binary(task: Task, metric: str) -> bool:
    values = {v for who in (0, 1) for v in _values(task, metric, who)}
    return bool(task.binary.get(metric)) and values <= {0.0, 1.0}


def task_measures(task: Task, who: int) -> dict[str, Triple]:
    """One model's metrics on a task: `lm_eval/<task>/<metric>` → (value, low, high). A metric that has no value for
    a single document is lm-eval's total, without an interval.

    Args:
        task: The task.
        who: 0 SFT, 1 the policy.
    """
    found = {f"lm_eval/{task.name}/{m}": (v, math.nan, math.nan) for m, v in task.totals[who].items()}
    for metric in _paired(task):
        values = _values(task, metric, who)
        of = share if task.binary.get(metric) else mean
        found[f"lm_eval/{task.name}/{metric}"] = of(values, task.clusters)
    return found


def task_values(task: Task, who: int) -> dict[str, list[float]]:
    """One model's value for each document, of the metrics that have one: `lm_eval/<task>/<metric>` → values."""
    return {f"lm_eval/{task.name}/{metric}": _values(task, metric, who) for metric in _paired(task)}


def task_differences(task: Task) -> dict[str, Triple]:
    """Policy − SFT on the same documents, in the metric's own direction."""
    return {f"lm_eval/{task.name}/{metric}": mean(_difference(task, metric), task.clusters) for metric in _paired(task)}


def _difference(task: Task, metric: str) -> list[float]:
    return [b - a for a, b in zip(_values(task, metric, 0), _values(task, metric, 1), strict=True)]


def _p_value(task: Task, metric: str, change: list[float]) -> tuple[float, str]:
    """(two-sided p-value that nothing changed, the test's name). Exact McNemar holds for 0/1 values of documents that
    stand alone; elsewhere Student's t on the (clustered) standard error."""
    if not all(map(math.isfinite, change)):
        return math.nan, "none"
    if _is_binary(task, metric) and task.clusters is None:
        return mcnemar(change.count(-1), change.count(1)), "exact McNemar"
    clusters = task.clusters or list(range(len(change)))
    return paired_t(change, clusters), "clustered t" if task.clusters else "paired t"


def compare_tasks(tasks: dict[str, Task], gate: Gate) -> tuple[list[dict[str, Any]], list[Damage]]:
    """The table of tasks, and the losses with their bar and the p-value of each, not adjusted yet.

    Args:
        tasks: By name.
        gate: The bars.

    Returns:
        (verdict.json's `tasks` without `p_holm`, the damages in the same order).
    """
    rows, damages = [], []
    for task in tasks.values():
        metric = task.main
        if metric is None or metric not in _paired(task):
            continue
        change = _difference(task, metric)
        p, test = _p_value(task, metric, change)
        better = 1 if task.higher.get(metric, True) else -1
        losses = [-better * d for d in change]
        sft, policy = (_values(task, metric, who) for who in (0, 1))
        rows.append(
            {
                "task": task.name,
                "metric": metric,
                "n": len(task.rows),
                "sft": sum(sft) / len(sft),
                "policy": sum(policy) / len(policy),
                "difference": list(mean(change, task.clusters)),
                "higher_is_better": better > 0,
                "p": p,
                "test": test,
                "clusters": len(set(task.clusters)) if task.clusters else None,
            }
        )
        low, bar = lower_bound(losses, task.clusters), gate.max_capability_loss
        damages.append(Damage(f"lm-eval {task.name}", sum(losses) / len(losses), low, bar, "capability", p))
    return rows, damages


def ungated(tasks: dict[str, Task]) -> list[str]:
    """Tasks whose main metric has no value for a single document, so that nothing can be compared in pairs."""
    return [t.name for t in tasks.values() if t.main not in _paired(t)]
