"""The model registry, for real, on SQLite: versions, aliases, the order of champions, promoting by hand."""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune import champion, promotion, tracking
from preftune.champion import NOBODY, ChampionChanged, Registered, Version
from preftune.champion_files import model_folder, upload_model, uploaded
from preftune.errors import StepError, UserError
from preftune.policies import read_policy
from preftune.workspace import Workspace

Made = tuple[str, Path, dict[str, str]]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("registry")
    return Workspace(folder, folder / ".preftune").make()


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> Any:
    return tracking.connect(workspace)


@pytest.fixture
def trained(workspace: Workspace, client: Any, tmp_path: Path) -> Callable[..., Made]:
    """A recorded run with a model's files: (run id, folder, tags). The files' content is the name."""

    def make(experiment: str, name: str, verdict: str = "promote") -> Made:
        folder = tmp_path / name
        (folder / "sub").mkdir(parents=True)
        (folder / "model.safetensors").write_text(f"weights of {name}")
        (folder / "config.json").write_text("{}")
        (folder / "sub/more.json").write_text("{}")
        tags = {"lineage": name, "policy": read_policy(folder, workspace).digest, "verdict": verdict}
        run = client.create_run(
            tracking.experiment_id(client, workspace, experiment),
            run_name=name,
            tags={"preftune.kind": "evaluation", **{f"preftune.{k}": v for k, v in tags.items()}},
        )
        client.log_param(run.info.run_id, "policy", str(folder))
        client.log_text(run.info.run_id, json.dumps({"reasons": [f"why {name}"]}), "verdict.json")
        return run.info.run_id, folder, tags

    return make


def test_a_challenger_is_registered_once_with_its_files_and_lineage(client: Any, trained: Callable[..., Made]) -> None:
    run_id, folder, tags = trained("once", "a")
    first = champion.register(client, "once", run_id, folder, tags)
    assert champion.register(client, "once", run_id, folder, tags) == first
    assert champion.look(client, "once") == Registered(None, [first])
    assert first.tags == tags and first.run_id == run_id
    assert uploaded(client, run_id) == {
        p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()
    }
    assert client.get_model_version("once", "1").source == f"runs:/{run_id}/model"
    assert client.get_model_version_by_alias("once", "challenger").version == 1
    # The same weights from data that changed without effect: another version of the same run.
    again = champion.register(client, "once", run_id, folder, {**tags, "lineage": "b"})
    assert (again.number, again.run_id) == ("2", run_id)


def test_files_are_sent_once_and_a_torn_one_again(client: Any, trained: Callable[..., Made]) -> None:
    run_id, folder, _ = trained("files", "a")
    upload_model(client, run_id, folder)
    place = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / "model"
    (place / "config.json").write_text("{")  # as a kill leaves it
    untouched = (place / "model.safetensors").stat().st_mtime_ns
    upload_model(client, run_id, folder)
    assert (place / "config.json").read_text() == "{}"
    assert (place / "model.safetensors").stat().st_mtime_ns == untouched


