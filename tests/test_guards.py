"""What stops a training: each guard on real trainings of the tiny model that go wrong for real."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_faults import training_job

from preftune.errors import StepError, UserError
from preftune.guards import Guard, checkpoint_bytes, rows_of_step, space_needed


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    """Full fine-tuning, 12 steps of four pairs."""
    return training_job(tiny_model, tmp_path / "job") | {"model": {}}


def run(job: dict[str, Any]) -> None:
    from preftune.training import train

    train(job)


def stopped(job: dict[str, Any]) -> dict[str, Any]:
    return json.loads((Path(job["folder"]) / "stopped.json").read_text())


def logged(job: dict[str, Any]) -> list[dict[str, float]]:
    lines = (Path(job["folder"]) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["metrics"] for line in lines]


# --- which rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_rows_of_a_step_are_those_that_were_trained_on(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    """Every step of three epochs of 16 pairs in twos, the short last one of each epoch included; asked at the end, and
    asking in the middle changes nothing."""
    from trl import DPOTrainer

    trainers: list[Any] = []
    seen: dict[int, list[tuple[int, ...]]] = {}
    original = DPOTrainer.training_step

    def step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        trainers[:] = [self]
        chosen = len(inputs["input_ids"]) // 2
        kept = inputs["attention_mask"].bool()
        rows = [tuple(ids[m].tolist()) for ids, m in zip(inputs["input_ids"][:chosen], kept[:chosen], strict=True)]
        seen.setdefault(self.state.global_step + 1, []).extend(rows)
        rows_of_step(self.callback_handler.train_dataloader, 1, accumulation, 1)
        return original(self, model, inputs, *rest)

    monkeypatch.setattr(DPOTrainer, "training_step", step)
    job["training"]["gradient_accumulation_steps"] = accumulation
    run(job)
    (trainer,) = trainers
    assert len(seen) == 3 * math.ceil(8 / accumulation)
    for number, rows in seen.items():
        told = rows_of_step(trainer.callback_handler.train_dataloader, number, accumulation, 1)
        data = trainer.train_dataset[told]
        assert [tuple(p + c) for p, c in zip(data["prompt_ids"], data["chosen_ids"], strict=True)] == rows


def test_the_rows_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes take turns with the micro-batches; a step of both has what one process has at twice the size."""
    from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
    from torch.utils.data import BatchSampler

    def loader(processes: int, batch: int) -> Any:
        batches = BatchSampler(SeedableRandomSampler(range(24), data_seed=7), batch, drop_last=False)
        shard = BatchSamplerShard(batches, processes, 0) if processes > 1 else batches

        class Loader:
            batch_sampler = shard

            def __len__(self) -> int:
                return len(shard)

        return Loader()

    for step in range(1, 13):  # three epochs of 24 rows in eights, and once more
        alone = rows_of_step(loader(1, 8), step, 1, 1)
        assert rows_of_step(loader(2, 2), step, 2, 2) == alone
        assert len(alone) == 8
    assert sorted(row for s in (4, 5, 6) for row in rows_of_step(loader(2, 2), s, 2, 2)) == list(range(24))
    assert rows_of_step(loader(1, 8), 1, 1, 1) != rows_of_step(loader(1, 8), 4, 1, 1), "another order each epoch"


# --- what stops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        # A margin of 1 nat is 100 in units of beta: the loss of easy pairs is 0 as soon as anything is learned.
        ({"beta": 100.0}, "the loss is exactly 0 at step {}: the margin is beyond what numbers can tell apart"),
        # A hinge's loss may be 0, so that nothing but the collapse stops this one.
        ({"learning_rate": 10.0, "loss_type": ["hinge"]}, "the chosen answers' log-probability has collapsed to -"),
    ],
)
def test_settings_that_destroy_the_model(job: dict[str, Any], keys: dict[str, Any], what: str) -> None:
    """The step is named, its rows, and what was known; the message has no stack trace."""
    job["training"] |= {**keys, "save_steps": 1}
    with pytest.raises(UserError) as e:
        run(job)
    found = stopped(job)
    step = found["steps"][0]
    assert step > 1 and found["steps"] == [step, step] and len(set(found["rows"])) == 4
    assert e.value.error.startswith(what.format(step))
    assert f"; the checkpoint of step {step - 1} is kept" in e.value.error
    assert all(row in e.value.error for row in found["rows"])
    assert Path(found["checkpoint"]).name == f"checkpoint-{step - 1}"
    assert not (Path(job["folder"]) / "model").exists()
    assert len(logged(job)) == step, "what it saw is on record"


