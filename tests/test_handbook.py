"""alignment-handbook's own DPO and ORPO recipes, of three generations of keys, run as they are."""

from pathlib import Path
from typing import Any

import pytest

from preftune.key_report import key_report
from preftune.known_keys import training_keys
from preftune.recipe import load_keys, load_recipe, resolve
from preftune.schema import Recipe
from preftune.training_setup import Machine, trainer_arguments

HERE = Path(__file__).parent / "handbook"
RECIPES = sorted(HERE.rglob("*.yaml"))
MACHINES = {"cpu": Machine(has_cuda=False, has_bf16=False)}


def name_of(path: Path) -> str:
    return str(path.relative_to(HERE))


def load(name: str) -> Recipe:
    return load_recipe(HERE / name)


every_recipe = pytest.mark.parametrize("path", RECIPES, ids=name_of)


def test_the_table_names_every_file() -> None:
    readme = (HERE / "README.md").read_text()
    assert len(RECIPES) == 29
    for path in RECIPES:
        assert name_of(path) in readme or path.parts[len(HERE.parts)] == "gen3"


@every_recipe
def test_it_loads(path: Path) -> None:
    """Without an error, under the method of its folder, with keys of that method's config only."""
    recipe = load_recipe(path)
    assert recipe.method == path.parent.name
    assert set(recipe.training) <= training_keys(recipe.method)
    again = resolve(recipe.resolved(), path)
    assert again.resolved() == recipe.resolved()
    assert (again.training, again.model, again.hub) == (recipe.training, recipe.model, recipe.hub)