def test_a_file_that_does_not_arrive_registers_nothing(
    client: Any, trained: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, folder, tags = trained("torn", "a")
    send = client.log_artifact

    def half(run: str, path: str, place: str) -> None:
        if not path.endswith("safetensors"):
            send(run, path, place)

    monkeypatch.setattr(client, "log_artifact", half)
    with pytest.raises(StepError, match=r"model\.safetensors did not arrive whole"):
        champion.register(client, "torn", run_id, folder, tags)
    assert champion.look(client, "torn").versions == []


def crowned(client: Any, workspace: Workspace, trained: Callable[..., Made], model: str, *names: str) -> list[Version]:
    """Champions one after the other."""
    versions, before = [], NOBODY
    for name in names:
        version = champion.register(client, model, *trained(model, name))
        champion.set_champion(client, workspace, version, before)
        champion.decide(client, version, "promoted", f"better: {name}", by_hand=False)
        versions.append(version)
        before = version.number
    return versions


def test_rollback_goes_from_champion_to_champion(
    client: Any, workspace: Workspace, trained: Callable[..., Made]
) -> None:
    versions = crowned(client, workspace, trained, "back", "a", "b", "c")
    found = champion.look(client, "back")
    assert found.champion and found.champion.number == "3" and found.champion.decision == "promoted"
    assert "challenger" not in client.get_registered_model("back").aliases
    assert champion.rollback(workspace, "back") == {
        "model": "back",
        "version": "2",
        "run_id": versions[1].run_id,
        "rolled_back": "3",
    }
    newest = champion.look(client, "back").newest_weighed
    assert newest and (newest.number, newest.decision) == ("3", "rolled back"), "it is not promoted again by itself"
    # What was rolled back is no longer in the order: the next champion stands on version 2.
    fourth = champion.register(client, "back", *trained("back", "d"))
    champion.set_champion(client, workspace, fourth, "2")
    assert champion.order(client, "back") == ["1", "2", "4"]
    assert [champion.rollback(workspace, "back")["version"] for _ in range(2)] == ["2", "1"]
    with pytest.raises(UserError, match="none before it"):
        champion.rollback(workspace, "back")
    assert len(champion.look(client, "back").versions) == 4, "no version is ever deleted"


def test_an_older_version_may_come_back(client: Any, workspace: Workspace, trained: Callable[..., Made]) -> None:
    first, _ = crowned(client, workspace, trained, "again", "a", "b")
    champion.set_champion(client, workspace, first, "2")
    assert champion.order(client, "again") == ["1", "2", "1"]
    assert champion.rollback(workspace, "again")["version"] == "2"
    assert champion.rollback(workspace, "again")["version"] == "1"


@pytest.mark.parametrize("broke_off_at", ["set_registered_model_tag", "set_registered_model_alias"])
def test_a_kill_between_order_and_alias_leaves_the_old_champion(
    client: Any, workspace: Workspace, trained: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, broke_off_at: str
) -> None:
    model = broke_off_at
    crowned(client, workspace, trained, model, "a", "b")
    third = champion.register(client, model, *trained(model, "c"))

    def gone(*_: Any) -> None:
        raise OSError("away")

    with monkeypatch.context() as patch:
        real = getattr(client, broke_off_at)

        def breaks(*values: Any) -> Any:
            return gone() if values[1] in (champion.ORDER_TAG, champion.CHAMPION) else real(*values)

        patch.setattr(client, broke_off_at, breaks)
        with pytest.raises(OSError, match="away"):
            champion.set_champion(client, workspace, third, "2")
    assert champion.order(client, model) == ["1", "2"]
    champion.set_champion(client, workspace, third, "2")
    champion.set_champion(client, workspace, third, "2")  # again, as a retry does
    assert champion.order(client, model) == ["1", "2", "3"]


def test_a_champion_that_changed_meanwhile_is_not_replaced(
    client: Any, workspace: Workspace, trained: Callable[..., Made]
) -> None:
    crowned(client, workspace, trained, "changed", "a", "b")
    late = champion.register(client, "changed", *trained("changed", "c"))
    with pytest.raises(ChampionChanged, match="version 2 became the champion while version 3 was compared with 1"):
        champion.set_champion(client, workspace, late, "1")
    assert champion.order(client, "changed") == ["1", "2"]


def test_promoting_by_hand(client: Any, workspace: Workspace, trained: Callable[..., Made]) -> None:
    good, bad = trained("hand/made", "good")[0], trained("hand/made", "bad", "reject")[0]
    found = promotion.promote(workspace, good[:12])
    assert found == {"model": "hand-made", "version": "1", "run_id": good, "replaced": None, "objection": None}
    with pytest.raises(UserError, match="champion already"):
        promotion.promote(workspace, good)
    with pytest.raises(UserError, match="its verdict is reject: why bad"):
        promotion.promote(workspace, bad)
    assert len(champion.look(client, "hand-made").versions) == 1, "a refusal registers nothing"
    found = promotion.promote(workspace, bad, anyway=True)
    assert (found["version"], found["replaced"], found["objection"]) == ("2", "1", "its verdict is reject: why bad")
    now = champion.look(client, "hand-made").champion
    assert now and now.tags["reason"] == "by hand, although its verdict is reject: why bad"
    assert client.get_run(bad).data.tags["preftune.decision"].startswith("promoted: by hand")
    assert champion.rollback(workspace, "hand/made")["version"] == "1"
    assert champion.look(client, "hand-made").newest_weighed is None, "it says nothing to the next retraining"


def test_what_lost_against_the_champion_is_refused(
    client: Any, workspace: Workspace, trained: Callable[..., Made]
) -> None:
    crowned(client, workspace, trained, "lost", "a")
    run_id, _, _ = trained("lost", "b")
    client.set_tag(run_id, "preftune.champion_verdict", "inconclusive")
    client.set_tag(run_id, "preftune.compared_with", "1")
    with pytest.raises(UserError, match=r"against the champion \(version 1\) is inconclusive"):
        promotion.promote(workspace, run_id)


def test_files_that_changed_since_are_not_promoted(workspace: Workspace, trained: Callable[..., Made]) -> None:
    run_id, folder, _ = trained("other-files", "a")
    (folder / "model.safetensors").write_text("other weights")
    with pytest.raises(UserError, match="holds another model by now"):
        promotion.promote(workspace, run_id)


def test_files_come_back_from_the_registry(client: Any, workspace: Workspace, trained: Callable[..., Made]) -> None:
    run_id, folder, _ = trained("fetched", "a")
    upload_model(client, run_id, folder)
    for damage in (None, "model.safetensors"):
        there = model_folder(client, workspace, run_id, train=None)
        assert (there / "model.safetensors").read_text() == "weights of a" and (there / "sub/more.json").is_file()
        if damage:
            (there / damage).unlink()
    assert (model_folder(client, workspace, run_id, None) / "model.safetensors").is_file(), "fetched again"


def test_a_rollback_without_a_champion_says_so(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="there is no champion"):
        champion.rollback(workspace, "nobody")


def test_one_retraining_at_a_time(workspace: Workspace) -> None:
    with champion.only_one(workspace, "m", wait=False) as mine:
        assert mine
        with champion.only_one(workspace, "m", wait=False) as second, champion.only_one(workspace, "n", False) as other:
            assert not second and other
        path = workspace.home / "locks/retrain-m.lock"
        with path.open("w") as f, pytest.raises(BlockingIOError):
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with champion.only_one(workspace, "m", wait=True) as mine:
        assert mine
