"""The whole starter run, with the fast path and without: `python -m benchmarks.starter [--json]`; see README.md
beside this file.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cached_run import counted_run
from benchmarks.common import ROOT, finish, parser, starter_model, tiny_project

TARGET = 0.5
# Parts of a child's timing.json that are no start-up. A training that tells no parts counts as a whole from the end of
# its first imports on.
WORK = ("pairs", "answers", "suites", "tasks", "answer_logps", "reference", "steps")
WAYS = {"fast": "auto", "off": "off"}


def starter_project(folder: Path, model: Path | None) -> Path:
    """The starter recipe on an empty workspace; returns its path."""
    shutil.copytree(ROOT / "recipes" / "starter", folder / "recipes" / "starter")
    if model:
        shutil.copytree(model, folder / ".preftune" / "models" / "SmolLM2-135M-Instruct")
    return folder / "recipes" / "starter" / "config_starter.yaml"


def run(make: Callable[[Path], Path], fast_path: str) -> dict[str, Any]:
    """One run on an empty workspace: CPU-seconds of all but Prefect's server, and where they went.

    Args:
        make: Fills a project's folder, returns the recipe.
        fast_path: `auto` or `off`.
    """
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)
        recipe = make(project)
        counted = counted_run(project, recipe, f"--fast_path={fast_path}")
        for child in counted["each"]:
            child |= {"work": _work(project, child["folder"])}
    seconds = sum(child["seconds"] for child in counted["each"])
    return {
        "cpu_seconds": counted["flow"] + counted["children"],
        "flow": counted["flow"],
        "server": counted["server"],
        "start_up_share": 1 - sum(child["work"] for child in counted["each"]) / seconds,
        "children": counted["each"],
        "outcome": counted["result"]["verdict"]["outcome"],
    }


def _work(project: Path, key: str) -> float:
    """Seconds that a child spent on what it was started for, by its timing.json; all else is imports, loads, and the
    conversion of the embedded model."""
    files = list((project / ".preftune" / "store").glob(f"*/{key}/timing.json"))
    if not files:
        return 0.0
    timing = json.loads(files[0].read_text())
    return sum(timing.get(part, 0.0) for part in WORK) or timing["seconds"]


def measure(make: Callable[[Path], Path], rounds: int) -> dict[str, Any]:
    """Both ways in turns; of each the run with the least CPU-seconds."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, value in WAYS.items():
            runs[name].append(run(make, value))
    least = {name: min(found, key=lambda r: r["cpu_seconds"]) for name, found in runs.items()}
    return {
        "rounds": rounds,
        "ratio": round(least["fast"]["cpu_seconds"] / least["off"]["cpu_seconds"], 3),
        "start_up_share": round(least["fast"]["start_up_share"], 3),
        **least,
    }


def main() -> None:
    arguments = parser("starter", __doc__)
    arguments.add_argument("--model", type=Path, help="put this embedded model in its place, do not fetch and convert")
    arguments.add_argument("--tiny", action="store_true", help="the tests' tiny project, to see that it runs")
    arguments.add_argument("--rounds", type=int, default=3, help="of each way")
    given = arguments.parse_args()
    make = tiny_project if given.tiny else partial(starter_project, model=given.model and starter_model(given.model))
    finish(measure(make, given.rounds), given.json, text_of)


def text_of(found: dict[str, Any]) -> str:
    """The figures in words."""
    lines = [f"a run on an empty workspace: {found['ratio']} (target: at most {TARGET}), CPU-seconds:"]
    for name in WAYS:
        row = found[name]
        steps = ", ".join(f"{child['what']} {child['cpu_seconds']:.0f}" for child in row["children"])
        lines.append(
            f"  {name}: {row['cpu_seconds']:.0f} (flow {row['flow']:.0f}, {steps}; server {row['server']:.0f})"
        )
    lines.append(f"  imports, loads and conversions: {found['start_up_share']:.0%} of the steps' time (target: 15 %)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
