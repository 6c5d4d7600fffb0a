"""The guide's advice, line by line, with the numbers by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune import advice, remedies
from preftune.hardware import A100, GIB, T4, Device
from preftune.memory_plan import plan_memory
from preftune.model_shape import known_shapes
from preftune.recipe import resolve
from preftune.schema import Recipe

SMOL = known_shapes()["HuggingFaceTB/SmolLM2-1.7B-Instruct"]
PHI = known_shapes()["microsoft/Phi-3-mini-4k-instruct"]
CPU = Device("a CPU", 16 * GIB, kind="cpu")
LORA: dict[str, Any] = {"use_peft": True, "dtype": "bfloat16"}


def recipe(**keys: Any) -> Recipe:
    return resolve({"dataset_name": "x", "max_length": 1024, **keys}, Path("recipes/demo/config.yaml"))


def texts(lines: list[advice.Line]) -> list[str]:
    return [line.text for line in lines]


@pytest.mark.parametrize(
    ("batch", "micro_batch", "processes", "expected"),
    [
        (8, 4, 1, "effective batch 8 is below 16–64: gradient_accumulation_steps: 4 makes it 16"),
        (2, 1, 2, "effective batch 2 is below 16–64: gradient_accumulation_steps: 8 makes it 16"),
        (15, 5, 1, "effective batch 15 is below 16–64: gradient_accumulation_steps: 4 makes it 20"),
        (128, 8, 1, "effective batch 128 is above 16–64: gradient_accumulation_steps: 8 makes it 64"),
        (128, 8, 16, "effective batch 128 is above 16–64: use fewer devices or smaller batches"),
    ],
)
def test_effective_batch(batch: int, micro_batch: int, processes: int, expected: str) -> None:
    assert texts(advice.effective_batch(batch, micro_batch, processes)) == [expected]


@pytest.mark.parametrize("batch", [16, 32, 64])
def test_an_effective_batch_within_the_range_is_not_mentioned(batch: int) -> None:
    assert advice.effective_batch(batch, 2, 1) == []


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"beta": 0.005}, "below 0.01–0.5"),
        ({"beta": 0.9}, "above 0.01–0.5"),
        ({"beta": 0.01}, None),
        ({"beta": 0.5}, None),
        ({"beta": 2.0, "loss_type": ["ipo"]}, None),  # there it is a target, not a scale
        ({"beta": 2.0, "method": "orpo"}, None),
    ],
)
def test_beta(keys: dict[str, Any], expected: str | None) -> None:
    found = texts(advice.beta(recipe(**keys)))
    assert (expected in found[0]) if expected else found == []


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"learning_rate": 5e-7}, None),
        ({"learning_rate": 5e-6}, None),
        ({"learning_rate": 5e-8}, "learning_rate 5e-08 is below 1e-07–5e-06, the range for training all weights"),
        ({"learning_rate": 2e-5}, "learning_rate 2e-05 is above 1e-07–5e-06, the range for training all weights"),
        # a LoRA's is ten times that
        ({"learning_rate": 2e-5, **LORA}, None),
        ({"learning_rate": 5e-7, **LORA}, "learning_rate 5e-07 is below 1e-06–5e-05, the range for a LoRA adapter"),
        ({"learning_rate": 2e-4, **LORA}, "learning_rate 0.0002 is above 1e-06–5e-05"),
        ({"learning_rate": 8e-6, "method": "orpo"}, None),
    ],
)
def test_learning_rate(keys: dict[str, Any], expected: str | None) -> None:
    found = texts(advice.learning_rate(recipe(**keys)))
    assert (expected in found[0]) if expected else found == []


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"num_train_epochs": 1}, []),
        ({"num_train_epochs": 3, "eval_strategy": "epoch"}, []),
        ({"num_train_epochs": 2}, ["eval_strategy"]),
        ({"num_train_epochs": 5, "eval_strategy": "epoch"}, ["num_train_epochs"]),
        ({"num_train_epochs": 5, "max_steps": 10, "eval_strategy": "epoch"}, []),
    ],
)
def test_epochs(keys: dict[str, Any], expected: list[str]) -> None:
    assert [line.key for line in advice.epochs(recipe(**keys))] == expected


@pytest.mark.parametrize(
    ("keys", "device", "sharded", "expected"),
    [
        ({**LORA, "bf16": True}, T4, False, ["T4 16 GB: use fp16, no bf16"]),
        ({**LORA}, T4, False, ["T4 16 GB: use fp16, no bf16"]),
        ({"use_peft": True, "fp16": True, "dtype": "float16"}, T4, False, []),
        ({"use_peft": True}, T4, False, ["fp16 will be used"]),
        ({**LORA, "bf16": True}, A100, False, []),
        ({**LORA}, CPU, False, ["about 100 times slower"]),
        ({"use_peft": True}, CPU, False, []),
        ({"dtype": "bfloat16"}, A100, False, ["a step smaller than 0.4 % of a weight is lost"]),
        ({"dtype": "bfloat16"}, A100, True, []),
        ({"dtype": "float32"}, A100, False, []),
        ({"dtype": "float16", "fp16": True}, A100, False, ["dtype: float32"]),
    ],
)
def test_precision(keys: dict[str, Any], device: Device, sharded: bool, expected: list[str]) -> None:
    found = texts(advice.precision(recipe(**keys), device, sharded))
    assert len(found) == len(expected)
    assert all(e in f for e, f in zip(expected, found, strict=True))


def test_bfloat16_loses_dpo_s_steps() -> None:
    """What the advice says of training all weights in it: Adam's step at 5e-7 leaves a weight of 0.02 as it is."""
    for dtype, changes in ((torch.bfloat16, False), (torch.float32, True)):
        weight = torch.full((4,), 0.02, dtype=dtype, requires_grad=True)
        optimizer = torch.optim.AdamW([weight], lr=5e-7, weight_decay=0.0)
        before = weight.detach().clone()
        for _ in range(20):
            (weight.float() * 3).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert bool((weight != before).all()) is changes


