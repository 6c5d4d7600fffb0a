"""`accelerate launch … scripts/run_dpo.py RECIPE`: the guide's command, as one more way into the same training.

The first process checks the recipe and prepares the data while the others wait; then all train. The result stands in
the store under the key that `preftune run` looks for, and in the recipe's output folder.
"""

import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from preftune import accelerate_configs, children, faults, keys, publish, ranks, summary, training_step
from preftune.accelerate_configs import NAMES, Launch
from preftune.children import ERROR_FILE, die_with_parent, one_line, report_error
from preftune.data.steps import make_data, make_lengths
from preftune.errors import OutOfMemory, PreftuneError, StepError, UserError
from preftune.launch_environment import launcher_options, settle
from preftune.models import StartingModel, find_model, prepare_embedded
from preftune.preflight import preflight
from preftune.recipe import parse_overrides
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace, find_workspace, output_folder

USAGE = """usage: accelerate launch --config_file recipes/accelerate_configs/ddp.yaml [--num_processes=N]
           scripts/run_dpo.py RECIPE [--key=value …]

Trains the recipe (RECIPE, or --config RECIPE); any recipe key is an option: --learning_rate=1e-6.
"""
_OUT, _ERR = 1, 2


def parse_arguments(arguments: list[str]) -> tuple[Path, list[str]]:
    """The recipe and the overrides' words: `RECIPE --beta=0.2`, or `--config RECIPE --beta 0.2`.

    Raises:
        UserError: If no recipe is named, or two are.
    """
    named, rest = [], list(arguments)
    if rest and not rest[0].startswith("-"):
        named.append(rest.pop(0))
    for i, argument in reversed(list(enumerate(rest))):
        if argument.startswith("--config="):
            named.append(rest.pop(i).partition("=")[2])
        elif argument == "--config" and i + 1 < len(rest):
            named.append(rest.pop(i + 1))
            rest.pop(i)
    if len(named) != 1:
        raise UserError(
            "two recipes are named" if named else "no recipe is named",
            "scripts/run_dpo.py",
            "scripts/run_dpo.py recipes/my-dpo-experiment/config_starter.yaml --learning_rate=1e-6",
        )
    return Path(named[0]), rest


def _say(text: str) -> None:
    os.write(_OUT, f"{text}\n".encode(errors="backslashreplace"))


def _complain(text: str) -> None:
    os.write(_ERR, f"preftune: {text}\n".encode(errors="backslashreplace"))


def _to_log(log: Path) -> None:
    """From here on what libraries print goes to the log, as in a run; the user keeps our lines."""
    global _OUT, _ERR
    log.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    sys.stderr.flush()
    _OUT, _ERR = os.dup(1), os.dup(2)
    os.dup2(target, 1)
    os.dup2(target, 2)


def _lead(path: Path, overrides: list[str], launch: Launch, workspace: Workspace, log: Path) -> None:
    """The first process: recipe, data, training, output folder."""
    if launch.notice:
        _say(launch.notice)
    recipe, model, found = preflight(path, parse_overrides(overrides), workspace)
    _say(f"training in {launch.processes} process(es) on {launch.device}; log: {workspace.display(log)}")
    for notice in recipe.notices:
        _say(f"note: {notice}")
    if model is None:
        prepare_embedded(workspace, _say)
        model = find_model(recipe, workspace)
    sources, mixture = make_data(workspace, recipe, found)
    lengths = make_lengths(workspace, recipe, model, mixture)
    for notice in summary.data_notices(sources, mixture, lengths):
        _say(f"note: {notice}")
    _say(f"mixture: {summary.mixture_line(mixture.info, lengths)}")
    key = keys.train_key(recipe, workspace, model, mixture, launch)
    handed_over = False

    def run(job: dict[str, Any]) -> None:
        nonlocal handed_over
        (Path(job["folder"]) / ERROR_FILE).unlink(missing_ok=True)
        ranks.hand_over({"job": job, "log": str(log)})
        handed_over = True
        _train(job)

    train = training_step.make_train(workspace, key, recipe, model, mixture, lengths, _say, launch=launch, run=run)
    if not handed_over:
        _say("trained before: nothing to do")
        ranks.hand_over(None)
    results = {"source": sources, "mixture": mixture, "lengths": lengths, "train": train}
    _publish(workspace, recipe, model, results)
    _say(_next(path, overrides, workspace, recipe, model, mixture, train, launch))


