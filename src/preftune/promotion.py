"""Promoting by hand: a recorded run becomes the champion of its experiment."""

import json
import tempfile
from pathlib import Path
from typing import Any

from preftune import store
from preftune.champion import NOBODY, decide, look, model_name, register, set_champion
from preftune.champion_files import model_folder
from preftune.errors import UserError
from preftune.policies import read_policy
from preftune.recorded_runs import resolve_run
from preftune.tracking import connect, list_runs, mlflow_errors
from preftune.workspace import Workspace

# Of a run's tags, those that its version gets.
VERSION_TAGS = (
    *("lineage", "recipe", "sources", "sft_model", "sft_weights", "policy", "train"),
    *("git", "prefect_flow_run", "verdict"),
)


def promote(workspace: Workspace, name: str, anyway: bool = False) -> dict[str, Any]:
    """Registers a run's model and makes it the champion.

    Args:
        workspace: Whose MLflow it is.
        name: A run id, or what it starts with.
        anyway: Also where the verdict is not promote.

    Returns:
        What `preftune promote --json` prints.

    Raises:
        UserError: If there is no such run, it has no model, or its verdict is not promote.
    """
    row = resolve_run(name, list_runs(workspace))
    where = f"run {row['run_id'][:8]} ({row['name']})"
    with mlflow_errors(workspace):
        client = connect(workspace)
        run = client.get_run(row["run_id"])
        tags = {k: run.data.tags[f"preftune.{k}"] for k in VERSION_TAGS if f"preftune.{k}" in run.data.tags}
        if row["kind"] == "sft":
            raise UserError("this is the SFT baseline", where, "name a run that was trained: preftune runs")
        registered = look(client, model_name(row["experiment"]))
        before = registered.champion.number if registered.champion else NOBODY
        objection = _objection(client, row["run_id"], run.data.tags, before)
        if objection and not anyway:
            raise UserError(objection, where, "read its report first; --anyway promotes it all the same")
        folder = _folder(client, workspace, run, where)
        if read_policy(folder, workspace).digest != tags.get("policy"):
            raise UserError(f"{folder} holds another model by now", where, "run or evaluate it again")
        version = register(client, model_name(row["experiment"]), row["run_id"], folder, tags)
        if version.number == before:
            raise UserError("it is the champion already", where, "preftune rollback goes back to the one before")
        set_champion(client, workspace, version, before)
        decide(client, version, "promoted", f"by hand, although {objection}" if objection else "by hand")
    return {
        "model": version.model,
        "version": version.number,
        "run_id": version.run_id,
        "replaced": None if before == NOBODY else before,
        "objection": objection,
    }


def _objection(client: Any, run_id: str, tags: dict[str, str], champion: str) -> str | None:
    """What speaks against promoting the run."""
    outcome = tags.get("preftune.verdict")
    if outcome is None:
        return "it has no verdict: it is not finished"
    if outcome != "promote":
        return f"its verdict is {outcome}: {'; '.join(_reasons(client, run_id))}"
    against, compared = tags.get("preftune.champion_verdict"), tags.get("preftune.compared_with")
    if against not in (None, "promote") and compared == champion:
        return f"its verdict against the champion (version {champion}) is {against}"
    return None


def _reasons(client: Any, run_id: str) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        return json.loads(Path(client.download_artifacts(run_id, "verdict.json", scratch)).read_text())["reasons"]


def _folder(client: Any, workspace: Workspace, run: Any, where: str) -> Path:
    """Where the run's model stands: in the store, in the folder that was evaluated, or uploaded already."""
    if evaluated := run.data.params.get("policy"):
        if not Path(evaluated).is_dir():
            raise UserError(f"the folder {evaluated} is gone", where, "evaluate it again")
        return Path(evaluated)
    train = run.data.tags.get("preftune.train")
    if train and (made := store.find(workspace, "train", train)):
        return made.folder(workspace) / "model"
    return model_folder(client, workspace, run.info.run_id, None)
