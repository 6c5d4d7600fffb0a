"""Retraining for real: nothing changed, a better and a worse challenger, two at once, rollback, approval, an event."""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import pytest
from conftest import ROOT, child_env, preftune, write_pairs
from test_server import Site

from preftune import champion, tracking
from preftune.workspace import Workspace

pytestmark = pytest.mark.slow
RECIPE = "recipes/tiny/config.yaml"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    """With a third of the pairs, so that more of them make a better model."""
    folder = tmp_path_factory.mktemp("project")
    evaluation = {"max_prompts": 4, "max_new_tokens": 8, "tasks": []}
    make_project(folder, eval_strategy="no", save_strategy="no", evaluation=evaluation)
    write_rows(folder, 8)
    return folder


def write_rows(project: Path, count: int, poisoned: bool = False) -> None:
    """The first so many training pairs; poisoned: chosen and rejected swapped."""
    path = project / "recipes/tiny/pairs/train.jsonl"
    write_pairs(path, count, 1)
    if poisoned:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in swapped))


def retrain(project: Path, **env: str) -> dict[str, Any]:
    done = preftune("retrain", RECIPE, "--json", cwd=project, **env)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def workspace_of(project: Path) -> Workspace:
    return Workspace(project, project / ".preftune")


def aliases(project: Path) -> dict[str, str]:
    found = tracking.connect(workspace_of(project)).get_registered_model("tiny").aliases
    return {alias: str(number) for alias, number in found.items()}


def trainings(project: Path) -> int:
    return len(list((project / ".preftune/store/train").iterdir()))


@pytest.fixture(scope="module")
def first(project: Path) -> dict[str, Any]:
    return retrain(project)


