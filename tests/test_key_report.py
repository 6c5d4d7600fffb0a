"""`preftune check --keys`: a row for each key, every error, and the defaults that have changed."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import preftune

from preftune.key_report import KeyRow, key_report
from preftune.packages import missing_packages
from preftune.reading import read
from preftune.recipe import resolve

PATH = Path("recipes/demo/config.yaml")


def rows(data: dict[str, Any], **overrides: Any) -> dict[str, KeyRow]:
    return {row.key: row for row in key_report(data, PATH, overrides).keys}


def test_each_kind() -> None:
    found = rows(
        {
            "dataset_name": "x",
            "beta": 0.2,
            "torch_dtype": "bfloat16",
            "max_prompt_length": 512,
            "save_total_limit": 1,
            "auto_find_batch_size": True,
            "evaluation": {"preset": "full"},
        }
    )
    assert found["beta"] == ("beta", 0.2, "kept", "beta", "")
    assert found["torch_dtype"] == ("torch_dtype", "bfloat16", "renamed", "dtype", "")
    assert found["dataset_name"][2:4] == ("moved", "dataset_mixture.datasets.0.id")
    assert found["max_prompt_length"].kind == "no effect"
    assert found["max_prompt_length"].effect.startswith("TRL has no separate limit for prompts now")
    assert found["save_total_limit"][2:4] == ("changed", "2")
    assert found["auto_find_batch_size"][2:4] == ("refused", "")
    assert "effective batch" in found["auto_find_batch_size"].effect
    assert found["evaluation.preset"] == ("evaluation.preset", "full", "kept", "evaluation.preset", "")
    assert found["model_name_or_path"][1:4] == (None, "changed", "embedded/SmolLM2-135M-Instruct")


def test_no_error_hides_another() -> None:
    """One of each stage: secret, old key, type, range, conflict, section, unknown."""
    data = {
        "dataset_mixture": {"datasets": [{"id": "a", "weight": -1}, {"id": "b", "wieght": 1}]},
        "run_name": "hf_" + "A1b2" * 8,
        "resume_from_checkpoint": "x",
        "beta": "0.1",
        "learning_rate": 1e6,
        "fp16": True,
        "bf16": True,
        "evaluation": {"preset": "huge"},
        "gate": 3,
        "bta": 1,
    }
    report = key_report(data, PATH)
    assert {e["key"] for e in report.errors} == {
        "dataset_mixture.datasets.0.weight",
        "dataset_mixture.datasets.1.wieght",
        "run_name",
        "resume_from_checkpoint",
        "beta",
        "learning_rate",
        "fp16",
        "evaluation.preset",
        "gate",
        "bta",
    }
    assert all(e["error"] and e["where"] and e["advice"] for e in report.errors)
    refused = {row.key for row in report.keys if row.kind == "refused"}
    assert refused == {e["key"] for e in report.errors}
    assert report.recipe is None and "hf_A1b2" not in json.dumps(report.errors)


def test_a_token_is_not_shown() -> None:
    token = "hf_" + "A1b2" * 8
    assert token not in json.dumps(key_report({"dataset_name": "x", "run_name": token}, PATH).as_json())


def test_overrides_are_keys_too() -> None:
    found = rows({"dataset_name": "x", "beta": 0.1}, beta=0.3, evaluation_strategy="steps")
    assert found["beta"].value == 0.3
    assert (found["evaluation_strategy"].kind, found["evaluation_strategy"].became) == ("renamed", "eval_strategy")


def test_defaults_only_for_old_recipes() -> None:
    """By hand from the handbook's configs.py and TRL 0.7: what these keys were when they were left out."""
    assert key_report({"dataset_name": "x", "beta": 0.1}, PATH).defaults == []
    old = key_report({"dataset_mixer": {"a/b": 0.5}, "use_peft": True, "optim": "rmsprop"}, PATH).defaults
    found = {d.key: (d.was, d.now) for d in old}
    assert found["learning_rate"] == ("5e-5", "1e-06")
    assert found["logging_steps"] == ("500", "10")
    assert found["gradient_checkpointing"] == ("false", "true")
    assert found["lora_target_modules"][1] == "all linear layers"
    assert found["dataset_mixer"] == ("the first rows of each dataset", "rows drawn by seed")
    assert "optim" not in found
    assert "precompute_ref_log_probs" in found
    orpo = key_report({"dataset_mixer": {"a/b": 1.0}, "method": "orpo"}, PATH).defaults
    assert not {"precompute_ref_log_probs", "dataset_mixer"} & {d.key for d in orpo}


def test_a_default_that_is_written_is_not_listed() -> None:
    keys = {"torch_dtype": None, "max_length": 512, "warmup_ratio": 0.1, "activation_checkpointing": False}
    defaults = {d.key for d in key_report({"dataset_name": "x", **keys}, PATH).defaults}
    assert not {"max_length", "gradient_checkpointing", "warmup_steps"} & defaults


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"optim": "paged_adamw_32bit"}, {"optim": "'preftune[gpu]'"}),
        ({"optim": "adamw_torch"}, {}),
        ({"optim": "adamw_torch_8bit"}, {"optim": "torchao"}),
        ({"report_to": ["wandb"]}, {"report_to": "'preftune[wandb]'"}),
        ({"load_in_4bit": True, "use_peft": True}, {"load_in_4bit": "'preftune[gpu]'"}),
    ],
)
def test_missing_packages(keys: dict[str, Any], named: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe stays right; that this machine could not run it is said, with what to install."""
    recipe = resolve({"dataset_name": "x", **keys}, PATH)
    monkeypatch.setattr("preftune.packages.installed", lambda module: False)
    found = dict(missing_packages(recipe))
    assert {key: error.advice for key, error in found.items()} == {k: f"pip install {v}" for k, v in named.items()}
    report = key_report({"dataset_name": "x", **keys}, PATH)
    assert report.errors == [] and len(report.missing) == len(named)
    monkeypatch.setattr("preftune.packages.installed", lambda module: True)
    assert missing_packages(recipe) == []


def test_reading_changes_nothing_it_was_given() -> None:
    data = {"dataset_mixer": {"a": 1.0}, "torch_dtype": None, "loss_type": ["aot_pair"]}
    before = json.dumps(data)
    read(data, PATH, {"beta": 0.1})
    assert json.dumps(data) == before


def test_the_command(tmp_path: Path) -> None:
    """In the real command line: a table for people, one object for programs, 2 if a key is refused; nothing is made."""
    recipe = tmp_path / "recipes" / "demo" / "config.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("dataset_name: nowhere\ntorch_dtype: bfloat16\nmax_prompt_length: 9\n")
    done = preftune("check", str(recipe), "--keys", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "torch_dtype" in done.stdout and "no effect" in done.stdout and "runs as it is" in done.stdout
    assert not (tmp_path / ".preftune").exists()
    done = preftune("check", str(recipe), "--keys", "--json", "--beta=0", "--bta=1", cwd=tmp_path)
    assert done.returncode == 2
    result = json.loads(done.stdout)
    assert set(result) == {"errors", "warnings", "keys", "defaults", "resolved"}
    assert {e["key"] for e in result["errors"]} == {"beta", "bta"} and result["resolved"] is None
    assert [k["key"] for k in result["keys"]][:3] == ["dataset_name", "torch_dtype", "max_prompt_length"]
    done = preftune("check", str(tmp_path / "none.yaml"), "--keys", "--json", cwd=tmp_path)
    assert done.returncode == 2 and json.loads(done.stdout)["error"] == "there is no such recipe"
