"""`preftune up` and `preftune down`: what one machine needs to run deployments, in the background, on 127.0.0.1.

A Prefect server, a worker for the pool `local`, MLflow's server on the workspace; the GPU limit and the project's
deployments. docs/deployments.md has the same by hand.
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flows.output import say
from preftune import services
from preftune.errors import StepError, UserError
from preftune.mlflow_database import ensure_database, server_command
from preftune.services import Service
from preftune.store import locked
from preftune.tracking_address import artifact_root
from preftune.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POOL = "local"
PORTS = {"prefect": 4200, "mlflow": 5000}
_WHAT = {"prefect": "Prefect", "mlflow": "MLflow", "worker": "worker"}
_RUN_SECONDS = 75  # a training that is asked to end finishes its step and saves a checkpoint
_STOP_SECONDS = 15


def up(
    *,
    prefect_port: Annotated[int | None, Parameter(help="Port of the Prefect server (4200).")] = None,
    mlflow_port: Annotated[int | None, Parameter(help="Port of MLflow's server (5000).")] = None,
) -> int:
    """Starts what is not running yet, registers the deployments, and tells where everything is."""
    workspace = find_workspace().make()
    if not (workspace.project / "prefect.yaml").exists():
        raise UserError("there is no prefect.yaml here", str(workspace.project), "go to the project's folder first")
    asked = {"prefect": prefect_port, "mlflow": mlflow_port}
    with locked(workspace.home / ".up.lock", lambda: say("waiting for another preftune up or down")):
        there = services.running(workspace)
        ports = {name: _port(name, asked[name], there) for name in PORTS if name != "mlflow" or not _mlflow_elsewhere()}
        for name, port in ports.items():
            if name not in there:
                services.check_port(port, "preftune up", f"{name}-port")
        env = _environment(workspace, ports["prefect"])
        configured = os.environ.get("PREFECT_API_URL")
        os.environ.update({k: v for k, v in env.items() if k.startswith("PREFECT")})
        found = _start_servers(workspace, ports, env, there)
        deployments = _register(workspace, found, env)
    for name, service in found.items():
        how = "was running" if name in there else "started"
        say(f"{_WHAT[name]:<9} {service.address if service.port else f'pool {POOL}':<24} {how}")
    say(f"deployments: {', '.join(deployments)}")
    _tell_how_to_run(env["PREFECT_API_URL"], configured)
    return 0


def _port(name: str, asked: int | None, there: dict[str, Service]) -> int:
    """The port of a service that runs, or the one it shall have."""
    if name not in there:
        if name == "prefect" and there.get("worker"):  # it talks to the old address
            raise UserError("the Prefect server ended, its worker runs on", "preftune up", "preftune down, then up")
        return asked or PORTS[name]
    port = there[name].port
    assert port is not None
    if asked not in (None, port):
        raise UserError(f"{_WHAT[name]} runs already, at port {port}", "preftune up", "preftune down first")
    return port


def _mlflow_elsewhere() -> bool:
    return os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")


def _environment(workspace: Workspace, port: int) -> dict[str, str]:
    """What all services find in their environment: this one, the workspace, and the server's address."""
    auth = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    return {
        **{k: v for k, v in os.environ.items() if k != "PREFECT_PROFILE"},  # of another PREFECT_HOME
        **({"PREFECT_API_AUTH_STRING": auth} if auth else {}),
        "PREFTUNE_HOME": str(workspace.home),
        "PREFECT_HOME": str(workspace.prefect),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_LOCAL_STORAGE_PATH": str(workspace.prefect / "results"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PWD": str(workspace.project),  # prefect.yaml uses it
    }


