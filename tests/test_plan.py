"""What a run would do: steps and tokens counted by hand, and what would be reused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from preftune import accelerate_configs, keys, store
from preftune.data.pairs import Pair
from preftune.models import StartingModel
from preftune.plan import make_plan, sharding_of, step_count, training_value
from preftune.policies import find_policy
from preftune.recipe import resolve
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace


def recipe(**keys: Any) -> Recipe:
    return resolve({"dataset_name": "x", **keys}, Path("recipes/demo/config.yaml"))


def pair(i: int, prompt: int, chosen: int, rejected: int) -> Pair:
    """So many words each."""
    return Pair(
        prompt=[{"role": "user", "content": " ".join("w" * prompt)}],
        chosen=[{"role": "assistant", "content": " ".join("w" * chosen)}],
        rejected=[{"role": "assistant", "content": " ".join("w" * rejected)}],
        source="x",
        row_id=str(i),
        group_id=str(i),
    )


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A machine without a GPU."""
    monkeypatch.setattr(accelerate_configs, "gpu_count", lambda: 0)
    return Workspace(tmp_path, tmp_path / "home")


@pytest.fixture
def model(tmp_path: Path) -> StartingModel:
    return StartingModel(
        "mine/135M-Instruct", str(tmp_path), None, "digest", "{{ messages }}", str(tmp_path), weights="w"
    )


def mixture_of(workspace: Workspace, pairs: list[Pair]) -> StepResult:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "train.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in pairs))
        return {"train": len(pairs), "test": 2, "train_sha256": "t1", "test_sha256": "t2"}

    return store.make(workspace, "mixture", "m", build)


# --- steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "processes", "keys", "expected"),
    [
        # ceil(10/4) = 3 batches, ceil(3/2) = 2 updates an epoch
        (10, 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 1}, (2, 8)),
        (10, 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 3}, (6, 8)),
        # ceil(0.5 x 2) = 1, ceil(1.2 x 2) = 3
        (10, 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 0.5}, (1, 8)),
        (10, 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 1.2}, (3, 8)),
        # two processes: ceil(10/8) = 2 batches, 1 update
        (10, 2, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 1}, (1, 16)),
        # the last, smaller batch left out: 10 // 4 = 2 batches, 1 update
        (
            10,
            1,
            {
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 2,
                "num_train_epochs": 1,
                "dataloader_drop_last": True,
            },
            (1, 8),
        ),
        # fewer pairs than a batch: one step
        (1, 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8, "num_train_epochs": 1}, (1, 32)),
        # max_steps wins over the epochs, -1 means none
        (10, 1, {"per_device_train_batch_size": 4, "max_steps": 5, "num_train_epochs": 1}, (5, 4)),
        (10, 1, {"per_device_train_batch_size": 4, "max_steps": -1, "num_train_epochs": 1}, (3, 4)),
        # TRL's defaults: batch 8, accumulation 1, 3 epochs: 3 x ceil(20/8) = 9
        (20, 1, {}, (9, 8)),
    ],
)
def test_step_count(pairs: int, processes: int, keys: dict[str, Any], expected: tuple[int, int]) -> None:
    assert step_count(pairs, recipe(**keys), processes) == expected


def test_training_value_is_the_recipe_s_or_trl_s() -> None:
    assert training_value(recipe(beta=0.3), "beta") == 0.3
    assert training_value(recipe(), "beta") == 0.1
    assert training_value(recipe(max_length=None), "max_length") is None


# --- tokens -----------------------------------------------------------------------------------------------


def counted(tokens: int, cut: int = 0, lost: int = 0) -> StepResult:
    """What the lengths step told."""
    info = {"train": {"tokens": tokens, "cut": cut, "longest": 20, "counts": {"prompt_fills_max_length": lost}}}
    return StepResult(step="lengths", key="k", digest="d", info=info)


@pytest.mark.parametrize(
    ("pairs", "keys", "tokens"),
    [
        # 12 tokens a pair; pairs in one batch of 8 are seen once, however large the batch could be
        (1, {}, 12),
        (8, {}, 96),
        (3, {"num_train_epochs": 2}, 72),
        # 9 pairs: two steps, still 9 pairs
        (9, {}, 108),
        # max_steps: 4 steps of 8 pairs
        (8, {"max_steps": 4}, 384),
    ],
)
def test_tokens_by_hand(
    workspace: Workspace, model: StartingModel, pairs: int, keys: dict[str, Any], tokens: int
) -> None:
    """What the training sees, at a batch of 4 x 2 and one epoch unless told otherwise."""
    defaults = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 1}
    mixture = mixture_of(workspace, [pair(i, 2, 3, 1) for i in range(pairs)])
    plan = make_plan(recipe(**{**defaults, **keys}), workspace, model, mixture, counted(12 * pairs))
    assert plan["tokens"] == tokens


def test_pairs_that_cannot_be_trained_on_are_not_planned_for(workspace: Workspace, model: StartingModel) -> None:
    """Of 10 pairs 2 are lost: 8 make one step of 8, with the 80 tokens that were counted."""
    mixture = mixture_of(workspace, [pair(i, 1, 1, 1) for i in range(10)])
    keys = {"per_device_train_batch_size": 8, "num_train_epochs": 1}
    plan = make_plan(recipe(**keys), workspace, model, mixture, counted(80, cut=3, lost=2))
    assert (plan["train_pairs"], plan["steps"], plan["tokens"], plan["pairs_cut"]) == (8, 1, 80, 3)


