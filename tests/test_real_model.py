"""The embedded model for real: fetched, converted, trained for two steps through the whole pipeline."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, child_env, preftune

SMALL = (
    "--dataset_mixture.datasets.0.max_rows=8",
    "--gradient_accumulation_steps=1",
    "--warmup_steps=0",  # of two steps none is for warming up
    "--eval_strategy=no",
    "--evaluation.max_pairs=24",
    "--evaluation.max_prompts=4",
    "--evaluation.max_new_tokens=24",
    "--evaluation.task_limit=4",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


@pytest.fixture(scope="module")
def result(project: Path) -> dict[str, Any]:
    done = preftune("init", "my-first-dpo", cwd=project)
    assert done.returncode == 0, done.stderr
    done = preftune("run", "recipes/my-first-dpo/config_starter.yaml", "--json", *SMALL, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stderr
    return json.loads(done.stdout)


def test_the_starting_model_is_the_real_one(result: dict[str, Any]) -> None:
    """A model of chance gives each token 10.8 nats (ln 49152); this one knows English."""
    assert -5 < result["metrics"]["sft"]["chosen_logp_per_token"] < -1.5
    assert 0 < result["metrics"]["sft"]["nll_under_sft"] < 1.5


def test_two_steps_move_it_the_right_way(result: dict[str, Any]) -> None:
    metrics = result["metrics"]["policy"]
    assert metrics["reward_margin_lo"] > 0
    assert metrics["reward_accuracy"] > 0.5  # of 24 pairs; the interval that decides is the margin's
    assert metrics["kl_per_token"] != 0


def test_the_result_answers(result: dict[str, Any], project: Path) -> None:
    """The guide's way to use a result: an adapter folder, loaded by its path."""
    code = (
        "from transformers import pipeline; p = pipeline('text-generation', model='data/my-first-dpo');"
        "m = [{'role': 'user', 'content': 'What is the capital of France?'}];"
        "print(p(m, max_new_tokens=20, do_sample=False)[0]['generated_text'][-1]['content'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=child_env(), capture_output=True, text=True, check=False
    )
    assert "Paris" in done.stdout, done.stderr


def test_the_pairs_keep_their_promises(result: dict[str, Any], project: Path) -> None:
    """Counts, topics, lengths, no length hack, nothing twice: the data card's own script."""
    tokenizer = project / ".preftune/models/SmolLM2-135M-Instruct"
    command = [sys.executable, str(ROOT / "scripts/pairs_card.py"), "--tokenizer", str(tokenizer)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_counts_the_tokens_that_trl_counts(result: dict[str, Any], project: Path) -> None:
    """TRL logs how many tokens it has trained on; the plan knew it beforehand."""
    done = preftune("check", "recipes/my-first-dpo/config_starter.yaml", "--json", *SMALL, cwd=project)
    planned = json.loads(done.stdout)["plan"]["tokens"]
    (metrics,) = (project / ".preftune/store/train").glob("*/metrics.jsonl")
    assert planned == json.loads(metrics.read_text().splitlines()[-1])["metrics"]["train/num_tokens"]


@pytest.mark.skipif(not (ROOT / "../shared/data/dpo_en_demo.json").exists(), reason="the ShareGPT sample is not here")
def test_a_sharegpt_file_needs_nothing_but_its_path(result: dict[str, Any], project: Path) -> None:
    recipe = project / "recipes/sharegpt/config.yaml"
    recipe.parent.mkdir()
    recipe.write_text(f"dataset_name: {(ROOT / '../shared/data/dpo_en_demo.json').resolve()}\n")
    done = preftune("check", "recipes/sharegpt/config.yaml", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert plan["train_pairs"] + plan["test_pairs"] > 250


def test_its_answers_and_their_likelihoods_are_those_of_transformers(result: dict[str, Any], project: Path) -> None:
    """Rows come and go while `model.generate` answers one prompt after the other; both sides of a pair in one row."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from preftune.data.pairs import to_pair
    from preftune.generation import Decoding, generate
    from preftune.scoring import answer_logps
    from preftune.tokens import tokenize_pair, tokenize_prompt

    folder = project / ".preftune/models/SmolLM2-135M-Instruct"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    lines = (ROOT / "recipes/starter/pairs/test.jsonl").read_text().splitlines()[:10]
    pairs = [to_pair(json.loads(line), "starter", "") for line in lines]
    prompts = [tokenize_prompt(tokenizer, p.prompt) for p in pairs]
    found = generate(model, prompts, Decoding(40), eos_ids={tokenizer.eos_token_id}, batch_size=1)
    for prompt, answer in zip(prompts, found, strict=True):
        given = torch.tensor([prompt])
        mask = torch.ones_like(given)
        out = model.generate(given, attention_mask=mask, max_new_tokens=40, do_sample=False, pad_token_id=0)
        assert answer.ids == out[0, len(prompt) :].tolist()
    assert {a.stopped for a in found} == {True, False}

    tokens = [tokenize_pair(tokenizer, p) for p in pairs]
    sequences = [(t.prompt, a) for t in tokens for a in (t.chosen, t.rejected)]
    sequences += [(p, a.ids) for p, a in zip(prompts, found, strict=True)]
    scores = answer_logps(model, sequences, max_length=1000, batch_size=4)
    with torch.inference_mode():
        for (prompt, answer), score in zip(sequences, scores, strict=True):
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            nats = logits.double().log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).sum()
            assert score.logp == pytest.approx(float(nats), abs=1e-3)
    assert [a.logp for a in found] == pytest.approx([s.logp for s in scores[-len(found) :]], abs=1e-3)
