"""What the commands print for people (rich tables) and for programs (JSON)."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from preftune.advice import gib
from preftune.audit.console import show_audit
from preftune.key_report import KeyReport
from preftune.services import running
from preftune.store import StepResult
from preftune.strict_yaml import dump_yaml
from preftune.summary import headline_rows
from preftune.workspace import Workspace

_COLOURS = {"promote": "green", "reject": "red", "inconclusive": "yellow"}


def say(text: str) -> None:
    """Plain text on stdout."""
    sys.stdout.write(text + "\n")


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(printable(json.dumps(value, ensure_ascii=False)) + "\n")


def printable(text: str) -> str:
    """The text without half characters, which no terminal and no file takes."""
    return text.encode(errors="backslashreplace").decode()


def show_plan(plan: dict[str, Any], warnings: list[str], pairs: str) -> None:
    """The plan of `preftune check`."""
    console = Console()
    for warning in warnings:
        console.print(f"[yellow]note[/]  {escape(warning)}")
    table = Table(title="what a run would do", show_header=False, title_justify="left")
    table.add_row("model", escape(plan["model"]))
    table.add_row("pairs", escape(pairs))
    table.add_row("steps", f"{plan['steps']} of {plan['effective_batch']} pairs (effective batch)")
    if plan["tokens"] is not None:
        minutes = f", about {plan['training_minutes']:g} min on 2 cores" if "training_minutes" in plan else ""
        cut = f"; {plan['pairs_cut']} pairs are cut at max_length" if plan["pairs_cut"] else ""
        table.add_row("tokens", f"{plan['tokens']:,}{minutes}{cut}")
    table.add_row("device", f"{plan['device']}, {plan['processes']} process(es), {plan['accelerate_config']}")
    reused = ", ".join(step for step, is_there in plan["reused"].items() if is_there)
    table.add_row("reused", reused or "nothing")
    table.add_row("would run", ", ".join(s for s, there in plan["reused"].items() if not there) or "nothing")
    table.add_row("result in", escape(plan["output_dir"]))
    console.print(table)
    if plan["memory"]:
        console.print(_memory_table(plan["memory"]))
    slow = plan.get("training_minutes", 0) > 60
    for line in plan["advice"]:
        if line["when"] == "launch" or (line["when"] == "too_slow" and slow):
            mark = "[yellow]advice[/]" if line["level"] == "warning" else "[dim]advice[/]"
            console.print(f"{mark}  {escape(line['text'])}")


def _memory_table(memory: dict[str, Any]) -> Table:
    """A training step's memory by part, against the device's."""
    checkpointing = "with" if memory["checkpointing"] else "without"
    title = f"memory of a training step, estimated: micro-batch {memory['micro_batch']} of {memory['length']} tokens"
    table = Table(title=f"{title}, {checkpointing} gradient_checkpointing", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, size in memory["parts"].items():
        table.add_row(name, gib(size))
    table.add_section()
    table.add_row("at its peak (not all at once)", gib(memory["peak"]))
    colour = "green" if memory["fits"] else "red"
    table.add_row("needed, with gaps and the process itself", f"[{colour}]{gib(memory['needed'])}[/]")
    table.add_row(escape(memory["device"]), gib(memory["device_bytes"]))
    return table


_KINDS = {"refused": "red", "no effect": "yellow", "changed": "yellow", "renamed": "cyan", "moved": "cyan"}


def show_keys(report: KeyReport, path: Path) -> None:
    """The tables of `preftune check --keys`."""
    console = Console()
    same = [row for row in report.keys if row.kind == "kept" and not row.effect]
    table = Table(title="what became of the keys", title_justify="left", show_lines=True)
    table.add_column("key", overflow="fold", min_width=24)
    table.add_column("became", overflow="fold")
    table.add_column("what that changes", ratio=1)
    for row in [r for r in report.keys if r not in same]:
        kind = f"[{_KINDS[row.kind]}]{row.kind}[/]" if row.kind in _KINDS else row.kind
        name = f"{row.key}: {_shown(row.value)}" if row.value is not None else row.key
        now = "" if row.became in ("", row.key) else f" → {row.became}"
        table.add_row(escape(printable(name)), kind + escape(now), escape(printable(row.effect)))
    if table.row_count:
        console.print(table)
    console.print("kept as they are:", escape(printable(", ".join(r.key for r in same))) or "none")
    if report.defaults:
        table = Table(title="left to a default, which was another one", title_justify="left", show_lines=True)
        for column in ("key", "was", "now", "what that changes"):
            table.add_column(column, overflow="fold")
        for row in report.defaults:
            table.add_row(*(escape(cell) for cell in row))
        console.print(table)
    for error in report.errors:
        text = f"{error['where']}: {error['error']}\n  → {error['advice']}"
        console.print(f"[red]error[/] {escape(printable(text))}")
    for warning in report.missing:
        console.print(f"[yellow]note[/]  {escape(warning)}")
    if report.recipe:
        console.print(f"{escape(str(path))} is a {report.recipe.method.upper()} recipe that runs as it is")


def _shown(value: Any, limit: int = 60) -> str:
    text = " ".join(dump_yaml(value).removesuffix("...\n").split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def show_data_audit(result: StepResult, workspace: Workspace) -> None:
    """The audit's tables, and where its page is."""
    folder = result.folder(workspace)
    show_audit(json.loads((folder / "audit.json").read_text()), Console(), folder / "audit.html")


