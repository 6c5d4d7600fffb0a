"""The whole pipeline through the real command line, on a tiny model: first run, cached run, another beta."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import child_env, preftune

STEPS = ("source", "mixture", "lengths", "baseline", "train", "policy", "verdict")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("project")
    make_project(folder)
    return folder


@pytest.fixture(scope="module")
def first(project: Path) -> dict[str, Any]:
    done = preftune("run", "recipes/tiny/config.yaml", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def client(project: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{project}/.preftune/mlflow.db")


def test_everything_runs_once(first: dict[str, Any], project: Path) -> None:
    assert first["steps"] == dict.fromkeys(STEPS, "run")
    assert first["verdict"]["outcome"] in ("promote", "reject", "inconclusive")
    assert not list((project / ".preftune/partial").rglob("*.json*")), "a finished step leaves nothing in partial/"


def test_output_folder_is_what_the_guide_expects(first: dict[str, Any], project: Path) -> None:
    out = project / "data/tiny"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "report.html"):
        assert (out / name).is_file(), name
    assert json.loads((out / "verdict.json").read_text())["outcome"] == first["verdict"]["outcome"]
    assert yaml.safe_load((out / "recipe.yaml").read_text())["beta"] == 0.1
    assert not (out / "training_args.bin").exists(), "it holds tokens in plain text"


def test_pipeline_loads_the_result(first: dict[str, Any], project: Path) -> None:
    code = (
        "from transformers import pipeline; p = pipeline('text-generation', model='data/tiny');"
        "print(p([{'role': 'user', 'content': 'Hello'}], max_new_tokens=3)[0]['generated_text'][-1]['role'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=child_env(), capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "assistant", done.stderr


def test_both_mlflow_runs_have_the_same_metric_names(first: dict[str, Any], project: Path) -> None:
    mlflow = client(project)
    sft, policy = mlflow.get_run(first["sft_run_id"]), mlflow.get_run(first["run_id"])
    assert (sft.info.status, policy.info.status) == ("FINISHED", "FINISHED")
    measures = {k for k in policy.data.metrics if not k.startswith(("train/", "eval/"))}
    assert measures == set(sft.data.metrics)
    assert {"reward_accuracy", "ranking_accuracy", "stop_rate", "lm_eval/preference_pairs/acc"} <= measures
    assert {"train/loss", "eval/loss", "train/rewards/margins", "eval/rewards/accuracies"} <= set(policy.data.metrics)
    assert sft.data.metrics["reward_accuracy"] == 0.5
    assert sft.info.experiment_id == policy.info.experiment_id
    assert policy.data.params["beta"] == "0.1"
    assert policy.data.tags["preftune.verdict"] == first["verdict"]["outcome"]
    assert {i.dataset.name for i in policy.inputs.dataset_inputs} == {"recipes/tiny/pairs", "held-out pairs"}
    assert {a.path for a in mlflow.list_artifacts(first["run_id"])} >= {"report.html", "verdict.json", "recipe.yaml"}


def test_the_training_is_shown_and_its_curves_are_read(first: dict[str, Any], project: Path) -> None:
    """Prefect's progress artifact ends at 100; the notes stand in the result, the verdict, the report and MLflow."""
    with sqlite3.connect(project / ".preftune/prefect/prefect.db") as database:
        (percent, text), *others = database.execute("select data, description from artifact where key = 'training'")
    assert not others and float(percent) == 100.0
    assert text.startswith("step 6 of 6  loss ")
    assert {note["name"] for note in first["training_notes"]} == {"few-points"}, "six steps tell no trend"
    assert first["notices"] == []
    out = project / "data/tiny"
    assert json.loads((out / "verdict.json").read_text())["training_notes"] == first["training_notes"]
    assert "What the training shows" in (out / "report.html").read_text()
    note = client(project).get_run(first["run_id"]).data.tags["mlflow.note.content"]
    assert "too few values to tell a trend" in note


def test_each_training_step_is_logged_once(first: dict[str, Any], project: Path) -> None:
    history = client(project).get_metric_history(first["run_id"], "train/loss")
    assert sorted(m.step for m in history) == [1, 2, 3, 4, 5, 6]


def test_numbers_agree_with_trl(first: dict[str, Any], project: Path) -> None:
    """The verdict's reward accuracy and margin are those that TRL's own evaluation logs (on the first 4 pairs)."""
    mlflow = client(project)
    logged = {
        name: next(m.value for m in mlflow.get_metric_history(first["run_id"], name) if m.step == 6)
        for name in ("eval/rewards/margins", "eval/rewards/accuracies")
    }
    (comparison,) = (project / ".preftune/store/verdict").glob("*/comparison.jsonl")
    margins = [json.loads(line)["margin"] for line in comparison.read_text().splitlines()[:4]]
    assert sum(margins) / 4 == pytest.approx(logged["eval/rewards/margins"], abs=2e-4)
    assert sum(m > 0 for m in margins) / 4 == logged["eval/rewards/accuracies"]