def _follow() -> None:
    """Every other process: waits for its job, trains."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the launcher passes Ctrl-C on; waiting, there is nothing to save
    told = ranks.wait_for_job()
    if told is not None:
        _to_log(Path(told["log"]))
        _train(told["job"])


class _Told(Exception):
    """The training failed, and it is told, here or by the process that failed first."""

    exit_code = 1


def _train(job: dict[str, Any]) -> None:
    folder = Path(job["folder"])
    try:
        from preftune.training import train

        train(job)
    except Exception as e:
        traceback.print_exc()
        error = e if isinstance(e, PreftuneError) else _explain(e, folder)
        if report_error(folder, error):
            _complain(str(error))
        told = _Told()
        told.exit_code = error.exit_code
        raise told from None


def _explain(error: Exception, folder: Path) -> PreftuneError:
    found = faults.named(error, folder)
    if isinstance(found, OutOfMemory):
        advice = "preftune run with the same recipe goes on from the newest checkpoint, with less at a time"
        return OutOfMemory(f"training {found.error}", "per_device_train_batch_size", advice)
    if found is not None:
        return found
    return StepError(f"training failed: {one_line(error)}", "", "the log has the details")


def _publish(workspace: Workspace, recipe: Recipe, model: StartingModel, results: dict[str, Any]) -> None:
    target, train = output_folder(workspace, recipe.output_dir), results["train"]
    if recipe.hub.push_to_hub:
        _say("note: push_to_hub waits for the verdict")
    merged = not recipe.merge_adapter or (target / "merged").is_dir()
    if publish.holds(target, train.key) and merged:
        return  # a run was here: its verdict and report stay
    if recipe.merge_adapter:
        key = keys.merged_key(recipe, model, train)
        results["merged"] = training_step.make_merged(workspace, key, recipe, model, train, _say)
    publish.publish_run(workspace, recipe, model, target, results)


def _next(
    path: Path,
    overrides: list[str],
    workspace: Workspace,
    recipe: Recipe,
    model: StartingModel,
    mixture: StepResult,
    train: StepResult,
    launch: Launch,
) -> str:
    """Where the result is, and the command that evaluates this very training."""
    done = f"the {'adapter' if train.info['adapter'] else 'model'} is in {recipe.output_dir}; "
    command = ["preftune", "run", str(path), *overrides]
    config = [workspace.display(launch.config.resolve())] if launch.config.is_file() else []
    for name in (recipe.accelerate_config, *NAMES, *config):
        try:
            as_a_run = accelerate_configs.launch(workspace, name)
        except UserError:
            continue
        if keys.train_key(recipe, workspace, model, mixture, as_a_run) == train.key:
            same = name == recipe.accelerate_config
            return f"{done}its verdict: {shlex.join([*command, *([] if same else [f'--accelerate_config={name}'])])}"
    return (
        f"{done}for its verdict name an accelerate configuration with {launch.processes} processes "
        f"(accelerate_config, docs/gpu.md): a run launched otherwise trains anew"
    )


def main() -> NoReturn:
    """Parses the command line and trains; ends the process with 0, 1 (failed) or 2 (wrong input).

    accelerate's launcher makes every failure a 1, and prints a trace of its own after our message.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # not where a shell started it, which may end before it
        die_with_parent()
    arguments, first, code = sys.argv[1:], ranks.rank() == 0, 0
    if {"-h", "--help"} & set(arguments):
        _say(USAGE) if first else None
        ranks.end_process(0)
    children.listener = _say
    try:
        if (launch := settle(launcher_options())) is None:
            ranks.end_process(0)
        if first:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, children.interrupt)
            path, overrides = parse_arguments(arguments)
            workspace = find_workspace(recipe=path).make()
            log = workspace.logs / f"run_dpo-{path.resolve().parent.name}.log"
            _to_log(log)
            _lead(path, overrides, launch, workspace, log)
        else:
            _follow()
    except _Told as e:
        code = e.exit_code
    except PreftuneError as e:
        if first:
            _complain(str(e))
        code = e.exit_code
    except KeyboardInterrupt:
        if first:
            _complain("interrupted; run the same command again to go on")
        code = 130
    except Exception as e:
        traceback.print_exc()
        if first:
            _complain(str(StepError(one_line(e), "", "the log has the details")))
        code = 1
    ranks.end_process(code)
