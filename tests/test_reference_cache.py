"""The cache of reference log-probabilities: what it computes anew after each change, and what it survives."""

import itertools
import json
import math
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE, child_env, our_trainer
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.pairs import Pair, to_pair
from preftune.errors import StepError, UserError
from preftune.reference_cache import ReferenceCache, pair_key, visible_part

ROOT = Path(__file__).parent.parent
keep_end_is_deprecated = pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation:FutureWarning")
KEYS = [bytes([n]) * 32 for n in range(8)]


def bits(value: float) -> bytes:
    return struct.pack("<f", value)


# What the model sees, and the key


@given(
    prompt=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    answer=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    max_length=st.none() | st.integers(1, 18),
    keep_end=st.booleans(),
)
def test_the_visible_part_is_that_of_trl_s_collator(
    prompt: list[int], answer: list[int], max_length: int | None, keep_end: bool
) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    mode = "keep_end" if keep_end else "keep_start"
    collator = DataCollatorForPreference(pad_token_id=0, max_length=max_length, truncation_mode=mode)
    batch = collator([{"prompt_ids": prompt, "chosen_ids": answer, "rejected_ids": [1]}])
    shown = batch["attention_mask"][0].bool()
    ids, start = visible_part(prompt, answer, max_length, keep_end)
    assert ids == batch["input_ids"][0][shown].tolist()
    assert [0] * start + [1] * (len(ids) - start) == batch["completion_mask"][0][shown].tolist()


ROW = {"prompt_ids": [1, 2], "chosen_ids": [3, 4, 5], "rejected_ids": [6]}


def test_equal_to_the_model_equal_in_key() -> None:
    key = pair_key(ROW, "s", 4, False)
    assert key == pair_key({**ROW, "chosen_ids": [3, 4, 9, 9]}, "s", 4, False), "they differ only behind the cut"
    assert pair_key(ROW, "s", 5, False) == pair_key(ROW, "s", None, True), "nothing is cut"
    assert pair_key(ROW, "s", 3, True) != pair_key(ROW, "s", 3, False)


@pytest.mark.parametrize(
    ("change", "scoring"),
    [
        ({"prompt_ids": [1, 7]}, "s"),
        ({"rejected_ids": [7]}, "s"),
        ({"prompt_ids": [1], "chosen_ids": [2, 3, 4, 5], "rejected_ids": [2, 6]}, "s"),  # where the answer begins
        ({"chosen_ids": [6], "rejected_ids": [3, 4, 5]}, "s"),
        ({"chosen_ids": [3, 4]}, "s"),
        ({}, "another dtype"),
    ],
)
def test_what_the_model_sees_otherwise_has_another_key(change: dict[str, list[int]], scoring: str) -> None:
    assert pair_key({**ROW, **change}, scoring, 8, False) != pair_key(ROW, "s", 8, False)


# The file


def test_values_come_back_bit_by_bit(tmp_path: Path) -> None:
    third = struct.unpack("<f", bits(1 / 3))[0]
    values = {KEYS[0]: (-0.0, third), KEYS[1]: (-1234.567138671875, 2.0**-149), KEYS[2]: (-3.0, 2.0**127)}
    assert ReferenceCache(tmp_path).add(values) == values
    found = ReferenceCache(tmp_path).get([*KEYS, KEYS[0]])
    assert {k: [bits(x) for x in v] for k, v in found.items()} == {k: [bits(x) for x in v] for k, v in values.items()}


def test_the_first_value_stays(tmp_path: Path) -> None:
    """Two trainings that compute one pair differ in the last bits; a resumed one must find what it began with."""
    first, second = ReferenceCache(tmp_path), ReferenceCache(tmp_path)
    first.add({KEYS[0]: (-1.0, -2.0)})
    assert second.add({KEYS[0]: (-9.0, -9.0), KEYS[1]: (-3.0, -4.0)}) == {KEYS[0]: (-1.0, -2.0), KEYS[1]: (-3.0, -4.0)}


def test_a_flipped_bit_costs_one_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {key: (-100.0 - n, -200.0 - n) for n, key in enumerate(KEYS)}
    cache = ReferenceCache(tmp_path)
    cache.add(values)
    cache.close()
    content = bytearray((tmp_path / "rows.sqlite").read_bytes())
    assert content.count(bits(-103.0)) == 1
    content[content.index(bits(-103.0))] ^= 1
    (tmp_path / "rows.sqlite").write_bytes(content)
    cache = ReferenceCache(tmp_path)
    assert cache.get(KEYS) == {k: v for k, v in values.items() if k != KEYS[3]}
    assert "1 damaged reference log-probabilities are computed anew" in capsys.readouterr().out
    assert cache.add({KEYS[3]: values[KEYS[3]]}) == {KEYS[3]: values[KEYS[3]]}
    assert cache.get(KEYS) == values


