"""The training child: the same result as bare TRL, checkpoints it resumes from, and errors in one message."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_pairs

from preftune.data.pairs import Pair, to_pair


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """A job as `training_step.make_train` writes it: 12 pairs, batches of 4, two epochs: 6 steps."""
    write_pairs(tmp_path / "raw.jsonl", 12, 5)
    rows = [json.loads(line) for line in (tmp_path / "raw.jsonl").read_text().splitlines()]
    pairs = [to_pair(r, "raw", str(i)) for i, r in enumerate(rows)]
    for side in ("train", "test"):
        (tmp_path / f"{side}.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in pairs))
    folder = tmp_path / "partial"
    folder.mkdir()
    return {
        "folder": str(folder),
        "model_path": str(tiny_model),
        "revision": None,
        "chat_template": None,
        "threads": 1,
        "method": "dpo",
        "model": {},
        "fast_path": "auto",
        "micro_batch_tokens": None,
        "training": {
            "seed": 42,
            "learning_rate": 0.01,
            "num_train_epochs": 2.0,
            "per_device_train_batch_size": 4,
            "max_length": 128,
            "logging_steps": 1.0,
            "save_strategy": "steps",
            "save_steps": 2.0,
            "save_total_limit": 2,
            "report_to": "none",
            "logging_nan_inf_filter": False,
            "precompute_ref_log_probs": True,
        },
        "train": str(tmp_path / "train.jsonl"),
        "test": str(tmp_path / "test.jsonl"),
        "left_out": None,
        "eval_pairs": 4,
        "reference": str(tmp_path / "reference"),
    }


def pairs_of(job: dict[str, Any]) -> list[Pair]:
    return [Pair.model_validate_json(line) for line in Path(job["train"]).read_text().splitlines()]


def metrics_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(job["folder"]) / "metrics.jsonl").read_text().splitlines()]


def test_losses_are_those_of_bare_trl(job: dict[str, Any], trl_trainer: Callable[..., Any], tmp_path: Path) -> None:
    from preftune.training import train

    train(job)
    keys = {k: v for k, v in job["training"].items() if not k.startswith(("save", "report"))}
    trainer = trl_trainer(Path(job["model_path"]), pairs_of(job), tmp_path / "bare", save_strategy="no", **keys)
    trainer.train()
    expected = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    assert len(expected) == 6
    assert [m["metrics"]["train/loss"] for m in metrics_of(job)] == pytest.approx(expected, rel=1e-5)
    assert expected[0] == pytest.approx(math.log(2), abs=1e-4)  # policy = reference at the first step


def test_a_folder_with_the_model_and_no_pickle(job: dict[str, Any]) -> None:
    from preftune.training import train

    train(job)
    names = {p.name for p in (Path(job["folder"]) / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not {n for n in names if n.endswith((".bin", ".pt", ".pkl", ".md"))}
    summary = json.loads((Path(job["folder"]) / "train.json").read_text())
    assert (summary["steps"], summary["max_steps"], summary["pairs"]) == (6, 6, 12)


def test_resumed_training_is_bit_identical(job: dict[str, Any], tmp_path: Path) -> None:
    """Stopped after a checkpoint and started again: the same weights, the same metrics, each step once."""
    import shutil

    from preftune.training import train

    job["model"] = {"use_peft": True, "lora_r": 4}
    train(job)
    folder = Path(job["folder"])
    whole = (folder / "model/adapter_model.safetensors").read_bytes()
    steps = metrics_of(job)
    # As after a SIGKILL at step 5: checkpoint 4 is whole, 6 is torn, step 5 is in the metrics already.
    shutil.rmtree(folder / "model")
    (folder / "checkpoints/checkpoint-6/optimizer.pt").write_bytes(b"torn")
    train(job)
    assert (folder / "model/adapter_model.safetensors").read_bytes() == whole
    assert metrics_of(job) == steps
    assert (folder / "checkpoints/broken-checkpoint-6").is_dir()


def test_all_prompts_too_long_is_told(job: dict[str, Any]) -> None:
    from preftune.errors import UserError
    from preftune.training import train

    job["training"]["max_length"] = 12
    with pytest.raises(UserError, match="every prompt is longer than max_length=12"):
        train(job)
    dropped = (Path(job["folder"]) / "dropped.jsonl").read_text().splitlines()
    assert len(dropped) == 12


def test_pairs_that_were_found_untrainable_are_left_out(job: dict[str, Any]) -> None:
    """By line number: the lengths step has counted them."""
    from preftune.training import train

    train({**job, "left_out": {"train": [0, 3, 11], "test": [0]}})
    assert json.loads((Path(job["folder"]) / "train.json").read_text())["pairs"] == 9


def with_tokens(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The job with what the lengths step finds and writes."""
    from conftest import TEMPLATE

    from preftune.data.lengths import count
    from preftune.data.pair_tokenizer import pair_tokenizer

    folder.mkdir()
    limit, tokenizer = job["training"]["max_length"], pair_tokenizer(Path(job["model_path"]), TEMPLATE)
    files = {side: folder / f"{side}.arrow" for side in ("train", "test")}
    found = {side: count(Path(job[side]), tokenizer, limit, False, file)["indices"] for side, file in files.items()}
    gone = {side: sorted(i for rows in of.values() for i in rows) for side, of in found.items()}
    return {**job, "left_out": gone, "tokens": {side: str(file) for side, file in files.items()}}


