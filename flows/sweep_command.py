"""The command `preftune sweep`, and what it prints."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.command_options import Json, Overrides, prefect_server
from preftune.recipe import parse_overrides
from preftune.workspace import Workspace, find_workspace

_COLOURS = {"promote": "green", "reject": "red", "inconclusive": "yellow"}


def sweep(
    recipe: Path,
    /,
    *overrides: Overrides,
    workers: Annotated[
        int, Parameter(help="Trials at once, each in a process with its own share of the GPUs (Dask).")
    ] = 1,
    as_json: Json = False,
) -> int:
    from flows.output import print_json
    from preftune.errors import UserError
    from preftune.packages import check_dask
    from preftune.preflight import preflight
    from preftune.publish import check_replaceable
    from preftune.sweep_space import check_space, required_sweep
    from preftune.workspace import output_folder

    workspace = find_workspace(recipe=recipe)
    values = parse_overrides(list(overrides))
    loaded, _, _ = preflight(recipe, values, workspace, replaces_output=False)
    if not 1 <= workers <= 64:
        raise UserError(f"{workers} workers", "--workers", "write a number from 1 to 64")
    check_dask(workers)
    check_space(recipe, values, required_sweep(loaded))
    check_replaceable(output_folder(workspace, f"{loaded.output_dir}-sweep"))
    with prefect_server(workspace):
        from flows.sweep import sweep as flow  # imports Prefect while the server starts
    found = flow(recipe=str(recipe.resolve()), overrides=values, workers=workers)
    print_json(found) if as_json else show_sweep(found, workspace)
    return 0


def show_sweep(found: dict[str, Any], workspace: Workspace) -> None:
    """The ranked table, and where to look next."""
    from flows.output import say
    from preftune.measure_table import measure_of
    from preftune.sweep_ranking import table_cells
    from preftune.sweep_space import label, shown

    console = Console()
    measure = measure_of(found["measure"])[1]
    table = Table(title="ranked by the worse end of the interval; rejected ones last", title_justify="left")
    keys = list(found["trials"][0]["values"])
    for column in ("rank", *keys, measure.label.lower(), "95 % interval", "verdict"):
        table.add_column(escape(column), justify="left" if column == "verdict" else "right", overflow="fold")
    for row in found["trials"]:
        rank, value, interval, became = table_cells(row)
        colour = _COLOURS.get(row["outcome"] or "", "dim")
        table.add_row(
            rank, *(escape(shown(v)) for v in row["values"].values()), value, interval, f"[{colour}]{became}[/]"
        )
    console.print(table)
    for row in (r for r in found["trials"] if r["why"]):
        console.print(f"[yellow]trial {row['trial']}[/]  {escape(label(row['values']) + ': ' + row['why'])}")
    for notice in found["notices"]:
        console.print(f"[yellow]note[/]  {escape(notice)}")
    lines = [f"page:     {workspace.display(Path(found['report']))}", f"mlflow:   {found['mlflow_url']}"]
    if found["recipe"]:
        path = workspace.display(Path(found["recipe"]))
        lines += [
            f"best:     preftune run {path}",
            "          (the best of several looks better than it is: docs/sweeps.md)",
        ]
    else:
        lines.append("best:     none, every verdict is reject")
    say("\n".join(lines))
