"""Memory by part for known models, by hand; what a recipe becomes; what would fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preftune.activations import kept_activations, logits
from preftune.hardware import A100, GIB, H100, T4, Device
from preftune.memory import Settings, base_weights, gathered, gradients, lora_parameters, optimizer, reference, weights
from preftune.memory_plan import (
    largest_micro_batch,
    lora_modules,
    plan_memory,
    settings_of,
    step_memory,
    what_would_fit,
)
from preftune.model_shape import ModelShape, known_shapes
from preftune.recipe import resolve
from preftune.schema import Recipe

ZEPHYR = known_shapes()["alignment-handbook/zephyr-7b-sft-full"]
SMOL = known_shapes()["HuggingFaceTB/SmolLM2-1.7B-Instruct"]
N = 7_241_732_096  # ZEPHYR's parameters
LINEAR = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)  # of its layers
CPU = Device("a CPU", 16 * GIB, kind="cpu")
FULL = Settings(weight_bytes=4, mixed=True)


def recipe(**keys: Any) -> Recipe:
    return resolve({"dataset_name": "x", "max_length": 1024, **keys}, Path("recipes/demo/config.yaml"))


# --- parts, by hand ---------------------------------------------------------------------------------------


def test_full_fine_tuning_takes_16_bytes_a_parameter() -> None:
    """4 for the weight, 4 for its gradient, 8 for Adam's averages; half of it all in bfloat16."""
    assert (weights(ZEPHYR, FULL), gradients(ZEPHYR, FULL), optimizer(ZEPHYR, FULL)) == (4 * N, 4 * N, 8 * N)
    half = replace(FULL, weight_bytes=2)
    assert (weights(ZEPHYR, half), gradients(ZEPHYR, half), optimizer(ZEPHYR, half)) == (2 * N, 2 * N, 4 * N)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw_torch", 8 * N),
        ("paged_adamw_32bit", 8 * N),
        ("lion_32bit", 4 * N),
        ("sgd", 0),
        # two bytes and two scales of 4 for each 256; the embedding in float32: 8 each
        ("adamw_8bit", (N - 32000 * 4096) * 2 * (1 + 4 / 256) + 8 * 32000 * 4096),
        # a row and a column of each matrix
        (
            "adafactor",
            4 * (32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)) + 2 * (32000 + 4096)),
        ),
    ],
)
def test_optimizers(name: str, expected: float) -> None:
    assert optimizer(ZEPHYR, replace(FULL, optimizer=name)) == expected


def test_lora_s_own_weights_are_all_that_is_trained() -> None:
    """Rank 16 on all linear modules of zephyr-7b: 41.9 million parameters."""
    lora = replace(FULL, weight_bytes=2, lora=ZEPHYR.linears, rank=16)
    count = 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert count == lora_parameters(ZEPHYR, lora) == 41_943_040
    assert weights(ZEPHYR, lora) == 2 * N + 4 * count
    assert (gradients(ZEPHYR, lora), optimizer(ZEPHYR, lora)) == (4 * count, 8 * count)


@pytest.mark.parametrize(
    ("quantized", "nested", "each"), [(8, False, 1), (4, False, 0.5625), (4, True, 0.5 + 0.015625 + 0.000244140625)]
)
def test_quantized_weights(quantized: Any, nested: bool, each: float) -> None:
    """The linear modules alone; embedding, head and norms stay in 16 bits. 4 bits with double quantization are the
    QLoRA paper's 4.127 bits."""
    found = base_weights(ZEPHYR, replace(FULL, weight_bytes=2, quantized=quantized, nested=nested))
    assert found == LINEAR * each + 2 * (N - LINEAR)


def test_a_reference_costs_memory_only_as_a_copy() -> None:
    assert reference(ZEPHYR, FULL) == 0
    assert reference(ZEPHYR, replace(FULL, frozen_copy=True)) == 4 * N
    assert reference(ZEPHYR, replace(FULL, frozen_copy=True, sharding="zero3", processes=8)) == N / 2