def test_what_could_not_be_counted(workspace: Workspace, model: StartingModel) -> None:
    unknown = StepResult(step="lengths", key="k", digest="d", info={"not_counted": "there is no tokenizer.json"})
    plan = make_plan(recipe(), workspace, model, mixture_of(workspace, [pair(0, 1, 1, 1)]), unknown)
    assert plan["tokens"] is None and plan["train_pairs"] == 1


# --- the plan ---------------------------------------------------------------------------------------------


def test_a_plan(workspace: Workspace, model: StartingModel) -> None:
    pairs = [pair(i, 2, 3, 1) for i in range(8)]
    plan = make_plan(recipe(output_dir="data/x"), workspace, model, mixture_of(workspace, pairs), counted(96))
    assert (plan["train_pairs"], plan["test_pairs"]) == (8, 2)
    assert (plan["steps"], plan["effective_batch"], plan["processes"]) == (3, 8, 1)
    assert (plan["device"], plan["accelerate_config"], plan["output_dir"]) == ("cpu", "cpu.yaml", "data/x")
    assert plan["training_minutes"] == round(8 * 12 * 3 * 0.01 / 60, 1)
    json.dumps(plan)


def test_a_plan_without_the_model(workspace: Workspace) -> None:
    """It has yet to be fetched: what is known is told."""
    plan = make_plan(recipe(), workspace, None, mixture_of(workspace, [pair(0, 1, 1, 1)]), None)
    assert plan["tokens"] is None and plan["steps"] == 3
    assert plan["reused"] == {"source": True, "mixture": True, "baseline": False, "train": False, "policy": False}


def test_what_would_be_reused(workspace: Workspace, model: StartingModel) -> None:
    """Finished steps, by their keys; another β trains anew and keeps the baseline."""
    mixture, first = mixture_of(workspace, [pair(0, 1, 1, 1)]), recipe(beta=0.1)

    def reused(with_recipe: Recipe) -> set[str]:
        return {s for s, yes in make_plan(with_recipe, workspace, model, mixture, None)["reused"].items() if yes}

    assert reused(first) == {"source", "mixture"}
    store.make(workspace, "baseline", keys.baseline_key(first, workspace, model, mixture), lambda _: {})
    assert reused(first) == {"source", "mixture", "baseline"}

    def trained(folder: Path) -> dict[str, Any]:
        (folder / "model").mkdir()
        (folder / "model/adapter_config.json").write_text("{}")
        (folder / "model/adapter_model.safetensors").write_bytes(b"weights")
        return {}

    train = store.make(workspace, "train", keys.train_key(first, workspace, model, mixture), trained)
    policy = find_policy(str(train.folder(workspace) / "model"), workspace, model)
    store.make(workspace, "policy", keys.policy_key(first, workspace, model, mixture, policy.digest), lambda _: {})
    assert reused(first) == {"source", "mixture", "baseline", "train", "policy"}
    assert reused(recipe(beta=0.2)) == {"source", "mixture", "baseline"}
    assert reused(recipe(beta=0.1, output_dir="data/other")) == {"source", "mixture", "baseline", "train", "policy"}


def test_a_plan_for_several_gpus(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """ddp: a process per device."""
    monkeypatch.setattr(accelerate_configs, "gpu_count", lambda: 4)
    plan = make_plan(recipe(), workspace, None, mixture_of(workspace, [pair(0, 1, 1, 1)]), None)
    assert (plan["device"], plan["accelerate_config"]) == ("cuda", "ddp.yaml")
    assert (plan["processes"], plan["effective_batch"]) == (4, 32)


def test_memory_and_advice(workspace: Workspace, model: StartingModel, tmp_path: Path) -> None:
    """From the model's own config.json, for rows as long as the longest one; nothing where the shape is not known."""
    mixture = mixture_of(workspace, [pair(0, 1, 1, 1)])
    blind = make_plan(recipe(model_name_or_path="mine/x"), workspace, model, mixture, counted(12))
    assert blind["memory"] is None
    assert any("memory is not planned" in line["text"] for line in blind["advice"])
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64, "vocab_size": 400}))
    plan = make_plan(recipe(), workspace, model, mixture, counted(12))
    assert plan["memory"]["estimated"] and plan["memory"]["fits"]
    assert (plan["memory"]["length"], plan["memory"]["micro_batch"]) == (20, 8)
    assert "memory is not planned" not in str(plan["advice"])
    whens = [line["when"] for line in plan["advice"]]
    assert whens == sorted(whens, key=["launch", "not_improving", "too_slow", "better_results"].index)
    assert "effective batch 8 is below 16–64" in plan["advice"][0]["text"]


def test_a_model_that_has_yet_to_be_fetched_is_planned_for(workspace: Workspace) -> None:
    """The embedded model's shape is known."""
    plan = make_plan(recipe(), workspace, None, mixture_of(workspace, [pair(0, 1, 1, 1)]), None)
    assert plan["memory"]["parts"]["weights"] == 4 * 134_515_008


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("distributed_type: 'NO'\n", None),
        ("distributed_type: MULTI_GPU\nnum_processes: 8\n", None),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\n", "fsdp"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}\n", "zero3"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}\n", "zero2"),
        ("distributed_type: DEEPSPEED\n", None),
    ],
)
def test_how_a_launch_shares_the_model(tmp_path: Path, text: str, expected: str | None) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert sharding_of(tmp_path / "x.yaml") == expected


def test_planning_imports_nothing_heavy() -> None:
    """It is told in seconds."""
    code = (
        "import sys; import preftune.plan; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'trl', 'mlflow', 'transformers', 'prefect', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
