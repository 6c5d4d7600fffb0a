"""The verdict on really damaged models: SmolLM2 with changed weights, through `preftune evaluate`.

Each has to be rejected, and for the reason that was built in; an identical copy is neither promoted nor rejected.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, preftune

pytestmark = pytest.mark.slow
SMALL = (
    "--evaluation.max_pairs=24",
    "--evaluation.max_prompts=32",  # the SFT model ends half of its answers within 96 tokens
    "--evaluation.max_new_tokens=96",
    "--evaluation.tasks=[]",
)
# What is done to the model's weights, and which reason has to stand in the verdict.
DAMAGE = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer

source, target, kind = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(source)
noise = torch.Generator().manual_seed(0)


def where_answers_begin():
    questions = ("What is rain?", "Write a short poem.", "How do I boil an egg?", "Say hello.")
    found = []
    for question in questions:
        turns = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        found.append(model.model(ids).last_hidden_state[0, -1])
    mean = torch.stack(found).mean(0)
    return mean / mean.norm()


with torch.no_grad():
    if kind == "gibberish":  # noise of half the weights' size
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and "layers" in name:
                weights.add_(torch.randn(weights.shape, generator=noise) * weights.std() * 0.5)
    elif kind == "repetition":  # the last third of the layers no longer thinks
        for layer in model.model.layers[20:]:
            layer.mlp.down_proj.weight.zero_()
    elif kind in ("empty", "endless"):  # the end token is what every answer begins with; or never comes
        direction = where_answers_begin()
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.lm_head.weight[tokenizer.eos_token_id] += direction if kind == "empty" else -direction
    else:
        assert kind == "copy"
model.save_pretrained(target)
"""
REASONS = {
    "gibberish": "NLL of the answers under SFT",
    "repetition": "repetition",
    "empty": "empty answers",
    "endless": "stop by themselves",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter recipe in a project of its own, with the embedded model fetched once."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    kept = Path(os.environ.get("PREFTUNE_HOME", ROOT / ".preftune")) / "models"
    if kept.is_dir():
        shutil.copytree(kept, folder / ".preftune/models")
    else:
        code = (
            "from pathlib import Path; from preftune.models import prepare_embedded;"
            "from preftune.workspace import Workspace; f = Path.cwd();"
            "prepare_embedded(Workspace(f, f / '.preftune').make(), print)"
        )
        subprocess.run(
            [sys.executable, "-c", code], cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    return folder


def evaluated(project: Path, kind: str) -> dict[str, Any]:
    target = project / "damaged" / kind
    source = project / ".preftune/models/SmolLM2-135M-Instruct"
    subprocess.run([sys.executable, "-c", DAMAGE, str(source), str(target), kind], check=True)
    done = preftune(
        *("evaluate", "recipes/starter/config_starter.yaml", f"--policy={target}", "--json", *SMALL), cwd=project
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", REASONS)
def test_a_damaged_model_is_rejected_for_its_damage(kind: str, project: Path) -> None:
    found = evaluated(project, kind)
    assert found["verdict"]["outcome"] == "reject", found["verdict"]
    assert any(REASONS[kind] in reason for reason in found["verdict"]["reasons"]), found["verdict"]


def test_an_identical_copy_is_neither_better_nor_worse(project: Path) -> None:
    found = evaluated(project, "copy")
    assert found["verdict"]["outcome"] == "inconclusive", found["verdict"]
    assert found["metrics"]["policy"]["reward_accuracy"] == 0.5
    assert found["metrics"]["policy"]["stop_rate"] == found["metrics"]["sft"]["stop_rate"]
    assert found["steps"]["baseline"] in ("run", "cached") and "train" not in found["steps"]
