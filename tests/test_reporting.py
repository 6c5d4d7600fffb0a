"""`report_to`: TensorBoard's and W&B's files of a real training, and no login prompt."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import child_env
from test_faults import training_job

from preftune.errors import UserError
from preftune.reporting import check_reporting

SECRET = "hf_averysecrettoken0123456789"


@pytest.fixture
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nobody has logged in to W&B; returns its home folder."""
    for name in ("MODE", "API_KEY", "IDENTITY_TOKEN_FILE", "BASE_URL"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("report_to", ["none", "tensorboard", ["tensorboard"], [], None])
def test_without_wandb_nothing_is_asked(nothing_set: Path, report_to: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_reporting(report_to)


def test_wandb_that_is_not_installed(nothing_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="wandb, which is not installed") as raised:
        check_reporting(["tensorboard", "wandb"])
    assert "[wandb]" in raised.value.advice


@pytest.fixture
def installed(nothing_set: Path) -> Path:
    pytest.importorskip("wandb")
    return nothing_set


@pytest.mark.parametrize("report_to", ["wandb", ["wandb"]])
@pytest.mark.parametrize("mode", [None, "online"])
def test_without_a_key_the_run_is_refused_at_once(
    installed: Path, report_to: Any, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(UserError, match="no W&B key") as raised:
        check_reporting(report_to)
    assert "WANDB_MODE=offline" in raised.value.advice


@pytest.mark.parametrize(
    "env",
    [
        {"WANDB_MODE": "offline"},
        {"WANDB_MODE": "disabled"},
        {"WANDB_API_KEY": "0" * 40},
        {"WANDB_IDENTITY_TOKEN_FILE": "/somewhere"},
    ],
    ids=lambda e: next(iter(e)),
)
def test_offline_or_with_a_key_it_goes_on(
    installed: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    check_reporting(["wandb"])


def test_a_login_is_found_in_netrc(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (installed / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {'0' * 40}\n")
    check_reporting(["wandb"])
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(UserError, match="no W&B key"):
        check_reporting(["wandb"])


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of 6 steps that reported to both, in a process of its own, without network."""
    pytest.importorskip("wandb")
    place = tmp_path_factory.mktemp("reported")
    folder = place / "partial"
    training = {
        "learning_rate": 0.01,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "max_length": 128,
        "logging_steps": 1.0,
        "save_strategy": "no",
        "run_name": "tiny",
        "hub_token": SECRET,
        "report_to": ["tensorboard", "wandb"],
    }
    job = training_job(tiny_model, folder) | {"model": {}, "training": training}
    (place / "job.json").write_text(json.dumps(job))
    env = child_env(WANDB_MODE="offline", HOME=str(place), https_proxy="http://127.0.0.1:9")
    command = [sys.executable, "-m", "preftune.training", str(place / "job.json")]
    done = subprocess.run(command, env=env, cwd=place, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preftune| step 6/6" in done.stdout, "told lines still arrive"
    return folder


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["metrics"][f"train/{name}"]) for row in rows]


def test_tensorboard_shows_what_metrics_jsonl_has(trained: Path) -> None:
    """`tensorboard --logdir` on the folder finds one run, `runs`, with the same numbers."""
    code = (
        "import json, sys; from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer;"
        "m = EventMultiplexer().AddRunsFromDirectory(sys.argv[1]); m.Reload();"
        "read = lambda tag: [(e.step, e.value) for e in m.Scalars('runs', tag)];"
        "print(json.dumps([list(m.Runs()), read('train/loss'), read('train/rewards/margins')]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(trained)], capture_output=True, text=True, check=True)
    runs, losses, margins = json.loads(done.stdout.splitlines()[-1])
    assert runs == ["runs"]
    for found, name in ((losses, "loss"), (margins, "rewards/margins")):
        assert [tuple(p) for p in found] == [(s, pytest.approx(v, rel=1e-6)) for s, v in logged(trained, name)]


def test_the_offline_run_lies_in_the_training_s_folder(trained: Path) -> None:
    (run,) = (trained / "runs" / "wandb").glob("offline-run-*")
    (file,) = run.glob("run-*.wandb")
    content = file.read_bytes()
    assert content.count(b"train/rewards/margins") >= 6
    assert not [p for p in (trained / "runs").rglob("*") if p.is_symlink()], "they point into a cache"
    assert not list(trained.parent.glob("wandb")), "nothing beside it"


def test_no_token_is_in_what_is_reported(trained: Path) -> None:
    files = [p for p in (trained / "runs").rglob("*") if p.is_file()]
    assert files
    assert not [p for p in files if SECRET.encode() in p.read_bytes()]
