"""Pushing to the hub with the real client, against a server that answers as the hub does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import LFS_FROM, READER, WRITER, FakeHub, Repo, fake_hub

from preftune.errors import StepError, UserError
from preftune.hub_push import check_push, files_to_push, push
from preftune.recipe import resolve
from preftune.schema import Hub, Recipe
from preftune.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # huggingface_hub's call of httpx
ON: dict[str, Any] = {"push_to_hub": True, "hub_model_id": "me/mine"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The hub is our server; a token that may write is in the environment."""
    from huggingface_hub import constants

    with fake_hub() as server:
        settings = {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        for name, value in {**settings, "HF_TOKEN_PATH": str(tmp_path / "no-token")}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def recipe(**keys: Any) -> Recipe:
    given = {"model_name_or_path": "someone/sft", "dataset_name": "pairs.jsonl", **ON, **keys}
    return resolve(given, Path("recipes/demo/config.yaml"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder with all that stands in one, and some that must never be pushed."""
    folder = tmp_path / "data" / "mine"
    texts = ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json", "README.md")
    never = ("training_args.bin", "optimizer.pt", ".preftune.json", "recipe.yaml", "report.html", "runs/events.1")
    for name in (*texts, "verdict.json", "sub/more.json", *never, "runs/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of this run")
    (folder / "model.safetensors").write_bytes(b"w" * LFS_FROM)
    return folder


PUSHED = {"config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json", "README.md"}
PUSHED |= {"verdict.json", "sub/more.json", "model.safetensors"}


def test_what_is_pushed(hub: FakeHub, output: Path) -> None:
    """The commit's payload, as the server got it; large files through its storage."""
    assert set(files_to_push(output)) == PUSHED
    assert push(output, "me/mine", Hub(**ON), "a message") == f"{hub.url}/me/mine"
    repo = hub.repos["me/mine"]
    assert repo.files == {n: (output / n).read_bytes() for n in PUSHED}
    (commit,) = repo.commits
    assert commit[0]["value"]["summary"] == "a message"
    assert [line["value"]["path"] for line in commit if line["key"] == "lfsFile"] == ["model.safetensors"]
    assert repo.private is None, "the account's own default decides"


def test_the_pipelined_upload(hub: FakeHub, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub has two ways of its own; this one is taken where hf_xet is installed."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    (output / "model.safetensors").write_bytes(b"small")  # a large one would need xet's storage
    push(output, "me/mine", Hub(**ON), "m")
    push(output, "me/mine", Hub(**ON), "m")
    assert set(hub.repos["me/mine"].files) == PUSHED and len(hub.repos["me/mine"].commits) == 1


def test_the_same_content_is_pushed_once(hub: FakeHub, output: Path) -> None:
    push(output, "me/mine", Hub(**ON), "m")
    stored = len([a for a in hub.asked if a.startswith("PUT")])
    push(output, "me/mine", Hub(**ON), "m")
    (output / "verdict.json").write_text("another")
    push(output, "me/mine", Hub(**ON), "m")
    _, second = hub.repos["me/mine"].commits
    assert [line["value"].get("path") for line in second[1:]] == ["verdict.json"]
    assert stored == len([a for a in hub.asked if a.startswith("PUT")]) == 1


def test_a_merged_model_is_pushed_in_place_of_its_adapter(hub: FakeHub, output: Path) -> None:
    """Nothing is left of an adapter that was pushed before: it would be loaded on top."""
    hub.repos["me/mine"] = Repo(files={"adapter_config.json": b"{}", "adapter_model.safetensors": b"old"})
    theirs = {".gitattributes": b"x", "picture.png": b"x", "other/adapter_config.json": b"x", "notes.json": b"x"}
    hub.repos["me/mine"].files |= theirs
    merged = output / "merged"
    merged.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (merged / name).write_text(f"merged {name}")
    push(output, "me/mine", Hub(**ON), "m")
    assert hub.repos["me/mine"].files == theirs | {n: (merged / n).read_bytes() for n in files_to_push(merged)}
    assert set(files_to_push(merged)) == {"config.json", "model.safetensors", "README.md"}


def test_private_and_branch(hub: FakeHub, output: Path) -> None:
    wanted = Hub(**ON, hub_private_repo=True, hub_revision="beta-0.3")
    push(output, "me/mine", wanted, "m")
    push(output, "me/mine", wanted, "m")
    assert hub.repos["me/mine"].private is True and hub.repos["me/mine"].branches == {"main", "beta-0.3"}
    assert "POST /api/models/me/mine/commit/beta-0.3" in hub.asked


@pytest.mark.parametrize(("part", "status"), [("repos/create", 403), ("/commit/", 403), ("/lfs/", 403)])
def test_a_failed_upload_is_named_and_made_good(hub: FakeHub, output: Path, part: str, status: int) -> None:
    hub.refuse[part] = status
    with pytest.raises(StepError, match=r"the upload failed: .*403") as e:
        push(output, "me/mine", Hub(**ON), "m")
    assert e.value.where == "me/mine" and "it only uploads" in e.value.advice
    assert WRITER not in str(e.value)
    hub.refuse.clear()
    push(output, "me/mine", Hub(**ON), "m")
    assert set(hub.repos["me/mine"].files) == PUSHED


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, tmp_path / ".preftune")


def test_before_training(hub: FakeHub, workspace: Workspace) -> None:
    assert check_push(recipe(), workspace) == "me/mine"
    assert check_push(recipe(hub_model_id="mine"), workspace) == "me/mine"
    asked = len(hub.asked)
    assert check_push(recipe(push_to_hub=False), workspace) is None
    assert len(hub.asked) == asked, "the hub is not asked where nothing is pushed"
    hub.repos["me/mine"] = Repo(private=True)
    assert check_push(recipe(hub_private_repo=True), workspace) == "me/mine"


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "there is no token"), ("hf_wrong", "does not accept the token"), (READER, "may only read")],
)
def test_a_token_that_will_not_do(
    hub: FakeHub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, token: str | None, said: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=said) as e:
        check_push(recipe(), workspace)
    assert e.value.where == "push_to_hub" and e.value.advice
    assert token is None or token not in str(e.value)


