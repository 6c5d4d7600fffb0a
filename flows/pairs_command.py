"""The command `preftune pairs`: a dataset from a model's own answers; `label`, `export`, `import` for people."""

import getpass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.command_options import OVERRIDES_HELP, Json, Overrides, prefect_server
from preftune.errors import UserError
from preftune.recipe import load_recipe, parse_overrides
from preftune.workspace import Workspace, find_workspace

Tool = Literal["argilla", "label-studio"]

pairs = App(
    name="pairs",
    help=f"Make preference pairs from a model's own answers (section pairs of a recipe). {OVERRIDES_HELP}",
    result_action="return_value",
)


@pairs.default
def build(recipe: Path, /, *overrides: Overrides, as_json: Json = False) -> int:
    """Args: recipe: The recipe's file."""
    from flows.output import print_json

    workspace = find_workspace(recipe=recipe)
    values = parse_overrides(list(overrides))
    _check(recipe, values, workspace)
    with prefect_server(workspace):
        from flows.build_pairs import build_pairs  # imports Prefect while the server starts
    found: Any = build_pairs(recipe=str(recipe.resolve()), overrides=values)
    print_json(found) if as_json else show_pairs(found, workspace, recipe)
    return 0


def _check(recipe: Path, values: dict[str, Any], workspace: Workspace) -> None:
    """What can be known to be wrong before Prefect starts."""
    from preftune.models import check_name, embedded_folder, find_model
    from preftune.own_pairs import steps
    from preftune.publish import check_replaceable
    from preftune.schema import EMBEDDED_MODEL
    from preftune.tracking_address import check_tracking

    loaded = load_recipe(recipe, values)
    steps.required_pairs(loaded)
    check_tracking(workspace)
    check_replaceable(steps.dataset_folder(workspace, loaded))
    check_name(loaded.model_name, loaded.method)
    workspace.make()
    if loaded.model_name != EMBEDDED_MODEL or embedded_folder(workspace).exists():
        steps.make_plan(workspace, loaded, find_model(loaded, workspace))


def show_pairs(found: dict[str, Any], workspace: Workspace, recipe: Path) -> None:
    """What was made and left out, and where to look next."""
    from flows.output import say

    console = Console()
    prompts, completions = found["prompts"], found["completions"]
    table = Table(title="pairs from your own model", title_justify="left")
    for column in ("step", "what", "rows"):
        table.add_column(column, justify="right" if column == "rows" else "left", overflow="fold")
    table.add_row("prompts", "read", f"{prompts['read']:,}")
    table.add_row("", "taken", f"{prompts['kept']:,}")
    new = f" ({completions['made']:,} new)" if found["steps"]["completions"] == "run" else ""
    table.add_row("completions", "answers", f"{completions['answers']:,}{new}")
    table.add_row("", "of these ended by themselves", f"{completions['whole']:,}")
    if info := found.get("pairs"):
        table.add_row("pairs", "to train on", f"{info['train']:,}")
        table.add_row("", "held out", f"{info['test']:,}")
    left = info["left_out"] if info else {"prompts": prompts["dropped"]}
    for step, reasons in left.items():
        for reason, count in reasons.items():
            table.add_row(f"left out: {step}", escape(reason), f"{count:,}")
    console.print(table)
    for notice in prompts["notices"]:
        console.print(f"[yellow]note[/]  {escape(notice)}")
    shown = workspace.display(recipe.resolve())
    if found["state"] == "to_label":
        say(f"to label: {found['tasks']} comparisons: preftune pairs label {shown}\nthen:     preftune pairs {shown}")
        return
    steps = ", ".join(f"{step} {how}" for step, how in found["steps"].items())
    assert info is not None
    say(
        f"length:   guessing by length alone is right in {info['length_accuracy']:.0%} of the pairs\n"
        f"steps:    {steps} ({found['seconds']:.0f} s)\n"
        f"dataset:  {workspace.display(Path(found['output']))} (README.md is its card)\n"
        f"mlflow:   {found['mlflow_url']}\n"
        f"next:     preftune run {shown}"
    )


