"""From nothing: `preftune up`, the literal `prefect deployment run dpo-pipeline`, its pages, `preftune down`.

A fresh copy of the project, real servers, a real worker, a real browser, and a web hook that really is called.
"""

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil
import pytest
from conftest import ROOT, child_env, preftune
from test_browser import CHROMIUM, browse

pytestmark = pytest.mark.slow
Hook = tuple[str, list[dict[str, str]]]  # address, and what it was sent
RECIPE = "recipe=recipes/tiny/config.yaml"
BLOCK = """
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Hook
text = {{"subject": "{{{{subject}}}}", "body": "{{{{body}}}}"}}
print(Hook(name="preftune", url="{url}", json_data=text).save("preftune"))
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def copy_project(folder: Path, make_project: Callable[..., Path]) -> Path:
    make_project(folder)
    for name in ("prefect.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("flows", "tasks"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def started_by(folder: Path) -> list[psutil.Process]:
    """Everything that has to do with this project's services, whoever its parent is."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFTUNE_HOME") == str(folder / ".preftune"):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


class Site:
    """A project in which `preftune up` was typed."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.env = {"HOME": str(folder / "home"), **env}  # not this machine's Prefect profile
        self.ports = free_ports(2)
        self.said = self.command("up", f"--prefect-port={self.ports[0]}", f"--mlflow-port={self.ports[1]}")

    def command(self, *arguments: str) -> str:
        done = preftune(*arguments, cwd=self.folder, **self.env)
        assert done.returncode == 0, done.stdout + done.stderr + self.log()
        return done.stdout

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The literal command in the project's folder: no export, no option that names a server."""
        command = [sys.executable, "-m", "prefect", *arguments]
        env = child_env(**self.env)
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=600)

    def ask(self, path: str, method: str = "POST", **body: Any) -> Any:
        """Prefect's API."""
        url, headers = f"http://127.0.0.1:{self.ports[0]}/api/{path}", {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or "null")

    def log(self) -> str:
        logs = (self.folder / ".preftune/logs").glob("up-*.log")
        return "\n".join(f"{p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in logs)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Iterator[Site]:
    folder = copy_project(tmp_path_factory.mktemp("up"), make_project)
    try:
        yield Site(folder)
    finally:
        for process in started_by(folder):
            process.kill()


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    """A web hook on this machine: its address, and what it was sent."""
    got: list[dict[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", got
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(site: Site, hook: Hook) -> dict[str, Any]:
    """One run by the literal command, with the documented automations in place; the flow run as Prefect has it."""
    command = [sys.executable, "-c", BLOCK.format(url=hook[0])]
    env = child_env(**site.env)
    block = subprocess.run(command, cwd=site.folder, env=env, capture_output=True, text=True, check=True)
    (site.folder / "automations.yaml").write_text(
        (ROOT / "automations/notifications.yaml").read_text().replace("BLOCK_ID", block.stdout.strip())
    )
    done = site.prefect("automation", "create", "--from-file", "automations.yaml")
    assert done.returncode == 0 and "Created 2 automation(s)" in done.stdout, done.stdout + done.stderr
    done = site.prefect("deployment", "run", "dpo-pipeline", "-p", RECIPE, "--watch")
    assert done.returncode == 0 and "finished successfully" in done.stdout, done.stdout + done.stderr + site.log()
    (run,) = site.ask("flow_runs/filter")
    return run


def wait_for(got: list[dict[str, str]], subject: str) -> dict[str, str]:
    deadline = time.monotonic() + 60
    while not (found := [m for m in got if subject in m["subject"]]):
        assert time.monotonic() < deadline, got
        time.sleep(0.2)
    (message,) = found
    return message


def test_up_says_where_everything_is(site: Site) -> None:
    prefect, mlflow = site.ports
    assert re.search(rf"Prefect +http://127.0.0.1:{prefect} +started", site.said)
    assert re.search(rf"MLflow +http://127.0.0.1:{mlflow} +started", site.said)
    assert "start a run: prefect deployment run dpo-pipeline\n" in site.said
    assert "export" not in site.said


def test_everything_listens_on_this_machine_only(site: Site) -> None:
    ours = {p.pid for p in started_by(site.folder)}
    listening = {c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in ours}
    assert {a.port for a in listening} >= set(site.ports)
    assert {a.ip for a in listening} == {"127.0.0.1"}


def test_prefects_page_says_what_was_done(site: Site, run: dict[str, Any]) -> None:
    assert run["name"] == "dpo tiny" and run["state"]["type"] == "COMPLETED"
    tasks = {t["name"] for t in site.ask("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})}
    assert tasks == {
        *("read the recipe", "check recipes/tiny/pairs", "sample the mixture", "count tokens"),
        *("evaluate SFT tiny-instruct", "train tiny beta=0.1", "evaluate tiny beta=0.1", "verdict on tiny beta=0.1"),
        *("record in MLflow: tiny", "publish data/tiny"),
    }
    found = {a["key"]: a for a in site.ask("artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}})}
    assert set(found) == {"data", "mixture", "training", "verdict", "mlflow-compare", "report"}
    assert json.loads(found["data"]["data"])[0] == {
        **{"dataset": "recipes/tiny/pairs", "split": "train", "for": "training"},
        **{"read": 24, "kept": 24, "dropped": 0, "why": ""},
    }
    assert json.loads(found["mixture"]["data"]) == [{"dataset": "recipes/tiny/pairs", "pairs": 24, "share": "100.0%"}]
    assert "Report: `data/tiny/report.html`" in found["verdict"]["data"]
    for key in ("mlflow-compare", "report"):
        assert f"(http://127.0.0.1:{site.ports[1]}/#/" in found[key]["data"]


def test_mlflows_run_links_back(site: Site, run: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{site.ports[1]}")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])  # type: ignore[union-attr]
    page = f"http://127.0.0.1:{site.ports[0]}/runs/flow-run/{run['id']}"
    assert {r.info.run_name for r in runs} == {"tiny dpo beta=0.1", "tiny-instruct sft"}
    assert {r.data.tags["preftune.prefect_ui"] for r in runs} == {page}
    (policy,) = (r for r in runs if r.info.run_name == "tiny dpo beta=0.1")
    assert page in policy.data.tags["mlflow.note.content"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_mlflows_comparison_shows_both_runs(site: Site, run: dict[str, Any], tmp_path: Path) -> None:
    """The address on Prefect's page, opened in a browser."""
    (artifact,) = site.ask("artifacts/filter", artifacts={"key": {"any_": ["mlflow-compare"]}})
    address = re.search(r"\((http[^)]*)\)", artifact["data"])
    assert address
    page = browse(address[1], tmp_path, 30_000)
    for text in ("Comparing 2 Runs", "tiny dpo beta=0.1", "tiny-instruct sft", "reward_accuracy"):
        assert text in page, text


def test_the_web_hook_is_told_the_verdict(site: Site, run: dict[str, Any], hook: Hook) -> None:
    outcome = json.loads((site.folder / "data/tiny/verdict.json").read_text())["outcome"]
    message = wait_for(hook[1], "tiny")
    assert message["subject"] == f"preftune: tiny: {outcome}"
    assert str(site.folder / "data/tiny/report.html") in message["body"]
    assert f"http://127.0.0.1:{site.ports[1]}/#/compare-runs" in message["body"]


def test_the_web_hook_is_told_of_a_failure(site: Site, run: dict[str, Any], hook: Hook) -> None:
    done = site.prefect("deployment", "run", "smoke", "-p", "recipe=recipes/none/config.yaml", "--watch")
    assert done.returncode == 1 and "dpo-pipeline/smoke" in done.stdout, done.stdout + done.stderr
    message = wait_for(hook[1], "Failed")
    assert message["subject"] == "preftune: dpo none Failed"
    assert "there is no such recipe" in message["body"]


def test_a_run_by_hand_uses_the_same_servers(site: Site, run: dict[str, Any]) -> None:
    found = json.loads(site.command("run", "recipes/tiny/config.yaml", "--json"))
    assert set(found["steps"].values()) == {"cached"}
    assert found["compare_url"].startswith(f"http://127.0.0.1:{site.ports[1]}/")
    assert len(site.ask("flow_runs/filter", flow_runs={"name": {"any_": ["dpo tiny"]}})) == 2


def test_up_again_starts_what_is_missing_and_keeps_what_was_changed(site: Site) -> None:
    """The worker was killed, and the limit raised."""
    before = json.loads((site.folder / ".preftune/up.json").read_text())
    (worker,) = (s for s in before if s["name"] == "worker")
    psutil.Process(worker["pid"]).kill()
    site.ask("v2/concurrency_limits/gpu", "PATCH", limit=2)
    said = site.command("up")
    assert [re.search(rf"{n} .*\b(started|was running)", said)[1] for n in ("Prefect", "MLflow", "worker")] == [  # type: ignore[index]
        *("was running", "was running", "started")
    ]
    after = {s["name"]: s["pid"] for s in json.loads((site.folder / ".preftune/up.json").read_text())}
    assert {n for n, pid in after.items() if pid not in {s["pid"] for s in before}} == {"worker"}
    (limit,) = site.ask("v2/concurrency_limits/filter")
    assert (limit["name"], limit["limit"]) == ("gpu", 2)


def test_another_port_is_refused_while_it_runs(site: Site) -> None:
    done = preftune("up", "--prefect-port=1", cwd=site.folder, **site.env)
    assert done.returncode == 2 and f"runs already, at port {site.ports[0]}" in done.stderr


def test_down_leaves_no_process_and_no_port(site: Site) -> None:
    """Last: also after MLflow's server was killed and left its own processes behind."""
    (mlflow,) = (s for s in json.loads((site.folder / ".preftune/up.json").read_text()) if s["name"] == "mlflow")
    psutil.Process(mlflow["pid"]).kill()
    said = site.command("down")
    assert re.findall(r"^(\w+) +stopped", said, re.M) == ["worker", "MLflow", "Prefect"]
    assert started_by(site.folder) == []
    for port in site.ports:
        with socket.socket() as s:
            assert s.connect_ex(("127.0.0.1", port)) != 0
    assert not (site.folder / ".preftune/up.json").exists()
    assert site.command("down") == "nothing is running\n"


def status(url: str, password: str | None = None) -> int:
    headers = {"Authorization": f"Basic {b64encode(password.encode()).decode()}"} if password else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status
    except HTTPError as e:
        return e.code


@pytest.mark.skipif(importlib.util.find_spec("flask_wtf") is None, reason="MLflow's passwords need mlflow[auth]")
def test_with_passwords_set_both_servers_refuse_who_has_none(tmp_path: Path, make_project: Callable[..., Path]) -> None:
    folder = copy_project(tmp_path / "project", make_project)
    settings = tmp_path / "mlflow-auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    try:
        site = Site(
            folder,
            PREFECT_SERVER_API_AUTH_STRING="admin:a-long-secret",
            MLFLOW_AUTH_CONFIG_PATH=str(settings),
            MLFLOW_AUTH_ADMIN_PASSWORD="another-long-secret",
            MLFLOW_FLASK_SERVER_SECRET_KEY="a-key-of-this-test",
        )
        prefect = f"http://127.0.0.1:{site.ports[0]}/api/admin/version"
        mlflow = f"http://127.0.0.1:{site.ports[1]}/api/2.0/mlflow/experiments/get?experiment_id=0"
        assert [status(url) for url in (prefect, mlflow)] == [401, 401]
        assert [status(url, "admin:wrong") for url in (prefect, mlflow)] == [401, 401]
        assert [status(prefect, "admin:a-long-secret"), status(mlflow, "admin:another-long-secret")] == [200, 200]
        assert "deployments: build-pairs, dpo-pipeline" in site.said, "worker and registration have the password"
        assert "a-long-secret" not in site.said + (folder / ".preftune/up.json").read_text()
        site.command("down")
        assert started_by(folder) == []
    finally:
        for process in started_by(folder):
            process.kill()
