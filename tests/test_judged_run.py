"""A judge in the whole pipeline, through the real command line: suites, cache, an endpoint that comes back, MLflow."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import preftune
from fake_judge import FakeJudge, always_a, fails, fake_judge, prefers

SUITES = [
    {"name": "prompts", "questions": ["What are the benefits of exercise?", "Write a haiku about rain."]},
    {"name": "alpaca_eval", "questions": "alpaca.jsonl"},
    {"name": "mt_bench", "questions": "question.jsonl"},
]
HELD_OUT = 6


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    make_project(folder)
    alpaca = {"instruction": "Name a colour.", "output": "Blue is a colour.", "generator": "someone"}
    (folder / "alpaca.jsonl").write_text(json.dumps(alpaca) + "\n")
    math = {"question_id": 1, "category": "math", "turns": ["1 + 1?", "Times 2?"], "reference": ["2", "4"]}
    (folder / "question.jsonl").write_text(json.dumps(math) + "\n")
    return folder


@pytest.fixture(scope="module")
def policy(project: Path, tiny_model: Path) -> Path:
    """Another model of the same shape, so that its answers are others."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(tiny_model, project / "policy"))
    noise = np.random.default_rng(0)
    weights = {
        k: v + noise.normal(0, v.std(), v.shape).astype(v.dtype)
        for k, v in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def judged(project: Path, policy: Path, server: FakeJudge) -> dict[str, Any]:
    judge = {"kind": "openai", "model": "fake", "base_url": server.url, "retries": 0, "timeout": 20}
    decoding = {"temperature": 1, "max_new_tokens": 24}  # else this model has little to say
    options = {"judge": judge, "suites": SUITES, "max_prompts": HELD_OUT, "tasks": [], **decoding}
    done = preftune(
        *("evaluate", "recipes/tiny/config.yaml", f"--policy={policy}", "--json"),
        *(f"--evaluation.{key}={json.dumps(value)}" for key, value in options.items()),
        cwd=project,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert Path(found["report"]).is_file()
    return found


def test_a_judge_decides_and_is_paid_once(project: Path, policy: Path) -> None:
    """6 held-out prompts, 2 of the guide's, AlpacaEval of both models, 2 turns of MT-Bench: (6 + 2 + 2 + 2) · 2 orders,
    and 2 turns · 2 models graded. The second run asks nothing, and neither does one with another bar."""
    with fake_judge(prefers(lambda text: sum(map(ord, text)) % 97)) as server:
        first = judged(project, policy, server)
        asked = len(server.requests)
        assert 0 < asked <= 12 * 2 + 4
        again = judged(project, policy, server)
        assert len(server.requests) == asked
    assert first["steps"]["judge"] == "run" and again["steps"]["judge"] == "cached"
    assert again["run_id"] == first["run_id"] and again["verdict"] == first["verdict"]
    metrics = first["metrics"]
    assert metrics["sft"]["win_rate"] == metrics["sft"]["lc_win_rate"] == 0.5
    assert 0 <= metrics["policy"]["win_rate"] <= 1 and 1 <= metrics["policy"]["mt_bench/score"] <= 10
    assert {"alpaca_eval/win_rate", "mt_bench/score"} <= set(metrics["sft"])
    page = Path(first["report"]).read_text()
    for text in ("MT-Bench", "AlpacaEval", "Write a haiku about rain."):
        assert text in page, text


def test_an_endpoint_that_was_down_is_asked_again(project: Path, policy: Path) -> None:
    """No verdict at all: inconclusive, and nothing of it stands in the way when the endpoint is back."""
    with fake_judge(fails(503)) as server:
        down = judged(project, policy, server)
        assert down["verdict"]["outcome"] == "inconclusive"
        assert "judge cannot be used" in down["verdict"]["reasons"][0]
        server.behaviour = always_a
        back = judged(project, policy, server)
        asked = len(server.requests)
        judged(project, policy, server)
        assert len(server.requests) == asked
    assert back["run_id"] == down["run_id"], "the same run, with its newest verdict"
    assert back["metrics"]["policy"]["win_rate"] == 0.5, "always the first shown: every comparison is a tie"
    assert back["verdict"]["outcome"] == "inconclusive"
    assert "change with the order of the answers" in back["verdict"]["reasons"][0]

    from mlflow import MlflowClient

    run = MlflowClient(tracking_uri=f"sqlite:///{project}/.preftune/mlflow.db").get_run(back["run_id"])
    assert run.data.metrics["win_rate"] == 0.5