@pytest.fixture(scope="module")
def second(first: dict[str, Any], project: Path) -> dict[str, dict[str, Any]]:
    """Twice the pairs, and two retrainings at once: decision → what was told."""
    write_rows(project, 16)
    command = [sys.executable, "-m", "flows.cli", "retrain", RECIPE, "--json"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=project, env=child_env(), **streams) for _ in range(2)]
    said = [process.communicate(timeout=800) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    return {found["decision"]: found for found in (json.loads(out) for out, _ in said)}


@pytest.fixture(scope="module")
def poisoned(second: dict[str, Any], project: Path) -> dict[str, Any]:
    write_rows(project, 16, poisoned=True)
    return retrain(project)


def test_the_first_policy_that_beats_sft_is_the_champion(first: dict[str, Any], project: Path) -> None:
    assert (first["decision"], first["verdict"]["outcome"]) == ("promoted", "promote")
    assert (first["version"], first["champion"], first["champion_verdict"]) == ("1", "1", None)
    assert aliases(project) == {"champion": "1"}
    assert Path(first["report"]).is_file()
    assert not (project / "data").exists(), "the output folder is `preftune run`'s"
    version = champion.look(tracking.connect(workspace_of(project)), "tiny").versions[0]
    assert set(json.loads(version.tags["sources"])) == {"recipes/tiny/pairs"}
    told = ("lineage", "recipe", "sft_model", "sft_weights", "policy", "train", "git", "prefect_flow_run", "verdict")
    assert all(version.tags[name] for name in told)
    assert version.run_id == first["run_id"] and version.decision == "promoted"


def test_unchanged_data_trains_nothing_and_imports_no_torch(first: dict[str, Any], project: Path) -> None:
    code = (
        "import sys\nfrom flows.cli import main\n"
        f"try: main(['retrain', {RECIPE!r}, '--json', '--output_dir=data/elsewhere'])\n"
        "except SystemExit as e: code = e.code\n"
        "print(sorted({'torch', 'trl', 'transformers', 'peft', 'lm_eval'} & set(sys.modules)), code)"
    )
    before, began = getrusage(RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=child_env(), capture_output=True, text=True, check=False
    )
    after = getrusage(RUSAGE_CHILDREN)
    result, heavy = done.stdout.strip().splitlines()[-2:]
    assert heavy == "[] 0", done.stderr
    found = json.loads(result)
    assert found["decision"] == "nothing to do" and found["version"] == found["champion"] == "1"
    assert "better than the SFT model" in found["reason"], "it tells what was decided then"
    assert "Finished in state Nothing to do" in done.stderr
    assert trainings(project) == 1
    # Seconds of CPU, with the Prefect server's: on a machine that has nothing else to do the command takes no longer.
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert cpu < 20, f"{cpu:.1f} s of CPU, {time.monotonic() - began:.1f} s"


def test_of_two_at_once_one_trains_a_better_challenger(second: dict[str, Any], project: Path) -> None:
    assert set(second) == {"promoted", "busy"}
    assert second["busy"]["reason"] == "another retraining of tiny is at work"
    found = second["promoted"]
    assert found["steps"] | {"baseline": "cached", "train": "run", "champion": "run"} == found["steps"]
    assert trainings(project) == 2
    assert (found["version"], found["champion"]) == ("2", "2")
    against = found["champion_verdict"]
    assert against["outcome"] == "promote" and "SFT" not in json.dumps([against["reasons"], against["advice"]])
    low = against["metrics"]["challenger"]["reward_accuracy_lo"]
    assert low > 0.5 == against["metrics"]["champion"]["reward_accuracy"]
    client = tracking.connect(workspace_of(project))
    assert aliases(project) == {"champion": "2"} and client.get_model_version("tiny", "1"), "the old one is kept"
    run = client.get_run(found["run_id"]).data
    assert run.metrics["vs_champion/reward_accuracy_lo"] == low
    told = {n: run.tags[f"preftune.{n}"] for n in ("champion_verdict", "compared_with", "registered")}
    assert told == {"champion_verdict": "promote", "compared_with": "1", "registered": "tiny version 2"}
    assert [a.path for a in client.list_artifacts(found["run_id"], "champion")] == ["champion/verdict.json"]


def test_a_worse_challenger_leaves_the_champion_alone(poisoned: dict[str, Any], project: Path) -> None:
    assert (poisoned["decision"], poisoned["verdict"]["outcome"]) == ("kept", "reject")
    assert poisoned["champion_verdict"]["outcome"] == "reject"
    assert (poisoned["version"], poisoned["champion"]) == ("3", "2")
    assert poisoned["reason"].startswith("against the SFT model: reject: reward accuracy 0.0%")
    assert aliases(project) == {"champion": "2", "challenger": "3"}
    done = preftune("promote", poisoned["run_id"], cwd=project)
    assert done.returncode == 2 and "its verdict is reject" in done.stderr


def test_better_than_sft_is_not_enough(poisoned: dict[str, Any], project: Path) -> None:
    """The first third of the pairs again: all of it is known, and compared with the champion that more pairs made."""
    write_rows(project, 8)
    found = retrain(project)
    assert (found["decision"], found["verdict"]["outcome"]) == ("kept", "promote")
    assert found["champion_verdict"]["outcome"] == "reject" and trainings(project) == 3
    assert found["reason"].startswith("against the champion (version 2): reject: reward accuracy")
    assert (found["version"], found["champion"]) == ("1", "2")
    assert aliases(project) == {"champion": "2", "challenger": "1"}


def test_a_failure_leaves_the_champion_alone(poisoned: dict[str, Any], project: Path) -> None:
    (project / "recipes/tiny/pairs/train.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n' * 16)
    done = preftune("retrain", RECIPE, "--json", cwd=project)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert aliases(project)["champion"] == "2"


def test_rollback_and_one_line_to_load_the_champion(poisoned: dict[str, Any], project: Path, tiny_model: Path) -> None:
    done = preftune("rollback", "--json", cwd=project)
    assert json.loads(done.stdout)["version"] == "1", done.stderr
    assert aliases(project) == {"champion": "1"}
    workspace = workspace_of(project)
    client = tracking.connect(workspace)
    version = champion.look(client, "tiny").champion
    assert version
    shutil.rmtree(workspace.store / "train" / version.tags["train"])  # another machine does not have it
    code = (
        "import mlflow; from peft import LoraConfig, get_peft_model; from preftune.champion import champion\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline\n"
        f"base = {str(tiny_model)!r}; model = AutoModelForCausalLM.from_pretrained(base)\n"
        "get_peft_model(model, LoraConfig(target_modules=['q_proj'])).save_pretrained('adapter')\n"
        "AutoTokenizer.from_pretrained(base).save_pretrained('adapter')\n"
        "from pathlib import Path; from preftune import champion as registry, tracking\n"
        "from preftune.workspace import find_workspace\n"
        "workspace = find_workspace(); client = tracking.connect(workspace)\n"
        "run = client.create_run(tracking.experiment_id(client, workspace, 'adapter')).info.run_id\n"
        "found = registry.register(client, 'adapter', run, Path('adapter'), {})\n"
        "registry.set_champion(client, workspace, found, registry.NOBODY)\n"
        "for name in ('tiny', 'adapter'):\n"
        "    plain = mlflow.artifacts.download_artifacts(f'models:/{name}@champion')\n"
        "    for place in (champion(name), plain):\n"
        "        p = pipeline('text-generation', model=place)\n"
        "        said = p([{'role': 'user', 'content': 'Hello'}], max_new_tokens=3)\n"
        "        print(name, said[0]['generated_text'][-1]['role'])"
    )
    env = child_env(MLFLOW_TRACKING_URI=workspace.mlflow_uri)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[:4] == ["tiny assistant"] * 2 + ["adapter assistant"] * 2, done.stderr


@pytest.fixture(scope="module")
def site(project: Path) -> Iterator[Site]:
    """Server and worker in the project; the deployment retrain on its recipe."""
    shutil.copy(ROOT / "pyproject.toml", project)
    text = (ROOT / "prefect.yaml").read_text().replace("recipes/starter/config_starter.yaml", RECIPE)
    (project / "prefect.yaml").write_text(text)
    for name in ("flows", "tasks"):
        shutil.copytree(ROOT / name, project / name)
    site = Site(project)
    try:
        site.prefect("work-pool", "create", "local", "--type", "process")
        site.prefect("deploy", "--name", "retrain")
        site.background("worker", "start", "--pool", "local")
        yield site
    finally:
        site.stop()


def ask(site: Site, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(site.api + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or "null")


def wait_for(site: Site, state: str, count: int = 1) -> dict[str, Any]:
    """The newest flow run of `retrain`, once there are so many and it is in this state."""
    deadline = time.monotonic() + 300
    while True:
        found = ask(site, "/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})
        found = [run for run in found if run["state"]["type"] != "SCHEDULED" or state == "Scheduled"]
        if len(found) >= count and found[0]["state"]["name"] == state:
            return found[0]
        assert time.monotonic() < deadline and not {"Failed", "Crashed"} & {run["state"]["name"] for run in found}, [
            (run["name"], run["state"]) for run in found
        ]
        time.sleep(0.5)


def state_is(site: Site, run: dict[str, Any], expected: str) -> None:
    """Waits until the run is in a state of this type; after RUNNING may come another."""
    deadline = time.monotonic() + 300
    while (state := ask(site, f"/flow_runs/{run['id']}")["state"])["type"] != expected:
        assert state["type"] in ("PAUSED", "SCHEDULED", "PENDING", "RUNNING"), state
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_person_is_asked_first(site: Site, project: Path) -> None:
    """Champion is version 1 again; the pairs of version 2 come back. Every step is there, nothing is trained."""
    write_rows(project, 16)
    before = trainings(project)
    site.prefect("deployment", "run", "retrain", "-p", "approval=true")
    run = wait_for(site, "Suspended")
    assert aliases(project) == {"champion": "1", "challenger": "2"}
    asked = ask(site, "/artifacts/filter", {"artifacts": {"key": {"any_": ["champion"]}}})
    assert "against the champion (version 1): promote" in asked[0]["data"], "what to decide on is on the page"
    meanwhile = retrain(project, PREFECT_API_URL=site.api, PREFECT_HOME=str(project / "prefect-home"))
    assert meanwhile["decision"] == "nothing to do" and f"in flow run {run['id']}" in meanwhile["reason"]
    answer = {"run_input": {"approve": True, "note": "read ten answers"}}
    with champion.only_one(workspace_of(project), "tiny", wait=False) as free:
        assert free, "a suspended run holds no lock"
        assert ask(site, f"/flow_runs/{run['id']}/resume", answer)["status"] == "ACCEPT"
        state_is(site, run, "RUNNING")
        time.sleep(5)
        state_is(site, run, "RUNNING")  # another retraining is at work: the answer waits, it is not lost
    state_is(site, run, "COMPLETED")
    assert aliases(project) == {"champion": "2"} and trainings(project) == before
    version = champion.look(tracking.connect(workspace_of(project)), "tiny").champion
    assert version and version.tags["reason"].startswith("approved (read ten answers): better than the SFT model")


def test_new_data_may_start_it(site: Site) -> None:
    """The trigger is shipped switched off; switched on, the documented event starts a run."""
    runs = len(ask(site, "/flow_runs/filter", {}))
    site.prefect("automation", "resume", "retrain-on-new-data")
    site.prefect("event", "emit", "preftune.new-data", "--resource-id", "preftune.data")
    run = wait_for(site, "Nothing to do", runs + 1)
    assert run["state"]["type"] == "COMPLETED" and "version 2 came from the same data" in run["state"]["message"]
