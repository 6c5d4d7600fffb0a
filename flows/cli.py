"""The front door: `preftune init | check | audit | datasets | run | evaluate | runs | compare | ui |
sweep | pairs | retrain | promote | rollback | up | down`.

Exit codes: 0 done · 1 failed while running · 2 the input is wrong (recipe, data, model) · with --fail-on-reject
also 3 rejected and 4 inconclusive.
"""

import json
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from flows.command_options import OVERRIDES_HELP, FailOnReject, Json, Overrides, prefect_server, tell
from preftune import __doc__ as tagline
from preftune.children import interrupt
from preftune.errors import PreftuneError, UserError
from preftune.recipe import parse_overrides
from preftune.workspace import find_workspace

os.environ.setdefault("DO_NOT_TRACK", "true")

SWEEP_HELP = f"Train a recipe with many values of its keys (section sweep) and rank them. {OVERRIDES_HELP}"

app = App(name="preftune", help=tagline, version=version("preftune"), result_action="return_value")


@app.command(help="Write a new recipe: recipes/NAME/config_starter.yaml.")
def init(name: str, /) -> int:
    """Args: name: the experiment's name; its result goes to data/NAME."""
    from flows.output import say
    from preftune.scaffold import write_recipe

    path = write_recipe(find_workspace(), name)
    say(f"wrote {path}\nnext: preftune check {path}, then preftune run {path}")
    return 0


@app.command(help=f"Check recipe, data and model, and tell what a run would do. Trains nothing. {OVERRIDES_HELP}")
def check(
    recipe: Path,
    /,
    *overrides: Overrides,
    keys: Annotated[
        bool, Parameter(negative=(), help="Only tell what each key became; loads neither model nor data.")
    ] = False,
    as_json: Json = False,
) -> int:
    if keys:
        return _check_keys(recipe, parse_overrides(list(overrides)), as_json)
    from flows.output import print_json, show_plan
    from preftune import summary
    from preftune.data import steps
    from preftune.hub_push import check_push
    from preftune.plan import make_plan
    from preftune.preflight import preflight

    workspace = find_workspace(recipe=recipe)
    loaded, model, found = preflight(recipe, parse_overrides(list(overrides)), workspace)
    check_push(loaded, workspace)
    sources, mixture = steps.make_data(workspace, loaded, found)
    lengths = steps.make_lengths(workspace, loaded, model, mixture) if model else None
    plan = make_plan(loaded, workspace, model, mixture, lengths)
    warnings = [*loaded.notices, *summary.data_notices(sources, mixture, lengths)]
    if as_json:
        print_json({"errors": [], "warnings": warnings, "keys": loaded.resolved(), "plan": plan})
    else:
        show_plan(plan, warnings, summary.mixture_line(mixture.info, lengths))
    return 0


def _check_keys(path: Path, overrides: dict[str, Any], as_json: bool) -> int:
    from flows.output import print_json, show_keys
    from preftune.key_report import key_report
    from preftune.recipe import load_keys

    report = key_report(load_keys(path), path, overrides)
    if as_json:
        print_json(report.as_json())
    else:
        show_keys(report, path)
    return 2 if report.errors else 0


@app.command(help=f"Audit a recipe's data: what was read, kept and dropped; one HTML page. {OVERRIDES_HELP}")
def audit(recipe: Path, /, *overrides: Overrides, as_json: Json = False) -> int:
    from flows.output import print_json, show_data_audit
    from preftune.data import steps
    from preftune.preflight import preflight

    workspace = find_workspace(recipe=recipe)
    loaded, model, found = preflight(recipe, parse_overrides(list(overrides)), workspace)
    result, stop = steps.audit_data(workspace, loaded, model, found)
    if as_json:
        print_json(result.info["summary"])
    else:
        show_data_audit(result, workspace)
    return 2 if stop else 0


@app.command(help="List the known preference datasets: what each is for, its licence, splits and defects.")
def datasets(*, as_json: Json = False) -> int:
    from flows.output import print_json, show_datasets
    from preftune.data.registry import table

    print_json({"datasets": table()}) if as_json else show_datasets(table())
    return 0


@app.command(help=f"Run the whole pipeline on a recipe and print the verdict. {OVERRIDES_HELP}")
def run(recipe: Path, /, *overrides: Overrides, as_json: Json = False, fail_on_reject: FailOnReject = False) -> int:
    from preftune.preflight import preflight

    workspace = find_workspace(recipe=recipe)
    values = parse_overrides(list(overrides))
    preflight(recipe, values, workspace)
    with prefect_server(workspace):
        from flows.dpo_pipeline import dpo_pipeline  # imports Prefect while the server starts
    return tell(dpo_pipeline(recipe=str(recipe.resolve()), overrides=values), workspace, as_json, fail_on_reject)


