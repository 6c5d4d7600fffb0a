"""The promises of docs/reliability.md about a training: each fault is injected for real (`make faults`).

The training's own faults run in processes forked from a warm one (`faulty.attempt`: the child's real entry); those of
which the parent has to make something run through `training_step.make_train`, which starts real children.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_pairs
from faulty import Prepared, attempt, fill, prepare, train_in_process

from preftune import model_process
from preftune.data.pairs import to_pair
from preftune.errors import StepError, UserError
from preftune.fitting import less_at_a_time

pytestmark = pytest.mark.slow

FAULTY = Path(__file__).parent / "faulty.py"
ROWS = 16  # two pairs at a time, two times a step, three epochs: 12 steps, a checkpoint every 3


def training_job(model: Path, folder: Path, **keys: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True, parents=True)
    write_pairs(folder.parent / "raw.jsonl", ROWS, 5)
    rows = [json.loads(line) for line in (folder.parent / "raw.jsonl").read_text().splitlines()]
    pairs = [to_pair(r, "raw", str(i)) for i, r in enumerate(rows)]
    for side in ("train", "test"):
        (folder.parent / f"{side}.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in pairs))
    return {
        "folder": str(folder),
        "model_path": str(model),
        "revision": None,
        "chat_template": None,
        "threads": 1,
        "method": "dpo",
        "model": {"use_peft": True, "lora_r": 4, "lora_dropout": 0.1},
        "fast_path": "auto",
        "micro_batch_tokens": None,
        "training": {
            "seed": 42,
            "learning_rate": 0.001,
            "num_train_epochs": 3.0,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_length": 128,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 3,
            "save_total_limit": 2,
            "report_to": "none",
            "logging_nan_inf_filter": False,
            "disable_dropout": False,
            **keys,
        },
        "train": str(folder.parent / "train.jsonl"),
        "test": str(folder.parent / "test.jsonl"),
        "left_out": None,
        "eval_pairs": 4,
        "reference": str(folder.parent / "reference"),
        "fingerprint": {"the recipe": "a", "the data": "b"},
    }


def outcome(job: dict[str, Any]) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The final weights, byte for byte, and every logged metric."""
    folder = Path(job["folder"])
    weights = {p.name: p.read_bytes() for p in (folder / "model").glob("*.safetensors")}
    assert weights
    return weights, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def untouched(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The outcome of a training that nothing disturbed, LoRA (with dropout) or full."""
    done: dict[str, Any] = {}

    def of(kind: str) -> Any:
        if kind not in done:
            job = training_job(tiny_model, tmp_path_factory.mktemp("untouched") / "job")
            job["model"] = job["model"] if kind == "lora" else {}
            assert attempt(job) == (0, {})
            done[kind] = outcome(job)
            assert [m["step"] for m in done[kind][1]] == list(range(1, 13))
        return done[kind]

    return of


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    return training_job(tiny_model, tmp_path / "job")


def checkpoints_of(job: dict[str, Any]) -> list[str]:
    return sorted(p.name for p in (Path(job["folder"]) / "checkpoints").iterdir())


# --- bit-identical after it ---------------------------------------------------------------------------------


@pytest.mark.promise(1)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_killed_in_the_middle_of_a_step(job: dict[str, Any], untouched: Any, kind: str) -> None:
    job["model"] = job["model"] if kind == "lora" else {}
    assert attempt(job, kind="kill_in_step", step=8)[0] == -signal.SIGKILL
    assert attempt(job) == (0, {})
    assert outcome(job) == untouched(kind)


@pytest.mark.promise(2)
def test_killed_twice(job: dict[str, Any], untouched: Any) -> None:
    """The second time before the step that the first try reached, and between two checkpoints."""
    assert attempt(job, kind="kill_in_step", step=11)[0] == -signal.SIGKILL
    assert attempt(job, kind="kill_in_step", step=10)[0] == -signal.SIGKILL
    assert attempt(job) == (0, {})
    assert outcome(job) == untouched("lora")


@pytest.mark.promise(3)
@pytest.mark.parametrize("before", ["_save_optimizer_and_scheduler", "_save_rng_state", "seal"])
def test_killed_between_the_files_of_a_checkpoint(job: dict[str, Any], untouched: Any, before: str) -> None:
    """The newest is half there: it is set aside, and the one before is taken."""
    assert attempt(job, kind="kill_in_checkpoint", step=9, before=before)[0] == -signal.SIGKILL
    assert {"checkpoint-6", "checkpoint-9"} <= set(checkpoints_of(job))
    assert attempt(job) == (0, {})
    assert "broken-checkpoint-9" in checkpoints_of(job)
    assert outcome(job) == untouched("lora")


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param("adapter_model.safetensors", torn, marks=pytest.mark.promise(4)),
        pytest.param("trainer_state.json", torn, marks=pytest.mark.promise(4)),
        pytest.param("optimizer.pt", Path.unlink, marks=pytest.mark.promise(5)),
        pytest.param("optimizer.pt", flipped, marks=pytest.mark.promise(6)),
        pytest.param("rng_state.pth", flipped, marks=pytest.mark.promise(6)),
    ],
)
def test_damaged_checkpoint(job: dict[str, Any], untouched: Any, name: str, damage: Callable[[Path], Any]) -> None:
    assert attempt(job, kind="kill_in_step", step=11)[0] == -signal.SIGKILL
    damage(Path(job["folder"]) / "checkpoints/checkpoint-9" / name)
    assert attempt(job) == (0, {})
    assert "broken-checkpoint-9" in checkpoints_of(job)
    assert outcome(job) == untouched("lora")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.promise(7)
@pytest.mark.parametrize("leave", [400_000, 100_000, 0])
def test_disk_full(tiny_model: Path, small_disk: Path, untouched: Any, leave: int) -> None:
    """While the optimizer's state is written, while the weights are, and when not even a line can be written."""
    job = training_job(tiny_model, small_disk / "job")
    job["model"] = {}
    code, error = attempt(job, kind="fill_disk", step=9, filler=str(small_disk / "filler"), leave=leave)
    assert code == 1
    if leave:  # else there is no space for the report either: the parent reads it from the log
        assert error["error"] == "the disk is full: writing failed after 9 of 12 steps"
        assert "run the same command again" in error["advice"]
    assert not (Path(job["folder"]) / "model").exists()
    (small_disk / "filler").unlink()
    assert attempt(job) == (0, {})
    assert outcome(job) == untouched("full")


@pytest.mark.promise(7)
def test_too_small_a_disk_is_told_before_the_first_step(tiny_model: Path, small_disk: Path) -> None:
    job = training_job(tiny_model, small_disk / "job")
    job["model"] = {}
    fill(small_disk / "filler", 800_000)  # two checkpoints of 0.4 MB, one that is being written, the model
    code, error = attempt(job)
    assert (code, error["kind"]) == (1, "StepError")
    assert "not enough disk space" in error["error"] and "save_total_limit (2)" in error["advice"]
    assert not list(Path(job["folder"]).glob("checkpoints/checkpoint-*"))


@pytest.mark.promise(8)
def test_sigterm(job: dict[str, Any], untouched: Any) -> None:
    """In the middle of step 8: the step is finished, a checkpoint is written, the next try goes on from it."""
    code, error = attempt(job, kind="kill_in_step", step=8, sign=int(signal.SIGTERM))
    assert code == 1
    assert "stopped at step 8 of 12; a checkpoint is saved" in error["error"]
    assert not (Path(job["folder"]) / "model").exists()
    before = [p.name for p in (Path(job["folder"]) / "checkpoints").glob("checkpoint-8/preftune_manifest.json")]
    assert before, "sealed"
    assert attempt(job) == (0, {})
    assert outcome(job) == untouched("lora")


@pytest.mark.promise(10)
@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_out_of_memory_full_fine_tuning(tiny_model: Path, tmp_path: Path, method: str) -> None:
    """Half-way, in a training of all weights: the second half one pair at a time."""
    keys: dict[str, Any] = {"max_grad_norm": 1.0}
    jobs = [training_job(tiny_model, tmp_path / name / "job", **keys) for name in ("untouched", "fault")]
    for job in jobs:
        job |= {"method": method, "model": {}}
        job["training"].pop("disable_dropout", None)
    assert attempt(jobs[0]) == (0, {})
    code, error = attempt(jobs[1], kind="out_of_memory", step=8, fits=1)
    assert (code, error["kind"]) == (1, "OutOfMemory")
    assert "ran out of memory after 7 of 12 steps" in error["error"]
    less = less_at_a_time(jobs[1]["training"], is_cuda=False)
    assert less == {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    jobs[1]["training"] |= less
    assert attempt(jobs[1], kind="out_of_memory", step=1, fits=1) == (0, {})
    untouched, went_on = ([m["metrics"]["train/loss"] for m in outcome(job)[1]] for job in jobs)
    assert went_on[:6] == untouched[:6]
    # ORPO's NLL is a mean over a micro-batch's tokens, so its micro-batches count alike whatever their length.
    # float32's last digits: sums of two are added in another order.
    assert went_on == pytest.approx(untouched, abs=1e-6 if method == "dpo" else 1e-3)


# --- through the parent -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    """A project: 24 pairs, batches of 4, two epochs: 12 steps, a checkpoint every 2."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, use_peft=True, lora_r=4, learning_rate=0.001, num_train_epochs=2, eval_strategy="no")
    return folder


@pytest.fixture
def project(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(data / "recipes", tmp_path / "p/recipes")
    for name in [n for n in os.environ if n.startswith(("PREFTUNE", "PREFECT", "MLFLOW"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFTUNE_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "p"


@pytest.fixture
def with_fault(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on children have a fault in them."""

    def inject(**fault: Any) -> None:
        monkeypatch.setattr(
            model_process, "launch_command", lambda _module, job, *_: [sys.executable, str(FAULTY), str(job)]
        )
        monkeypatch.setenv("FAULT", json.dumps(fault or None))

    return inject


def result_of(prepared: Prepared) -> tuple[dict[str, bytes], list[float]]:
    folder = prepared.workspace.store / "train" / prepared.key
    weights = {p.name: p.read_bytes() for p in (folder / "model").glob("*.safetensors")}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, 13))
    return weights, [r["metrics"]["train/loss"] for r in rows]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[float]]:
    """The result of an undisturbed training of the project."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(data / "recipes", folder / "recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFTUNE_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        prepared = prepare(folder)
        assert prepared.train([]).info["out_of_memory"] == []
        return result_of(prepared)


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.promise(9)), pytest.param(8, marks=pytest.mark.promise(10))]
)
def test_out_of_memory(project: Path, trained: Any, with_fault: Any, step: int) -> None:
    """The same steps in halves, in the same run, from the newest checkpoint: the same losses."""
    expected_weights, expected = trained
    prepared, told = prepare(project), []
    with_fault(kind="out_of_memory", step=step, fits=2)
    result = prepared.train(told)
    start = 0 if step == 1 else 6
    change = f"per_device_train_batch_size 4 → 2, gradient_accumulation_steps 1 → 2, from step {start}"
    assert result.info["out_of_memory"] == [change]
    assert any(f"ran out of memory after {step - 1} of 12 steps" in t and change in t for t in told), told
    weights, losses = result_of(prepared)
    assert losses == pytest.approx(expected, abs=1e-6)
    assert losses[:start] == expected[:start]
    assert set(weights) == set(expected_weights)
    assert not list((prepared.workspace.store / "train" / prepared.key).glob("less*"))


@pytest.mark.promise(14)
def test_out_of_memory_with_one_pair(project: Path, with_fault: Any) -> None:
    """One pair, then gradient checkpointing, then a message with what would fit; nothing is registered."""
    prepared, told = prepare(project, per_device_train_batch_size=2), []
    with_fault(kind="out_of_memory", step=1, fits=0)
    with pytest.raises(UserError, match="ran out of memory after 0 of 24 steps") as e:
        prepared.train(told)
    assert "per_device_train_batch_size 1 and gradient checkpointing" in e.value.error
    assert "max_length (128)" in e.value.advice and "load_in_4bit" in e.value.advice
    assert [t for t in told if "less at a time" in t][1].endswith("(gradient_checkpointing on, from step 0)")
    assert not prepared.registered
    with pytest.raises(UserError):  # a later try knows what has been tried
        prepared.train(told := [])
    assert not any("less at a time" in t for t in told)


@pytest.mark.promise(11)
def test_nan(project: Path, with_fault: Any) -> None:
    prepared = prepare(project)
    with_fault(kind="broken_weight", step=8)
    with pytest.raises(UserError, match="the gradient is not finite at step 8") as e:
        prepared.train([])
    stopped = json.loads((prepared.folder / "stopped.json").read_text())
    assert len(stopped["rows"]) == 4 and all(row in e.value.error for row in stopped["rows"])
    assert "the checkpoint of step 6 is kept" in e.value.error
    assert Path(stopped["checkpoint"]).name == "checkpoint-6"
    assert not prepared.registered


@pytest.mark.promise(15)
def test_half_trained(project: Path, trained: Any, with_fault: Any) -> None:
    """Ends without an error at step 5 of 12: nothing to evaluate; the next try goes on."""
    prepared = prepare(project)
    with_fault(kind="stop_early", step=5)
    with pytest.raises(StepError, match="stopped at step 5 of 12"):
        prepared.train([])
    assert not prepared.registered and not (prepared.folder / "model").exists()
    with_fault()
    prepared.train(told := [])
    assert "resuming from step 4" in told
    assert result_of(prepared) == trained


@pytest.mark.parametrize(
    ("change", "part"),
    [
        pytest.param({"learning_rate": 0.002}, "the recipe", marks=pytest.mark.promise(12)),
        pytest.param({"data": 1}, "the data", marks=pytest.mark.promise(13)),
    ],
)
def test_checkpoint_of_another_training(project: Path, with_fault: Any, change: dict[str, Any], part: str) -> None:
    """Another recipe or other data is another folder; a checkpoint that was put there by hand is refused."""
    with_fault(kind="stop_early", step=5)
    before = prepare(project)
    with pytest.raises(StepError, match="stopped at step 5"):
        before.train([])
    if "data" in change:
        write_pairs(project / "recipes/tiny/pairs/train.jsonl", 24, 3)
        change = {}
    after = prepare(project, **change)
    assert after.key != before.key
    with_fault()
    after.folder.mkdir(parents=True)
    shutil.copytree(before.folder / "checkpoints", after.folder / "checkpoints")
    with pytest.raises(UserError, match=f"is of another training: {part} changed") as e:
        after.train([])
    assert "start from step 0" in e.value.advice
    assert not after.registered and not before.registered


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


@pytest.mark.promise(21)
def test_two_at_once_train_once(project: Path, trained: Any) -> None:
    prepared = prepare(project)
    both = [train_in_process(project) for _ in range(2)]
    for process in both:
        process.join(300)
        assert process.exitcode == 0
    told = [json.loads(p.read_text()) for p in project.glob("told-*.json")]
    assert len(told) == 2 and told[0]["digest"] == told[1]["digest"]
    assert sorted(any(t.startswith("training:") for t in each["told"]) for each in told) == [False, True]
    assert sorted("another run trains this: waiting" in each["told"] for each in told) == [False, True]
    assert result_of(prepared) == trained


@pytest.mark.promise(22)
def test_a_lock_whose_holder_was_killed(project: Path, trained: Any) -> None:
    prepared = prepare(project)
    process = train_in_process(project)
    metrics = prepared.folder / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 3)
    process.kill()
    process.join()
    assert (prepared.workspace.partial / "train" / f"{prepared.key}.lock").exists()
    prepared.train(told := [])
    assert "another run trains this: waiting" not in told
    assert any(t.startswith("resuming from step") for t in told)
    assert result_of(prepared) == trained


@pytest.mark.promise(24)
def test_an_artifact_that_cannot_be_written(small_disk: Path, tmp_path: Path) -> None:
    """The disk of MLflow's artifacts is full: the run is not complete; with space it is, and nothing is there twice."""
    from preftune.tracking import DONE_TAG, connect, experiment_id, mlflow_errors, open_run, record
    from preftune.workspace import Workspace

    workspace = Workspace(tmp_path, tmp_path / "home").make()
    workspace.mlflow_artifacts.symlink_to(small_disk)
    report = tmp_path / "report.html"
    report.write_bytes(b"x" * 3_000_000)
    fill(small_disk / "filler", 1_000_000)
    client = connect(workspace)
    run = open_run(client, experiment_id(client, workspace, "e"), "key", "policy", {})

    def upload() -> None:
        with mlflow_errors(workspace):
            curves = [{"step": s, "metrics": {"train/loss": 0.5}} for s in (1, 2)]
            shared: dict[str, Any] = {"params": {"beta": 0.1}, "metrics": {"m": 1.0}, "datasets": [], "tags": {}}
            record(client, run, curves=curves, artifacts=[(report, "")], content="verdict-1", **shared)

    with pytest.raises(StepError, match=r"report.html could not be written: .*No space left"):
        upload()
    found = client.get_run(run)
    assert found.info.status == "RUNNING" and DONE_TAG not in found.data.tags
    (small_disk / "filler").unlink()
    upload()
    found = client.get_run(run)
    assert found.info.status == "FINISHED" and found.data.tags[DONE_TAG] == "verdict-1"
    assert [a.file_size for a in client.list_artifacts(run)] == [3_000_000]
    assert [m.step for m in client.get_metric_history(run, "train/loss")] == [1, 2]
