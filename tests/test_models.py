"""The starting model: refused by name or by what is in its folder, before anything is loaded."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import UserError
from preftune.models import StartingModel, check_name, embedded_folder, find_model
from preftune.recipe import resolve
from preftune.schema import EMBEDDED_MODEL, Recipe
from preftune.workspace import Workspace

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A project without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Workspace(tmp_path, tmp_path / "home")


def write(folder: Path, **files: Any) -> Path:
    """A model's folder: what `save_pretrained` writes, but for the changes (None leaves a file out)."""
    content = {
        "config.json": {"model_type": "llama"},
        "model.safetensors": "weights",
        "tokenizer.json": {},
        "tokenizer_config.json": {"chat_template": TEMPLATE},
        **files,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        if value is not None:
            (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def recipe(name: str, **more: Any) -> Recipe:
    data = {"dataset_name": "x", "model_name_or_path": name, **more}
    return resolve(data, Path("recipes/demo/config.yaml"))


def found(workspace: Workspace, name: str = "models/mine/sft", **more: Any) -> StartingModel:
    return find_model(recipe(name, **more), workspace)


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chat"),
    [
        ("meta-llama/Llama-2-7b", "meta-llama/Llama-2-7b-chat-hf"),
        ("meta-llama/Llama-2-13b", "meta-llama/Llama-2-13b-chat-hf"),
        ("meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-chat-hf"),
        ("meta-llama/Llama-2-7b-chat", "meta-llama/Llama-2-7b-chat-hf"),
        ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"),
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B-Instruct"),
        ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct"),
        ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"),
        ("HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1"),
        ("google/gemma-2b", "google/gemma-2b-it"),
        ("google/gemma-2-9b", "google/gemma-2-9b-it"),
    ],
)
def test_base_models_are_refused_with_the_chat_model_named(workspace: Workspace, name: str, chat: str) -> None:
    """By name alone, without a network."""
    for action in (lambda: check_name(name), lambda: found(workspace, name)):
        with pytest.raises(UserError, match="cannot be trained with DPO") as e:
            action()
        assert e.value.advice == f"use {chat}" and e.value.where == "model_name_or_path"
        assert "{" not in e.value.error


def test_the_guide_s_base_model_is_told_twice() -> None:
    """Llama-2-7b is a base model and in a format that transformers does not load; -chat is only the latter."""
    with pytest.raises(UserError, match=r"original format.*and a base model"):
        check_name("meta-llama/Llama-2-7b")
    with pytest.raises(UserError, match="original format") as e:
        check_name("meta-llama/Llama-2-7b-chat")
    assert "base model" not in e.value.error


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-2-7b-chat-hf",
        "meta-llama/Llama-3.2-3B-Instruct",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "mistralai/Mistral-7B-Instruct-v0.2",
        "microsoft/Phi-3-mini-4k-instruct",
        "google/gemma-2b-it",
        "mine/Llama-2-7b-hf-sft",
        EMBEDDED_MODEL,
    ],
)
def test_chat_models_pass(name: str) -> None:
    check_name(name)


def test_orpo_may_start_from_a_base_model_that_can_be_loaded() -> None:
    check_name("meta-llama/Llama-2-7b-hf", "orpo")
    check_name("mistralai/Mistral-7B-v0.1", "orpo")
    for name, other in (("Llama-2-7b", "Llama-2-7b-hf"), ("Llama-2-7b-chat", "Llama-2-7b-chat-hf")):
        with pytest.raises(UserError, match="original format") as e:
            check_name(f"meta-llama/{name}", "orpo")
        assert e.value.advice == f"use meta-llama/{other}"


# --- folders ----------------------------------------------------------------------------------------------


def test_a_whole_folder(workspace: Workspace) -> None:
    """Relative to the project or absolute; the same model either way but for its name."""
    folder = write(workspace.project / "models" / "mine" / "sft")
    model = found(workspace)
    assert model.path == str(folder) and model.revision is None and model.template == TEMPLATE
    assert found(workspace, str(folder)).digest == model.digest


def test_the_embedded_model_stands_in_the_workspace(workspace: Workspace) -> None:
    folder = write(embedded_folder(workspace))
    assert folder.parent == workspace.models
    assert found(workspace, EMBEDDED_MODEL).path == str(folder)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"tokenizer_config.json": {}}, "no chat template"),
        ({"tokenizer_config.json": None}, "no chat template"),
        ({"tokenizer_config.json": {"chat_template": None}}, "no chat template"),
        ({"tokenizer_config.json": {"chat_template": ""}}, "no chat template"),
        (
            {"tokenizer_config.json": {"chat_template": [{"name": "tool_use", "template": "x"}]}},
            "no chat template",
        ),
        ({"model.safetensors": None, "pytorch_model.bin": "x"}, "pickled files"),
        ({"model.safetensors": None, "model.pt": "x"}, "pickled files"),
        ({"model.safetensors": None, "model.pth": "x"}, "pickled files"),
        ({"model.safetensors": None}, "holds no weights"),
        ({"config.json": None, "adapter_config.json": {}}, "an adapter, not a whole model"),
        ({"config.json": None}, r"holds no model \(config.json\)"),
        ({"tokenizer_config.json": "{broken"}, "not JSON"),
        ({"tokenizer_config.json": "[]"}, "."),
    ],
)
def test_folders_that_are_no_starting_point(workspace: Workspace, files: dict[str, Any], told: str) -> None:
    """One message that names the model or the file, and advice."""
    write(workspace.project / "models" / "mine" / "sft", **files)
    with pytest.raises(UserError, match=told) as e:
        found(workspace)
    assert "models/mine/sft" in e.value.where and e.value.advice


