"""Sweeps by the real command on the tiny project: killed and taken up again, a trial that fails, one that is stopped
early, two Dask workers; what was executed is counted, and MLflow holds it as parent and children."""

import csv
import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import child_env, preftune

pytestmark = pytest.mark.slow
COMMAND = ("sweep", "recipes/tiny/config.yaml", "--json")
# At beta 100 the loss of the tiny model is exactly 0 after a few steps, which a guard refuses.
TWO = "--sweep.parameters.beta=[0.05, 100.0]"
FOUR = "--sweep.parameters.beta=[0.05, 0.1, 0.2, 0.3]"
ONCE = ("source", "mixture", "lengths", "baseline")
STEPS = {  # the task's function → its step
    **{"check_dataset": "source", "sample_mixture": "mixture", "count_tokens": "lengths"},
    **{"evaluate_baseline": "baseline", "train_policy": "train", "evaluate_policy": "policy"},
    "reach_verdict": "verdict",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    make_project(folder)
    return folder


def begin(project: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.cli", *COMMAND, *options]
    return subprocess.Popen(
        command, cwd=project, env=child_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def made(project: Path) -> dict[str, int]:
    """Step → how many results of it stand in the store."""
    return Counter(path.parent.parent.name for path in (project / ".preftune/store").glob("*/*/manifest.json"))


def executed(project: Path) -> Counter[str]:
    """Step → how often its task ran to its end, and was not taken from the cache."""
    with sqlite3.connect(project / ".preftune/prefect/prefect.db") as database:
        rows = database.execute("select task_key from task_run where state_name = 'Completed'").fetchall()
    functions = [key.rpartition("-")[0] for (key,) in rows]
    return Counter(STEPS[name] for name in functions if name in STEPS)


def client(project: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{project}/.preftune/mlflow.db")


def children(project: Path, parent: str) -> list[Any]:
    mlflow = client(project)
    experiment = mlflow.get_run(parent).info.experiment_id
    return mlflow.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")


@pytest.fixture(scope="module")
def killed(project: Path) -> dict[str, Any]:
    """The result of a sweep that was killed in its first training, and of a second one like it at the same time."""
    process = begin(project, TWO)
    deadline = time.monotonic() + 400
    pattern = "partial/train/*/checkpoints/checkpoint-*/preftune_manifest.json"
    while not list((project / ".preftune").glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    both = [begin(project, TWO), begin(project, TWO)]
    told = [p.communicate(timeout=600) for p in both]
    assert [p.returncode for p in both] == [0, 0], told
    first, second = (json.loads(out) for out, _ in told)
    same = ("run_id", "trials", "best", "folder")
    assert {k: first[k] for k in same} == {k: second[k] for k in same}
    return first | {"stderr": [err for _, err in told]}


def test_a_killed_sweep_goes_on(killed: dict[str, Any], project: Path) -> None:
    """The training from its checkpoint, all else once; the other process waited, and executed nothing."""
    assert any("6 steps, from " in err for err in killed["stderr"])
    assert any("another process runs this sweep: waiting" in err for err in killed["stderr"])
    assert made(project) == {**dict.fromkeys(ONCE, 1), "train": 1, "policy": 1, "verdict": 1}
    assert executed(project) == made(project)


def test_a_trial_that_fails_stops_no_other(killed: dict[str, Any], project: Path) -> None:
    done, failed = killed["trials"]
    assert (done["rank"], done["state"], done["values"]) == (1, "done", {"beta": 0.05})
    assert (failed["rank"], failed["state"], failed["values"]) == (None, "failed", {"beta": 100.0})
    assert failed["why"].startswith("the loss is exactly 0 at step"), failed["why"]
    assert killed["best"] == done and killed["measure"] == "reward_accuracy"
    assert done["low"] < done["value"] <= done["high"] and done["outcome"] in ("promote", "inconclusive")


def test_the_sweep_s_folder(killed: dict[str, Any], project: Path) -> None:
    folder = Path(killed["folder"])
    assert folder == project / "data/tiny-sweep" and not (project / "data/tiny").exists(), "trials publish nothing"
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [(r["trial"], r["state"]) for r in rows] == [(str(t["trial"]), t["state"]) for t in killed["trials"]]
    assert "the loss is exactly 0" in (folder / "sweep.html").read_text()


def test_parent_and_children_in_mlflow(killed: dict[str, Any], project: Path) -> None:
    parent = client(project).get_run(killed["run_id"])
    assert parent.data.tags["preftune.kind"] == "sweep" and parent.info.status == "FINISHED"
    assert parent.data.metrics["trials/done"] == 1 and parent.data.metrics["trials/failed"] == 1
    there = {a.path for a in client(project).list_artifacts(killed["run_id"])}
    assert there == {"sweep.html", "sweep.csv", "best.yaml"}
    runs = children(project, killed["run_id"])
    assert {(r.info.run_name.partition(" beta")[2], r.info.status) for r in runs} == {
        ("=0.05", "FINISHED"),
        ("=100", "FAILED"),
    }
    assert killed["best"]["run_id"] in {r.info.run_id for r in runs}


def test_the_best_recipe_runs_and_its_run_is_nobody_s_child(killed: dict[str, Any], project: Path) -> None:
    """Everything comes from the store; the trial keeps its own run."""
    done = preftune("run", str(Path(killed["folder"]) / "best.yaml"), "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["steps"].values()) == {"cached"}
    assert found["metrics"]["policy"]["reward_accuracy"] == killed["best"]["value"]
    assert found["run_id"] not in {r.info.run_id for r in children(project, killed["run_id"])}
    assert "mlflow.parentRunId" not in client(project).get_run(found["run_id"]).data.tags


@pytest.fixture(scope="module")
def four(killed: dict[str, Any], project: Path) -> dict[str, Any]:
    """Four betas in two workers; one of them was trained by the other sweep."""
    done = preftune(*COMMAND, FOUR, "--workers=2", cwd=project)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


def test_two_dask_workers(four: dict[str, Any], project: Path) -> None:
    """Two trainings at once; four of them in all, and one of everything else."""
    assert [t["state"] for t in four["trials"]] == ["done"] * 4 and four["planned"] == 4
    assert {t["values"]["beta"] for t in four["trials"]} == {0.05, 0.1, 0.2, 0.3}
    assert made(project) == {**dict.fromkeys(ONCE, 1), "train": 4, "policy": 4, "verdict": 4}
    assert executed(project) == made(project)
    assert "Creating a new Dask cluster" in four["stderr"]
    held: set[str] = set()
    most = 0
    for name, what in re.findall(r"Task run '(train [^']+)' - (holding|Finished)", four["stderr"]):
        (held.add if what == "holding" else held.discard)(name)
        most = max(most, len(held))
    assert most == 2, "both workers trained at the same time"
    assert len(children(project, four["run_id"])) == 4
    with sqlite3.connect(project / ".preftune/prefect/prefect.db") as database:
        (limit,) = database.execute("select \"limit\" from concurrency_limit_v2 where name = 'gpu'").fetchone()
    assert limit == 1, "the slots are put back"


def last_of_a_grid(betas: list[float], rates: list[float]) -> int:
    """A seed with which a grid tries all betas with the first rate before it comes to the second."""
    from optuna.samplers import GridSampler

    for seed in range(10_000):
        order = GridSampler({"beta": betas, "learning_rate": rates}, seed=seed)._all_grids
        if [rate for _, rate in order][:5] == [rates[0]] * 4 + [rates[1]]:
            return seed
    raise AssertionError("no seed")


def test_a_hopeless_trial_is_stopped(four: dict[str, Any], project: Path) -> None:
    """Four trials come from the store; the fifth learns nothing, and is ended at its first look at held-out pairs."""
    betas, rates = [0.05, 0.1, 0.2, 0.3], [0.01, 1e-12]
    options = (f"--sweep.parameters.learning_rate={rates}", f"--sweep.seed={last_of_a_grid(betas, rates)}")
    unfinished = set((project / ".preftune/partial/train").glob("*/"))  # of the one that failed
    done = preftune(*COMMAND, FOUR, *options, "--sweep.trials=5", cwd=project)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Counter(t["state"] for t in found["trials"]) == {"done": 4, "stopped": 1}
    stopped = found["trials"][-1]
    assert stopped["rank"] is None and stopped["values"]["learning_rate"] == 1e-12
    assert stopped["why"].startswith("stopped early at step 3 of 6: eval/rewards/accuracies is"), stopped["why"]
    assert made(project)["train"] == 4 and executed(project)["train"] == 4
    assert set((project / ".preftune/partial/train").glob("*/")) == unfinished, "its checkpoints are deleted"
    runs = children(project, found["run_id"])
    (ended,) = [r for r in runs if r.info.status == "KILLED"]
    assert len(runs) == 5 and ended.data.tags["mlflow.note.content"] == stopped["why"]


def test_when_all_trials_fail(killed: dict[str, Any], project: Path) -> None:
    done = preftune(*COMMAND, "--sweep.parameters.beta=[100.0]", cwd=project)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"].startswith("all 1 trials failed: the loss is exactly 0 at step")
