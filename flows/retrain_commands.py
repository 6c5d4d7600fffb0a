"""The commands `retrain`, `promote` and `rollback`."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from flows.command_options import Json, Overrides, prefect_server
from preftune.recipe import parse_overrides
from preftune.workspace import Workspace, find_workspace


def retrain(recipe: Path, /, *overrides: Overrides, as_json: Json = False) -> int:
    """Args: recipe: The recipe's file."""
    from flows.output import print_json, show_result
    from preftune.preflight import preflight

    workspace = find_workspace(recipe=recipe)
    values = parse_overrides(list(overrides))
    preflight(recipe, values, workspace, replaces_output=False)
    with prefect_server(workspace):
        from flows.retrain import retrain as flow
    found: Any = flow(recipe=str(recipe.resolve()), overrides=values)
    if as_json:
        print_json(found)
        return 0
    if "verdict" in found:
        show_result(found, workspace)
    _show_decision(found, workspace)
    return 0


def promote(
    run: str,
    /,
    *,
    anyway: Annotated[bool, Parameter(negative=(), help="Also where a verdict speaks against it.")] = False,
    as_json: Json = False,
) -> int:
    """Args: run: The MLflow run's id, or what it starts with (preftune runs)."""
    from flows.output import print_json, say
    from preftune.promotion import promote as make_champion

    found = make_champion(find_workspace(), run, anyway)
    if as_json:
        print_json(found)
        return 0
    before = f", instead of version {found['replaced']}" if found["replaced"] else ""
    say(f"{found['model']}: version {found['version']} is the champion{before}")
    return 0


def rollback(model: str | None = None, /, *, as_json: Json = False) -> int:
    """Args: model: The registered model: the recipe's experiment. May be left out where only one has a champion."""
    from flows.output import print_json, say
    from preftune.champion import rollback as go_back

    found = go_back(find_workspace(), model)
    if as_json:
        print_json(found)
        return 0
    say(f"{found['model']}: version {found['version']} is the champion again, instead of {found['rolled_back']}")
    return 0


def _show_decision(found: dict[str, Any], workspace: Workspace) -> None:
    """What was decided on the challenger, and who is champion."""
    from flows.output import printable, say
    from preftune.tracking import version_url

    say(f"\n{found['decision']}: {printable(found['reason'])}")
    if found["version"]:
        say(f"version:  {version_url(workspace, found['model'], found['version'])}")
