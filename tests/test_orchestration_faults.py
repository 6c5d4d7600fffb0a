"""The promises about orchestration, on a real Prefect server with real workers: children, flows and a worker are
killed, a run is cancelled, the server goes away, MLflow's database is locked, two runs want the same.

One server and one set of trainings go through all of it; the tests look at what came out.
"""

import json
import shutil
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import ROOT
from test_flow_faults import wait_for
from test_server import Site, kill_tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# 24 pairs, batches of 4, 30 epochs: 180 steps, a checkpoint every 10.
STEPS = 180
RECIPE = {
    "num_train_epochs": 30,
    "save_steps": 10,
    "eval_strategy": "no",
    "learning_rate": 1e-4,
    "use_peft": True,
    "lora_r": 4,
    "evaluation": {"max_prompts": 2, "max_new_tokens": 4, "tasks": [], "training_pairs": 2},
}
AWAY = 60  # seconds without Prefect's server
LOCKED = 30  # seconds without MLflow's database
SILENT = 45  # after so many seconds without a sign of life a run counts as dead; there is one every 30 s
FINAL = ("Completed", "Failed", "Crashed", "Cancelled")


class Server(Site):
    """A site that is asked by its API, which is faster than the command line."""

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.api}/{path}", data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def submit(self, queue: str = "default", **overrides: Any) -> str:
        """Starts a run of the deployment; returns its id."""
        deployment = self.ask("deployments/name/dpo-pipeline/dpo-pipeline")["id"]
        parameters = {"recipe": "recipes/tiny/config.yaml", "overrides": overrides}
        body = {"parameters": parameters, "work_queue_name": queue}
        return self.ask(f"deployments/{deployment}/create_flow_run", body)["id"]

    def state(self, run: str) -> str:
        return self.ask(f"flow_runs/{run}")["state"]["name"]

    def slots(self) -> int:
        """How many GPU slots are taken."""
        return self.ask("v2/concurrency_limits/gpu")["active_slots"]

    def worker(self, queue: str) -> Any:
        return self.background("worker", "start", "--pool", "local", "--work-queue", queue, "--name", queue)

    def log(self) -> str:
        return (self.folder / "worker.log").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("faults")
    make_project(folder, **RECIPE)
    for name in ("prefect.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("flows", "tasks"):
        shutil.copytree(ROOT / name, folder / name)
    zombies = yaml.safe_load((ROOT / "automations/zombie-runs.yaml").read_text())
    zombies["trigger"]["within"] = SILENT
    (folder / "zombie-runs.yaml").write_text(yaml.safe_dump(zombies))
    server = Server(folder, PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30")
    try:
        server.prefect("work-pool", "create", "local", "--type", "process")
        server.prefect("deploy", "--name", "dpo-pipeline")
        server.prefect("automation", "create", "--from-file", "zombie-runs.yaml")
        server.ask("v2/concurrency_limits/", {"name": "gpu", "limit": 3})
        yield server
    finally:
        server.stop()


def processes(run: str) -> list[psutil.Process]:
    """Every process of a flow run: its own, launchers, trainings."""
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        mine = (process.info["environ"] or {}).get("PREFECT__FLOW_RUN_ID") == run
        if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def one_of(run: str, module: str) -> psutil.Process | None:
    """The run's process of this module, if there is one."""
    return next((p for p in processes(run) if p.cmdline()[1:3] == ["-m", module]), None)


def flow_process(run: str) -> psutil.Process:
    found = one_of(run, "prefect.engine")
    assert found is not None
    return found


def training(run: str) -> Path:
    """Where the run trains now."""
    child = one_of(run, "preftune.training")
    return Path(child.cmdline()[-1]).parent if child else Path("nowhere")


def step(folder: Path) -> int:
    """The newest step in a training's metrics."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def newest_checkpoint(folder: Path) -> int:
    sealed = folder.glob("checkpoints/checkpoint-*/preftune_manifest.json")
    return max((int(p.parent.name.rpartition("-")[2]) for p in sealed), default=0)


def gone_after(run: str, there: list[psutil.Process]) -> float:
    """Seconds until none of the processes that the run had is left. Then a worker starts one of its own in the run's
    name, which loads the flow to look for hooks: seconds of imports, and no orphan."""
    began = time.monotonic()
    wait_for(lambda: not {*processes(run)} & {*there}, seconds=60)
    return time.monotonic() - began


def lock_database(path: Path, when: Callable[[], Any], locked: list[float]) -> None:
    """Waits for a moment, then holds MLflow's database for a while, as a backup or somebody's script would."""
    wait_for(when, seconds=600)
    with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as connection:
        connection.execute("begin exclusive")
        locked.append(time.time())
        time.sleep(LOCKED)
        connection.execute("rollback")
        locked.append(time.time())


@pytest.fixture(scope="module")
def story(server: Server) -> dict[str, Any]:
    """Everything that happened, in this order; the tests say what of it was promised."""
    told: dict[str, Any] = {}
    server.worker("default")
    other = server.worker("other")
    killed, cancelled = server.submit(), server.submit(beta=0.3, num_train_epochs=500)
    zombie = server.submit("other", beta=0.5, num_train_epochs=500)
    wait_for(lambda: all(step(training(run)) >= 15 for run in (killed, cancelled, zombie)), seconds=400)

    folder, place = training(killed), training(cancelled)
    there, others = processes(killed), processes(zombie)
    flow_process(killed).kill()
    told["seconds to no orphan"] = gone_after(killed, there)
    kill_tree(other)  # and its flow, and its training
    died = datetime.now(UTC)
    told["orphans of a killed worker"] = gone_after(zombie, others)
    told["a zombie at first"] = server.state(zombie)
    server.prefect("flow-run", "cancel", cancelled)
    wait_for(lambda: server.state(cancelled) in FINAL and not processes(cancelled), seconds=120)
    told["cancelled"] = server.state(cancelled)
    told["cancelled at"], told["its checkpoint"] = step(place), newest_checkpoint(place)
    wait_for(lambda: server.state(killed) in FINAL, seconds=60)
    told["killed"] = server.state(killed)
    wait_for(lambda: server.state(zombie) in FINAL, seconds=200)
    told["zombie"], crashed = server.state(zombie), server.ask(f"flow_runs/{zombie}")["state"]["timestamp"]
    told["seconds to zombie's end"] = (datetime.fromisoformat(crashed) - died).total_seconds()
    wait_for(lambda: server.slots() == 0, seconds=120)
    for automation in server.ask("automations/filter", {}):  # its seconds are too few for what comes now
        server.ask(f"automations/{automation['id']}", method="DELETE")

    # Two at once, of what was killed: from its checkpoint on.
    both = [server.submit(), server.submit()]
    saved = newest_checkpoint(folder)
    wait_for(lambda: "resuming from step" in server.log() and newest_checkpoint(folder) > saved, seconds=400)
    (child,) = [c for run in both if (c := one_of(run, "preftune.training"))]
    child.kill()
    saved = newest_checkpoint(folder)
    wait_for(lambda: server.log().count("resuming from step") == 2 and newest_checkpoint(folder) > saved, seconds=400)

    policies, locked = server.folder / ".preftune/store/policy", []
    database = server.folder / ".preftune/mlflow.db"
    arguments = (database, lambda: any(policies.glob("*")), locked)
    locking = threading.Thread(target=lock_database, args=arguments, daemon=True)
    locking.start()
    kill_tree(server.server)
    told["steps when the server left"] = step(folder)
    time.sleep(AWAY)
    server.start_server()
    wait_for(lambda: all(server.state(run) in FINAL for run in both), seconds=500)
    locking.join(300)
    told |= {"both": [server.state(run) for run in both], "locked": locked, "key": folder.name, "runs": both}
    return told


@pytest.mark.promise(16)
def test_a_killed_training_is_tried_again_from_its_checkpoint(server: Server, story: dict[str, Any]) -> None:
    log = server.log()
    assert "the training process was ended by SIGKILL" in log, "the message names the signal"
    assert log.count("resuming from step") == 2, "what was killed with its flow, and what was killed alone"
    assert "Completed" in story["both"]


@pytest.mark.promise(17)
def test_a_killed_flow_leaves_no_orphan_and_is_crashed(story: dict[str, Any]) -> None:
    assert story["seconds to no orphan"] < 5
    assert story["killed"] == "Crashed"


@pytest.mark.promise(18)
def test_a_cancelled_run_leaves_no_orphan_and_keeps_its_checkpoint(story: dict[str, Any]) -> None:
    assert story["cancelled"] == "Cancelled"
    assert story["its checkpoint"] == story["cancelled at"] >= 15, "the step was finished and saved"


@pytest.mark.promise(19)
def test_a_run_whose_worker_was_killed_with_it_becomes_crashed(story: dict[str, Any]) -> None:
    """Nobody is left to say so, but the automation that ships."""
    assert story["orphans of a killed worker"] < 5
    assert story["a zombie at first"] == "Running"
    assert story["zombie"] == "Crashed"
    assert story["seconds to zombie's end"] < 30 + SILENT + 30


@pytest.mark.promise(20)
def test_a_minute_without_the_server(server: Server, story: dict[str, Any]) -> None:
    assert story["steps when the server left"] < STEPS, "a training was at work"
    assert story["both"] == ["Completed", "Completed"], server.log()[-5000:]
    wait_for(lambda: server.slots() == 0, seconds=90)


@pytest.mark.promise(25)
def test_two_runs_of_one_deployment_make_each_step_once(server: Server, story: dict[str, Any]) -> None:
    assert story["both"] == ["Completed", "Completed"]
    home = server.folder / ".preftune"
    assert [p.name for p in (home / "store/train").iterdir()] == [story["key"]]
    for step_name in ("baseline", "policy", "verdict"):
        assert len(list((home / "store" / step_name).iterdir())) == 1
    for log in (home / "logs").glob("evaluation-*.log"):
        assert log.read_text().count("answered prompts: 2/2") == 1
    metrics = (home / "store/train" / story["key"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, STEPS + 1))


@pytest.mark.promise(26)
def test_nothing_is_lost_while_mlflow_s_database_is_locked(server: Server, story: dict[str, Any]) -> None:
    """From the policy's evaluation on, so that both runs' records have to wait."""
    from mlflow import MlflowClient

    begin, end = story["locked"]
    assert end - begin >= LOCKED
    client = MlflowClient(tracking_uri=f"sqlite:///{server.folder}/.preftune/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    complete = client.search_runs(experiments, "tags.`preftune.complete` != '' and attributes.status = 'FINISHED'")
    assert sorted(r.data.tags["preftune.kind"] for r in complete) == ["dpo", "sft"]
    (policy,) = [r.info for r in complete if r.data.tags["preftune.kind"] == "dpo"]
    assert policy.end_time / 1000 > end, "it was recorded after the lock, not before"
    steps = [m.step for m in client.get_metric_history(policy.run_id, "train/loss")]
    assert sorted(steps) == list(range(1, STEPS + 1)), "each once"
    assert "report.html" in [a.path for a in client.list_artifacts(policy.run_id)]