def test_collapse_counts_tokens(job: dict[str, Any]) -> None:
    """Per token: by hand from the logged sum and the tokens of the step's four chosen answers."""
    job["training"] |= {"learning_rate": 10.0, "loss_type": ["hinge"]}
    with pytest.raises(UserError) as e:
        run(job)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model_path"])
    pairs = [json.loads(line) for line in Path(job["train"]).read_text().splitlines()]
    chosen = {f"raw {p['row_id']}": p["chosen"][0]["content"] + "<|im_end|>\n" for p in pairs}
    tokens = [len(tokenizer(chosen[row])["input_ids"]) for row in stopped(job)["rows"]]
    per_token = logged(job)[2]["train/logps/chosen"] * 4 / sum(tokens)
    assert f"collapsed to {per_token:.1f} per token" in e.value.error
    assert f"guessing gives {-math.log(len(tokenizer)):.1f}" in e.value.error


def test_a_training_that_learns_much_is_let_be(job: dict[str, Any]) -> None:
    """A margin of 15 and a rejected answer far below the reference: DPO at its usual, if in a hurry."""
    job["training"]["learning_rate"] = 0.1
    run(job)
    assert logged(job)[-1]["train/rewards/margins"] > 10
    assert not (Path(job["folder"]) / "stopped.json").exists()


def test_nothing_to_learn(job: dict[str, Any]) -> None:
    """Chosen and rejected are the same: the gradient is rounding noise that Adam would blow up to full steps. Told at
    the third such step, though the log would come at the tenth only."""
    rows = [json.loads(line) for line in Path(job["train"]).read_text().splitlines()]
    Path(job["train"]).write_text("".join(json.dumps({**r, "rejected": r["chosen"]}) + "\n" for r in rows))
    job["training"]["logging_steps"] = 10
    with pytest.raises(UserError, match="nothing is learned in steps 1 to 3: the gradient is 0") as e:
        run(job)
    assert len(stopped(job)["rows"]) == 12 and "and 4 more" in e.value.error


def test_a_hinge_that_every_pair_satisfies_is_no_fault(job: dict[str, Any]) -> None:
    """Its loss and gradient are exactly 0 when it has done its work."""
    job["training"] |= {"loss_type": ["hinge"], "learning_rate": 0.1, "num_train_epochs": 5.0}
    run(job)
    last = logged(job)[-1]
    assert last["train/loss"] == 0 and last["train/rewards/accuracies"] == 1


def test_orpo_logs_a_mean_per_token(job: dict[str, Any]) -> None:
    job |= {"method": "orpo"}
    job["training"].pop("disable_dropout", None)
    job["training"]["learning_rate"] = 10.0
    with pytest.raises(UserError, match="collapsed to") as e:
        run(job)
    assert f"collapsed to {logged(job)[-1]['train/logps/chosen']:.1f} per token" in e.value.error


def guard(folder: Path, scaler: Any = None) -> tuple[Guard, Any, dict[str, Any]]:
    import torch

    trainer = SimpleNamespace(accelerator=SimpleNamespace(scaler=scaler))
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([math.inf, 1.0])
    model = SimpleNamespace(named_parameters=lambda: [("weight", weight)])
    given = {"args": None, "state": SimpleNamespace(global_step=4), "control": None, "model": model}
    return Guard(trainer, folder), weight, given


