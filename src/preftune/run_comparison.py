"""Several runs on the items that all of them were measured on: values, and paired differences to the first one."""

import json
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.errors import UserError

Row = dict[str, Any]
NOT_COMPARED = ("output_dir", "run_name", "tracking", "hub_", "push_to_hub", "report_to")  # no result depends on them
DECODING = ("max_new_tokens", "temperature", "top_p", "seed")


@dataclass(frozen=True)
class RunEvidence:
    """What is known of one run.

    Args:
        name: The run's name.
        run_id: Its id in MLflow.
        verdict: verdict.json; empty for an SFT run.
        pairs: Rows of pairs.jsonl of the measured model. `digest` (of prompt, chosen and rejected), where a row
            has it, tells whether two rows are the same pair; else the prompt's group and the answers' tokens do.
        comparison: Rows of comparison.jsonl; empty for an SFT run.
        answers: Rows of answers.jsonl.
        lm_eval: Rows of lm_eval.jsonl.
        recipe: The resolved recipe.
        lineage: Label → text.
    """

    name: str
    run_id: str
    verdict: Row
    pairs: list[Row]
    comparison: list[Row]
    answers: list[Row]
    lm_eval: list[Row]
    recipe: Row
    lineage: dict[str, str]


@dataclass(frozen=True)
class Compared:
    """One measure on the items in common.

    Args:
        name: As in verdict.json.
        n: Items.
        values: The mean of each run.
        differences: For each run but the first: (mean of its value − the first run's, low, high).
    """

    name: str
    n: int
    values: list[float]
    differences: list[tuple[float, float, float]]


def _by_pair(rows: Iterable[Row]) -> dict[Hashable, Row]:
    def text(row: Row) -> Hashable:
        return row.get("digest") or (row["group_id"], row["chosen_tokens"], row["rejected_tokens"])

    return {(row["row_id"], text(row)): row for row in rows}


def _by_prompt(rows: Iterable[Row]) -> dict[Hashable, Row]:
    return {(row["row_id"], json.dumps([row["prompt"], row["chosen"]])): row for row in rows}


def _in_common(found: Sequence[dict[Hashable, Row]]) -> list[tuple[Row, ...]]:
    """The rows of all runs on the same item, in the first run's order."""
    return [tuple(rows[key] for rows in found) for key in found[0] if all(key in rows for rows in found)]


def pairs_in_common(runs: Sequence[RunEvidence]) -> list[tuple[Row, ...]]:
    """The held-out pairs that all runs were measured on: same row, same text.

    Args:
        runs: At least two.

    Raises:
        UserError: If there are fewer than two runs, or no pair in common.
    """
    if len(runs) < 2:
        raise UserError("a comparison needs at least two runs", "compare", "name another run; preftune runs lists them")
    found = _in_common([_by_pair(run.pairs) for run in runs])
    if not found:
        raise UserError(
            "these runs have no held-out pair in common",
            ", ".join(f"{run.name} ({run.run_id[:8]})" for run in runs),
            "compare runs on the same held-out data: the same test split, or the same seed of the mixture",
        )
    return found


def answers_in_common(runs: Sequence[RunEvidence]) -> list[tuple[Row, ...]]:
    """The answers of all runs to the same prompts; see `pairs_in_common`."""
    return _in_common([_by_prompt(run.answers) for run in runs])


def _measured(row: Row) -> Row:
    """A row in which a log-likelihood that was not finite, null in the file, is NaN."""
    return {k: math.nan if v is None and k.endswith("logp") else v for k, v in row.items()}


def _compared(name: str, values: Sequence[Sequence[float]], groups: Sequence[Hashable] | None = None) -> Compared:
    """One measure from each run's values, item by item."""
    from preftune.measures import mean

    first, *others = values
    differences = [mean([b - a for a, b in zip(first, other, strict=True)], groups) for other in others]
    return Compared(name, len(first), [sum(v) / len(v) for v in values], differences)


