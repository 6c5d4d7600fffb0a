"""The guide's launch command for real: one and two processes on the CPU, the same result as a run, errors, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import child_env, preftune

from preftune.launched import parse_arguments

ROOT = Path(__file__).parent.parent
DDP = ROOT / "recipes/accelerate_configs/ddp.yaml"
RECIPE = "recipes/tiny/config.yaml"
# An effective batch of four in both: 24 pairs, two epochs, twelve steps.
ONE = ("--per_device_train_batch_size=2", "--gradient_accumulation_steps=2", "--num_train_epochs=2")
TWO = ("--per_device_train_batch_size", "2", "--num_train_epochs", "2")
ENV = {"PREFTUNE_THREADS": "1"}  # threads that wait for each other on busy cores cost minutes

Launch = Callable[..., subprocess.Popen[str]]


def command(*arguments: str, config: Path = DDP, options: tuple[str, ...] = ()) -> list[str]:
    """As in the guide; the port is a free one, so that tests can run beside each other."""
    launcher = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file", str(config)]
    return [*launcher, "--main_process_port=0", *options, str(ROOT / "scripts/run_dpo.py"), *arguments]


def launch(cwd: Path, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, **how),
        cwd=cwd,
        env=child_env(**ENV),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def train_folder(home: Path) -> Path:
    (folder,) = (home / ".preftune/store/train").iterdir()
    return folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(next(folder.glob("*model.safetensors")))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> tuple[Path, str]:
    """The command without a number of processes, with the shipped file that says eight: its project and output."""
    folder = tmp_path_factory.mktemp("one")
    make_project(folder)
    done = launch(folder, RECIPE, *ONE, "--learning_rate=1e-3", "--report_to=tensorboard")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "what libraries print is in the log"
    return folder, done.stdout


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> tuple[Path, str]:
    """Two processes, launched with the file that the alignment-handbook ships: bf16."""
    folder = tmp_path_factory.mktemp("two")
    make_project(folder)
    handbook = folder / "handbook.yaml"
    handbook.write_text(re.sub(r'mixed_precision: "no".*', "mixed_precision: bf16", DDP.read_text()))
    recipe = ("--config", RECIPE)
    done = launch(folder, *recipe, *TWO, "--learning_rate=1e-3", config=handbook, options=("--num_processes=2",))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return folder, done.stdout


def test_without_a_gpu_one_process_and_it_is_told(one: tuple[Path, str]) -> None:
    folder, out = one
    lines = out.splitlines()
    assert lines[0] == "no GPU here: one process on the CPU, not 8 (--num_processes=8 asks for them)"
    assert lines[1] == "training in 1 process(es) on cpu; log: .preftune/logs/run_dpo-tiny.log"
    assert sum(line.startswith("step 12/12  loss") for line in lines) == 1
    assert json.loads((train_folder(folder) / "train.json").read_text())["world_size"] == 1


def test_the_output_folder_is_what_the_guide_expects(one: tuple[Path, str]) -> None:
    folder, _ = one
    out = folder / "data/tiny"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "recipe.yaml"):
        assert (out / name).is_file(), name
    assert list(out.glob("runs/**/events.out.tfevents*")), "tensorboard --logdir finds them"
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (recipe["learning_rate"], recipe["num_train_epochs"], recipe["per_device_train_batch_size"]) == (1e-3, 2, 2)
    assert not list(out.glob("*.bin")) and not (out / "verdict.json").exists()


def test_the_key_is_that_of_a_run(one: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the flow computes it, from the machine, for the same recipe and overrides; and the command that uses it."""
    from preftune import keys
    from preftune.data.steps import make_data
    from preftune.preflight import preflight
    from preftune.recipe import parse_overrides
    from preftune.workspace import find_workspace

    folder, out = one
    monkeypatch.setenv("PREFTUNE_THREADS", "1")
    overrides = (*ONE, "--learning_rate=1e-3", "--report_to=tensorboard")
    assert out.splitlines()[-1].endswith(f"its verdict: preftune run {RECIPE} " + " ".join(overrides))
    workspace = find_workspace(folder)
    recipe, model, found = preflight(folder / RECIPE, parse_overrides(list(overrides)), workspace)
    assert model is not None
    _, mixture = make_data(workspace, recipe, found)
    assert keys.train_key(recipe, workspace, model, mixture) == train_folder(folder).name


def test_a_second_launch_finds_it_done(one: tuple[Path, str]) -> None:
    """With one process named, which is the same launch."""
    folder, _ = one
    before = (folder / "data/tiny/.preftune.json").read_text()
    done = launch(
        folder, RECIPE, *ONE, "--learning_rate=1e-3", "--report_to=tensorboard", options=("--num_processes=1",)
    )
    assert done.returncode == 0, done.stderr
    assert "trained before: nothing to do" in done.stdout
    assert (folder / "data/tiny/.preftune.json").read_text() == before


