"""What a run leaves, through the real command line: adapter, merged model, cards, and the push to the hub."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE, child_env, preftune
from fake_hub import WRITER, FakeHub, fake_hub

from preftune.errors import StepError
from preftune.models import find_model
from preftune.recipe import load_recipe
from preftune.store import StepResult
from preftune.training_step import make_merged
from preftune.workspace import Workspace

pytestmark = pytest.mark.slow

OWN_TEMPLATE = TEMPLATE + "{# the recipe's own #}"
RECIPE = "recipes/tiny/config.yaml"


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub() as server:
        yield server


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("project")
    keys = {"use_peft": True, "lora_r": 4, "merge_adapter": True, "chat_template": OWN_TEMPLATE}
    make_project(folder, **keys, report_to=["tensorboard"], push_to_hub=True, hub_model_id="tiny-dpo")
    return folder


@pytest.fixture(scope="module")
def command(project: Path, hub: FakeHub) -> Callable[..., Any]:
    """Runs `preftune run` with the hub at hand."""
    env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": WRITER}
    env |= {"NO_PROXY": "127.0.0.1", "HF_HOME": str(project / "hf")}

    def run(*more: str) -> Any:
        return preftune("run", RECIPE, "--json", *more, cwd=project, **env)

    return run


@pytest.fixture(scope="module")
def failed(command: Callable[..., Any], hub: FakeHub) -> Any:
    """The first run; the hub takes the files but not the commit."""
    hub.refuse["/commit/"] = 403
    done = command()
    hub.refuse.clear()
    return done


@pytest.fixture(scope="module")
def again(failed: Any, command: Callable[..., Any]) -> dict[str, Any]:
    done = command()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_a_token_nothing_starts(project: Path) -> None:
    env = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(project / "hf"), "HF_TOKEN": ""}
    done = preftune("check", RECIPE, "--json", cwd=project, **env)
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["error"] == "there is no token for the hub"


def test_a_failed_upload_comes_after_everything_else(failed: Any, project: Path) -> None:
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    told = json.loads(failed.stdout)
    assert told["error"].startswith("the upload failed: ") and "only uploads" in told["advice"]
    assert (project / "data/tiny/merged/model.safetensors").is_file()
    assert (project / "data/tiny/verdict.json").is_file()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{project}/.preftune/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [r.info.status for r in runs] == ["FINISHED"] * 2


def test_the_same_command_only_uploads(again: dict[str, Any], hub: FakeHub) -> None:
    assert set(again["steps"].values()) == {"cached"} and again["steps"]["merged"] == "cached"
    assert again["hub"] == f"{hub.url}/me/tiny-dpo"
    assert len(hub.repos["me/tiny-dpo"].commits) == 1


def test_what_stands_on_the_hub(again: dict[str, Any], hub: FakeHub, project: Path) -> None:
    """The merged model with its card; nothing of this machine, nothing of the data's text."""
    files = hub.repos["me/tiny-dpo"].files
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert set(files) - {"tokenizer_config.json"} == expected | {"README.md", "verdict.json"}
    card = files["README.md"].decode()
    assert 'place = "me/tiny-dpo"' in card and f"## Verdict: {again['verdict']['outcome']}" in card
    for name, content in files.items():
        for never in (str(project.parent), WRITER, "what comes after"):
            assert never.encode() not in content, name


def test_the_output_folder(again: dict[str, Any], project: Path) -> None:
    out = project / "data/tiny"
    shared = {"tokenizer.json", "chat_template.jinja", "generation_config.json", "README.md", "verdict.json"}
    names = {p.name for p in out.iterdir()}
    assert shared | {"adapter_model.safetensors", "adapter_config.json", "recipe.yaml", "report.html"} <= names
    merged = {p.name for p in (out / "merged").iterdir()}
    assert shared | {"model.safetensors", "config.json"} <= merged and "adapter_config.json" not in merged
    for folder in (out, out / "merged"):
        assert (folder / "chat_template.jinja").read_text() == OWN_TEMPLATE
    assert list((out / "runs").rglob("events.out.tfevents.*")), "tensorboard --logdir data/tiny"
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pt")]


def test_the_cards_code_loads_both(again: dict[str, Any], project: Path) -> None:
    """As a reader of the card would run it; the adapter's and the merged model's answers are the same."""
    blocks = []
    for card in ("data/tiny/README.md", "data/tiny/merged/README.md"):
        (found,) = re.findall(r"(?ms)^```python\n(.*?)^```$", (project / card).read_text())
        blocks.append(found)
    # The merged model's card names where it will stand on the hub.
    assert 'place = "me/tiny-dpo"' in blocks[1]
    blocks[1] = blocks[1].replace("me/tiny-dpo", "data/tiny/merged")
    code = "answers = []\n"
    for found in blocks:
        asked = found.replace("max_new_tokens=256", "max_new_tokens=8, do_sample=False")
        code += asked.replace("print(answer", "answers.append(answer")
    code += "import json; print(json.dumps([answers, chat.tokenizer.chat_template]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=child_env(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (adapter, merged), template = json.loads(done.stdout)
    assert adapter and adapter == merged and template == OWN_TEMPLATE


def test_the_token_is_nowhere(again: dict[str, Any], project: Path) -> None:
    for path in project.rglob("*"):
        if path.is_file():
            assert WRITER.encode() not in path.read_bytes(), path


def test_a_rejected_policy_is_not_pushed(
    again: dict[str, Any], hub: FakeHub, command: Callable[..., Any], project: Path
) -> None:
    done = command("--gate.max_nll_factor=1", "--gate.max_nll_offset=0")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["verdict"]["outcome"], result["hub"]) == ("reject", None)
    assert "not pushed to me/tiny-dpo: the verdict is reject" in done.stderr
    assert 'place = "data/tiny/merged"' in (project / "data/tiny/merged/README.md").read_text()
    assert len(hub.repos["me/tiny-dpo"].commits) == 1


def test_a_merge_that_fails_names_the_way_on(again: dict[str, Any], project: Path) -> None:
    """A torn adapter; the advice is also that of a merge for which memory does not suffice."""
    workspace = Workspace(project, project / ".preftune")
    recipe = load_recipe(project / RECIPE)
    train = StepResult(step="train", key="torn", digest="torn", info={})
    (trained,) = (f for f in (workspace.store / "train").iterdir())
    shutil.copytree(trained, train.folder(workspace))
    (train.folder(workspace) / "model/adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(StepError, match="merge failed") as e:
        make_merged(workspace, "torn", recipe, find_model(recipe, workspace), train)
    assert "--merge_adapter=false" in e.value.advice
    assert not (workspace.store / "merged/torn").exists()
