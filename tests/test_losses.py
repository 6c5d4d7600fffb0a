"""Losses and gradients are those of TRL's own trainer, for every loss type, with the cached and the online reference.

Where policy and reference are the same, any reference gives the same loss; so all trained weights are moved first.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import our_trainer

from preftune.data.pairs import Pair, to_pair
from preftune.known_keys import snapshot

ROOT = Path(__file__).parent.parent
LOSSES: list[dict[str, Any]] = [
    *({"loss_type": [name]} for name in snapshot()["training"]["loss_type"]["choices"]),
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    {"ld_alpha": 0.5},
    {"f_divergence_type": "js_divergence"},
    {"use_weighting": True},
    {"truncation_mode": "keep_end", "max_length": 60},
]
COMMON = {"seed": 7, "beta": 0.3, "label_smoothing": 0.1, "per_device_train_batch_size": 4, "max_length": 128}


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    lines = (ROOT / "recipes/starter/pairs/test.jsonl").read_text().splitlines()
    return [to_pair(json.loads(line), "starter", str(i)) for i, line in enumerate(lines[:6])]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests of this file: each scoring is computed by the first that needs it."""
    return tmp_path_factory.mktemp("reference")


def moved(trainer: Any) -> Any:
    """The trainer, its trained weights moved by the same noise in every trainer."""
    import torch

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    trainer.model.train()
    return trainer


def batch_of(trainer: Any) -> dict[str, Any]:
    return trainer.data_collator([trainer.train_dataset[i] for i in (4, 0, 3, 1)])


def loss_and_gradients(trainer: Any) -> tuple[float, dict[str, Any]]:
    loss = trainer.compute_loss(trainer.model, batch_of(trainer))
    loss.backward()
    return loss.item(), {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}


def named(losses: dict[str, Any]) -> str:
    return "+".join(losses.get("loss_type") or [f"{k}={v}" for k, v in losses.items()])


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")
@pytest.mark.parametrize("losses", LOSSES, ids=named)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_losses_and_gradients_are_those_of_bare_trl(
    tiny_model: Path,
    pairs: list[Pair],
    shared: Path,
    tmp_path: Path,
    trl_trainer: Callable[..., Any],
    tuning: str,
    losses: dict[str, Any],
) -> None:
    import torch
    from peft import LoraConfig

    torch.set_num_threads(1)
    keys = {**COMMON, **losses}
    lora = tuning == "lora"
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    settings = {"use_peft": True, "lora_r": 4, "lora_alpha": 8} if lora else {}
    bare = moved(trl_trainer(tiny_model, pairs, tmp_path / "bare", peft_config=adapter, **keys))
    loss, gradients = loss_and_gradients(bare)
    largest = max(float(g.abs().max()) for g in gradients.values())
    assert largest > 1e-3
    # Its sigmoid(margin / tau), tau = 0.05, and its exp(-margin) multiply what rounding does to a log-probability.
    within = 1e-3 if losses.get("loss_type") == ["discopop"] else 1e-5
    for cached in (True, False):
        folder = tmp_path / f"cached-{cached}"
        keys["precompute_ref_log_probs"] = cached
        mine = moved(our_trainer(tiny_model, pairs, folder, reference=shared, settings=settings, **keys))
        found_loss, found = loss_and_gradients(mine)
        assert found_loss == pytest.approx(loss, rel=1e-5, abs=1e-5)
        assert found.keys() == gradients.keys()
        for name, expected in gradients.items():
            assert float((found[name] - expected).abs().max()) <= within * largest, name
        batch = batch_of(mine)
        assert ("ref_chosen_logps" in batch) == cached
        if cached and losses.get("loss_type") != ["sft"]:  # a wrong reference must show, where there is one
            batch["ref_chosen_logps"] += 1
            assert mine.compute_loss(mine.model, batch).item() != pytest.approx(loss, rel=1e-4)