def _labelling(recipe: Path, overrides: tuple[str, ...]) -> tuple[Any, Any, Workspace]:
    """(tasks, the file of labels, workspace) of a recipe whose answers are there."""
    from preftune import store
    from preftune.models import find_model
    from preftune.own_pairs import steps
    from preftune.pairs_schema import PeopleScorer

    workspace = find_workspace(recipe=recipe)
    loaded = load_recipe(recipe, parse_overrides(list(overrides)))
    settings = steps.required_pairs(loaded)
    if not isinstance(settings.scorer, PeopleScorer):
        raise UserError("people are not asked here", f"{recipe}: pairs.scorer", "write scorer: {kind: people}")
    workspace.make()
    plan = steps.make_plan(workspace, loaded, find_model(loaded, workspace))
    prompts = store.find(workspace, "prompts", steps.prompts_step_key(plan))
    answers = store.find(workspace, "completions", steps.completions_step_key(plan, prompts)) if prompts else None
    if prompts is None or answers is None:
        raise UserError("there are no answers to compare yet", str(recipe), f"preftune pairs {recipe}")
    return steps.label_tasks(plan, prompts, answers), steps.label_file(plan), workspace


@pairs.command
def label(
    recipe: Path,
    /,
    *overrides: Overrides,
    labeller: Annotated[str | None, Parameter(help="Whose labels they are; none: your user name.")] = None,
    port: Annotated[int, Parameter(help="Port on 127.0.0.1.")] = 8765,
) -> int:
    """Compare two answers at a time, blind, in the browser (Ctrl-C ends it; every label is kept at once)."""
    from flows.output import say
    from preftune.own_pairs.label_page import make_app, serve
    from preftune.own_pairs.labels import labeller_name

    tasks, file, workspace = _labelling(recipe, overrides)
    who = labeller_name(labeller or getpass.getuser())
    file.read(say)  # tells which lines are no labels
    say(f"{len(tasks)} comparisons for {who}; labels: {workspace.display(file.path)}")
    serve(make_app(tasks, file, who, recipe.resolve().parent.name), port, say)
    return 0


@pairs.command
def export(
    recipe: Path,
    file: Path,
    /,
    *overrides: Overrides,
    to: Annotated[Tool, Parameter(help="Whose JSON is written.")],
) -> int:
    """Write the comparisons, and the labels that are there, for Argilla or Label Studio."""
    import json

    from flows.output import say
    from preftune.own_pairs import exchange

    tasks, labels, _ = _labelling(recipe, overrides)
    made = exchange.export_argilla if to == "argilla" else exchange.export_label_studio
    try:
        file.write_text(json.dumps(made(tasks, labels.read(say)), ensure_ascii=False, indent=1), encoding="utf-8")
    except OSError as e:
        raise UserError(f"it cannot be written: {e.strerror}", str(file), "name another file") from None
    say(f"{len(tasks)} comparisons are in {file}")
    config = exchange.ARGILLA_SETTINGS if to == "argilla" else exchange.LABEL_STUDIO_CONFIG
    say(f"what the project there needs:\n{config}")
    return 0


@pairs.command(name="import")
def import_labels(
    recipe: Path,
    file: Path,
    /,
    *overrides: Overrides,
    source: Annotated[Tool, Parameter(name="--from", help="Whose JSON it is.")],
) -> int:
    """Add the labels of an Argilla or Label Studio export."""
    from flows.output import say
    from preftune.own_pairs import exchange

    tasks, labels, workspace = _labelling(recipe, overrides)
    read = exchange.import_argilla if source == "argilla" else exchange.import_label_studio
    counts = exchange.add_labels(file, read, tasks, labels)
    told = ", ".join(f"{n} {exchange.COUNTS[what]}" for what, n in counts.items())
    say(f"labels:   {workspace.display(labels.path)}: {told}\nnext:     preftune pairs {recipe}")
    return 0
