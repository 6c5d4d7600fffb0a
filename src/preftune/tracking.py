"""Recording in MLflow: one run for the SFT baseline, one for the policy, with the same metric names.

Everything is sent with an explicit run id and can be sent again: a run is found by its `preftune.key` tag, and
a metric that is there already at its step is not sent twice. So an upload that broke off is simply repeated.
"""

import json
import logging
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from preftune.errors import StepError
from preftune.live_metrics import MetricSender
from preftune.mlflow_database import ensure_database
from preftune.schema import Recipe
from preftune.services import running
from preftune.tracking_address import artifact_root, is_database, without_password
from preftune.workspace import Workspace

KEY_TAG = "preftune.key"
DONE_TAG = "preftune.complete"
_AGAIN = "nothing is lost: when it is back, run the same command again and only the upload is made"


def connect(workspace: Workspace) -> Any:
    """A client of `MLFLOW_TRACKING_URI`, or of SQLite in the workspace."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for --json
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its database set-up is nobody's news
    ensure_database(workspace.mlflow_uri, workspace.mlflow_artifacts)
    return MlflowClient(tracking_uri=workspace.mlflow_uri)


@contextmanager
def mlflow_errors(workspace: Workspace) -> Any:
    """Turns MLflow's failures into one message that says that nothing is lost."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as e:
        raise StepError(
            f"MLflow could not be written: {without_password(str(e).splitlines()[0])[:300]}",
            without_password(workspace.mlflow_uri),
            _AGAIN,
        ) from e


def experiment_id(client: Any, workspace: Workspace, name: str) -> str:
    """The experiment's id; created when missing, with the place for its artifacts where no server decides that."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    # A server keeps artifacts its own way; a database alone would have them in the current folder.
    location = artifact_root(workspace) if is_database(workspace.mlflow_uri) else None
    try:
        return client.create_experiment(name, artifact_location=location)
    except Exception:
        found = client.get_experiment_by_name(name)  # another run was faster
        if found is None:
            raise
        return found.experiment_id


def open_run(client: Any, experiment: str, key: str, name: str, tags: dict[str, str]) -> str:
    """The run with this key in the experiment, created when missing; returns its id."""
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    if found:
        return found[0].info.run_id
    run = client.create_run(experiment, run_name=name, tags={**tags, KEY_TAG: key})
    return run.info.run_id


def open_sender(workspace: Workspace, recipe: Recipe, identity: str) -> MetricSender:
    """A sender to the policy's run, while its training runs."""
    client = connect(workspace)
    experiment = experiment_id(client, workspace, recipe.experiment)
    run_id = open_run(client, experiment, identity, run_name(recipe, "dpo"), {"preftune.kind": "dpo"})
    return MetricSender(client, run_id)