def _tasks(runs: Sequence[RunEvidence]) -> list[Compared]:
    documents = _in_common([{(r["task"], r["id"], r["digest"]): r for r in run.lm_eval} for run in runs])
    found = []
    for task, metric in sorted({(rows[0]["task"], metric) for rows in documents for metric in rows[0]["metrics"]}):
        of_task = [rows for rows in documents if rows[0]["task"] == task and all(metric in r["metrics"] for r in rows)]
        if of_task:
            groups = [rows[0]["id"] if rows[0]["cluster"] is None else rows[0]["cluster"] for rows in of_task]
            values = [[row["metrics"][metric] for row in rows] for rows in zip(*of_task, strict=True)]
            found.append(_compared(f"lm_eval/{task}/{metric}", values, groups))
    return found


def compare_runs(runs: Sequence[RunEvidence]) -> list[Compared]:
    """Every measure on the items in common, with its paired differences to the first run.

    Args:
        runs: At least two; the first is the reference.

    Returns:
        The measures of `measures.item_values`, the reward accuracy, and those of lm-eval's tasks. Differences
        have 95 % intervals (`measures.mean`: bootstrap, or Student's t over groups where items share one); NaN
        where a run has a value that is not finite.

    Raises:
        UserError: As `pairs_in_common`.
    """
    from preftune.measures import above, item_values

    pairs, answers = pairs_in_common(runs), answers_in_common(runs)
    groups = [rows[0]["group_id"] for rows in pairs]
    found = []
    if all(run.comparison for run in runs):
        margins = [{(row["source"], row["row_id"]): row["margin"] for row in run.comparison} for run in runs]
        moved = []
        for known, rows in zip(margins, zip(*pairs, strict=True), strict=True):
            each = [known.get((row["source"], row["row_id"])) for row in rows]
            moved.append([above(math.nan if m is None else m, 0.0) for m in each])
        found.append(_compared("reward_accuracy", moved, groups))
    of_pairs = [item_values([_measured(row) for row in rows], []) for rows in zip(*pairs, strict=True)]
    of_answers = [item_values([], [_measured(row) for row in rows]) for rows in zip(*answers, strict=True)]
    for measured, shared in ((of_pairs, groups), (of_answers, None)):
        names = [name for name, values in measured[0].items() if values] if measured else []
        found += [_compared(name, [values[name] for values in measured], shared) for name in names]
    return found + _tasks(runs)


def flat(settings: Row, before: str = "") -> dict[str, Any]:
    """Nested settings with dotted names."""
    found = {}
    for key, value in settings.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) and value else {f"{before}{key}": value}
    return found


def differing(settings: Sequence[Row]) -> list[tuple[str, list[Any]]]:
    """The settings in which runs differ: (dotted name, each run's value; None where it has none).

    Args:
        settings: One mapping a run.
    """
    all_of_them = [flat(s) for s in settings]
    names = dict.fromkeys(name for found in all_of_them for name in found)
    rows = [(name, [found.get(name) for found in all_of_them]) for name in names if not name.startswith(NOT_COMPARED)]
    return [(name, values) for name, values in rows if any(v != values[0] for v in values)]


def cautions(runs: Sequence[RunEvidence]) -> list[str]:
    """Why some of the measures may not be comparable between these runs, in words."""
    found = []
    starts = [[run.recipe.get(k) for k in ("model_name_or_path", "model_revision", "chat_template")] for run in runs]
    if any(s != starts[0] for s in starts):
        found.append(
            "The runs start from different models. Reward accuracy, NLL under SFT and KL are relative to each run's "
            "own starting model, and log-likelihoods per token depend on its tokenizer."
        )
    decoding = [[(run.recipe.get("evaluation") or {}).get(k) for k in DECODING] for run in runs]
    if any(d != decoding[0] for d in decoding):
        found.append("The answers were not generated in the same way (evaluation.max_new_tokens, temperature, …).")
    return found
