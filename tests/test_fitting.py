"""Out of memory: what is changed, in which order, what is remembered. `run` stands for the child here; test_faults.py
lets real children run out of real memory."""

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.checkpoints import seal
from preftune.errors import OutOfMemory, StepError, UserError
from preftune.fitting import LESS, less_at_a_time, run_fitting


def ladder(training: dict[str, Any], is_cuda: bool = False) -> list[dict[str, Any]]:
    found = []
    while (less := less_at_a_time(training, is_cuda)) is not None:
        found.append(less)
        training = {**training, **less}
    return found


def test_halves_to_one_pair_then_gradient_checkpointing() -> None:
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    found = ladder({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3})
    assert [tuple(f[n] for n in names) for f in found[:-1]] == [(4, 6), (2, 12), (1, 24)]
    assert found[-1] == {"gradient_checkpointing": True}


@pytest.mark.parametrize(("batch", "sizes"), [(6, [3, 1]), (15, [5, 1]), (7, [1]), (12, [6, 3, 1]), (1, [])])
def test_the_effective_batch_stays_also_for_odd_sizes(batch: int, sizes: list[int]) -> None:
    training = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 2}
    found = ladder(training)[:-1]
    assert [f["per_device_train_batch_size"] for f in found] == sizes
    assert {f["per_device_train_batch_size"] * f["gradient_accumulation_steps"] for f in found} <= {2 * batch}


@pytest.mark.parametrize(
    ("keys", "is_cuda", "last"),
    [
        ({}, True, None),  # TRL's default: on
        ({}, False, {"gradient_checkpointing": True}),
        ({"gradient_checkpointing": False}, True, {"gradient_checkpointing": True}),
        ({"gradient_checkpointing": True}, False, None),
        ({"activation_checkpointing": True}, False, None),
    ],
)
def test_gradient_checkpointing_only_where_it_is_off(keys: dict[str, Any], is_cuda: bool, last: Any) -> None:
    assert less_at_a_time({"per_device_train_batch_size": 1, **keys}, is_cuda) == last


def test_trl_s_defaults_count() -> None:
    """Eight pairs at a time, no accumulation."""
    assert less_at_a_time({}, False) == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


def test_the_evaluation_follows() -> None:
    """Only where there is one; and it may be what runs out at one pair."""
    on = {"per_device_train_batch_size": 4, "eval_strategy": "steps"}
    less = less_at_a_time(on, False)
    assert less and less["per_device_eval_batch_size"] == 2
    assert less_at_a_time({**on, "per_device_train_batch_size": 1}, False) == {"per_device_eval_batch_size": 1}
    assert "per_device_eval_batch_size" not in (less_at_a_time({"per_device_train_batch_size": 4}, False) or {})


def test_the_reference_s_pass_follows_where_it_has_a_size_of_its_own() -> None:
    own = {"per_device_train_batch_size": 4, "precompute_ref_batch_size": 16}
    assert (less_at_a_time(own, False) or {})["precompute_ref_batch_size"] == 2
    assert "precompute_ref_batch_size" not in (less_at_a_time({"per_device_train_batch_size": 4}, False) or {})


def test_an_epoch_s_dropped_rest_is_not_moved() -> None:
    """10 pairs, 4 at a time, the rest dropped: 2 steps an epoch. In halves it would be 5 micro-batches: 3 steps."""
    training = {"per_device_train_batch_size": 4, "dataloader_drop_last": True}
    assert less_at_a_time(training, False) == {"gradient_checkpointing": True}


class Machine:
    """Holds so many pairs at a time, with gradient checkpointing twice as many."""

    def __init__(self, pairs: float, steps_before: int = 0) -> None:
        self.pairs, self.steps, self.tried = pairs, steps_before, []

    def run(self, job: dict[str, Any]) -> None:
        training = job["training"]
        self.tried.append((training["per_device_train_batch_size"], training["gradient_accumulation_steps"]))
        if self.steps:
            path = Path(job["folder"]) / "checkpoints" / f"checkpoint-{self.steps}"
            if not path.exists():
                path.mkdir(parents=True)
                (path / "weights").write_text("w")
                seal(path, {})
        if training["per_device_train_batch_size"] > self.pairs * (2 if training.get("gradient_checkpointing") else 1):
            raise OutOfMemory("training ran out of memory after 5 of 9 steps: CUDA out of memory", "the log")


def job(folder: Path) -> dict[str, Any]:
    training = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_length": 512}
    return {"folder": str(folder), "training": training, "model": {}}


def test_until_it_fits(tmp_path: Path) -> None:
    told: list[str] = []
    machine = Machine(pairs=1, steps_before=12)
    changes = run_fitting(machine.run, job(tmp_path), False, told.append)
    assert machine.tried == [(4, 4), (2, 8), (1, 16)]
    assert changes == [
        "per_device_train_batch_size 4 → 2, gradient_accumulation_steps 4 → 8, from step 12",
        "per_device_train_batch_size 2 → 1, gradient_accumulation_steps 8 → 16, from step 12",
    ]
    assert len(told) == 2 and all(c in t and "ran out of memory" in t for c, t in zip(changes, told, strict=True))


def test_what_fits_is_not_touched(tmp_path: Path) -> None:
    machine = Machine(pairs=4)
    assert run_fitting(machine.run, job(tmp_path), False, print) == []
    assert machine.tried == [(4, 4)] and not (tmp_path / LESS).exists()


def test_a_later_try_begins_with_what_is_known(tmp_path: Path) -> None:
    """The flow was killed after the first change; the record has both tries."""
    first = Machine(pairs=1)

    def killed(job: dict[str, Any]) -> None:
        if first.tried:
            raise KeyboardInterrupt
        first.run(job)

    with pytest.raises(KeyboardInterrupt):
        run_fitting(killed, job(tmp_path), False, print)
    second = Machine(pairs=1)
    changes = run_fitting(second.run, job(tmp_path), False, print)
    assert second.tried == [(2, 8), (1, 16)]
    assert [c.split(",")[0] for c in changes] == [
        "per_device_train_batch_size 4 → 2",
        "per_device_train_batch_size 2 → 1",
    ]


def test_what_would_fit_is_said_when_nothing_does(tmp_path: Path) -> None:
    machine = Machine(pairs=0)
    with pytest.raises(UserError) as e:
        run_fitting(machine.run, job(tmp_path), False, lambda _: None)
    assert machine.tried == [(4, 4), (2, 8), (1, 16), (1, 16)]
    assert "after 5 of 9 steps" in e.value.error and "per_device_train_batch_size 1" in e.value.error
    for way in ("max_length (512)", "use_peft: true", "load_in_4bit", "a larger device"):
        assert way in e.value.advice
    lora = {**job(tmp_path), "model": {"use_peft": True, "load_in_4bit": True}}
    with pytest.raises(UserError) as e:
        run_fitting(machine.run, lora, False, lambda _: None)
    assert "use_peft" not in e.value.advice and "load_in_4bit" not in e.value.advice


def test_other_failures_pass_through(tmp_path: Path) -> None:
    def fails(_: dict[str, Any]) -> None:
        raise StepError("something else")

    with pytest.raises(StepError, match="something else"):
        run_fitting(fails, job(tmp_path), False, print)
    assert not (tmp_path / LESS).exists()


def test_the_record_is_whole_json(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        run_fitting(Machine(pairs=0).run, job(tmp_path), False, lambda _: None)
    kept = json.loads((tmp_path / LESS).read_text())
    assert kept["keys"]["gradient_checkpointing"] is True and len(kept["told"]) == 3