def _fill(folder: Path) -> Path:
    cache = ReferenceCache(folder)
    cache.add({n.to_bytes(32, "big"): (-1.0, -2.0) for n in range(1000)})
    cache.close()
    return folder / "rows.sqlite"


@pytest.mark.parametrize("damage", ["garbage", "cut", "page"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    path = _fill(tmp_path)
    content = path.read_bytes()
    damaged = {
        "garbage": b"not a database " * 1000,
        "cut": content[: len(content) // 2],
        "page": content[:4096] + b"\xff" * 4096 + content[8192:],
    }[damage]
    path.write_bytes(damaged)
    cache = ReferenceCache(tmp_path)
    assert cache.get([(1).to_bytes(32, "big")]) == {}
    assert "was damaged" in capsys.readouterr().out
    cache.add({KEYS[0]: (-1.0, -2.0)})
    assert ReferenceCache(tmp_path).get(KEYS) == {KEYS[0]: (-1.0, -2.0)}
    assert [p.read_bytes() for p in tmp_path.glob("broken-*-rows.sqlite")] == [damaged]


def test_a_full_disk_does_not_end_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = ReferenceCache(tmp_path)
    cache.add({KEYS[0]: (-1.0, -2.0)})
    cache._rows.execute("PRAGMA max_page_count = 1")  # SQLite then answers as if the disk were full
    many = {n.to_bytes(32, "big"): (-1.0, -2.0) for n in range(2000)}
    assert cache.add(many) == many
    assert cache.add(many) == many
    assert capsys.readouterr().out.count("cannot be kept (database or disk is full)") == 1
    assert ReferenceCache(tmp_path).get(KEYS) == {KEYS[0]: (-1.0, -2.0)}


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StepError, match="cannot be opened"):
        ReferenceCache(tmp_path / "file" / "cache")


_WRITER = """
import sys
from pathlib import Path
from preftune.reference_cache import ReferenceCache
begin, end = int(sys.argv[2]), int(sys.argv[3])
cache = ReferenceCache(Path(sys.argv[1]))
for n in range(begin, end):
    found = cache.add({(n % 1000).to_bytes(32, "big"): (-float(n % 1000), -1.0)})
    assert list(found.values()) == [(-float(n % 1000), -1.0)]
    print(n, flush=True)
"""


def test_two_processes_write_at_once_and_one_is_killed(tmp_path: Path) -> None:
    def start(begin: int, end: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", _WRITER, str(tmp_path), str(begin), str(end)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start(500, 10**9) as killed, start(0, 600) as whole:  # both write 500…599
        assert killed.stdout and whole.stdout
        told = [int(line) for line in itertools.islice(killed.stdout, 300)]
        killed.send_signal(signal.SIGKILL)
        told += [int(line) for line in killed.stdout if line.endswith("\n")]
        assert whole.stdout.read().splitlines()[-1] == "599"
    assert (killed.returncode, whole.returncode) == (-signal.SIGKILL, 0)
    known = {n % 1000 for n in [*told, *range(600)]}
    found = ReferenceCache(tmp_path).get([n.to_bytes(32, "big") for n in range(1000)])
    assert known <= {int.from_bytes(k, "big") for k in found}, "what was told is there"
    assert all(v == (-float(int.from_bytes(k, "big")), -1.0) for k, v in found.items())
    assert sqlite3.connect(tmp_path / "rows.sqlite").execute("PRAGMA integrity_check").fetchone() == ("ok",)


# In a training: what each change computes


def made_pairs(count: int = 12) -> list[Pair]:
    """Eight pairs of 26 (chosen) and 27 (rejected) tokens, then some of 60 to 62 and 27 or 28."""
    rows = []
    for n in range(count):
        answer = f"It is {n + 1}." if n < 8 else f"It is {n + 1}." + " I did count it twice to be sure." * 2
        rows.append(
            {
                "prompt": [{"role": "user", "content": f"What is {n} and 1?"}],
                "chosen": [{"role": "assistant", "content": answer}],
                "rejected": [{"role": "assistant", "content": "No idea."}],
            }
        )
    return [to_pair(r, "made", str(i)) for i, r in enumerate(rows)]


LORA = {"use_peft": True, "lora_r": 4}
BASE: dict[str, Any] = {"max_length": 40, "per_device_train_batch_size": 4, "settings": LORA}


def counts(pairs: int, cached: int, computed: int) -> dict[str, int]:
    return {"pairs": pairs, "cached": cached, "computed": computed}


@pytest.fixture(scope="module")
def warm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that has seen the twelve pairs at max_length 40, which cuts the last four."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("warm")
    trainer = our_trainer(tiny_model, made_pairs(), folder / "run", reference=folder / "reference", **BASE)
    assert trainer.reference_counts == {"train": counts(12, 0, 12)}
    return folder / "reference"


@pytest.fixture
def cache(warm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(warm, tmp_path / "reference"))


@keep_end_is_deprecated
@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({}, 0),  # another output folder alone
        ({"beta": 0.5}, 0),
        ({"learning_rate": 1e-3}, 0),
        ({"settings": {**LORA, "lora_r": 8}}, 0),
        ({"settings": {}}, 0),  # full fine-tuning
        ({"seed": 1}, 0),
        ({"loss_type": ["ipo"]}, 0),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, 0),
        ({"num_train_epochs": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, 0),
        ({"max_length": 64}, 4),  # the long ones alone were cut
        ({"max_length": 50}, 4),
        ({"max_length": 28}, 4),
        ({"max_length": 26}, 12),  # cuts the last token of the rejected answers, too
        ({"max_length": None}, 4),
        ({"truncation_mode": "keep_end"}, 4),
        ({"template": TEMPLATE.replace("m['role']", "m['role'] | upper")}, 12),
        ({"ld_alpha": 0.5}, 12),
        ({"settings": {**LORA, "dtype": "bfloat16"}}, 12),
        ({"settings": {**LORA, "attn_implementation": "eager"}}, 12),
        ({"bf16": True}, 12),
    ],
    ids=str,
)
def test_a_change_computes_what_it_must(
    tiny_model: Path, cache: Path, tmp_path: Path, change: dict[str, Any], computed: int
) -> None:
    trainer = our_trainer(tiny_model, made_pairs(), tmp_path / "run", reference=cache, **{**BASE, **change})
    assert trainer.reference_counts == {"train": counts(12, 12 - computed, computed)}


def test_a_grown_mixture_computes_the_new_pairs(
    tiny_model: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *old, new = made_pairs(13)
    mixture = [new, *reversed(old), new, old[3]]
    trainer = our_trainer(tiny_model, mixture, tmp_path / "run", reference=cache, eval_strategy="epoch", **BASE)
    assert trainer.reference_counts == {"train": counts(15, 13, 1), "eval": counts(15, 15, 0)}
    told = "reference log-probabilities (train): 13 of 15 pairs cached, 1 computed, 1 equal to another"
    assert told in capsys.readouterr().out
    rows = trainer.train_dataset
    assert rows["ref_chosen_logps"][0] == rows["ref_chosen_logps"][13] != rows["ref_chosen_logps"][1]


@keep_end_is_deprecated
@pytest.mark.parametrize(
    "change", [{}, {"truncation_mode": "keep_end", "max_length": 50}, {"max_length": 30, "ld_alpha": 0.5}], ids=str
)
def test_values_are_those_that_bare_trl_computes_online(
    tiny_model: Path, cache: Path, tmp_path: Path, trl_trainer: Callable[..., Any], change: dict[str, Any]
) -> None:
    """TRL's own precompute takes stale values here: its cache knows neither max_length (at keep_end) nor ld_alpha."""
    keys = {**BASE, **change}
    trainer = our_trainer(tiny_model, made_pairs(), tmp_path / "run", reference=cache, **keys)
    keys.pop("settings")
    bare = trl_trainer(tiny_model, made_pairs(), tmp_path / "bare", **keys)
    expected = bare.compute_ref_log_probs(bare.model, bare.data_collator(list(bare.train_dataset)))
    for side, values in zip(("chosen", "rejected"), expected, strict=True):
        assert trainer.train_dataset[f"ref_{side}_logps"][:] == pytest.approx(values.tolist(), rel=1e-6)
        assert trainer.train_dataset.features[f"ref_{side}_logps"].dtype == "float32"


def test_a_dataset_that_evaluate_is_given(tiny_model: Path, cache: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    trainer = our_trainer(tiny_model, made_pairs(), tmp_path / "run", reference=cache, **BASE)
    rows = [p.model_dump(include={"prompt", "chosen", "rejected"}) for p in made_pairs(14)[7:]]
    metrics = trainer.evaluate(Dataset.from_list(rows))
    assert trainer.reference_counts["eval"] == counts(7, 5, 2)
    assert metrics["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_values_that_are_not_finite_are_not_kept(tiny_model: Path, cache: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(tiny_model, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], torch.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="answer of train pair 12 a likelihood that is not finite"):
        our_trainer(broken, made_pairs(13), tmp_path / "run", reference=cache, **BASE)
    trainer = our_trainer(tiny_model, made_pairs(13), tmp_path / "again", reference=cache, **BASE)
    assert trainer.reference_counts == {"train": counts(13, 12, 1)}


def test_dropout_is_off(tiny_model: Path, cache: Path, tmp_path: Path) -> None:
    """Also where it stays on in training: what is kept must not be a draw."""
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))
    new = tmp_path / "new"
    trainer = our_trainer(model, made_pairs(), tmp_path / "run", reference=new, disable_dropout=False, **BASE)
    kept = our_trainer(tiny_model, made_pairs(), tmp_path / "again", reference=cache, **BASE)
    assert "dropout" in trainer.fast_path and kept.fast_path == "on"
    expected = kept.train_dataset["ref_chosen_logps"][:]
    assert trainer.train_dataset["ref_chosen_logps"][:] == pytest.approx(expected, abs=1e-4)
    trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    draws = {trainer.compute_ref_log_probs(trainer.model, batch)[0].item() for _ in range(4)}
    assert len(draws) > 1, "a training step has dropout here"


_KILLED = """
import os, signal, sys
from pathlib import Path
from conftest import our_trainer
from preftune.trainer import ResumableDPOTrainer
from test_reference_cache import BASE, made_pairs
real, batches = ResumableDPOTrainer.compute_ref_log_probs, []
def dying(self, model, inputs):
    batches.append(inputs)
    if len(batches) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, model, inputs)
ResumableDPOTrainer.compute_ref_log_probs = dying
our_trainer(Path(sys.argv[1]), made_pairs(), Path(sys.argv[2]), reference=Path(sys.argv[3]), **BASE)
"""


def test_a_kill_loses_one_batch_at_most(tiny_model: Path, warm: Path, tmp_path: Path) -> None:
    """Killed in the third batch of four pairs: eight are there; in the end all are those of a run without a kill."""
    reference = tmp_path / "reference"
    command = [sys.executable, "-c", _KILLED, str(tiny_model), str(tmp_path / "killed"), str(reference)]
    done = subprocess.run(command, cwd=ROOT / "tests", env={**child_env(), "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    trainer = our_trainer(tiny_model, made_pairs(), tmp_path / "run", reference=reference, **BASE)
    assert trainer.reference_counts == {"train": counts(12, 8, 4)}
    untouched = our_trainer(tiny_model, made_pairs(), tmp_path / "untouched", reference=warm, **BASE)
    for side in ("ref_chosen_logps", "ref_rejected_logps"):
        assert trainer.train_dataset[side][:] == untouched.train_dataset[side][:]


_ONE_OF_TWO = """
import json, sys
from pathlib import Path
from conftest import our_trainer
from test_reference_cache import BASE, made_pairs
folder = Path(sys.argv[2])
mixture = [*made_pairs(11), made_pairs()[2]]
def run(name, pairs):
    trainer = our_trainer(Path(sys.argv[1]), pairs, folder / name, reference=folder / "reference", **BASE)
    return trainer.reference_counts, [trainer.train_dataset[f"ref_{s}_logps"][:] for s in ("chosen", "rejected")]
results = [run("first", mixture), run("grown", [*mixture, *made_pairs(13)])]
import os
(folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
"""


@pytest.mark.slow
def test_two_processes_share_the_work(tiny_model: Path, warm: Path, tmp_path: Path) -> None:
    """Eleven pairs in batches of four on two processes: the last batches are filled up, and must not count twice."""
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n{_ONE_OF_TWO}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    env = child_env(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", TQDM_DISABLE="1")
    subprocess.run([*launch, str(tiny_model), str(tmp_path)], cwd=ROOT / "tests", env=env, check=True)
    (first, grown), other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] == {"train": counts(12, 0, 11)}
    assert grown[0] == {"train": counts(25, 23, 2)}
    assert [first[1], grown[1]] == [values for _, values in other], "both processes have the same values"
    alone = our_trainer(
        tiny_model, [*made_pairs(11), made_pairs()[2]], tmp_path / "alone", reference=tmp_path / "own", **BASE
    )
    for values, side in zip(first[1], ("ref_chosen_logps", "ref_rejected_logps"), strict=True):
        assert values == pytest.approx(alone.train_dataset[side][:], rel=1e-6)


def test_an_adapter_under_fsdp_has_its_reference_online(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the decision: FSDP itself needs several GPUs."""
    monkeypatch.setattr("preftune.trainer.parse_flag_from_env", lambda name: name == "ACCELERATE_USE_FSDP")
    trainer = our_trainer(tiny_model, made_pairs(), tmp_path / "run", reference=tmp_path / "reference", **BASE)
    assert trainer.reference_counts == {}
    assert "ref_chosen_logps" not in trainer.train_dataset.column_names
    assert "computed in each step" in capsys.readouterr().out
