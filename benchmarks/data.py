"""The data part's speed and memory: `python -m benchmarks.data [--json] [--rows N]`; see README.md beside this file."""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.common import finish, interleaved, parser, starter_model

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}

from preftune.errors import UserError
from preftune.schema import DatasetEntry, Validation
from preftune.workspace import Workspace

SEED = 42
ROUNDS = 3
CHUNK = 1000
KEPT = 100_000
FILE_ROWS, GROUP_ROWS = 250_000, 1000
WORDS = "the question is about a list of words that my program should sort, but it does not; what am I doing wrong?"
Ids = tuple[list[int], list[int], list[int]]


def _length(rng: random.Random, mean: float) -> int:
    return max(1, round(rng.lognormvariate(0, 0.7) / 1.278 * mean))


class _Writer:
    """Writes English-like text: the model's own words, the frequent ones often, and one in twenty made up of two."""

    def __init__(self, model: Path) -> None:
        vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
        ordered = sorted(vocabulary, key=vocabulary.__getitem__)  # a tokenizer learns frequent words first
        self.words = [w[1:] for w in ordered if w.startswith(("Ġ", "▁")) and w[1:].isascii() and w[1:].isalpha()]
        self.weights = list(accumulate((rank + 3) ** -1.1 for rank in range(len(self.words))))

    def text(self, rng: random.Random, mean: float) -> str:
        length = _length(rng, mean)
        words, more = (rng.choices(self.words, cum_weights=self.weights, k=length) for _ in range(2))
        rare = [a + b if rng.random() < 0.05 else a for a, b in zip(words, more, strict=True)]
        return " ".join(w + (". " if i % 60 == 59 else "," if i % 12 == 11 else "") for i, w in enumerate(rare))


def write_rows(path: Path, count: int, model: Path) -> None:
    """Rows as UltraFeedback's, lengths as hh-rlhf's: about 243 tokens a pair, half of them the shared prompt."""
    rng, writer = random.Random(SEED), _Writer(model)
    with path.open("w") as f:
        for number in range(count):
            turns = rng.choice([1, 1, 3, 5])
            prompt = [
                {"content": writer.text(rng, 73 / turns), "role": ("user", "assistant")[i % 2]} for i in range(turns)
            ]
            sides = [[*prompt, {"content": writer.text(rng, 50), "role": "assistant"}] for _ in range(2)]
            row = {"prompt": prompt[0]["content"], "prompt_id": f"{number:064x}", "chosen": sides[0]}
            row |= {"rejected": sides[1], "messages": sides[0], "score_chosen": 8.0, "score_rejected": 4.5}
            f.write(json.dumps(row) + "\n")


def ours(path: Path, model: Path, _: Path) -> list[Ids]:
    """Reading, adapting, converting, checking, tokenizing: what preftune does with each row."""
    from preftune.data.adapters import adapt
    from preftune.data.pair_tokenizer import pair_tokenizer
    from preftune.data.pairs import Drop, findings, to_pair
    from preftune.data.sources import find_source, read_rows

    source = find_source(
        DatasetEntry.model_validate({"id": str(path)}), Workspace(path.parent, path.parent / ".preftune")
    )
    tokenizer = pair_tokenizer(model, (model / "chat_template.jinja").read_text())
    pairs = []
    for row_id, _row, row in adapt(read_rows(source, "train")):
        assert not isinstance(row, Drop)
        pair = to_pair(row, "benchmark", row_id)
        assert not findings(pair, row)
        pairs.append(pair)
    return [ids for i in range(0, len(pairs), CHUNK) for ids in tokenizer.ids(pairs[i : i + CHUNK])]


def _trl(data: Any, model: Path) -> list[Ids]:
    from transformers import AutoTokenizer
    from trl import DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (model / "chat_template.jinja").read_text()
    settings: Any = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    done: Any = DPOTrainer._prepare_dataset(trainer, data, tokenizer, settings, "train")
    columns = (done[name][:] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return list(zip(*columns, strict=True))


def trl(path: Path, model: Path, cache: Path) -> list[Ids]:
    """What DPOTrainer does with the rows, by its own functions: prompt, chat template and tokens row by row."""
    from datasets import Dataset

    data: Any = Dataset.from_json(str(path), cache_dir=str(cache))
    return _trl(data.select_columns(["chosen", "rejected"]), model)  # it cannot read the text column `prompt`


def handbook(path: Path, model: Path, cache: Path) -> list[Ids]:
    """alignment-handbook's mixture of one dataset with weight 1, then DPOTrainer."""
    from datasets import Dataset, concatenate_datasets

    data: Any = Dataset.from_json(str(path), cache_dir=str(cache))
    data = data.select_columns(["chosen", "rejected"])
    data = data.shuffle(seed=SEED).select(range(int(len(data) * 1.0)))
    return _trl(concatenate_datasets([data]).shuffle(seed=SEED), model)


def _with_fresh_cache(way: Callable[[Path, Path, Path], list[Ids]], path: Path, model: Path) -> list[Ids]:
    return way(path, model, Path(tempfile.mkdtemp(dir=path.parent)))


def tokens(rows: int, model: Path) -> dict[str, Any]:
    """CPU-seconds of each way on the same rows, interleaved; the least of three rounds."""
    import datasets

    datasets.disable_progress_bars()
    ways: dict[str, Callable[[Path, Path, Path], list[Ids]]] = {"preftune": ours, "trl": trl, "handbook": handbook}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, 100, model)
        for way in ways.values():  # imports and first-time work do not count
            way(path, model, Path(folder) / "cache-warm")
        write_rows(path, rows, model)
        fresh = {name: partial(_with_fresh_cache, way, path, model) for name, way in ways.items()}
        best, results = interleaved(fresh, ROUNDS)
    same = results["preftune"] == results["trl"] and sorted(results["preftune"]) == sorted(results["handbook"])
    if not same:
        raise SystemExit("the ways do not give the same ids")
    sizes = [(len(p), len(c), len(r)) for p, c, r in results["preftune"]]
    return {
        "rows": rows,
        "tokens_a_pair": round(sum(map(sum, sizes)) / rows, 1),
        "prompt_share": round(sum(p for p, _, _ in sizes) / sum(map(sum, sizes)), 3),
        "cpu_seconds": {name: round(s, 2) for name, s in best.items()},
        "pairs_per_cpu_second": {name: round(rows / s) for name, s in best.items()},
        "ratio_to_trl": round(best["trl"] / best["preftune"], 2),
        "ratio_to_handbook": round(best["handbook"] / best["preftune"], 2),
    }


