"""From checked pairs to the dataset that the trainer reads, against TRL: `python -m benchmarks.tokenization [--json]
[--rows N] [--model FOLDER]`; see README.md beside this file.
"""

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.common import ONE_THREAD, QUIET, RECIPE, finish, interleaved, parser, starter_model

os.environ |= QUIET | ONE_THREAD | {"ARROW_DEFAULT_MEMORY_POOL": "system"}

ROUNDS = 3
MAX_LENGTH = 1024
TARGETS = {"cold_ratio": 0.45, "warm_ratio": 0.05}
COLUMNS = ["prompt_ids", "chosen_ids", "rejected_ids"]


def write_pairs(path: Path, rows: int, model: Path) -> None:
    """A file as the mixture step writes it, of the rows that `benchmarks.data` generates."""
    from benchmarks.data import write_rows
    from preftune.children import read_json_lines
    from preftune.data.pairs import to_pair

    raw = path.with_suffix(".raw")
    write_rows(raw, rows, model)
    with path.open("w") as f:
        for number, row in enumerate(read_json_lines(raw)):
            sides = {side: row[side] for side in ("chosen", "rejected")}
            f.write(to_pair(sides, "benchmark", str(number)).model_dump_json() + "\n")
    raw.unlink()


def measure(model: Path, rows: int) -> dict[str, Any]:
    """CPU-seconds of both ways, with nothing kept from before (cold) and with all of it (warm)."""
    import datasets
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOTrainer

    from preftune.data.steps import left_out, make_lengths, tokens
    from preftune.models import find_model
    from preftune.recipe import load_recipe
    from preftune.store import StepResult
    from preftune.training_setup import load_tokens
    from preftune.workspace import Workspace

    datasets.disable_progress_bars()
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (model / "chat_template.jinja").read_text()
    recipe = load_recipe(RECIPE, {"model_name_or_path": str(model), "max_length": MAX_LENGTH})
    mixture = StepResult(step="mixture", key="m", digest="d", info={"train_sha256": "a", "test_sha256": "b"})
    settings: Any = SimpleNamespace(dataset_num_proc=None, max_length=MAX_LENGTH, truncation_mode="keep_start")
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    with tempfile.TemporaryDirectory() as name:
        workspace = Workspace(Path(name), Path(name) / ".preftune").make()
        starting_model = find_model(recipe, workspace)
        assert starting_model is not None
        pairs, cache = mixture.folder(workspace) / "train.jsonl", Path(name) / "cache"
        pairs.parent.mkdir(parents=True)
        pairs.with_name("test.jsonl").touch()

        def ours() -> Any:
            """The lengths step, in the flow's process, and what the training child does with its files."""
            lengths = make_lengths(workspace, recipe, starting_model, mixture)
            files, gone = tokens(lengths, workspace), left_out(lengths, workspace)
            assert files is not None and gone is not None
            return load_tokens(Path(files["train"]), pairs, gone["train"], tokenizer)

        def ours_cold() -> Any:
            shutil.rmtree(workspace.store / "lengths", ignore_errors=True)
            return ours()

        def trl() -> Any:
            """What a script around DPOTrainer does, by TRL's own functions; each stage is kept in a file."""
            data: Any = Dataset.from_json(str(pairs), cache_dir=str(cache))
            data = data.select_columns(["prompt", "chosen", "rejected"])
            return DPOTrainer._prepare_dataset(trainer, data, tokenizer, settings, "train")

        def trl_cold() -> Any:
            shutil.rmtree(cache, ignore_errors=True)
            return trl()

        ways = {"preftune_cold": ours_cold, "trl_cold": trl_cold, "preftune_warm": ours, "trl_warm": trl}
        write_pairs(pairs, 100, model)
        for way in ways.values():  # imports and first-time work do not count
            way()
        write_pairs(pairs, rows, model)
        seconds, made = interleaved(ways, ROUNDS)
        data = made["preftune_cold"].select_columns(COLUMNS).with_format("arrow")[:]
        for way in ("trl_cold", "preftune_warm", "trl_warm"):
            if made[way].select_columns(COLUMNS).with_format("arrow")[:].cast(data.schema) != data:
                raise SystemExit(f"{way}: other ids than preftune_cold's")
        written = sorted(f.name for f in cache.rglob("cache-*.arrow"))
    lengths = [sum(map(len, row.values())) for row in data.slice(0, 1000).to_pylist()]
    return {
        "rows": rows,
        "kept": len(data),
        "tokens_a_pair": round(sum(lengths) / len(lengths), 1),
        "cpu_seconds": {way: round(s, 4) for way, s in seconds.items()},
        "cold_ratio": round(seconds["preftune_cold"] / seconds["trl_cold"], 3),
        "warm_ratio": round(seconds["preftune_warm"] / seconds["trl_cold"], 4),
        "warm_ratio_to_trl_warm": round(seconds["preftune_warm"] / seconds["trl_warm"], 3),
        "trl_reuses": len(written)
        == 2,  # the tokenized rows and the filtered ones, once: the second time it wrote none
    }


def text(found: dict[str, Any]) -> str:
    """The figures in words."""
    used = found["cpu_seconds"]
    lines = [f"{found['rows']} pairs of {found['tokens_a_pair']} tokens; CPU-seconds:"]
    for way, seconds in used.items():
        lines.append(f"  {way:13} {seconds:8.3f}")
    for ratio, target in TARGETS.items():
        lines.append(f"{ratio} {found[ratio]}, of TRL's first time (target: at most {target})")
    reuses = "found its files" if found["trl_reuses"] else "did not find its files"
    lines.append(f"the second time TRL {reuses}: {found['warm_ratio_to_trl_warm']} of that")
    return "\n".join(lines)


def main() -> None:
    made = parser("tokenization", __doc__)
    made.add_argument("--rows", type=int, default=10_000, help="pairs to tokenize")
    made.add_argument("--model", type=Path, help="model folder (default: .preftune/models/SmolLM2-135M-Instruct)")
    given = made.parse_args()
    finish(measure(starter_model(given.model), given.rows), given.json, text)


if __name__ == "__main__":
    main()
