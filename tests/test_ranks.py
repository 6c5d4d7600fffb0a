"""FSDP with the shipped configuration, as far as a CPU allows: accelerate is told that gloo is its multi-GPU backend.

All else is real: the launcher, fsdp.yaml, FSDP2, TRL's trainer, our callbacks and checkpoints.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import child_env, write_pairs

from preftune.data.pairs import to_pair

ROOT = Path(__file__).parent.parent
PATCHED = """
import os
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
import accelerate.state as state
state.PartialState._prepare_backend = lambda *_, **__: ("gloo", state.DistributedType.MULTI_GPU)
import sys
from preftune.children import child_main
from preftune.training import train
child_main(train)
"""


def write_job(folder: Path, model: Path, **training: Any) -> Path:
    """12 pairs, two epochs, 4 pairs a step: 6 steps."""
    (folder / "partial").mkdir(parents=True)
    write_pairs(folder / "raw.jsonl", 12, 5)
    pairs = [
        to_pair(json.loads(r), "raw", str(i)) for i, r in enumerate((folder / "raw.jsonl").read_text().splitlines())
    ]
    (folder / "train.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in pairs))
    job = {
        "folder": str(folder / "partial"),
        "model_path": str(model),
        "revision": None,
        "chat_template": None,
        "threads": 1,
        "method": "dpo",
        "reference": str(folder / "reference"),
        "model": {},
        "fast_path": "auto",
        "micro_batch_tokens": None,
        "training": {
            "learning_rate": 0.01,
            "num_train_epochs": 2.0,
            "max_length": 128,
            "logging_steps": 1.0,
            "save_strategy": "steps",
            "save_steps": 2.0,
            "save_total_limit": 2,
            "report_to": "none",
            **training,
        },
        "train": str(folder / "train.jsonl"),
        "test": str(folder / "train.jsonl"),
        "left_out": None,
        "eval_pairs": 4,
    }
    (folder / "job.json").write_text(json.dumps(job))
    return folder


def train_sharded(folder: Path) -> None:
    (folder / "patched.py").write_text(PATCHED)
    launcher = [str(Path(sys.executable).parent / "accelerate"), "launch"]
    options = ["--config_file", str(ROOT / "recipes/accelerate_configs/fsdp.yaml"), "--num_processes=2"]
    line = [*launcher, *options, "--main_process_port=0", str(folder / "patched.py"), str(folder / "job.json")]
    done = subprocess.run(line, env=child_env(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "partial/metrics.jsonl").read_text().splitlines()]
    return [r["metrics"]["train/loss"] for r in rows]


@pytest.mark.slow
def test_a_spread_model_learns_what_a_whole_one_does_and_resumes(tiny_model: Path, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file

    from preftune.training import train

    whole = write_job(tmp_path / "whole", tiny_model, per_device_train_batch_size=4)
    train(json.loads((whole / "job.json").read_text()))
    # On a machine without a GPU `use_cpu` would send accelerate back to plain data parallelism.
    spread = write_job(tmp_path / "spread", tiny_model, per_device_train_batch_size=2, use_cpu=False)
    train_sharded(spread)
    assert losses(spread) == pytest.approx(losses(whole), abs=1e-6)
    assert (spread / "partial/checkpoints/checkpoint-6/pytorch_model_fsdp.bin").is_file(), "FSDP wrote it"
    a, b = (load_file(f / "partial/model/model.safetensors") for f in (whole, spread))
    assert a.keys() <= b.keys()
    assert max(float(np.abs(a[k] - b[k]).max()) for k in a) < 1e-4
    first, steps = (spread / "partial/model/model.safetensors").read_bytes(), losses(spread)
    shutil.rmtree(spread / "partial/model")
    (spread / "partial/checkpoints/checkpoint-6/rng_state_1.pth").unlink()  # as if killed before the second wrote it
    train_sharded(spread)
    assert (spread / "partial/model/model.safetensors").read_bytes() == first
    assert losses(spread) == steps