def show_datasets(known: list[dict[str, Any]]) -> None:
    """The registry, a row for each dataset."""
    console = Console()
    wide = console.width >= 120
    table = Table(title="known preference datasets", title_justify="left", show_lines=wide)
    columns = ("dataset", *(["good for"] if wide else []), "licence", "train on", *(["hold out", "watch out"] * wide))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "dataset")  # an id is there to be copied
    for d in known:
        mark = "\n[dim]refused[/]" if d["refused"] and not d["refused"]["data_dir"] else ""
        mark += "\n[dim]gated[/]" if d["gated"] else ""
        careful = "\n".join(d["notices"][:1] or d["defects"][:1])
        cells = [d["licence"] or "not stated", ", ".join(d["dpo_splits"])]
        if wide:
            cells = [d["purpose"], *cells, ", ".join(d["test_splits"]), careful]
        table.add_row(escape(d["id"]) + mark, *(escape(c) or "–" for c in cells))
    console.print(table)
    console.print("docs/datasets.md has a recipe for each; --json tells all that is known")


def show_result(result: dict[str, Any], workspace: Workspace) -> None:
    """The verdict table, and where to look next."""
    console = Console()
    outcome = result["verdict"]["outcome"]
    name = "policy" if "policy" in result else "DPO"
    table = Table(title=f"SFT against {name}, on the same held-out pairs and prompts", title_justify="left")
    for column in ("measure", "SFT", name):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for row in headline_rows(result["metrics"]):
        table.add_row(*row)
    console.print(table)
    console.print(f"verdict: [bold {_COLOURS[outcome]}]{outcome}[/]")
    for reason in result["verdict"]["reasons"]:
        console.print(f"  - {escape(reason)}")
    for advice in result["verdict"]["advice"]:
        console.print(f"  → {escape(advice)}")
    if result["training_notes"]:
        console.print("what the training shows:")
    for note in result["training_notes"]:
        colour = "yellow" if note["severity"] == "warning" else "dim"
        console.print(f"  - [{colour}]{note['severity']}:[/] {escape(note['text'])}")
        if note["advice"]:
            console.print(f"    [dim]{escape(note['advice'])}[/]")
    for notice in result["notices"]:
        console.print(f"[yellow]note[/]  {escape(notice)}")
    steps = ", ".join(f"{step} {how}" for step, how in result["steps"].items())
    lines = [
        f"steps:    {steps} ({result['seconds']:.0f} s)",
        f"report:   {workspace.display(Path(result['report']))}",
        f"policy:   {workspace.display(Path(result['policy']))}"
        if "policy" in result
        else f"model:    {workspace.display(Path(result['output_dir']))}",
        f"compare:  {result['compare_url']}",
    ]
    if not workspace.mlflow_uri.startswith("http") and "mlflow" not in running(workspace):
        lines.append("          (first start MLflow's UI: preftune ui)")
    say("\n".join(lines))


def show_comparison(found: dict[str, Any], workspace: Workspace) -> None:
    """What `preftune compare` found: the runs' measures side by side, and where the page is."""
    console = Console()
    table = Table(title=f"on the {found['pairs']:,} held-out pairs that all have in common", title_justify="left")
    table.add_column("measure")
    for run in found["runs"]:
        table.add_column(escape(f"{run['name']}\n{run['run_id'][:8]}"), justify="right")
    table.add_row("verdict", *(run["verdict"] or "" for run in found["runs"]))
    for name, values in found["metrics"].items():
        table.add_row(name, *("" if v is None else f"{v:.3f}" for v in values))
    console.print(table)
    for notice in found["notices"]:
        console.print(f"[yellow]note[/]  {escape(notice)}")
    say(f"report:   {workspace.display(Path(found['report']))}\ncompare:  {found['compare_url']}")


def show_runs(rows: list[dict[str, Any]]) -> None:
    """The table of `preftune runs`."""
    if not rows:
        say("no runs yet: preftune run recipes/starter/config_starter.yaml")
        return
    table = Table()
    for column in ("run", "experiment", "name", "verdict", "reward accuracy", "started"):
        table.add_column(column)
    for row in rows:
        accuracy = "" if row["reward_accuracy"] is None else f"{row['reward_accuracy']:.3f}"
        cells = (row["run_id"][:8], row["experiment"], row["name"], row["verdict"], accuracy, row["started"])
        table.add_row(*(escape(str(c)) for c in cells))
    Console().print(table)
