"""What a sweep came to: its trials ranked, as a table for people and machines, and the best one as a recipe.

A trial ranks by the worse end of its measure's interval, so that a lucky high value on few pairs does not win, and
behind all others if its verdict is reject.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.display import cell
from preftune.measure_table import measure_of
from preftune.recipe import load_recipe
from preftune.strict_yaml import dump_yaml
from preftune.sweep_space import label, shown
from preftune.sweep_study import Trial, pessimistic

_ORDER = {"done": 0, "stopped": 1, "failed": 2, "open": 3}
HIDDEN = ("train", "baseline")  # keys of `found` that are no news


def ranked(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The trials as rows, best first; those that were not measured stand last and have no rank.

    Returns:
        Rows of docs/json.md: `rank`, `trial`, `values`, `state`, `outcome`, `value`, `low`, `high`, `run_id`, `why`.
    """

    def order(trial: Trial) -> tuple[Any, ...]:
        if trial.state != "done":
            return (_ORDER[trial.state], trial.number)
        found = trial.found
        higher = found["value"] if found["better"] == "higher" else -found["value"]
        return (0, found["outcome"] == "reject", -pessimistic(found), -higher, trial.number)

    rows = []
    for place, trial in enumerate(sorted(trials, key=order), 1):
        found = {k: v for k, v in trial.found.items() if k not in HIDDEN}
        empty = dict.fromkeys(("outcome", "value", "low", "high", "run_id"))
        row = {"rank": place if trial.state == "done" else None, "trial": trial.number, "values": trial.values}
        rows.append({**row, "state": trial.state, **empty, **found, "why": trial.why})
    return rows


def best_of(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first rank, if its verdict is not reject."""
    first = rows[0] if rows else None
    return first if first and first["state"] == "done" and first["outcome"] != "reject" else None


def best_recipe(path: Path, overrides: Mapping[str, Any], best: Mapping[str, Any], count: int) -> str:
    """The best trial's whole recipe, as YAML that `preftune run` takes.

    Args:
        path: The sweep's recipe.
        overrides: The sweep's.
        best: Its row.
        count: How many trials were measured.
    """
    resolved = load_recipe(path, {**overrides, **best["values"]}).resolved()
    head = [
        f"# Trial {best['trial']} of a sweep, the best of {count} that were measured: {label(best['values'])}",
        f"# {text_of(best)}; verdict: {best['outcome']}. The best of several on the same held-out pairs looks better",
        "# than it is: confirm it on pairs that chose nothing (docs/sweeps.md).",
    ]
    return "\n".join([*head, dump_yaml(resolved)])


def text_of(row: Mapping[str, Any]) -> str:
    """`reward accuracy 93.3% [86.2% to 96.9%]`."""
    _, measure = measure_of(row["measure"])
    shown_cell = cell((row["value"], row["low"], row["high"]), measure.unit)
    interval = shown_cell["interval"].replace("\u00a0", " ")
    return f"{measure.label.lower()} {shown_cell['value']}" + (f" [{interval}]" if interval else "")


def table_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """(rank, value, interval, what became of it) of a row, for a table."""
    rank = "–" if row["rank"] is None else str(row["rank"])
    if row["state"] != "done":
        return rank, "", "", {"stopped": "stopped early", "open": "to be tried again"}.get(row["state"], "failed")
    found = cell((row["value"], row["low"], row["high"]), measure_of(row["measure"])[1].unit)
    return rank, found["value"], found["interval"], row["outcome"]


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as CSV: a column for each key that was swept."""
    names = list(rows[0]["values"]) if rows else []
    fields = ["rank", "trial", *names, "state", "outcome", "value", "low", "high", "run_id", "why"]
    out = io.StringIO()
    table = csv.DictWriter(out, fields, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({**row, **{name: shown(row["values"][name]) for name in names}})
    return out.getvalue()


def markdown_text(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    """The table in Markdown, for Prefect's page of the run."""
    names = list(rows[0]["values"]) if rows else []
    head = ["rank", *names, measure_of(measure)[1].label, "95 % interval", "verdict", ""]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        rank, value, interval, became = table_cells(row)
        why = row["why"].replace("|", "\\|").replace("\n", " ")
        lines.append(
            [rank, *(shown(row["values"][n]).replace("|", "\\|") for n in names), value, interval, became, why]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
