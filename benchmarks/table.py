"""Runs the benchmarks and rewrites README.md's table: `python -m benchmarks.table [NAME …]` (`make bench`: all)."""

import argparse
import datetime
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import MODEL, fresh_process, markdown_table, starter_model

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEAD = ("benchmark", "target", "measured")


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Args:
        benchmark: Module of this folder.
        what: What is measured; with the module's name, the line's own name.
        target: In words.
        path: Where the figure stands in what `--json` prints: keys, joined by dots.
    """

    benchmark: str
    what: str
    target: str
    path: str

    @property
    def name(self) -> str:
        return f"`{self.benchmark}`: {self.what}"

    def read(self, found: dict[str, Any]) -> str:
        """The figure as it stands in the table."""
        value: Any = found
        for key in self.path.split("."):
            value = value[key]
        return f"{value:.3g}"


FIGURES = (
    Figure("step", "training step against TRL's, cached reference", "≤ 0.25", "cached_ratio"),
    Figure("step", "the same, cold reference cache", "≤ 0.40", "cold_ratio"),
    Figure("step", "the same, against TRL with its own precompute", "≤ 0.35", "precompute_ratio"),
    Figure("padding", "padded slots against random batches, `max_length` 256", "≤ 0.43", "ratio_256"),
    Figure("padding", "the same, `max_length` 1024", "≤ 0.37", "ratio_1024"),
    Figure("tokenization", "tokenization and conversion against TRL's, cold", "≤ 0.45", "cold_ratio"),
    Figure("tokenization", "the same, warm", "≤ 0.05", "warm_ratio"),
    Figure("scoring", "scoring the held-out pairs, against lm-eval", "≤ 0.75", "ratio"),
    Figure("orchestration", "flow around no-op steps, ms of CPU a task", "≤ 25", "ms_per_task"),
    Figure("cached_run", "all-cached run, the flow's process, CPU-seconds", "≤ 5", "cpu_seconds"),
    Figure("starter", "starter run on an empty workspace, against `fast_path: off`", "≤ 0.5", "ratio"),
    Figure("starter", "imports, loads and conversions, share of the starter run", "≤ 0.15", "start_up_share"),
    Figure("sweep", "sweep of four betas, against four single runs", "≤ 0.75", "ratio"),
    Figure("memory", "peak memory of a training step, 49k vocabulary, 1024 tokens", "≤ 0.6", "ratio"),
    Figure("evaluation", "standard evaluation, against plain TRL's training", "≤ 0.5", "standard_ratio"),
    Figure("data", "pairs per CPU-second to token ids, times TRL's", "≥ 3", "tokens.ratio_to_trl"),
    Figure("data", "a stream's peak memory, 10 million rows against 1 million", "≤ 1.3", "scale.ratio_of_peaks"),
    Figure("reference_cache", "references after a change, TRL's CPU-seconds to ours", "reported", "ratio"),
)
# Those that take the model's folder; the others choose for themselves.
WITH_MODEL = ("step", "tokenization", "scoring", "memory", "evaluation", "data", "sweep")


def run(name: str, model: Path) -> dict[str, Any]:
    """A benchmark's figures.

    Raises:
        SystemExit: If it fails.
    """
    options = [f"--model={model}"] if name in WITH_MODEL else []
    told = fresh_process(f"benchmarks.{name}", "--json", *options).stdout
    return json.loads(told[told.index("{") :])


def parts(readme: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands after it, with the markers outside."""
    before, table = readme.split(BEGIN)
    table, after = table.split(END)
    return before + BEGIN, table, END + after


def measured(table: str) -> dict[str, str]:
    """What a table's lines hold by their names."""
    lines = [line.strip().strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]
    return {name.strip(): value.strip() for name, _, value in lines}


def rewritten(readme: str, new: dict[str, str]) -> str:
    """The README with these figures in its table; the other lines keep theirs."""
    before, table, after = parts(readme)
    known = measured(table) | new
    rows = [(f.name, f.target, known.get(f.name, "not measured yet")) for f in FIGURES]
    return f"{before}\n{markdown_table(HEAD, rows)}\n{after}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    names = list(dict.fromkeys(f.benchmark for f in FIGURES))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run (default: all): {', '.join(names)}")
    parser.add_argument("--model", type=Path, help=f"folder of SmolLM2-135M-Instruct (default: {MODEL})")
    given = parser.parse_args()
    if unknown := set(given.names) - set(names):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    model, failed = starter_model(given.model), []
    for name in given.names or names:
        print(f"{name} …", file=sys.stderr)
        try:
            found = run(name, model)
            today = datetime.date.today().isoformat()
            new = {f.name: f"{f.read(found)} ({today})" for f in FIGURES if f.benchmark == name}
        except (SystemExit, KeyError, ValueError) as e:
            print(f"{name}: {e!r}" if isinstance(e, KeyError) else f"{name}: {e}", file=sys.stderr)
            failed.append(name)
            continue
        for figure, value in new.items():
            print(f"  {figure}: {value}", file=sys.stderr)
        README.write_text(rewritten(README.read_text(), new))  # at once: a long list may be stopped
    if failed:
        sys.exit(f"without figures: {', '.join(failed)}; their lines are as they were")


if __name__ == "__main__":
    main()