def _start_servers(
    workspace: Workspace, ports: dict[str, int], env: dict[str, str], there: dict[str, Service]
) -> dict[str, Service]:
    """Both servers at once: each takes some ten seconds."""
    found = {name: there[name] for name in ports if name in there}
    prefect = [sys.executable, "-m", "prefect", "--no-prompt", "server", "start", "--host", "127.0.0.1"]
    # Two servers that start at once on a new database would both create its tables: that of a `preftune run`, too.
    with locked(workspace.prefect / "server-start.lock"):
        if "prefect" not in found:
            say("starting the Prefect server")
            command = [*prefect, "--port", str(ports["prefect"])]
            found["prefect"] = services.start(workspace, "prefect", command, env, ports["prefect"])
        if "mlflow" in ports and "mlflow" not in found:
            say("starting MLflow's server")
            ensure_database(workspace.mlflow_uri, workspace.mlflow_artifacts)
            command = server_command(artifact_root(workspace), ports["mlflow"])
            stored = {**env, "MLFLOW_BACKEND_STORE_URI": workspace.mlflow_uri}
            found["mlflow"] = services.start(workspace, "mlflow", command, stored, ports["mlflow"])
        services.wait_healthy(workspace, found["prefect"], "/api/health")
    if "mlflow" in found:
        services.wait_healthy(workspace, found["mlflow"], "/health")
    return found


def _register(workspace: Workspace, found: dict[str, Service], env: dict[str, str]) -> list[str]:
    """Starts the worker, creates pool and limit, registers the deployments; returns their names."""
    from prefect.client.orchestration import get_client  # the address is set by now

    from tasks.policy import ensure_gpu_limit

    with get_client(sync_client=True) as client:
        there = services.running(workspace)
        if "worker" in there:
            found["worker"] = there["worker"]
        else:
            say("starting the worker")
            command = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start"]
            command += ["--pool", POOL, "--type", "process"]
            found["worker"] = services.start(workspace, "worker", command, env, None)
        ensure_gpu_limit(client)
        _wait_for_pool(workspace, client)
        say("registering the deployments")
        switched_on = {(d.name, s.slug) for d in client.read_deployments() for s in d.schedules if s.active}
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        done = subprocess.run(command, cwd=workspace.project, env=env, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stdout + done.stderr).strip().splitlines() or [""]
            services.log_file(workspace, "deploy").write_text(done.stdout + done.stderr)
            log = str(services.log_file(workspace, "deploy"))
            raise StepError(f"the deployments could not be registered: {lines[-1]}", log, "the log has the details")
        deployments = client.read_deployments()
        for deployment in deployments:  # a schedule that somebody switched on stays on
            for schedule in deployment.schedules:
                if (deployment.name, schedule.slug) in switched_on and not schedule.active:
                    client.update_deployment_schedule(deployment.id, schedule.id, active=True)
    return sorted(d.name for d in deployments)


def _wait_for_pool(workspace: Workspace, client: "SyncPrefectClient") -> None:
    """Returns when the worker has reported; it creates the pool."""
    from prefect.client.schemas.objects import WorkPoolStatus
    from prefect.exceptions import ObjectNotFound

    deadline = time.monotonic() + services.START_SECONDS
    while time.monotonic() < deadline and "worker" in services.running(workspace):
        with suppress(ObjectNotFound):
            if client.read_work_pool(POOL).status == WorkPoolStatus.READY:
                return
        time.sleep(0.3)
    raise services.not_started(workspace, "worker")


def _tell_how_to_run(url: str, configured: str | None) -> None:
    from prefect.settings import get_current_settings

    if configured and configured.rstrip("/") != url:
        say(f"note: PREFECT_API_URL is {configured} here, and the commands below go there")
        say(f"      change that with: export PREFECT_API_URL={url}")
    elif not get_current_settings().plugins.enabled:  # in another folder
        say(f"first:       export PREFECT_API_URL={url}")
    say("start a run: prefect deployment run dpo-pipeline")
    say("end all:     preftune down")


def down() -> int:
    """Ends what `preftune up` started, and nothing else; also what is left of it when some has died."""
    workspace = find_workspace()
    if not workspace.home.exists():
        say("nothing is running")
        return 0
    with locked(workspace.home / ".up.lock", lambda: say("waiting for another preftune up or down")):
        stopped = 0
        services.end_children(workspace, "worker", _RUN_SECONDS)  # while the server is there to record it
        for name in reversed(_WHAT):
            if count := services.stop(workspace, name, _STOP_SECONDS):
                say(f"{_WHAT[name]:<9} stopped ({count} process{'es' if count > 1 else ''})")
            stopped += count
    if not stopped:
        say("nothing is running")
    return 0