def trained(job: dict[str, Any], folder: Path) -> tuple[bytes, list[dict[str, Any]], dict[str, Any]]:
    """Weights, metrics and summary."""
    from preftune.training import train

    folder.mkdir()
    train({**job, "folder": str(folder), "reference": str(folder / "reference")})
    weights = next((folder / "model").glob("*.safetensors")).read_bytes()
    return weights, metrics_of({"folder": str(folder)}), json.loads((folder / "train.json").read_text())


@pytest.mark.parametrize("settings", [{}, {"use_peft": True, "lora_r": 4}])
def test_counted_ids_give_the_same_weights(
    job: dict[str, Any], tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, two pairs left out, evaluating on the way; nothing is tokenized again, nothing written there."""
    from trl import DPOTrainer

    long = [p.model_copy(update={"prompt": [{"role": "user", "content": "one two " * 99}]}) for p in pairs_of(job)[:2]]
    rows = [long[0], *pairs_of(job), long[1]]
    for side in ("train", "test"):
        Path(job[side]).write_text("".join(p.model_dump_json() + "\n" for p in rows))
    job["model"] = settings
    job["training"] |= {"eval_strategy": "steps", "eval_steps": 3.0, "per_device_eval_batch_size": 4}
    counted = with_tokens(job, tmp_path / "lengths")
    assert counted["left_out"] == {"train": [0, 13], "test": [0, 13]}
    files = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "lengths").iterdir())
    expected = trained({**counted, "tokens": None}, tmp_path / "messages")
    monkeypatch.setattr(DPOTrainer, "_prepare_dataset", None)
    assert trained(counted, tmp_path / "ids") == expected
    assert expected[2]["pairs"] == 12 and any("eval/loss" in m["metrics"] for m in expected[1])
    assert sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "lengths").iterdir()) == files


def test_ids_of_another_template_are_not_trained_on(job: dict[str, Any], tmp_path: Path) -> None:
    """As those of a template that writes today's date are tomorrow."""
    from conftest import TEMPLATE

    counted = with_tokens(job, tmp_path / "lengths")
    job["chat_template"] = counted["chat_template"] = TEMPLATE.replace("\n", " ")
    assert trained(counted, tmp_path / "ids") == trained(job, tmp_path / "messages")


def test_a_gradient_that_is_not_finite_stops_the_training(job: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from preftune.errors import UserError
    from preftune.training import train

    broken = tmp_path / "broken"
    shutil.copytree(job["model_path"], broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 1e38)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    job["model_path"] = str(broken)
    job["training"]["precompute_ref_log_probs"] = False  # which would find it before the first step
    with pytest.raises(UserError, match="not finite at step 1"):
        train(job)
    assert not (Path(job["folder"]) / "model").exists()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("loss", "train/loss"),
        ("rewards/margins", "train/rewards/margins"),
        ("eval_loss", "eval/loss"),
        ("eval_rewards/chosen", "eval/rewards/chosen"),
        ("train_runtime", None),
        ("eval_samples_per_second", None),
    ],
)
def test_metric_names(key: str, name: str | None) -> None:
    from preftune.callbacks import metric_name

    assert metric_name(key) == name