@every_recipe
def test_trl_takes_it(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed config classes are built for real, with what the training child would give them on a CPU."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl import DPOConfig, ModelConfig
    from trl.experimental.orpo import ORPOConfig

    recipe = load_recipe(path)
    arguments = trainer_arguments(recipe.training, tmp_path, MACHINES["cpu"])
    args: Any = (ORPOConfig if recipe.method == "orpo" else DPOConfig)(**arguments)
    model = ModelConfig(**recipe.model)
    for key, value in recipe.training.items():
        if key not in ("report_to", "warmup_steps", "gradient_checkpointing_kwargs"):
            assert getattr(args, key) == value, key
    assert args.warmup_steps == recipe.training.get("warmup_steps", 0)
    assert model.model_name_or_path == recipe.model_name


@every_recipe
def test_no_key_is_passed_over_in_silence(path: Path) -> None:
    """Each key of the file has a row; a row that is not "kept" says what it became or what that changes."""
    data = load_keys(path)
    report = key_report(data, path)
    assert report.errors == []
    rows = {row.key: row for row in report.keys}
    for key in data:
        here = [r for name, r in rows.items() if name == key or name.startswith(f"{key}.")]
        assert here, key
        assert all(r.kind == "kept" or r.became or r.effect for r in here), key
    assert report.recipe is not None
    today = {**report.recipe.resolved(), "output_dir": 1}
    for row in report.keys:
        if row.kind == "kept" and "." not in row.key:
            assert row.key in today, row.key
    for row in report.keys:
        if row.kind == "renamed":
            assert row.became.partition(":")[0] in today or row.became == "attn_implementation", row


def test_zephyr_full() -> None:
    """The handbook's first recipe, key by key, by hand."""
    recipe = load("gen2/zephyr-7b-beta/dpo/config_full.yaml")
    assert recipe.model == {"model_name_or_path": "alignment-handbook/zephyr-7b-sft-full", "dtype": "float32"}
    assert recipe.training == {
        "bf16": True,
        "beta": 0.01,
        "do_eval": True,
        "eval_strategy": "steps",
        "eval_steps": 100.0,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "learning_rate": 5e-7,
        "log_level": "info",
        "logging_steps": 10.0,
        "lr_scheduler_type": "cosine",
        "max_length": 1024,
        "num_train_epochs": 1.0,
        "optim": "adamw_torch",
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "save_strategy": "steps",
        "save_steps": 100.0,
        "save_total_limit": 2,
        "seed": 42,
        "warmup_steps": 0.1,
        "dataset_num_proc": 12,
        "logging_nan_inf_filter": False,
        "report_to": ["none"],
        "precompute_ref_log_probs": True,
    }
    assert [(e.id, e.split, e.test_split, e.weight) for e in recipe.mixture.datasets] == [
        ("HuggingFaceH4/ultrafeedback_binarized", "train_prefs", "test_prefs", 1.0)
    ]
    assert (recipe.hub.push_to_hub, recipe.hub.hub_model_id) == (True, "zephyr-7b-dpo-full")
    assert recipe.output_dir == "data/zephyr-7b-dpo-full"


def test_the_generations_of_zephyr_agree() -> None:
    """The same experiment under the keys of 2024 and of 2025: the same training."""
    old, new = (load(f"{g}/zephyr-7b-beta/dpo/config_full.yaml") for g in ("gen2", "gen3"))
    assert old.training == new.training and old.model == new.model and old.hub == new.hub


def test_zephyr_qlora() -> None:
    recipe = load("gen2/zephyr-7b-beta/dpo/config_qlora.yaml")
    assert recipe.model == {
        "model_name_or_path": "alignment-handbook/zephyr-7b-sft-qlora",
        "dtype": "bfloat16",
        "use_peft": True,
        "load_in_4bit": True,
        "lora_r": 128,
        "lora_alpha": 128,
        "lora_dropout": 0.05,
        "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }
    assert (recipe.training["optim"], recipe.training["learning_rate"]) == ("paged_adamw_32bit", 5e-6)
    assert any("flash-attn" in n for n in recipe.notices)


def test_smollm3_apo() -> None:
    """The newest one: a loss of its own, a schedule with settings, keys that DPOConfig has no more."""
    recipe = load("gen3/smollm3/dpo/apo.yaml")
    training = recipe.training
    assert (training["loss_type"], training["beta"], training["max_length"]) == (["apo_zero"], 0.05, 24576)
    assert training["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}
    assert (training["eval_strategy"], training["save_steps"], training["report_to"]) == ("no", 0.5, ["wandb"])
    assert not {"padding_free", "trust_remote_code", "hub_strategy", "overwrite_output_dir"} & set(training)
    assert (recipe.hub.push_to_hub, recipe.hub.hub_model_id) == (True, "SmolLM3-DPO")
    assert [(e.config, e.weight) for e in recipe.mixture.datasets] == [("Preference", 0.5), ("Preference", 0.25)]
    for told in ("padding_free", "trust_remote_code", "hub_strategy", "chat_template_kwargs", "hub_model_id"):
        assert sum(told in n for n in recipe.notices) >= 1, told


def test_starchat_mixes_two_datasets() -> None:
    old = load("gen2/starchat2-15b/dpo/config_v0.1.yaml")
    assert [(e.id, e.split, e.test_split) for e in old.mixture.datasets] == [
        ("HuggingFaceH4/ultrafeedback_binarized", "train_prefs", "test_prefs"),
        ("HuggingFaceH4/orca_dpo_pairs", "train_prefs", "test_prefs"),
    ]
    new = load("gen3/starchat2-15b/dpo/config_v0.1.yaml")
    assert (new.mixture.test_split_size, new.mixture.seed, len(new.mixture.datasets)) == (2000, 0, 4)
    assert sum("split test_prefs is trained on" in n for n in new.notices) == 2


def test_the_alignment_scan() -> None:
    """Its loss is scanned from the command line; the authors' own push key has no meaning elsewhere."""
    recipe = load("gen1/pref_align_scan/dpo/config_openhermes.yaml")
    assert recipe.training["loss_type"] == ["sigmoid"]
    assert "max_length" not in recipe.training
    assert recipe.hub.model_dump() == {
        "push_to_hub": False,
        "hub_model_id": "HuggingFaceH4/openhermes-2.5-mistral-7b-dpo",
        "hub_private_repo": None,
        "hub_revision": "v1.0",
    }
    scanned = load_recipe(HERE / "gen1/pref_align_scan/dpo/config_zephyr.yaml", {"loss_type": "ipo", "beta": 0.3})
    assert (scanned.training["loss_type"], scanned.training["beta"]) == (["ipo"], 0.3)
    report = key_report(load_keys(recipe.path), recipe.path)
    assert {d.key: d.was for d in report.defaults}["max_length"].startswith("512")


def test_orpo_with_its_own_template() -> None:
    recipe = load("gen3/zephyr-141b-A35b/orpo/config_full.yaml")
    assert recipe.method == "orpo" and "precompute_ref_log_probs" not in recipe.training
    assert (recipe.training["beta"], recipe.training["warmup_steps"]) == (0.05, 100.0)
    assert recipe.training["lr_scheduler_type"] == "inverse_sqrt"
    entry = recipe.mixture.datasets[0]
    assert (entry.id, entry.split, entry.test_split) == ("argilla/distilabel-capybara-dpo-7k-binarized", "train", None)
    assert "folder named orpo" in " ".join(recipe.notices)
    from jinja2 import Environment

    assert recipe.chat_template is not None
    text = Environment(trim_blocks=True, lstrip_blocks=True).from_string(recipe.chat_template)
    rendered = text.render(messages=[{"role": "user", "content": "Hi"}], eos_token="</s>", add_generation_prompt=True)
    assert rendered == "<|user|>\nHi</s>\n<|assistant|>\n"


def test_old_default_of_the_dtype() -> None:
    """torch_dtype: null loaded float32 then; dtype: null loads the weights as stored now."""
    assert load("gen1/cai/dpo/config_full.yaml").model["dtype"] == "float32"
    assert load("gen1/zephyr-7b/dpo/config_lora.yaml").model["dtype"] == "auto"
    assert resolve({"dataset_name": "x", "dtype": None}, Path("a/b.yaml")).model["dtype"] is None
