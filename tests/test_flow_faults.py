"""Injected faults through the whole flow: killed children, killed and cancelled flows, MLflow away."""

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

import psutil
import pytest
from conftest import child_env, preftune

pytestmark = pytest.mark.slow

RECIPE = "recipes/tiny/config.yaml"
# 24 pairs, batches of 4, 20 epochs: 120 steps, a checkpoint every 10.
LONG = (
    "--num_train_epochs=20",
    "--save_steps=10",
    "--eval_strategy=no",
    "--learning_rate=1e-4",
    "--evaluation.tasks=[]",
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    """A project in which the run was never disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    make_project(folder, use_peft=True, lora_r=4)
    done = preftune("run", RECIPE, "--json", *LONG, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def project(reference: Path, tmp_path: Path) -> Path:
    """A new project whose data and baseline are done, so that a fault test goes straight to training."""
    folder = tmp_path / "p"
    shutil.copytree(reference / "recipes", folder / "recipes")
    for step in ("source", "mixture", "baseline"):
        shutil.copytree(reference / ".preftune/store" / step, folder / ".preftune/store" / step)
    return folder


def adapter(project: Path) -> bytes:
    return (project / "data/tiny/adapter_model.safetensors").read_bytes()


@pytest.fixture
def start(project: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line in the background."""
    started = []

    def go(*arguments: str, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flows.cli", "run", RECIPE, "--json", *LONG, *arguments]
        process = subprocess.Popen(
            command, cwd=project, env=child_env(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield go
    for process in started:
        process.kill()
        process.communicate()


def wait_for(what: Callable[[], Any], seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def metrics_file(project: Path) -> Path:
    return next((project / ".preftune/partial/train").glob("*/metrics.jsonl"), Path("none yet"))


def step_reached(project: Path, step: int) -> Callable[[], bool]:
    def reached() -> bool:
        path = metrics_file(project)
        lines = path.read_text().splitlines() if path.exists() else []
        return bool(lines) and json.loads(lines[-1])["step"] >= step

    return reached


def processes_of(project: Path) -> list[psutil.Process]:
    """Children of ours that work in this project: launchers, trainings, servers."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        here = str(project) in line or (process.info["environ"] or {}).get("PREFECT_HOME", "").startswith(str(project))
        if here and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(process)
    return found


def training_child(project: Path) -> psutil.Process:
    (found,) = [p for p in processes_of(project) if p.cmdline()[1:3] == ["-m", "preftune.training"]]
    return found


def test_killed_training_child_is_retried_from_its_checkpoint(project: Path, reference: Path, start: Any) -> None:
    process = start()
    wait_for(step_reached(project, 55))
    training_child(project).kill()
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "SIGKILL" in err, "the message names the signal"
    assert "resuming from step" in err
    assert adapter(project) == adapter(reference)
    assert json.loads(out)["metrics"] == json.loads((reference / "data/tiny/verdict.json").read_text())["metrics"]


def test_killed_flow_leaves_no_orphan_and_goes_on(project: Path, reference: Path, start: Any) -> None:
    process = start()
    wait_for(step_reached(project, 55))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not processes_of(project), seconds=5)
    done = preftune("run", RECIPE, "--json", *LONG, cwd=project)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {result["steps"][s] for s in ("source", "mixture", "baseline")} == {"cached"}
    assert "resuming from step" in done.stderr
    assert adapter(project) == adapter(reference)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_flow_saves_a_checkpoint_and_ends_its_children(project: Path, start: Any, sign: int) -> None:
    """Ctrl-C, and the SIGTERM of a cancelled flow run or a machine that is taken away: the step is finished first."""
    process = start()
    wait_for(step_reached(project, 15))
    process.send_signal(sign)
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, 2)
    assert "Traceback" not in err.split("preftune: ")[-1]
    wait_for(lambda: not processes_of(project), seconds=5)
    sealed = (project / ".preftune/partial/train").glob("*/checkpoints/checkpoint-*/preftune_manifest.json")
    newest = max(int(p.parent.name.rpartition("-")[2]) for p in sealed)
    reached = [json.loads(line)["step"] for line in metrics_file(project).read_text().splitlines()]
    assert newest == reached[-1] >= 15, "also between two regular checkpoints"


@pytest.mark.promise(23)
def test_mlflow_away_loses_nothing(project: Path, start: Any) -> None:
    """Training and verdict are made; the upload fails with one message and is made up for by the next run."""
    away = start(MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    _, err = away.communicate(timeout=600)
    assert away.returncode == 1
    assert "nothing is lost" in err
    assert "Traceback" not in err
    done = preftune("run", RECIPE, "--json", *LONG, cwd=project)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["steps"].values()) == {"cached"}
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{project}/.preftune/mlflow.db")
    steps = [m.step for m in client.get_metric_history(result["run_id"], "train/loss")]
    assert sorted(steps) == list(range(1, 121))


def test_a_model_that_gives_no_finite_numbers_is_refused_before_training(project: Path, tiny_model: Path) -> None:
    code = (
        "import sys, torch; from safetensors.torch import load_file, save_file; f = sys.argv[1];"
        "w = load_file(f); w['model.norm.weight'][0] = float('nan'); save_file(w, f, metadata={'format': 'pt'})"
    )
    broken = project / "broken"
    shutil.copytree(tiny_model, broken)
    subprocess.run([sys.executable, "-c", code, str(broken / "model.safetensors")], check=True)
    done = preftune("run", RECIPE, f"--model_name_or_path={broken}", cwd=project)
    assert done.returncode == 2, done.stderr
    assert "not finite" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / ".preftune/partial/train").exists()