@pytest.mark.parametrize(
    ("shape", "targets", "expected"),
    [
        (SMOL, ["q_proj", "v_proj"], None),
        (PHI, ["qkv_proj", "o_proj"], None),
        (PHI, ["q_proj", "o_proj"], "is called q_proj (it has down_proj, gate_up_proj, o_proj, qkv_proj)"),
        (SMOL, ["q_proj"], "write '.*q_proj' (it has"),
        (PHI, ["q_proj"], "and q_proj is no module of phi3"),
        (SMOL, ["all-linear"], None),
        (SMOL, None, None),
    ],
)
def test_adapter_targets(shape: Any, targets: list[str] | None, expected: str | None) -> None:
    found = texts(advice.lora_targets(recipe(use_peft=True, lora_target_modules=targets), shape))
    assert (expected in found[0]) if expected else found == []


def plan(**keys: Any) -> dict[str, Any]:
    return plan_memory(recipe(**{"gradient_accumulation_steps": 4, **keys}), SMOL, A100)


def test_memory_that_is_enough() -> None:
    """LoRA on 1.7B in 40 GB: fits, and so much more would."""
    found = plan(**LORA, per_device_train_batch_size=2, gradient_checkpointing=True)
    most = found["largest_micro_batch"]["with_checkpointing"]
    assert found["fits"] and most >= 4
    assert f"A100 40 GB: micro-batch {most} fits, {2 * most} does not (estimated)" in texts(advice.memory(found))


def test_memory_that_is_enough_only_with_checkpointing() -> None:
    most = plan(**LORA)["largest_micro_batch"]
    size = 2 * most["without_checkpointing"]
    assert size <= most["with_checkpointing"]
    line = f"micro-batch {size} fits with gradient_checkpointing, not without"
    with_it = plan(**LORA, per_device_train_batch_size=size, gradient_checkpointing=True)
    assert with_it["fits"] and line in texts(advice.memory(with_it))
    without = plan(**LORA, per_device_train_batch_size=size, gradient_checkpointing=False)
    assert not without["fits"] and line in texts(advice.memory(without))
    assert (
        "does not fit" in texts(advice.memory(without))[0] and "it would fit with" in texts(advice.memory(without))[0]
    )


def test_memory_that_nothing_makes_enough() -> None:
    tiny = replace(A100, name="tiny", memory=2 * GIB)
    found = plan_memory(recipe(), SMOL, tiny)
    assert "no setting of ours makes it fit" in texts(advice.memory(found))[0]


def test_not_improving() -> None:
    """The guide: data, an SFT model, a lower learning rate, a higher beta."""
    lines = remedies.not_improving(recipe(learning_rate=5e-7, beta=0.1))
    assert [line.key for line in lines] == ["dataset_mixture", "model_name_or_path", "learning_rate", "beta"]
    assert lines[2].text == "lower learning_rate: 1e-07 in place of 5e-07"
    assert lines[3].text == "raise beta: 0.5 in place of 0.1"
    assert "beta" not in [line.key for line in remedies.not_improving(recipe(beta=0.5))]


def test_too_slow() -> None:
    """3.82 billion parameters against 1.71: 2.2 times; a tenth of the pairs."""
    lines = remedies.too_slow(recipe(precompute_ref_log_probs=False), PHI, 61135, 1911)
    found = {line.key: line.text for line in lines}
    assert "2.2 times fewer parameters" in found["model_name_or_path"]
    assert found["dataset_mixture"] == "weight: 0.1 keeps 6,113 of 61,135 pairs: about 191 of 1,911 steps"
    assert {"precompute_ref_log_probs", "use_peft"} <= set(found)
    quick = remedies.too_slow(recipe(**LORA), SMOL, 100, 5)
    assert [line.key for line in quick] == ["dataset_mixture"]


def test_better_results() -> None:
    keys = [line.key for line in remedies.better_results(recipe(num_train_epochs=1))]
    assert keys == ["num_train_epochs", "dataset_mixture", "model_name_or_path", "beta"]
    keys = [line.key for line in remedies.better_results(recipe(num_train_epochs=3, method="orpo"))]
    assert keys == ["dataset_mixture", "model_name_or_path"]


def test_all_before_a_launch_warnings_first() -> None:
    found = advice.launch_advice(
        recipe(**LORA, per_device_train_batch_size=2),
        SMOL,
        T4,
        batch=2,
        processes=1,
        sharded=False,
        memory_plan=plan(**LORA),
    )
    levels = [line.level for line in found]
    assert levels == sorted(levels, reverse=True) and {"warning", "note"} == set(levels)
    assert {"gradient_accumulation_steps", "bf16"} <= {line.key for line in found}