@pytest.mark.parametrize("sharding", ["zero3", "fsdp"])
def test_eight_devices_share_the_state(sharding: Any) -> None:
    """16 bytes a parameter, an eighth on each (ZeRO's stage 3)."""
    s = replace(FULL, weight_bytes=2, sharding=sharding, processes=8)
    assert weights(ZEPHYR, s) + gradients(ZEPHYR, s) + optimizer(ZEPHYR, s) == 16 * N / 8
    assert gathered(ZEPHYR, s) > 2 * ZEPHYR.layer_parameters


def test_several_processes_without_sharding_hold_gradients_twice() -> None:
    assert gradients(ZEPHYR, replace(FULL, processes=2)) == 8 * N


def test_dpo_s_logits_are_a_tile_orpo_s_are_all_of_them() -> None:
    """4096 x 32768 in 16 bits, hidden states, float32 gradients; 14 bytes for each of ORPO's logits."""
    s = Settings(pairs=4, length=1024, weight_bytes=2, mixed=True, lora=SMOL.linears)
    assert logits(SMOL, s) == 2 * 4096 * 32768 + 8192 * 2048 * 6
    assert logits(SMOL, replace(s, full_logits=True)) == 14 * 8192 * 49152


def test_checkpointing_keeps_each_layer_s_input() -> None:
    """24 layers' inputs in 16 bits and what the last norm reads in float32."""
    s = Settings(pairs=1, length=512, weight_bytes=2, mixed=True, lora=SMOL.linears, checkpointing=True)
    assert kept_activations(SMOL, s) == 1024 * 2048 * (24 * 2 + 4)


# --- from a recipe ----------------------------------------------------------------------------------------


def test_a_recipe_s_defaults_on_a_gpu_and_on_a_cpu() -> None:
    """bf16 is TRL's default, for a GPU; the reference is cached; checkpointing where memory needs it."""
    gpu, cpu = settings_of(recipe(), SMOL, A100), settings_of(recipe(), SMOL, CPU)
    small = settings_of(recipe(per_device_train_batch_size=1, max_length=256), SMOL, H100)
    assert small.checkpointing is False
    assert step_memory(SMOL, small).needed <= 0.8 * H100.memory
    assert step_memory(SMOL, replace(gpu, checkpointing=False)).needed > 0.8 * A100.memory
    assert (gpu.mixed, gpu.checkpointing, gpu.weight_bytes, gpu.frozen_copy) == (True, True, 4, False)
    assert (cpu.mixed, cpu.checkpointing, cpu.on_cpu) == (False, False, True)
    assert (gpu.pairs, gpu.accumulation, gpu.length) == (8, 1, 1024)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"precompute_ref_log_probs": False}, {"frozen_copy": True}),
        ({"precompute_ref_log_probs": False, "use_peft": True}, {"frozen_copy": False}),
        ({"method": "orpo"}, {"full_logits": True, "frozen_copy": False}),
        ({"gradient_checkpointing": False}, {"checkpointing": False}),
        ({"bf16": False}, {"mixed": False}),
        ({"fp16": True, "dtype": "float16"}, {"mixed": True, "weight_bytes": 2}),
        ({"attn_implementation": "eager"}, {"attention": "eager"}),
        ({"use_peft": True, "lora_r": 8, "load_in_4bit": True, "use_bnb_nested_quant": True},
         {"rank": 8, "quantized": 4, "nested": True, "adapter_bytes": 2}),
        ({"optim": "adafactor"}, {"optimizer": "adafactor"}),
    ],
)  # fmt: skip
def test_what_a_recipe_s_keys_become(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    found = settings_of(recipe(**keys), SMOL, A100)
    assert {name: getattr(found, name) for name in expected} == expected


def test_flash_attention_where_the_recipe_kept_it() -> None:
    """On a machine without a GPU reading a recipe leaves it out."""
    there = recipe()
    there = there.model_copy(update={"model": {**there.model, "attn_implementation": "flash_attention_2"}})
    assert settings_of(there, SMOL, A100).attention == "flash"


def test_rows_are_as_long_as_the_longest_or_the_limit() -> None:
    assert settings_of(recipe(), SMOL, A100, longest=300).length == 300
    assert settings_of(recipe(), SMOL, A100, longest=3000).length == 1024
    assert settings_of(recipe(max_length=None), SMOL, A100, longest=3000).length == 3000


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, 7),
        ("all-linear", 7),
        (["q_proj", "v_proj"], 2),
        (["self_attn.q_proj", "nothing"], 1),
        (["q_proj"], 0),  # TRL makes text of it, and peft a pattern of that
        ([".*q_proj"], 1),
        (".*_proj", 7),
    ],
)
def test_adapter_targets_as_peft_reads_them(targets: Any, expected: int) -> None:
    assert len(lora_modules(SMOL, targets)) == expected


