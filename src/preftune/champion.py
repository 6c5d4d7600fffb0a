"""Champion and challenger: the versions of a registered model in MLflow, and which of them the aliases name.

A version is never deleted or changed; only aliases move. The order of champions is kept on the registered model, so
that a rollback finds the one before.
"""

import fcntl
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from preftune import tracking
from preftune.champion_files import model_folder, upload_model
from preftune.errors import StepError, UserError
from preftune.store import locked
from preftune.workspace import Workspace, find_workspace

CHAMPION, CHALLENGER = "champion", "challenger"
NOBODY = "none"  # where the number of a champion would stand
ORDER_TAG = "preftune.champions"
Decision = Literal["promoted", "kept", "declined", "rolled back"]


class ChampionChanged(StepError):
    """Another version became the champion meanwhile: what was compared with the one before does not replace it."""


class Version(BaseModel):
    """One version of a registered model.

    Args:
        model: The registered model's name.
        number: MLflow's.
        run_id: The MLflow run that made it.
        tags: Ours, without their prefix `preftune.`: the lineage, `verdict`, `decision` and `reason` once decided.
    """

    model_config = ConfigDict(frozen=True)
    model: str
    number: str
    run_id: str
    tags: dict[str, str]

    @property
    def decision(self) -> str | None:
        return self.tags.get("decision")


@dataclass(frozen=True)
class Registered:
    """What the registry holds of one name.

    Args:
        champion: None if there is none.
        versions: The newest first.
    """

    champion: Version | None
    versions: list[Version]

    @property
    def newest_weighed(self) -> Version | None:
        """What a retraining decided on last. What a person promotes in between does not count: else the next
        retraining would weigh the same challenger again, and undo it."""
        return max((v for v in self.versions if "weighed" in v.tags), key=lambda v: v.tags["weighed"], default=None)


def model_name(experiment: str) -> str:
    """The registered model's name: the recipe's experiment, without the signs that mean something to MLflow."""
    return re.sub(r"[/:'\"]", "-", experiment)