def test_float16_s_scaler_may_overflow_while_it_finds_its_scale(tmp_path: Path) -> None:
    """It skips such steps and halves its scale; below 1 it will not find one any more."""
    scale = [65536.0]
    found, _, given = guard(tmp_path, SimpleNamespace(get_scale=lambda: scale[0]))
    reasons: list[str] = []
    found._stop = lambda what, *_: reasons.append(what)  # type: ignore[method-assign]
    found.on_pre_optimizer_step(**given)
    assert not reasons
    scale[0] = 0.5
    found.on_pre_optimizer_step(**given)
    assert reasons == ["the gradient is not finite at step 5 (first in weight)"]


def test_a_nan_loss_where_gradients_cannot_be_seen(tmp_path: Path, job: dict[str, Any]) -> None:
    """As under DeepSpeed, which keeps the gradients to itself."""
    found, weight, given = guard(tmp_path)
    weight.grad = None
    found.on_pre_optimizer_step(**given)
    reasons: list[str] = []
    found._stop = lambda what, *_: reasons.append(what)  # type: ignore[method-assign]
    given["args"] = SimpleNamespace(loss_type=["sigmoid"])
    found._chosen_logp_per_token = lambda *_: 0.0  # type: ignore[method-assign]
    found._trainer.model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=9))
    )
    found.on_log(args=given["args"], state=given["state"], control=None, logs={"loss": math.nan})
    assert reasons == ["the loss is nan in steps 1 to 4"]


# --- disk space -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "saves", "there", "bytes_"),
    [
        (2, 10, 0, 3 * 100 + 30),  # two stay while the third is written, then the model
        (2, 2, 0, 2 * 100 + 30),
        (2, 10, 200, 100 + 30),  # resumed: two are there
        (2, 10, 900, 30),
        (None, 10, 0, 10 * 100 + 30),
        (2, 0, 0, 30),
    ],
)
def test_space_needed(limit: int | None, saves: int, there: int, bytes_: int) -> None:
    assert space_needed(100, 30, limit, saves, there) == bytes_


@pytest.mark.parametrize("model", [{}, {"use_peft": True, "lora_r": 16}])
def test_a_checkpoint_s_size_is_foreseen(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, model: dict[str, Any]
) -> None:
    """Against the files that the training really writes: weights and optimizer."""
    from preftune import guards

    foreseen: list[tuple[int, int]] = []

    def remembered(*args: Any) -> tuple[int, int]:
        foreseen.append(checkpoint_bytes(*args))
        return foreseen[-1]

    monkeypatch.setattr(guards, "checkpoint_bytes", remembered)
    job |= {"model": model}
    run(job)
    place = Path(job["folder"]) / "checkpoints/checkpoint-12"
    weights = sum(p.stat().st_size for p in place.glob("*.safetensors"))
    optimizer = (place / "optimizer.pt").stat().st_size
    ((checkpoint, saved),) = foreseen
    assert saved == pytest.approx(weights, rel=0.1)
    assert checkpoint == pytest.approx(weights + optimizer, rel=0.2)  # the tiny model's names weigh as much as numbers


def test_an_eight_bit_optimizer_keeps_a_byte_a_moment() -> None:
    import torch

    model = torch.nn.Linear(100, 10, bias=False)
    assert checkpoint_bytes(model, "adamw_torch") == (4000 + 2 * 4000, 4000)
    assert checkpoint_bytes(model, "adamw_8bit") == (4000 + 2 * 1000, 4000)


def test_too_small_a_disk(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune import guards

    usage: Callable[[Any], Any] = lambda _: SimpleNamespace(free=100_000)  # noqa: E731
    monkeypatch.setattr(guards.shutil, "disk_usage", usage)
    with pytest.raises(StepError, match="not enough disk space") as e:
        run(job)
    assert "of 0.0001 free" in e.value.error
    assert not (Path(job["folder"]) / "metrics.jsonl").read_text()
