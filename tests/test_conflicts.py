"""Settings that are wrong together are told from the recipe: compared with what TRL and transformers do about them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune.data.pairs import Pair
from preftune.errors import UserError
from preftune.known_keys import snapshot
from preftune.reading import read
from preftune.recipe import resolve
from preftune.schema import Recipe

PATH = Path("recipes/demo/config.yaml")


def made(**keys: Any) -> Recipe:
    return resolve({"dataset_name": "x", **keys}, PATH)


# (settings, the key that is named, a part of what is said)
BY_CONFIG = [
    ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "loss_weights", "1 weights for 2 losses"),
    ({"fp16": True, "bf16": True}, "fp16", "exclude each other"),
    ({"fp16_full_eval": True, "bf16_full_eval": True}, "fp16_full_eval", "exclude each other"),
    ({"logging_steps": 2.5}, "logging_steps", "whole number"),
    ({"save_steps": 1.5}, "save_steps", "whole number"),
    ({"eval_strategy": "steps", "eval_steps": 3.5}, "eval_steps", "whole number"),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type", "follows eval/loss"),
    ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type", "follows eval/loss"),
    ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor", "worker"),
    ({"load_best_model_at_end": True}, "load_best_model_at_end", "alike"),
    (
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 4},
        "load_best_model_at_end",
        "a multiple of eval_steps",
    ),
    (
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.25},
        "load_best_model_at_end",
        "a multiple of eval_steps",
    ),
    (
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 4},
        "load_best_model_at_end",
        "a multiple of eval_steps",
    ),
]
BY_TRAINER = [
    ({"loss_type": ["exo_pair"]}, "label_smoothing", "above 0"),
    ({"loss_type": ["aot"], "f_divergence_type": "js_divergence"}, "f_divergence_type", "not defined for the loss aot"),
    ({"loss_type": ["apo_zero"], "f_divergence_type": "forward_kl"}, "f_divergence_type", "apo_zero"),
    ({"loss_type": ["aot"], "use_weighting": True}, "use_weighting", "sorts the batch"),
    ({"loss_type": ["sigmoid", "aot_unpaired"], "use_weighting": True}, "use_weighting", "sorts the batch"),
    ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "precompute_ref_log_probs", "moves"),
]
OURS = [
    ({"loss_type": ["robust"], "label_smoothing": 0.5}, "label_smoothing", "half of the labels"),
    ({"loss_type": []}, "loss_type", "no loss"),
    ({"loss_weights": ["a"]}, "loss_weights", "not a number"),
    ({"sync_ref_model": True, "use_peft": True}, "sync_ref_model", "LoRA"),
    ({"load_in_4bit": True}, "load_in_4bit", "cannot be trained"),
    ({"load_in_4bit": True, "load_in_8bit": True, "use_peft": True}, "load_in_8bit", "4 and in 8"),
    ({"merge_adapter": True}, "merge_adapter", "no adapter"),
    ({"micro_batch_tokens": 4096, "loss_type": ["sft"]}, "micro_batch_tokens", "as a whole"),
    ({"micro_batch_tokens": 4096, "method": "orpo"}, "micro_batch_tokens", "orpo"),
    ({"use_peft": True, "lora_target_modules": ["q_proj", "lm_head"]}, "lora_target_modules", "lm_head"),
    ({"use_peft": True, "lora_task_type": "SEQ_CLS"}, "lora_task_type", "SEQ_CLS"),
    ({"method": "orpo", "max_length": None}, "max_length", "ORPO needs a limit"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs", "one of min_lr and min_lr_rate"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_kwargs", "num_decay_steps"),
    ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-8}, "lr_scheduler_kwargs", "not below learning_rate"),
    ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy", "no"),
    ({"save_strategy": "best"}, "save_strategy", "best"),
    ({"save_strategy": "best", "eval_strategy": "steps"}, "save_strategy", "metric_for_best_model"),
    ({"liger_kernel_config": {"fused_linear_cross_entropy": True}}, "liger_kernel_config", "forward"),
]


@pytest.mark.parametrize(("keys", "key", "told"), [*BY_CONFIG, *BY_TRAINER, *OURS])
def test_told_from_the_recipe(keys: dict[str, Any], key: str, told: str) -> None:
    """One clear error that names the key and has advice."""
    with pytest.raises(UserError) as e:
        made(**keys)
    assert e.value.where == f"{PATH}: {key}"
    assert e.value.advice
    problems = [error.error for name, error in read({"dataset_name": "x", **keys}, PATH).problems if name == key]
    assert any(told in p for p in problems), problems


@pytest.mark.parametrize(("keys", "key"), [(k, n) for k, n, _ in BY_CONFIG])
def test_trl_s_config_raises_on_these(keys: dict[str, Any], key: str, tmp_path: Path) -> None:
    """Each of them is a real error of the installed version: none is refused for nothing."""
    from trl import DPOConfig

    bare = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "activation_checkpointing": False}
    with pytest.raises(ValueError):
        DPOConfig(**{**bare, **keys})


@pytest.mark.parametrize(("keys", "key"), [(k, n) for k, n, _ in BY_TRAINER])
def test_trl_s_trainer_raises_on_these(
    keys: dict[str, Any], key: str, tmp_path: Path, tiny_model: Path, trl_trainer: Callable[..., Any]
) -> None:
    """The trainer raises only after the model is loaded."""
    pair = Pair.model_validate(
        {
            "prompt": [{"role": "user", "content": "Q"}],
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
            "source": "x",
            "row_id": "x:1",
            "group_id": "x",
        }
    )
    with pytest.raises((ValueError, NotImplementedError)):
        trl_trainer(tiny_model, [pair], tmp_path, **keys)


@pytest.mark.parametrize("loss", snapshot()["training"]["loss_type"]["choices"])
def test_every_loss_is_available(loss: str) -> None:
    """Alone, and in a list with weights."""
    smoothing = {"label_smoothing": 1e-3} if loss == "exo_pair" else {}
    assert made(loss_type=loss, **smoothing).training["loss_type"] == [loss]
    both = made(loss_type=[loss, "sft"], loss_weights=[0.8, 0.2], **smoothing).training
    assert (both["loss_type"], both["loss_weights"]) == ([loss, "sft"], [0.8, 0.2])


@pytest.mark.parametrize(
    "keys",
    [
        {"loss_type": ["sigmoid"], "f_divergence_type": "js_divergence"},
        {"loss_type": ["robust"], "label_smoothing": 0.1},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 4},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "save_steps": 20, "logging_steps": 10},
        {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 3}},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"},
        {"fp16": True, "bf16": False},
        {"save_steps": 0.5},
        {"save_strategy": "best", "eval_strategy": "steps", "metric_for_best_model": "loss"},
    ],
)
def test_what_fits_is_taken_by_both(keys: dict[str, Any], tmp_path: Path) -> None:
    from trl import DPOConfig

    made(**keys)
    bare = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "activation_checkpointing": False}
    DPOConfig(**{**bare, **keys})


def test_the_reference_is_cached_unless_it_moves() -> None:
    assert made().training["precompute_ref_log_probs"] is True
    assert made(precompute_ref_log_probs=False).training["precompute_ref_log_probs"] is False
    assert made(sync_ref_model=True).training["precompute_ref_log_probs"] is False
    assert "precompute_ref_log_probs" not in made(method="orpo").training


def test_orpo_takes_only_its_own_keys() -> None:
    """What ORPOConfig has not is left out and told; its own keys are unknown to DPO, and told there."""
    recipe = made(method="orpo", loss_type="ipo", ld_alpha=0.5, padding_value=0, beta=0.2, label_smoothing=0.0)
    assert "loss_type" not in recipe.training and "ld_alpha" not in recipe.training
    assert (recipe.training["padding_value"], recipe.training["beta"]) == (0, 0.2)
    for key in ("loss_type", "ld_alpha"):
        assert any(n.startswith(f"{key} has no effect: ORPO") for n in recipe.notices)
    recipe = made(padding_value=0)
    assert "padding_value" not in recipe.training
    assert any(n.startswith("padding_value has no effect: it is a key of ORPO") for n in recipe.notices)


@pytest.mark.parametrize(
    ("path", "keys", "method"),
    [
        ("recipes/zephyr-141b-A35b/orpo/config_full.yaml", {}, "orpo"),
        ("recipes/zephyr/orpo/deep/config.yaml", {}, "orpo"),
        ("recipes/zephyr/orpo/config.yaml", {"method": "dpo"}, "dpo"),
        ("recipes/zephyr-orpo/config.yaml", {}, "dpo"),
        ("recipes/zephyr/dpo/orpo.yaml", {}, "dpo"),
        ("recipes/zephyr/dpo/config.yaml", {"method": "orpo"}, "orpo"),
    ],
)
def test_orpo_by_its_folder(path: str, keys: dict[str, Any], method: str) -> None:
    recipe = resolve({"dataset_name": "x", **keys}, Path(path))
    assert recipe.method == method
    assert any("folder named orpo" in n for n in recipe.notices) == (method == "orpo" and not keys)


def test_hub_keys_stand_apart() -> None:
    """They are read after the verdict, and no part of what is trained."""
    recipe = made(push_to_hub=True, hub_model_id="me/x", hub_private_repo=True, hub_revision="v2")
    assert recipe.hub.model_dump() == {
        "push_to_hub": True,
        "hub_model_id": "me/x",
        "hub_private_repo": True,
        "hub_revision": "v2",
    }
    assert not {k for k in recipe.training if "hub" in k}
    flat = recipe.resolved()
    assert (flat["push_to_hub"], flat["hub_model_id"], "hub" in flat) == (True, "me/x", False)
    assert resolve(flat, PATH).hub == recipe.hub
    assert made().hub.push_to_hub is False and "push_to_hub" not in made().resolved()


def test_a_repository_named_after_the_folder() -> None:
    """As in transformers; told, because it is published."""
    recipe = made(push_to_hub=True, output_dir="data/my-run")
    assert recipe.hub.hub_model_id == "my-run"
    assert any("hub_model_id is my-run" in n for n in recipe.notices)