def _flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} → {"a.b": "1"}; long values are cut where MLflow would refuse them."""
    if isinstance(tree, dict):
        items = [(str(k), v) for k, v in tree.items()]
    elif isinstance(tree, list) and any(isinstance(v, dict) for v in tree):
        items = [(str(i), v) for i, v in enumerate(tree)]
    else:
        return {prefix: str(tree)[:6000]}
    flat: dict[str, str] = {}
    for k, v in items:
        flat |= _flatten(v, f"{prefix}.{k}" if prefix else k)
    return flat


def _inputs(datasets: list[dict[str, Any]]) -> list[Any]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(
                name=d["name"],
                digest=d["digest"][:36],
                source_type="local",
                source=json.dumps({"id": d["name"]}),
                profile=json.dumps(d["profile"]),
            ),
            [InputTag("mlflow.data.context", d["context"])],
        )
        for d in datasets
    ]


def record(
    client: Any,
    run_id: str,
    *,
    content: str,
    params: dict[str, Any],
    metrics: dict[str, float | None],
    curves: list[dict[str, Any]],
    datasets: list[dict[str, Any]],
    artifacts: list[tuple[Path, str]],
    tags: dict[str, str],
) -> None:
    """Sends a whole run, verifies its artifacts, and marks it complete; sends only the tags if it is complete.

    Args:
        client: From `connect`.
        run_id: From `open_run`.
        content: What the run holds, as a key: a complete run with the same content is not sent again, one with
            another (a judge was asked again) gets the new measures and files.
        params: Nested; logged under dotted names.
        metrics: The measures, at step 0.
        curves: Rows of metrics.jsonl.
        datasets: {name, digest, context, profile} each.
        artifacts: (file, folder in the run) each.
        tags: More tags, for example the note.

    Raises:
        StepError: If an artifact could not be written, or did not arrive whole.
    """
    from mlflow.entities import Metric, Param, RunTag

    run = client.get_run(run_id)
    if run.data.tags.get(DONE_TAG) == content:
        client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        return
    known = run.data.params
    new = [Param(k, v) for k, v in _flatten(params).items() if k not in known]
    for start in range(0, len(new), 100):
        client.log_batch(run_id, params=new[start : start + 100])
    sender = MetricSender(client, run_id)
    sender.send(curves)
    if DONE_TAG in run.data.tags:  # it held another verdict's: the newest value of a step counts
        now = int(time.time() * 1000)
        newest = [Metric(k, v, now, 0) for k, v in metrics.items() if v is not None]
        client.log_batch(run_id, metrics=newest)
    else:
        sender.send([{"step": 0, "metrics": metrics}])
    client.log_inputs(run_id, _inputs(datasets))
    for path, folder in artifacts:
        try:
            client.log_artifact(run_id, str(path), folder or None)
        except Exception as e:  # each kind of storage has its own errors
            reason = (str(e).splitlines() or [type(e).__name__])[0][:300]
            raise StepError(
                f"the artifact {path.name} could not be written: {reason}", f"MLflow run {run_id}", _AGAIN
            ) from e
    for folder in {f for _, f in artifacts}:
        # A server leaves the size of an empty file out.
        there = {Path(a.path).name: a.file_size or 0 for a in client.list_artifacts(run_id, folder or None)}
        for path in (p for p, f in artifacts if f == folder):
            if there.get(path.name) != path.stat().st_size:
                raise StepError(f"the artifact {path.name} did not arrive whole", f"MLflow run {run_id}", _AGAIN)
    client.log_batch(run_id, tags=[RunTag(k, v) for k, v in {**tags, DONE_TAG: content}.items()])
    client.set_terminated(run_id, "FINISHED")


def ui_address(workspace: Workspace) -> str:
    """Where the MLflow UI is, or will be after `preftune ui`."""
    uri = workspace.mlflow_uri
    if uri.startswith("http"):
        return uri.rstrip("/")
    if chosen := os.environ.get("PREFTUNE_UI"):
        return chosen
    server = running(workspace).get("mlflow")
    return server.address if server else "http://127.0.0.1:5000"


def compare_url(workspace: Workspace, experiment: str, run_ids: list[str]) -> str:
    """Address of MLflow's compare page for these runs."""
    runs, experiments = (quote(json.dumps(x, separators=(",", ":"))) for x in (run_ids, [experiment]))
    return f"{ui_address(workspace)}/#/compare-runs?runs={runs}&experiments={experiments}"


def version_url(workspace: Workspace, model: str, number: str) -> str:
    """Address of a registered model's version in MLflow's UI."""
    return f"{ui_address(workspace)}/#/models/{quote(model, safe='')}/versions/{number}"


def run_url(workspace: Workspace, experiment: str, run_id: str) -> str:
    """Address of a run's page in MLflow."""
    return f"{ui_address(workspace)}/#/experiments/{experiment}/runs/{run_id}"


def artifact_url(workspace: Workspace, experiment: str, run_id: str, path: str) -> str:
    """Address of one of a run's files in MLflow's UI."""
    return f"{ui_address(workspace)}/#/experiments/{experiment}/runs/{run_id}/artifacts/{quote(path)}"


def run_name(recipe: Recipe, kind: str) -> str:
    """`starter dpo beta=0.1`, or `SmolLM2-135M-Instruct sft`."""
    if kind == "sft":
        return f"{recipe.model_name.rstrip('/').rpartition('/')[2]} sft"
    from preftune.keys import beta

    return f"{recipe.name} dpo beta={beta(recipe):g}"


def list_runs(workspace: Workspace) -> list[dict[str, Any]]:
    """The recorded runs, newest first: run_id, experiment, kind, name, status, verdict, reward_accuracy, started."""
    if workspace.mlflow_uri.startswith("sqlite") and not (workspace.home / "mlflow.db").exists():
        return []
    with mlflow_errors(workspace):
        client = connect(workspace)
        experiments = {e.experiment_id: e.name for e in client.search_experiments()}
        found = client.search_runs(
            list(experiments), "tags.`preftune.kind` != ''", order_by=["attributes.start_time DESC"]
        )
    return [
        {
            "run_id": r.info.run_id,
            "experiment": experiments[r.info.experiment_id],
            "kind": r.data.tags["preftune.kind"],
            "name": r.info.run_name,
            "status": r.info.status,
            "verdict": r.data.tags.get("preftune.verdict", ""),
            "reward_accuracy": r.data.metrics.get("reward_accuracy"),
            "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(r.info.start_time / 1000)),
        }
        for r in found
    ]