def test_two_processes_are_two(two: tuple[Path, str]) -> None:
    folder, out = two
    assert out.splitlines()[0] == "training in 2 process(es) on cpu; log: .preftune/logs/run_dpo-tiny.log"
    assert "mixed_precision: no, as the recipe says; the launcher's file says bf16" in out
    assert json.loads((train_folder(folder) / "train.json").read_text())["world_size"] == 2
    assert "has NOT been destroyed" not in (folder / ".preftune/logs/run_dpo-tiny.log").read_text()


def test_two_processes_give_the_losses_of_one(one: tuple[Path, str], two: tuple[Path, str]) -> None:
    """2 processes x 2 pairs against 1 process x 2 pairs x accumulation 2: each step sees the same four pairs."""
    single, double = (metrics(train_folder(folder)) for folder, _ in (one, two))
    assert [(m["step"], sorted(m["metrics"])) for m in single] == [(m["step"], sorted(m["metrics"])) for m in double]
    assert [m["step"] for m in double if "train/loss" in m["metrics"]] == list(range(1, 13)), "each step once"
    for name, tolerance in (("train/loss", 1e-6), ("train/rewards/margins", 1e-5), ("eval/loss", 1e-6)):
        a, b = ([m["metrics"][name] for m in rows if name in m["metrics"]] for rows in (single, double))
        assert a == pytest.approx(b, abs=tolerance), name
        assert len(set(a)) > 1


def test_two_processes_give_the_weights_of_one(one: tuple[Path, str], two: tuple[Path, str]) -> None:
    import numpy as np

    a, b = (weights(folder / "data/tiny") for folder, _ in (one, two))
    assert a.keys() == b.keys()
    assert max(float(np.abs(a[k] - b[k]).max()) for k in a) < 1e-5
    assert max(float(np.abs(a[k]).max()) for k in a) > 0.01


def test_a_wrong_recipe_is_one_message_before_the_launcher_s_trace(two: tuple[Path, str]) -> None:
    folder, _ = two
    done = launch(folder, RECIPE, "--betta=0.2", options=("--num_processes=2",))
    assert done.returncode == 1, "accelerate's; the script's own is 2"
    message, _, trace = done.stderr.partition("torch/distributed")
    assert message.startswith("preftune: ") and "betta" in message and "beta" in message
    assert done.stderr.count("preftune: ") == 1
    assert re.search(r"exitcode *: 2 ", trace)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "path", "overrides"),
    [
        (["r.yaml"], "r.yaml", []),
        (["--config", "r.yaml"], "r.yaml", []),
        (["--config=r.yaml", "--beta=0.2"], "r.yaml", ["--beta=0.2"]),
        (["r.yaml", "--learning_rate=1e-6", "--seed", "2"], "r.yaml", ["--learning_rate=1e-6", "--seed", "2"]),
        (["--beta", "0.2", "--config", "r.yaml"], "r.yaml", ["--beta", "0.2"]),
    ],
)
def test_arguments(arguments: list[str], path: str, overrides: list[str]) -> None:
    assert parse_arguments(arguments) == (Path(path), overrides)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "no recipe is named"), (["--beta=1"], "no recipe"), (["a.yaml", "--config=b.yaml"], "two recipes are named")],
)
def test_no_recipe_and_two(arguments: list[str], message: str) -> None:
    from preftune.errors import UserError

    with pytest.raises(UserError, match=message):
        parse_arguments(arguments)


# --- faults, and the flow ----------------------------------------------------------------------------------