def test_recipe_keys_win_over_the_machine_s() -> None:
    from preftune.training_setup import Machine, trainer_arguments

    found = trainer_arguments({"gradient_checkpointing": True, "beta": 0.3}, Path("x"), Machine(False, False))
    assert (found["activation_checkpointing"], found["bf16"], found["beta"]) == (True, False, 0.3)
    gpu = trainer_arguments({}, Path("x"), Machine(True, True))
    assert "bf16" not in gpu, "on a GPU TRL's default stands"
    assert gpu["tf32"] and not trainer_arguments({"tf32": False}, Path("x"), Machine(True, True))["tf32"]
    assert "tf32" not in trainer_arguments({}, Path("x"), Machine(True, False))


def test_a_gpu_without_bfloat16_trains_in_float16(capsys: pytest.CaptureFixture[str]) -> None:
    from preftune.errors import UserError
    from preftune.training_setup import Machine, trainer_arguments

    t4 = Machine(has_cuda=True, has_bf16=False)
    found = trainer_arguments({}, Path("x"), t4)
    assert (found["bf16"], found["fp16"]) == (False, True)
    assert "no bfloat16" in capsys.readouterr().out
    assert "bf16" not in trainer_arguments({"fp16": True}, Path("x"), t4), "TRL's default follows fp16"
    with pytest.raises(UserError, match="no bfloat16"):
        trainer_arguments({"bf16": True}, Path("x"), t4)


@pytest.mark.parametrize("model", [{}, {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0}])
def test_orpo_s_losses_are_those_of_bare_trl(job: dict[str, Any], model: dict[str, Any], tmp_path: Path) -> None:
    """And a training that stopped half-way goes on to the same weights and metrics."""
    import shutil

    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import ModelConfig, get_peft_config

    from preftune.training import train

    for key in ("logging_steps", "seed"):
        job["training"].pop(key)
    job["training"] |= {"logging_steps": 1, "seed": 42, "eval_strategy": "steps", "eval_steps": 3}
    job |= {"method": "orpo", "model": model}
    del job["training"]["precompute_ref_log_probs"]  # ORPO has no reference
    train(job)
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # after train(), which silences its notice

    arguments = {k: v for k, v in job["training"].items() if not k.startswith(("save", "report", "eval"))}
    config = ORPOConfig(
        output_dir=str(tmp_path / "bare"),
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **arguments,
    )
    peft = get_peft_config(ModelConfig(**model))
    if peft:
        peft.target_modules = "all-linear"
    rows = [p.model_dump(include={"prompt", "chosen", "rejected"}) for p in pairs_of(job)]
    bare = ORPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model_path"]),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model_path"]),
        peft_config=peft,
    )
    bare.train()
    expected = [h["loss"] for h in bare.state.log_history if "loss" in h]
    ours = [m["metrics"] for m in metrics_of(job) if "train/loss" in m["metrics"]]
    assert [m["train/loss"] for m in ours] == pytest.approx(expected, rel=1e-5)
    assert len(expected) == 6
    assert any("eval/loss" in m["metrics"] for m in metrics_of(job))

    folder = Path(job["folder"])
    name = "adapter_model.safetensors" if model else "model.safetensors"
    whole, steps = (folder / "model" / name).read_bytes(), metrics_of(job)
    shutil.rmtree(folder / "model")
    (folder / "checkpoints/checkpoint-6/optimizer.pt").write_bytes(b"torn")
    train(job)
    assert (folder / "model" / name).read_bytes() == whole
    assert metrics_of(job) == steps


def test_an_adapter_that_trains_in_float16_is_kept_in_float32() -> None:
    import torch

    from preftune.training_setup import widen_adapter

    frozen, adapter, norm = (torch.nn.Linear(2, 2, bias=False) for _ in range(3))
    frozen.bfloat16().requires_grad_(False)
    adapter.bfloat16()
    before = adapter.weight.detach().clone()
    widen_adapter(torch.nn.ModuleList([frozen, adapter, norm]))
    assert [m.weight.dtype for m in (frozen, adapter, norm)] == [torch.bfloat16, torch.float32, torch.float32]
    assert torch.equal(adapter.weight.bfloat16(), before)