def test_a_file_that_is_no_text(workspace: Workspace) -> None:
    folder = write(workspace.project / "models" / "mine" / "sft")
    (folder / "tokenizer_config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not JSON"):
        found(workspace)


@pytest.mark.parametrize("name", ["./nothing", "/nothing", "~/nothing", "models/mine/nothing", "nothing"])
def test_a_folder_that_is_not_there(workspace: Workspace, name: str) -> None:
    with pytest.raises(UserError, match="no such model folder") as e:
        found(workspace, name)
    assert e.value.where == f"model_name_or_path: {name}"


@pytest.mark.parametrize("switch", ["1", "true", "TRUE"])
def test_a_hub_name_offline(workspace: Workspace, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the cache either: one message, at once."""
    monkeypatch.setenv("HF_HUB_OFFLINE", switch)
    with pytest.raises(UserError, match="the hub cannot be reached") as e:
        found(workspace, "nobody-of-this-name/no-such-model")
    assert "local folder" in e.value.advice


# --- templates --------------------------------------------------------------------------------------------


def test_which_template_is_in_force(workspace: Workspace) -> None:
    """The recipe's, else chat_template.jinja, else tokenizer_config.json (there the default of several)."""
    folder = workspace.project / "models" / "mine" / "sft"
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write(folder, **{"tokenizer_config.json": {"chat_template": several}})
    assert found(workspace).template == "plain"
    (folder / "chat_template.jinja").write_text("from the file")
    assert found(workspace).template == "from the file"
    assert found(workspace, chat_template="from the recipe").template == "from the recipe"


def test_a_recipe_s_template_helps_a_model_without_one(workspace: Workspace) -> None:
    write(workspace.project / "models" / "mine" / "sft", **{"tokenizer_config.json": None})
    assert found(workspace, chat_template=TEMPLATE).template == TEMPLATE


# --- digests ----------------------------------------------------------------------------------------------


def test_what_the_digest_depends_on(workspace: Workspace) -> None:
    """Weights, configuration, tokenizer, template and dtype; not the folder, times or other files."""
    folder = write(workspace.project / "models" / "mine" / "sft")
    base = found(workspace).digest
    write(workspace.project / "elsewhere" / "copy")
    assert found(workspace, "./elsewhere/copy").digest == base
    os.utime(folder / "model.safetensors", (1, 1))
    (folder / "README.txt~").write_text("x")
    assert found(workspace).digest == base
    digests = {
        base,
        found(workspace, dtype="bfloat16").digest,
        found(workspace, chat_template="other").digest,
    }
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        before = (folder / name).read_text()
        (folder / name).write_text(before + " ")
        digests.add(found(workspace).digest)
        (folder / name).write_text(before)
    assert len(digests) == 6
    assert found(workspace).digest == base


def test_the_weights_digest_depends_on_weights_and_configuration_alone(workspace: Workspace) -> None:
    """The reference's log-probabilities are kept under it: template and tokenizer show in the token ids."""
    folder = write(workspace.project / "models" / "mine" / "sft")
    first = found(workspace).weights
    assert found(workspace, chat_template="{{ messages }}", dtype="bfloat16").weights == first
    write(folder, **{"tokenizer.json": {"other": 1}, "special_tokens_map.json": {}, "generation_config.json": {}})
    assert found(workspace).weights == first
    write(folder, **{"model.safetensors": "weightS"})
    second = found(workspace).weights
    write(folder, **{"config.json": {"model_type": "llama", "rope_theta": 5}})
    assert len({first, second, found(workspace).weights}) == 3


def test_weights_are_read_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose size and time did not change is not read again: weights are gigabytes."""
    import preftune.models as module

    read: list[str] = []
    real = module.file_sha256

    def counted(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(module, "file_sha256", counted)
    folder = write(workspace.project / "models" / "mine" / "sft")
    first = found(workspace)
    assert sorted(read) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    read.clear()
    assert found(workspace) == first and read == []
    (folder / "model.safetensors").write_text("other weights")
    assert found(workspace).digest != first.digest and read == ["model.safetensors"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"PATH": 3}'])
def test_a_broken_note_of_digests_is_written_anew(workspace: Workspace, text: str) -> None:
    folder = write(workspace.project / "models" / "mine" / "sft")
    base = found(workspace).digest
    note = workspace.models / "digests.json"
    note.write_text(text.replace("PATH", str(folder / "config.json")))
    assert found(workspace).digest == base
    assert str(folder / "model.safetensors") in json.loads(note.read_text())


def test_the_tiny_model_is_a_starting_point(workspace: Workspace, tiny_model: Path) -> None:
    """A folder that transformers wrote."""
    model = found(workspace, str(tiny_model))
    assert model.path == str(tiny_model) and model.template