# --- what fits --------------------------------------------------------------------------------------------


def qlora(**more: Any) -> Settings:
    return replace(
        Settings(pairs=4, accumulation=4, weight_bytes=2, mixed=True, quantized=4, nested=True, checkpointing=True),
        lora=ZEPHYR.linears,
        **more,
    )


def test_more_of_anything_never_needs_less() -> None:
    sizes = [step_memory(ZEPHYR, qlora(pairs=p)).peak for p in (1, 2, 4, 8)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4
    assert step_memory(ZEPHYR, qlora(checkpointing=False)).peak > step_memory(ZEPHYR, qlora()).peak
    assert step_memory(ZEPHYR, qlora(quantized=None)).peak > step_memory(ZEPHYR, qlora()).peak


def test_the_peak_lies_between_its_largest_part_and_their_sum() -> None:
    found = step_memory(ZEPHYR, qlora())
    assert max(found.parts.values()) < found.peak <= sum(found.parts.values())
    assert found.needed > found.peak


def test_the_largest_micro_batch_is_the_last_that_fits() -> None:
    most = largest_micro_batch(ZEPHYR, qlora(), A100)
    assert step_memory(ZEPHYR, qlora(pairs=most)).fits(A100)
    assert not step_memory(ZEPHYR, qlora(pairs=2 * most)).fits(A100)
    assert largest_micro_batch(ZEPHYR, FULL, A100) == 0


def test_what_would_fit_really_fits_and_keeps_the_effective_batch() -> None:
    """A 7B model with all weights on one A100: LoRA with less at a time would."""
    s = replace(FULL, pairs=8, accumulation=2)
    keys = what_would_fit(ZEPHYR, s, A100)
    assert keys is not None and keys["use_peft"] is True
    pairs, accumulation = keys["per_device_train_batch_size"], keys["gradient_accumulation_steps"]
    assert pairs * accumulation == 16
    changed = recipe(use_peft=True, **{k: v for k, v in keys.items() if k != "use_peft"})
    assert plan_memory(changed, ZEPHYR, A100)["fits"]


def test_nothing_helps_a_device_that_is_too_small() -> None:
    assert what_would_fit(ZEPHYR, FULL, Device("tiny", 2 * GIB, capability=(8, 0))) is None


def test_a_smaller_micro_batch_comes_first() -> None:
    s = Settings(pairs=16, length=1024, weight_bytes=2, mixed=True, lora=SMOL.linears, checkpointing=False)
    assert what_would_fit(SMOL, s, H100) == {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}


def test_a_plan_says_that_it_is_an_estimate() -> None:
    plan = plan_memory(recipe(use_peft=True, dtype="bfloat16"), SMOL, T4)
    assert plan["estimated"] is True
    assert (plan["device"], plan["device_bytes"]) == ("T4 16 GB", 15360 * 1024**2)
    assert plan["fits"] == (plan["would_fit"] is None)


def moe() -> ModelShape:
    return replace(ZEPHYR, linears=ZEPHYR.linears[:4], experts=8, active_experts=2)


def test_a_mixture_of_experts_holds_all_of_them_and_computes_with_two() -> None:
    """Mixtral-8x7B: 46.7 billion parameters; activations of two experts, not of eight."""
    assert moe().parameters == 46_702_792_704
    s = Settings(pairs=1, length=512, weight_bytes=2, mixed=True)
    assert kept_activations(moe(), s) < 3 * kept_activations(ZEPHYR, s)