def write_shards(folder: Path, rows: int) -> None:
    """A folder laid out as stack-exchange-paired's data/rl, up to ten pairs a question, a file at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    target = folder / "data" / "rl"
    target.mkdir(parents=True)
    rng = random.Random(SEED)
    texts = pa.array([" ".join(rng.choices(WORDS.split(), k=_length(rng, 20))) for _ in range(997)])
    files = -(-rows // FILE_ROWS)

    def sentences(numbers: Any, what: str, step: int) -> Any:
        text = texts.take(pa.array([(n * step) % len(texts) for n in numbers.to_pylist()]))
        return pc.binary_join_element_wise(what, numbers.cast(pa.string()), text, " ")  # type: ignore[attr-defined]

    for file in range(files):
        begin, end = file * FILE_ROWS, min((file + 1) * FILE_ROWS, rows)
        numbers = pa.array(range(begin, end), pa.int64())
        questions = pa.array([n // 5 for n in range(begin, end)], pa.int64())
        metadata = [["https://stackoverflow.com/questions/1", "https://stackoverflow.com"]] * len(numbers)
        table = pa.table(
            {
                "qid": questions,
                "question": sentences(questions, "Question", 3),
                "date": ["2012/03/04"] * len(numbers),
                "metadata": metadata,
                "response_j": sentences(numbers, "Better", 5),
                "response_k": sentences(numbers, "Worse", 7),
            }
        )
        pq.write_table(table, target / f"train-{file:05}-of-{files:05}.parquet", row_group_size=GROUP_ROWS)


def _peak_mib() -> float:
    """Peak memory of this process; Linux's ru_maxrss would count the parent's as well, as it was at the start."""
    if (status := Path("/proc/self/status")).exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(folder: Path) -> dict[str, Any]:
    """Peak memory and seconds of checking the first 100,000 pairs of a stream, in this process."""
    from preftune.data.checks import check_source
    from preftune.data.sources import find_source

    entry = DatasetEntry.model_validate({"id": str(folder), "data_dir": "data/rl", "streaming": True, "max_rows": KEPT})
    started = time.monotonic()
    source = find_source(entry, Workspace(folder, folder / ".preftune"))
    found = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        report = check_source(source, Validation.model_validate({}), Path(out), SEED)["train"]
    return {
        "peak_mib": round(_peak_mib(), 1),
        "seconds": round(time.monotonic() - found, 1),
        "seconds_digest": round(found - started, 1),
        "read": report["read"],
        "kept": report["kept"],
    }


def scale(sizes: list[int]) -> dict[str, Any]:
    """`measure` for each size, each in a process of its own."""
    result: dict[str, Any] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder), size)
            command = [sys.executable, "-m", "benchmarks.data", "--measure", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result[str(size)] = json.loads(done.stdout)
    peaks = [r["peak_mib"] for r in result.values()]
    return {"sizes": result, "ratio_of_peaks": round(peaks[-1] / peaks[0], 3)}


def main() -> None:
    arguments = parser("data", __doc__)
    arguments.add_argument("--rows", type=int, default=10_000, help="rows to convert and tokenize; 0: not this part")
    arguments.add_argument("--model", type=Path, help="model folder (default: .preftune/models/SmolLM2-135M-Instruct)")
    arguments.add_argument("--scale", type=int, nargs="*", default=[1_000_000, 10_000_000], help="rows of the streams")
    arguments.add_argument("--measure", type=Path, help=SUPPRESS)
    given = arguments.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    result: dict[str, Any] = {}
    try:
        if given.rows:
            result["tokens"] = tokens(given.rows, starter_model(given.model))
        if given.scale:
            result["scale"] = scale(given.scale)
    except UserError as e:
        raise SystemExit(str(e)) from None
    finish(result, given.json, text_of)


def text_of(result: dict[str, Any]) -> str:
    """The figures in words."""
    lines = []
    if "tokens" in result:
        found = result["tokens"]
        lines.append(f"{found['rows']} pairs, {found['tokens_a_pair']} tokens each, prompt {found['prompt_share']:.0%}")
        for name, rate in found["pairs_per_cpu_second"].items():
            lines.append(f"  {name:9} {rate:6} pairs per CPU-second ({found['cpu_seconds'][name]} s)")
        lines.append(f"  {found['ratio_to_trl']} × TRL, {found['ratio_to_handbook']} × alignment-handbook (target: 3)")
    if "scale" in result:
        for size, found in result["scale"]["sizes"].items():
            lines.append(
                f"stream of {int(size):,} rows: peak {found['peak_mib']} MiB; {found['seconds']} s for "
                f"{found['kept']:,} pairs of {found['read']:,} read, {found['seconds_digest']} s for the files' digest"
            )
        lines.append(f"  ratio of the peaks: {result['scale']['ratio_of_peaks']} (target: at most 1.3)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
