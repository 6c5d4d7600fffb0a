"""The benchmarks' own machinery: the table, what is counted, and the one for a GPU, tried on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, table
from benchmarks.cached_run import import_seconds
from benchmarks.common import interleaved, markdown_table

ROOT = Path(__file__).parent.parent


def test_table_keeps_what_was_not_measured_anew() -> None:
    first, second, *_ = table.FIGURES
    text = f"# Title\n{table.BEGIN}\n{table.END}\nmore | text\n"
    once = table.rewritten(text, {first.name: "0.2 (2026-01-01)", second.name: "0.3 (2026-01-01)"})
    again = table.rewritten(once, {first.name: "0.1 (2026-02-02)"})
    assert f"| {first.name} | {first.target} | 0.1 (2026-02-02) |" in again
    assert f"| {second.name} | {second.target} | 0.3 (2026-01-01) |" in again
    assert again.count("not measured yet") == len(table.FIGURES) - 2
    assert again.startswith("# Title\n") and again.endswith(f"{table.END}\nmore | text\n")
    assert table.rewritten(again, {}) == again


def test_readme_holds_the_table_of_these_benchmarks() -> None:
    text = table.README.read_text()
    assert table.rewritten(text, {}) == text, "python -m benchmarks.table"
    assert len({f.name for f in table.FIGURES}) == len(table.FIGURES)


def test_figure_is_found_by_its_path() -> None:
    figure = table.Figure("x", "y", "≤ 1", "a.b")
    assert figure.read({"a": {"b": 0.123456}}) == "0.123"
    with pytest.raises(KeyError):
        figure.read({"a": {}})


def test_markdown_table() -> None:
    assert markdown_table(("a", "b"), [(1, 2.5)]) == "| a | b |\n| --- | --- |\n| 1 | 2.5 |"


def test_interleaved_takes_turns_and_counts_children() -> None:
    turns: list[str] = []
    burn = "import time\nwhile time.process_time() < 0.5: pass"

    def idle() -> None:
        turns.append("idle")

    def child() -> str:
        turns.append("child")
        subprocess.run([sys.executable, "-c", burn], check=True)
        return "done"

    seconds, results = interleaved({"idle": idle, "child": child}, rounds=2)
    assert turns == ["idle", "child"] * 2
    assert seconds["idle"] < 0.1 and 0.5 <= seconds["child"] < 2
    assert results == {"idle": None, "child": "done"}


def test_import_seconds_are_a_modules_own() -> None:
    told = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:      1000 |       1000 |     a.b\n"
        "some other line\n"
        "import time:    500000 |     501000 |   a\n"
        "import time:   2000000 |    2501000 | c\n"
    )
    assert import_seconds(told) == {"c": 2.0, "a": 0.501}


def test_gpu_lengths_are_those_of_hh_rlhf() -> None:
    lengths = gpu.pair_lengths("hh", 20_000)
    total = sum(map(sum, lengths))
    assert total / len(lengths) == pytest.approx(243, rel=0.03)
    assert sum(p for p, _, _ in lengths) / total == pytest.approx(0.5, abs=0.02)
    assert max(p + max(c, r) for p, c, r in lengths) <= gpu.MAX_LENGTH["hh"]
    assert {p + c for p, c, _ in gpu.pair_lengths("long", 3)} == {gpu.MAX_LENGTH["long"]}


def test_gpu_flops_are_those_that_torch_counts() -> None:
    """Torch counts the products of a plain forward and backward pass; of attention it counts both halves of the square,
    a causal model needs one."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    shape, lengths = gpu.SHAPES["tiny"], (30, 20, 9)
    model: Any = LlamaForCausalLM(LlamaConfig(**shape.sizes, attn_implementation="eager"))
    counter = FlopCounterMode(display=False)
    with counter:
        for answer in lengths[1:]:
            model(input_ids=torch.randint(2, 500, (1, lengths[0] + answer))).logits.sum().backward()
    linear = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    layers, width = shape.sizes["num_hidden_layers"], shape.sizes["hidden_size"]
    # scores and weighted sum: 2 · length² · width FLOPs each, forward and twice that backwards; half of it
    attention = sum(3 * layers * 2 * 2 * n * n * width / 2 for n in (50, 39))
    assert gpu.pair_flops(shape, lengths, full=True, reference=False) == linear + attention
    assert gpu.pair_flops(shape, lengths, full=True, reference=True) == (linear + attention) * 4 / 3
    assert gpu.pair_flops(shape, lengths, full=False, reference=False) == linear * 2 / 3 + attention


# Nothing may be imported but the six libraries, what these bring, and our own files.
BLOCKED = """
import re, sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

wanted, found = ["torch", "transformers", "accelerate", "peft", "datasets", "trl"], set()
while wanted:
    name = plain(wanted.pop())
    if name not in found:
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            continue
        found.add(name)
        wanted += [re.match(r"[\\w.-]+", r)[0] for r in needs if "extra ==" not in r]

class Finder(PathFinder):
    "Finds what is not installed for other reasons."
    known = packages_distributions()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        owners = cls.known.get(name.partition(".")[0])
        if owners and "preftune" not in owners and not any(plain(o) in found for o in owners):
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path = [Finder if f is PathFinder else f for f in sys.meta_path]
assert not [name for name in ("prefect", "mlflow", "scipy", "lm_eval", "cyclopts") if find_spec(name)]
from benchmarks.gpu import main
main()
"""


def test_gpu_benchmark_needs_six_libraries_only_and_equals_trl() -> None:
    tiny = ["--device=cpu", "--shapes=tiny", "--lengths=hh", "--steps=1", "--batch=4", "--rounds=1", "--json"]
    command = [sys.executable, "-c", BLOCKED, *tiny]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)["lines"]
    assert [line["training"] for line in lines] == ["lora", "full"]
    for line in lines:
        assert line["pairs_at_once"] == 4
        assert line["max_abs_loss_diff"] < 1e-5
        assert all(rate > 0 for rate in line["pairs_per_second"].values())
        assert line["pairs_per_second"]["preftune_cold"] < line["pairs_per_second"]["preftune_cached"]