@app.command(help=f"Compare a model or adapter on disk with a recipe's SFT model, without training. {OVERRIDES_HELP}")
def evaluate(
    recipe: Path,
    /,
    *overrides: Overrides,
    policy: Annotated[Path, Parameter(help="The folder of the model or adapter.")],
    as_json: Json = False,
    fail_on_reject: FailOnReject = False,
) -> int:
    from preftune.policies import find_policy
    from preftune.preflight import preflight

    workspace = find_workspace(recipe=recipe)
    values = parse_overrides(list(overrides))
    _, model, _ = preflight(recipe, values, workspace, replaces_output=False)
    if model is not None:
        find_policy(str(policy.resolve()), workspace, model)
    with prefect_server(workspace):
        from flows.evaluate_policy import evaluate_policy
    found = evaluate_policy(recipe=str(recipe.resolve()), policy=str(policy.resolve()), overrides=values)
    return tell(found, workspace, as_json, fail_on_reject)


app.command("flows.sweep_command:sweep", name="sweep", help=SWEEP_HELP)
app.command("flows.pairs_command:pairs", name="pairs")


@app.command(help="Compare recorded runs, each with the first, on what all were measured on; one HTML page.")
def compare(run: str, other: str, /, *more: str, as_json: Json = False) -> int:
    """Args: run, other, more: MLflow run ids, or what they start with (preftune runs)."""
    from flows.output import print_json, show_comparison
    from preftune.recorded_runs import compare_runs

    workspace = find_workspace()
    found = compare_runs(workspace, [run, other, *more])
    print_json(found) if as_json else show_comparison(found, workspace)
    return 0


app.command("flows.retrain_commands:retrain", help=f"Retrain if anything changed; promote if better. {OVERRIDES_HELP}")
app.command("flows.retrain_commands:promote", help="Make a recorded run's model the champion, by hand.")
app.command("flows.retrain_commands:rollback", help="Make the champion before the champion again.")


@app.command(help="List the recorded runs: experiment, kind, verdict, main measures.")
def runs(*, as_json: Json = False) -> int:
    from flows.output import print_json, show_runs
    from preftune.tracking import list_runs

    rows = list_runs(find_workspace())
    print_json({"runs": rows}) if as_json else show_runs(rows)
    return 0


@app.command(help="Open MLflow's UI on the workspace (in the foreground; Ctrl-C ends it).")
def ui(*, port: Annotated[int, Parameter(help="Port on 127.0.0.1.")] = 5000) -> int:
    from flows.output import say
    from preftune.mlflow_database import ensure_database, server_command
    from preftune.services import check_port
    from preftune.tracking_address import artifact_root

    workspace = find_workspace().make()
    check_port(port, "preftune ui", "port")
    ensure_database(workspace.mlflow_uri, workspace.mlflow_artifacts)
    say(f"MLflow: http://127.0.0.1:{port} in about half a minute (Ctrl-C ends it)")
    os.environ["MLFLOW_BACKEND_STORE_URI"] = workspace.mlflow_uri  # not on the command line: it may hold a password
    sys.stdout.flush()
    # Signals reach the server itself.
    os.execv(sys.executable, server_command(artifact_root(workspace), port))


app.command("flows.up_command:up", name="up", help="Start what deployments need on this machine, in the background.")
app.command("flows.up_command:down", name="down", help="End what preftune up started.")


def _fail(error: PreftuneError, as_json: bool) -> int:
    text = json.dumps(error.as_json(), ensure_ascii=False) if as_json else f"preftune: {error}"
    text = text.encode(errors="backslashreplace").decode()  # a column's name may hold half a character
    (sys.stdout if as_json else sys.stderr).write(text + "\n")
    return error.exit_code


def main(arguments: list[str] | None = None) -> Any:
    """Parses the command line and runs the command; ends the process with its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGINT, interrupt)
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as e:
        command = next((a for a in arguments if not a.startswith("-")), "")
        help_for = f"preftune {command} --help" if command in app else "preftune --help"
        code = _fail(UserError(str(e), "command line", help_for), "--json" in arguments)
    except PreftuneError as e:
        code = _fail(e, "--json" in arguments)
    except KeyboardInterrupt:
        sys.stderr.write("preftune: interrupted; run the same command again to go on\n")
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
