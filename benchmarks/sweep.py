"""A sweep of four betas against four runs: `python -m benchmarks.sweep [--json]`; see README.md beside this file."""

import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cached_run import counted_run
from benchmarks.common import finish, parser, starter_model, tiny_project
from benchmarks.starter import starter_project

TARGET = 0.75
BETAS = (0.05, 0.1, 0.2, 0.5)


def run(make: Callable[[Path], Path], command: str, option: str) -> dict[str, Any]:
    """One command on an empty workspace: CPU-seconds of all but Prefect's server, and where they went.

    Args:
        make: Fills a project's folder, returns the recipe.
        command: `run` or `sweep`.
        option: The betas.
    """
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)
        counted = counted_run(project, make(project), option, command=command)
    steps: Counter[str] = Counter()
    for child in counted["each"]:
        steps[child["what"]] += child["cpu_seconds"]
    return {
        "cpu_seconds": counted["flow"] + counted["children"],
        "flow": counted["flow"],
        "server": counted["server"],
        "children": dict(Counter(child["what"] for child in counted["each"])),
        "seconds_of_children": {what: round(seconds, 1) for what, seconds in steps.items()},
    }


def measure(make: Callable[[Path], Path]) -> dict[str, Any]:
    """The sweep, and each beta alone."""
    sweep = run(make, "sweep", f"--sweep.parameters.beta={list(BETAS)}")
    singles = [run(make, "run", f"--beta={beta}") for beta in BETAS]
    alone = sum(single["cpu_seconds"] for single in singles)
    return {"ratio": round(sweep["cpu_seconds"] / alone, 3), "alone": alone, "sweep": sweep, "singles": singles}


def main() -> None:
    arguments = parser("sweep", __doc__)
    arguments.add_argument("--model", type=Path, help="put this embedded model in its place, do not fetch and convert")
    arguments.add_argument("--tiny", action="store_true", help="the tests' tiny project, to see that it runs")
    given = arguments.parse_args()
    make = tiny_project if given.tiny else partial(starter_project, model=given.model and starter_model(given.model))
    finish(measure(make), given.json, text_of)


def text_of(found: dict[str, Any]) -> str:
    """The figures in words."""

    def line(row: dict[str, Any]) -> str:
        steps = row["seconds_of_children"].items()
        each = ", ".join(f"{row['children'][what]} x {what} {seconds:.0f}" for what, seconds in steps)
        return f"{row['cpu_seconds']:.0f} (flow {row['flow']:.0f}, {each}; server {row['server']:.0f})"

    lines = [f"a sweep of {len(BETAS)} betas against as many single runs: {found['ratio']} (target: at most {TARGET})"]
    lines.append(f"  CPU-seconds of the sweep: {line(found['sweep'])}")
    lines += [f"  beta {beta} alone: {line(row)}" for beta, row in zip(BETAS, found["singles"], strict=True)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