def test_no_hub(hub: FakeHub, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be reached") as e:
        check_push(recipe(), workspace)
    assert "push later" in e.value.advice
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="switched off"):
        check_push(recipe(), workspace)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    hub.refuse["whoami"] = 429
    with pytest.raises(UserError, match="the hub refuses"):
        check_push(recipe(), workspace)


def test_what_nobody_could_load(hub: FakeHub, workspace: Workspace) -> None:
    """An adapter names its starting model's folder; a merged or full model needs none, one on the hub is found."""
    (workspace.project / "sft").mkdir()
    for model in ("sft", "embedded/SmolLM2-135M-Instruct"):
        with pytest.raises(UserError, match="loaded nowhere else") as e:
            check_push(recipe(model_name_or_path=model, use_peft=True), workspace)
        assert "merge_adapter" in e.value.advice
        assert check_push(recipe(model_name_or_path=model, use_peft=True, merge_adapter=True), workspace)
        assert check_push(recipe(model_name_or_path=model), workspace)
    assert check_push(recipe(use_peft=True), workspace)


def test_a_public_repository_where_a_private_one_was_asked_for(hub: FakeHub, workspace: Workspace) -> None:
    hub.repos["me/mine"] = Repo(private=False)
    with pytest.raises(UserError, match="me/mine exists and is public") as e:
        check_push(recipe(hub_private_repo=True), workspace)
    assert e.value.where == "hub_private_repo"


@pytest.mark.parametrize("name", ["a/b/c", "-x", "x y", "../x"])
def test_a_name_that_is_none(hub: FakeHub, workspace: Workspace, name: str) -> None:
    with pytest.raises(UserError) as e:
        check_push(recipe(hub_model_id=name), workspace)
    assert e.value.where == "hub_model_id"
    assert not hub.asked
