"""QLoRA for real: bitsandbytes' 4-bit weights under an adapter, on the CPU where there is no GPU.

bitsandbytes is an extra (125 MB, and every child that loads peft would import it), so the test fetches it for itself.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import child_env, write_pairs

from preftune.data.pairs import to_pair

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent

# Run in a child: the bare trainer of the same method on the same pairs.
BARE = """
import json, os, sys
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, ModelConfig, get_peft_config, get_quantization_config
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

job, out = json.load(open(sys.argv[1])), sys.argv[2]
torch.set_num_threads(1)
settings = ModelConfig(**job["model"])
peft = get_peft_config(settings)
peft.target_modules = "all-linear"
rows = [json.loads(line) for line in open(job["train"])]
config, trainer, more = DPOConfig, DPOTrainer, {}
if job["method"] == "orpo":
    config, trainer, more = ORPOConfig, ORPOTrainer, {"remove_unused_columns": False}
args = config(
    out, use_cpu=True, bf16=False, activation_checkpointing=False, dataloader_pin_memory=False,
    **{**job["training"], "save_strategy": "no"}, **more,
)
bare = trainer(
    model=AutoModelForCausalLM.from_pretrained(
        job["model_path"], dtype=settings.dtype, quantization_config=get_quantization_config(settings)
    ),
    args=args,
    train_dataset=Dataset.from_list([{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]),
    processing_class=AutoTokenizer.from_pretrained(job["model_path"]),
    peft_config=peft,
)
bare.train()
print("LOSSES", json.dumps([h["loss"] for h in bare.state.log_history if "loss" in h]))
"""


@pytest.fixture(scope="module")
def bitsandbytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bitsandbytes")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, "bitsandbytes==0.50.2"], check=True)
    return folder


def run(*arguments: str, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=child_env(PYTHONPATH=f"{path}:{ROOT / 'src'}:{ROOT}"),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("method", "fast_path", "apart"),
    [
        ("dpo", "off", 1e-5),
        (
            "dpo",
            "auto",
            2e-2,
        ),  # TRL's QLoRA adapters are bfloat16: a step rounds what packed rows change in the 7th digit
        ("orpo", "auto", 1e-5),
    ],
)
def test_qlora_s_losses_are_those_of_bare_trl(
    method: str, fast_path: str, apart: float, tiny_model: Path, bitsandbytes: Path, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "raw.jsonl", 12, 5)
    rows = [json.loads(line) for line in (tmp_path / "raw.jsonl").read_text().splitlines()]
    pairs = [to_pair(r, "raw", str(i)) for i, r in enumerate(rows)]
    (tmp_path / "train.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in pairs))
    (tmp_path / "partial").mkdir()
    job: dict[str, Any] = {
        "folder": str(tmp_path / "partial"),
        "method": method,
        "model_path": str(tiny_model),
        "revision": None,
        "chat_template": None,
        "threads": 1,
        "model": {
            "use_peft": True,
            "lora_r": 4,
            "lora_dropout": 0.0,
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "use_bnb_nested_quant": True,
        },
        "fast_path": fast_path,
        "micro_batch_tokens": None,
        "training": {
            "seed": 42,
            "learning_rate": 0.01,
            "num_train_epochs": 2.0,
            "per_device_train_batch_size": 4,
            "max_length": 128,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        },
        "train": str(tmp_path / "train.jsonl"),
        "test": str(tmp_path / "train.jsonl"),
        "left_out": None,
        "eval_pairs": 4,
        "reference": str(tmp_path / "reference"),
    }
    job_file, bare_file = tmp_path / "job.json", tmp_path / "bare.json"
    bare_file.write_text(json.dumps(job))
    if method == "dpo":  # TRL's reference is online, ours comes from the cache
        job["training"]["precompute_ref_log_probs"] = True
    job_file.write_text(json.dumps(job))
    (tmp_path / "bare.py").write_text(BARE)
    run("-m", "preftune.training", str(job_file), path=bitsandbytes)
    out = run(str(tmp_path / "bare.py"), str(bare_file), str(tmp_path / "bare"), path=bitsandbytes)
    expected = json.loads(out.partition("LOSSES ")[2].splitlines()[0])
    metrics = [json.loads(line)["metrics"] for line in (tmp_path / "partial/metrics.jsonl").read_text().splitlines()]
    assert len(expected) == 6
    assert [m["train/loss"] for m in metrics] == pytest.approx(expected, rel=apart)
    trained = json.loads((tmp_path / "partial/train.json").read_text())
    assert trained["adapter"] and trained["trainable_parameters"] < trained["parameters"] / 2
    assert (tmp_path / "partial/model/adapter_model.safetensors").exists()