# 24 pairs, batches of 2 x 2, 20 epochs: 120 steps, a checkpoint every 10.
LONG = (
    *("--per_device_train_batch_size=2", "--num_train_epochs=20", "--save_steps=10", "--eval_strategy=no"),
    *("--learning_rate=1e-4", "--evaluation.tasks=[]"),
)
PROCESSES = ("--num_processes=2",)
CPUS = "distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    """A LoRA training in two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_project(folder, use_peft=True, lora_r=4, merge_adapter=True)
    done = launch(folder, RECIPE, *LONG, options=PROCESSES)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def start(tmp_path: Path, make_project: Callable[..., Path]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in a new project, in the background."""
    make_project(tmp_path, use_peft=True, lora_r=4)
    (tmp_path / "cpus.yaml").write_text(CPUS)
    started: list[subprocess.Popen[str]] = []

    def go(line: list[str]) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(line, cwd=tmp_path, env=child_env(**ENV), stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        return process

    yield go
    for process in started:
        process.kill()
        process.communicate()


def wait_for_step(project: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        files = list((project / ".preftune/partial/train").glob("*/metrics.jsonl"))
        lines = files[0].read_text().splitlines() if files else []
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {process.poll()}")


def ranks_of(project: Path) -> dict[str, psutil.Process]:
    """Rank → process, of the training in this project."""
    found = {}
    for process in psutil.process_iter(["cwd", "environ", "cmdline"]):
        if process.info["cwd"] == str(project) and "RANK" in (process.info["environ"] or {}):
            found[process.info["environ"]["RANK"]] = process
    return found


@pytest.mark.slow
def test_ctrl_c_and_sigterm_lose_nothing(tmp_path: Path, start: Launch, undisturbed: Path) -> None:
    """Both processes stop after the same step, with a checkpoint of both; the same command goes on from there."""
    from preftune import checkpoints

    for number, step in ((signal.SIGINT, 15), (signal.SIGTERM, 60)):
        process = start(command(RECIPE, *LONG, options=PROCESSES))
        wait_for_step(tmp_path, step, process)
        assert set(ranks_of(tmp_path)) == {"0", "1"}
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode != 0
        assert err.count("preftune: ") == 1, err
        stopped = re.search(r"preftune: .*training was stopped at step (\d+) of 120", err)
        assert stopped, err
        (trainer,) = (tmp_path / ".preftune/partial/train").glob("*/checkpoints")
        newest = checkpoints.newest_whole(trainer)
        assert newest is not None and newest.name == f"checkpoint-{stopped[1]}"
        sealed = json.loads((newest / checkpoints.MANIFEST).read_text())
        assert {"rng_state_0.pth", "rng_state_1.pth", "adapter_model.safetensors"} <= set(sealed)
        assert not ranks_of(tmp_path)
    done = launch(tmp_path, RECIPE, *LONG, options=PROCESSES)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {stopped[1]}" in done.stdout  # pyright: ignore[reportOptionalSubscript]
    assert metrics(train_folder(tmp_path)) == metrics(train_folder(undisturbed))
    name = "data/tiny/adapter_model.safetensors"
    assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.mark.slow
def test_what_fails_in_both_processes_is_one_message(tmp_path: Path, start: Launch, tiny_model: Path) -> None:
    """Gradients that are not finite, in both at the same step."""
    import shutil

    code = (
        "import sys, torch; from safetensors.torch import load_file, save_file; f = sys.argv[1]; w = load_file(f);"
        "k = 'model.norm.weight'; w[k] = torch.full_like(w[k], 1e38); save_file(w, f, metadata={'format': 'pt'})"
    )
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    subprocess.run([sys.executable, "-c", code, str(broken / "model.safetensors")], check=True)
    online = "--precompute_ref_log_probs=false"  # the reference alone would tell, before any gradient
    process = start(command(RECIPE, f"--model_name_or_path={broken}", online, *LONG, options=PROCESSES))
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert err.startswith("preftune: ") and err.count("preftune: ") == 1, err
    assert "not finite at step 1" in err
    assert not ranks_of(tmp_path)
    assert not (tmp_path / "data/tiny").exists()


@pytest.mark.slow
def test_a_run_takes_up_what_was_launched(undisturbed: Path) -> None:
    """The flow, told of two processes by its own file, finds the training and only evaluates."""
    assert (undisturbed / "data/tiny/merged/model.safetensors").is_file()
    (undisturbed / "cpus.yaml").write_text(CPUS)
    done = preftune("run", RECIPE, "--json", "--accelerate_config=cpus.yaml", *LONG, cwd=undisturbed, **ENV)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [result["steps"][step] for step in ("train", "merged", "policy")] == ["cached", "cached", "run"]
    assert (undisturbed / "data/tiny/verdict.json").is_file()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{undisturbed}/.preftune/mlflow.db")
    steps = [m.step for m in client.get_metric_history(result["run_id"], "train/loss")]
    assert sorted(steps) == list(range(1, 121)), "MLflow has the launched training's metrics"
    again = launch(undisturbed, RECIPE, "--accelerate_config=cpus.yaml", *LONG, options=PROCESSES)
    assert again.returncode == 0, again.stderr
    assert (undisturbed / "data/tiny/verdict.json").is_file(), "the verdict stays"


@pytest.mark.slow
def test_a_run_trains_in_two_processes_and_survives_the_death_of_one(
    tmp_path: Path, start: Launch, undisturbed: Path
) -> None:
    """SIGKILL to the second process: the first ends, the step is tried again from the newest whole checkpoint."""
    line = [sys.executable, "-m", "flows.cli", "run", RECIPE, "--json", "--accelerate_config=cpus.yaml", *LONG]
    process = start(line)
    wait_for_step(tmp_path, 35, process)
    os.kill(ranks_of(tmp_path)["1"].pid, signal.SIGKILL)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert "the training process was ended by SIGKILL" in err, "the cause, not what followed from it"
    assert "resuming from step" in err
    assert json.loads(out)["steps"]["train"] == "run"
    assert metrics(train_folder(tmp_path)) == metrics(train_folder(undisturbed))
    name = "data/tiny/adapter_model.safetensors"
    assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()