@contextmanager
def only_one(workspace: Workspace, name: str, wait: bool) -> Iterator[bool]:
    """Holds the right to retrain this model; yields False if another process of this workspace has it.

    Args:
        workspace: Where the lock stands; the kernel frees it with the process.
        name: The registered model.
        wait: Wait for it instead.
    """
    path = _lock(workspace, f"retrain-{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _lock(workspace: Workspace, name: str) -> Path:
    return workspace.home / "locks" / f"{name}.lock"


def look(client: Any, name: str) -> Registered:
    """What the registry holds of this name."""
    found = client.search_model_versions(f"name = '{name}'")
    versions = sorted((_version(v) for v in found), key=lambda v: int(v.number), reverse=True)
    if not versions:
        return Registered(None, [])
    current = client.get_registered_model(name).aliases.get(CHAMPION)
    return Registered(next((v for v in versions if v.number == str(current)), None), versions)


def _version(found: Any) -> Version:
    tags = {k.removeprefix("preftune."): v for k, v in found.tags.items() if k.startswith("preftune.")}
    return Version(model=found.name, number=str(found.version), run_id=found.run_id, tags=tags)


def register(client: Any, name: str, run_id: str, folder: Path, tags: dict[str, str]) -> Version:
    """The version of this run and lineage, made when missing, as the challenger. Its model is uploaded to the run.

    Args:
        client: From `tracking.connect`.
        name: The registered model.
        run_id: The policy's MLflow run.
        folder: The model or adapter.
        tags: The lineage and where it comes from.
    """
    registered = look(client, name)
    same = (v for v in registered.versions if v.run_id == run_id and v.tags.get("lineage") == tags.get("lineage"))
    found = next(same, None)
    upload_model(client, run_id, folder)
    if found is None:
        if not registered.versions:
            _create(client, name)
        ours = {f"preftune.{k}": v for k, v in tags.items()}
        made = client.create_model_version(name, f"runs:/{run_id}/model", run_id, tags=ours)
        found = _version(made).model_copy(update={"tags": tags})
    if registered.champion is None or registered.champion.number != found.number:
        client.set_registered_model_alias(name, CHALLENGER, found.number)
    return found


def _create(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Policies of preftune; the alias champion names the best.")
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def tag(client: Any, version: Version, tags: dict[str, str]) -> None:
    """Sets tags on the version; an empty text removes one."""
    for key, value in tags.items():
        if value:
            client.set_model_version_tag(version.model, version.number, f"preftune.{key}", value)
        else:
            client.delete_model_version_tag(version.model, version.number, f"preftune.{key}")


def decide(client: Any, version: Version, decision: Decision, reason: str, by_hand: bool = True) -> None:
    """Writes down what was decided on a version, and on its run; a decided version waits for nobody."""
    from mlflow.entities import RunTag

    decided = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    tag(client, version, {"reason": reason, "decided": decided, "decision": decision, "waits_in": ""})
    if not by_hand:
        tag(client, version, {"weighed": decided})
    text = f"{decision}: {reason}"
    client.update_model_version(version.model, version.number, text)
    registered = f"{version.model} version {version.number}"
    tags = [RunTag("preftune.decision", text[:5000]), RunTag("preftune.registered", registered)]
    client.log_batch(version.run_id, tags=tags)


def order(client: Any, name: str) -> list[str]:
    """The champions up to the one in force, the oldest first."""
    found = client.get_registered_model(name)
    current = found.aliases.get(CHAMPION)
    if current is None:
        return []
    before = json.loads(found.tags.get(ORDER_TAG, "[]"))
    current = str(current)
    while before and before[-1] != current:  # rolled back, or its alias was never moved
        before.pop()
    return before or [current]


def set_champion(client: Any, workspace: Workspace, version: Version, over: str) -> None:
    """Moves the alias `champion` to this version.

    Args:
        client: From `tracking.connect`.
        workspace: Where the lock stands under which aliases move.
        version: The new champion.
        over: The number of the champion that it was compared with; `NOBODY`: there was none.

    Raises:
        ChampionChanged: If another one is champion by now.
    """
    with locked(_lock(workspace, f"champion-{version.model}")):
        before = order(client, version.model)
        now = before[-1] if before else NOBODY
        if now == version.number:
            return
        if now != over:
            raise ChampionChanged(
                f"version {now} became the champion while version {version.number} was compared with {over}",
                f"registered model {version.model}",
                "run the retraining again: only the comparison with the new champion is made",
            )
        _move(client, version.model, [*before, version.number])


def _move(client: Any, name: str, champions: list[str]) -> None:
    """Writes the order and moves the alias; where it breaks off in between, `order` goes by the alias."""
    client.set_registered_model_tag(name, ORDER_TAG, json.dumps(champions[-200:]))
    client.set_registered_model_alias(name, CHAMPION, champions[-1])
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == champions[-1]:
        client.delete_registered_model_alias(name, CHALLENGER)


def rollback(workspace: Workspace, name: str | None = None) -> dict[str, str]:
    """Makes the champion before the champion again.

    Args:
        workspace: Whose MLflow it is.
        name: The registered model; may be left out if only one has a champion.

    Returns:
        What `preftune rollback --json` prints.

    Raises:
        UserError: If there is no champion, or none before it.
    """
    with tracking.mlflow_errors(workspace):
        client = tracking.connect(workspace)
        name = _the_model(client, name)
        with locked(_lock(workspace, f"champion-{name}")):
            champions = order(client, name)
            if len(champions) < 2:
                raise UserError(
                    f"version {champions[0]} is the first champion: there is none before it",
                    f"registered model {name}",
                    "to stop using it, use the SFT model",
                )
            versions = {v.number: v for v in look(client, name).versions}
            left, back = versions[champions[-1]], champions[-2]
            _move(client, name, champions[:-1])
        decide(client, left, "rolled back", f"by hand, to version {back}")
    return {"model": name, "version": back, "run_id": versions[back].run_id, "rolled_back": left.number}


def _the_model(client: Any, name: str | None) -> str:
    """The registered model that is meant.

    Raises:
        UserError: If it has no champion, or several have one and none is named.
    """
    found = sorted(m.name for m in client.search_registered_models() if CHAMPION in m.aliases)
    if name is not None and model_name(name) in found:
        return model_name(name)
    if name is None and len(found) == 1:
        return found[0]
    have = f"models with a champion: {', '.join(found)}" if found else "preftune promote RUN makes one"
    if name is None and found:
        raise UserError("several registered models have a champion", "command line", f"name one of {have}")
    raise UserError("there is no champion", f"registered model {name or '(none)'}", have)


def champion(name: str | None = None) -> str:
    """The folder of the champion's files, to be loaded from: `pipeline("text-generation", model=champion("starter"))`.

    Args:
        name: The recipe's experiment; may be left out if only one model has a champion.

    Raises:
        UserError: If there is no champion.
    """
    workspace = find_workspace()
    with tracking.mlflow_errors(workspace):
        client = tracking.connect(workspace)
        found = look(client, _the_model(client, name)).champion
        assert found is not None
        return str(model_folder(client, workspace, found.run_id, found.tags.get("train")))
