"""Sorted micro-batches: the same pairs in each optimizer step, the same gradient, less padding."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import our_trainer
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.pairs import Pair, to_pair


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 16), st.randoms())
def test_each_step_keeps_its_pairs(widths: list[int], size: int, random: Any) -> None:
    from preftune.sorted_batches import SortedWithinSteps

    order = list(range(len(widths)))
    random.shuffle(order)
    found = list(SortedWithinSteps(order, widths, size))
    whole = len(order) // size * size
    for begin in range(0, whole, size):
        step = found[begin : begin + size]
        assert sorted(step) == sorted(order[begin : begin + size])
        assert [widths[r] for r in step] == sorted((widths[r] for r in step), reverse=True)
    assert found[whole:] == order[whole:], "the last, smaller step stays as it is"


def test_widths_are_those_of_the_packed_rows() -> None:
    from datasets import Dataset

    from preftune.sorted_batches import widths

    rows = [(3, 4, 5), (9, 4, 1), (2, 20, 3), (12, 1, 1)]
    data = Dataset.from_list(
        [{"prompt_ids": [1] * p, "chosen_ids": [1] * c, "rejected_ids": [1] * r, "id": "x"} for p, c, r in rows]
    )
    assert widths(data, None) == [12, 14, 25, 14]
    # cut to 10 tokens each: 3+4 | 5; 9+1 | 1; 2+8 | 3; 10 | nothing
    assert widths(data, 10) == [12, 11, 13, 10]
    assert widths(data.select([2, 0]), None) == [25, 12]


def starter(count: int) -> list[Pair]:
    lines = Path(__file__).parents[1].joinpath("recipes/starter/pairs/train.jsonl").read_text().splitlines()[:count]
    return [to_pair(json.loads(line), "starter", str(i)) for i, line in enumerate(lines)]


def gradient_after(trainer: Any) -> dict[str, Any]:
    """Of one whole optimizer step, as the trainer's own loop accumulates it."""
    found: dict[str, Any] = {}
    real = trainer.accelerator.clip_grad_norm_

    def keep(parameters: Any, *rest: Any) -> Any:
        found.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
        return real(parameters, *rest)

    trainer.accelerator.clip_grad_norm_ = keep
    trainer.train()
    return found


KEYS: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "max_length": 96,
    "seed": 3,
    "disable_tqdm": True,
}


@pytest.mark.parametrize("tokens", [None, 1, 300], ids=["whole", "one by one", "in pieces"])
def test_the_gradient_of_a_step_is_trl_s(tiny_model: Path, tmp_path: Path, tokens: int | None) -> None:
    found = {}
    for way, budget in (("auto", tokens), ("off", None)):
        trainer = our_trainer(
            tiny_model,
            starter(8),
            tmp_path / way,
            reference=tmp_path / "reference",
            fast_path=way,
            micro_batch_tokens=budget,
            **KEYS,
        )
        passes: list[int] = []
        real = trainer.compute_loss
        trainer.compute_loss = lambda model, inputs, *a, real=real, passes=passes, **k: (
            passes.append(len(inputs["input_ids"]) // 2),
            real(model, inputs, *a, **k),
        )[1]
        found[way] = gradient_after(trainer), trainer.state.log_history[0], passes
    (mine, said, passes), (theirs, expected, _) = found["auto"], found["off"]
    assert sum(passes) == 8
    assert {None: len(passes) == 2, 1: passes == [1] * 8, 300: 2 < len(passes) < 8}[tokens], passes
    largest = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in theirs.items():
        assert float((mine[name] - gradient).abs().max()) <= 1e-5 * largest, name
    for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"):
        assert float(said[name]) == pytest.approx(float(expected[name]), abs=1e-3), name


@pytest.mark.parametrize(
    "launch", [{"world_size": 2, "deepspeed_plugin": None}, {"world_size": 1, "deepspeed_plugin": 1}]
)
def test_pieces_are_refused_where_processes_would_wait_for_ever(launch: dict[str, Any], tmp_path: Path) -> None:
    """Before the model is asked for anything."""
    from types import SimpleNamespace

    from preftune.errors import UserError
    from preftune.trainer import ResumableDPOTrainer

    with pytest.raises(UserError, match="needs a single process"):
        ResumableDPOTrainer(reference_cache=tmp_path, micro_batch_tokens=100, args=SimpleNamespace(**launch))


@pytest.mark.parametrize("loss", ["aot", "bco_pair", "sft"])
def test_losses_over_a_whole_micro_batch_keep_trl_s_order(tiny_model: Path, tmp_path: Path, loss: str) -> None:
    orders = {}
    for way in ("auto", "off"):
        trainer = our_trainer(
            tiny_model, starter(16), tmp_path / way, reference=tmp_path / "r", fast_path=way, loss_type=[loss], **KEYS
        )
        orders[way] = [i for batch in trainer.get_train_dataloader() for i in batch["input_ids"].tolist()]
    assert orders["auto"] == orders["off"]


def test_less_padding(tiny_model: Path, tmp_path: Path) -> None:
    from preftune.packing import pack

    def slots(batch: dict[str, Any]) -> int:
        scored = batch["completion_mask"][:, 1:] == 1
        return pack(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], scored).ids.numel()

    found = {}
    for way in ("auto", "off"):
        keys = {**KEYS, "max_length": 512, "gradient_accumulation_steps": 8}
        trainer = our_trainer(tiny_model, starter(64), tmp_path / way, reference=tmp_path / "r", fast_path=way, **keys)
        found[way] = sum(slots(batch) for batch in trainer.get_train_dataloader())
    assert found["auto"] < 0.96 * found["off"]


def test_the_guards_name_the_rows_of_a_step(tiny_model: Path, tmp_path: Path) -> None:
    """Asked in the middle of an epoch for an earlier one, without moving the order that is in use."""
    from preftune.guards import rows_of_step

    trainer = our_trainer(tiny_model, starter(16), tmp_path, reference=tmp_path / "r", **KEYS)
    loader = trainer.get_train_dataloader()
    seen: list[list[int]] = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = iter(loader.batch_sampler)
        for step in (1, 2):
            seen.append([row for _ in range(2) for row in next(batches)])
            assert rows_of_step(loader, 2 * epoch + step, 2, 1) == seen[-1]
            assert rows_of_step(loader, 1, 2, 1) == seen[0]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(16))
    assert seen[0] != seen[2]


def test_another_order_in_each_epoch(tiny_model: Path, tmp_path: Path) -> None:
    """accelerate's seeds reach the sampler inside: the steps of an epoch are TRL's."""
    steps = {}
    for way in ("auto", "off"):
        trainer = our_trainer(tiny_model, starter(16), tmp_path / way, reference=tmp_path / "r", fast_path=way, **KEYS)
        loader = trainer.get_train_dataloader()
        epochs = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            batches = [b["input_ids"][:4, :40].tolist() for b in loader]
            epochs.append([sorted(map(str, a + b)) for a, b in zip(batches[::2], batches[1::2], strict=True)])
        steps[way] = epochs
    assert [len(e) for e in steps["auto"]] == [2, 2]
    assert steps["off"][0] != steps["off"][1]
    keep = {way: [[{row[:60] for row in step} for step in epoch] for epoch in of] for way, of in steps.items()}
    assert keep["auto"] == keep["off"]
