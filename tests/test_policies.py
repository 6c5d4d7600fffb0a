"""A policy on disk: what is accepted, what is refused with which words, and when two folders are the same policy."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import UserError
from preftune.models import StartingModel
from preftune.policies import find_policy
from preftune.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, tmp_path / "home").make()


@pytest.fixture
def model(tmp_path: Path) -> StartingModel:
    return StartingModel(
        "m", "m", None, "d", "t", files=str(folder(tmp_path / "sft", config={"vocab_size": 10})), weights="w"
    )


def folder(path: Path, weights: str = "model.safetensors", content: bytes = b"w", **files: Any) -> Path:
    path.mkdir()
    (path / weights).write_bytes(content)
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def adapter(path: Path, content: bytes = b"a", **config: Any) -> Path:
    return folder(path, "adapter_model.safetensors", content, adapter_config={"r": 8, **config})


def test_an_adapter_is_the_same_wherever_it_stands(workspace: Workspace, model: StartingModel, tmp_path: Path) -> None:
    """adapter_config.json names the base model's folder on the machine that trained it; a merged model, a card and a
    verdict stand beside the published copy."""
    first = find_policy(str(adapter(tmp_path / "a", base_model_name_or_path="/here")), workspace, model)
    copy = adapter(tmp_path / "b", base_model_name_or_path="/there")
    (copy / "verdict.json").write_text("{}")
    folder(copy / "merged", config={})
    assert find_policy(str(copy), workspace, model).digest == first.digest and first.adapter


@pytest.mark.parametrize("change", [{"content": b"other"}, {"r": 16}])
def test_other_weights_or_another_rank_are_another_adapter(
    change: dict[str, Any], workspace: Workspace, model: StartingModel, tmp_path: Path
) -> None:
    first = find_policy(str(adapter(tmp_path / "a")), workspace, model)
    assert find_policy(str(adapter(tmp_path / "b", **change)), workspace, model).digest != first.digest


def test_a_whole_model(workspace: Workspace, model: StartingModel, tmp_path: Path) -> None:
    """Its weights, its configuration and when its answers end count; its card does not."""
    first = folder(tmp_path / "a", config={"vocab_size": 10}, generation_config={"eos_token_id": 1})
    found = find_policy(str(first), workspace, model)
    assert not found.adapter
    copy = Path(shutil.copytree(first, tmp_path / "b"))
    (copy / "README.md").write_text("card")
    assert find_policy(str(copy), workspace, model).digest == found.digest
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert find_policy(str(copy), workspace, model).digest != found.digest


def test_a_relative_name_is_meant_from_the_project(workspace: Workspace, model: StartingModel, tmp_path: Path) -> None:
    adapter(tmp_path / "policy")
    assert find_policy("policy", workspace, model).folder == tmp_path / "policy"


def test_what_is_refused(workspace: Workspace, model: StartingModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folder(tmp_path / "pickled", "pytorch_model.bin", config={})
    folder(tmp_path / "small", config={"vocab_size": 9})
    folder(tmp_path / "torn", "adapter_model.safetensors")
    (tmp_path / "torn/adapter_config.json").write_text("{")
    cases = {
        "nowhere": "no such folder",
        "empty": "neither a model",
        "pickled": "pickled files",
        "small": "knows 9 tokens and the recipe's SFT model 10",
        "torn": "not readable as JSON",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as e:
            find_policy(name, workspace, model)
        assert name in e.value.where and e.value.advice