def test_second_run_is_all_cached_without_torch(first: dict[str, Any], project: Path) -> None:
    code = (
        "import sys\nfrom flows.cli import main\n"
        "try: main(['run', 'recipes/tiny/config.yaml', '--json'])\n"
        "except SystemExit as e: code = e.code\n"
        "print(sorted({'torch', 'trl', 'transformers', 'mlflow', 'pandas', 'scipy'} & set(sys.modules)), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=child_env(), capture_output=True, text=True, check=False
    )
    result, heavy = done.stdout.strip().splitlines()[-2:]
    assert heavy == "[] 0", done.stderr
    again = json.loads(result)
    assert again["steps"] == dict.fromkeys(STEPS, "cached")
    assert {k: again[k] for k in ("run_id", "sft_run_id", "metrics")} == {
        k: first[k] for k in ("run_id", "sft_run_id", "metrics")
    }


def test_another_beta_keeps_data_baseline_and_reference(first: dict[str, Any], project: Path) -> None:
    done = preftune("run", "recipes/tiny/config.yaml", "--json", "--beta=0.3", "--output_dir=data/b", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "reference log-probabilities (train): 24 of 24 pairs cached, 0 computed" in done.stderr
    result = json.loads(done.stdout)
    cached = dict.fromkeys(("source", "mixture", "lengths", "baseline"), "cached")
    assert result["steps"] == {**dict.fromkeys(STEPS, "run"), **cached}
    assert result["sft_run_id"] == first["sft_run_id"]
    assert result["run_id"] != first["run_id"]


def test_another_workspace_gives_the_same_numbers(first: dict[str, Any], project: Path, tmp_path: Path) -> None:
    def digests(home: Path) -> dict[str, str]:
        files = home.glob("store/*/*/manifest.json")
        return {f"{f.parent.parent.name}/{f.parent.name}": json.loads(f.read_text())["digest"] for f in files}

    before = digests(project / ".preftune")
    shutil.copytree(project / "recipes", tmp_path / "p/recipes")
    done = preftune("run", "recipes/tiny/config.yaml", "--json", cwd=tmp_path / "p")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"] == first["metrics"]
    after = digests(tmp_path / "p/.preftune")
    assert after.items() <= before.items()
    assert len(after) == len(STEPS)


def test_evaluating_the_result_again_costs_nothing(first: dict[str, Any], project: Path) -> None:
    """The published folder holds the very weights that the run measured: every step is there, the verdict too."""
    done = preftune("evaluate", "recipes/tiny/config.yaml", "--policy=data/tiny", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] == {s: "cached" for s in STEPS if s not in ("train", "verdict")} | {"verdict": "run"}
    same = ("reward_accuracy", "reward_margin", "stop_rate", "nll_under_sft")
    assert {n: found["metrics"]["policy"][n] for n in same} == {n: first["metrics"]["policy"][n] for n in same}
    assert found["policy"] == str(project / "data/tiny") and "output_dir" not in found
    assert found["run_id"] != first["run_id"] and found["sft_run_id"] == first["sft_run_id"]
    assert Path(found["report"]).parent == project / ".preftune/reports"
    run = client(project).get_run(found["run_id"])
    assert run.data.tags["preftune.kind"] == "evaluation" and run.info.status == "FINISHED"


def test_the_sft_model_itself_is_no_better_than_itself(first: dict[str, Any], project: Path, tiny_model: Path) -> None:
    done = preftune(
        *("evaluate", "recipes/tiny/config.yaml", f"--policy={tiny_model}", "--json", "--fail-on-reject"), cwd=project
    )
    found = json.loads(done.stdout)
    assert done.returncode == 4, done.stderr
    assert found["verdict"]["outcome"] == "inconclusive" and found["metrics"]["policy"]["reward_margin"] == 0.0


def test_a_policy_that_is_none_is_told_before_anything_runs(project: Path) -> None:
    done = preftune("evaluate", "recipes/tiny/config.yaml", "--policy=data/nothing", cwd=project)
    assert done.returncode == 2 and "there is no such folder" in done.stderr and "Traceback" not in done.stderr


def test_recorded_runs_are_compared(first: dict[str, Any], project: Path) -> None:
    """By the first characters of their ids; the policy against its baseline gives the verdict's own differences."""
    ids = [first["sft_run_id"], first["run_id"]]
    done = preftune("compare", *(i[:10] for i in ids), "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [r["run_id"] for r in found["runs"]] == ids
    assert [r["verdict"] for r in found["runs"]] == [None, first["verdict"]["outcome"]]
    verdict = json.loads((project / "data/tiny/verdict.json").read_text())
    assert found["pairs"] == verdict["pairs"] and found["answers"] == verdict["answers"]
    for name in ("ranking_accuracy", "seq_rep_4", "response_tokens"):
        assert found["differences"][name][0] == pytest.approx(verdict["differences"][name], abs=1e-9), name
    assert Path(found["report"]).read_text().count("<html") == 1
    for wrong, message in (
        (["zzz", ids[0]], "no recorded run"),
        ([ids[0], ids[0]], "named twice"),
        (["", ids[0]], "no re"),
    ):
        done = preftune("compare", *wrong, cwd=project)
        assert done.returncode == 2 and message in done.stderr, done.stderr
