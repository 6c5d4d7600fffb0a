"""A run of which everything is cached: `python -m benchmarks.cached_run [--json]`; see README.md beside this file."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import finish, fresh_process, parser, tiny_project

ROUNDS = 3
TARGET = 5.0  # CPU-seconds
# Each takes a tenth of a second at least to import, and a run that has nothing to do needs none.
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "mlflow", "lm_eval", "pandas", "scipy"}
HEAVY |= {"pyarrow", "numpy", "matplotlib", "tokenizers", "huggingface_hub", "openai", "safetensors"}
SHOWN = 10


def counted_run(project: Path, recipe: Path, *options: str, command: str = "run", **environment: str) -> dict[str, Any]:
    """A preftune command in a fresh process: what `benchmarks.counted` writes, and `result`, `stderr`."""
    file = project / "counted.json"
    counted = ("benchmarks.counted", str(file), command, str(recipe), "--json", *options)
    done = fresh_process(*counted, cwd=project, **environment)
    return {**json.loads(file.read_text()), "result": json.loads(done.stdout), "stderr": done.stderr}


def import_seconds(told: str) -> dict[str, float]:
    """Seconds by top-level name, the greatest first, of what `python -X importtime` wrote: a module's own, without
    what it imports itself."""
    microseconds: Counter[str] = Counter()
    for line in told.splitlines():
        if line.startswith("import time:") and (own := line.split(":")[1].split("|")[0].strip()).isdigit():
            microseconds[line.rpartition("|")[2].strip().split(".")[0]] += int(own)
    return {name: n / 1e6 for name, n in microseconds.most_common()}


def measure() -> dict[str, Any]:
    """Fills a workspace with the tests' tiny model, then runs the same again, each time in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        recipe = tiny_project(project)
        counted_run(project, recipe)
        runs = [counted_run(project, recipe) for _ in range(ROUNDS)]
        timed = counted_run(project, recipe, PYTHONPROFILEIMPORTTIME="1")
    steps = [how for run in runs for how in run["result"]["steps"].values()]
    if set(steps) != {"cached"}:
        raise SystemExit("not everything came from the cache")
    imports = import_seconds(timed["stderr"])
    modules = {name for run in runs for name in run["modules"]}
    return {
        "steps": len(steps) // ROUNDS,
        "cpu_seconds": round(min(run["flow"] for run in runs), 2),
        "server_cpu_seconds": round(min(run["server"] for run in runs), 2),
        "children_cpu_seconds": round(min(run["children"] for run in runs), 2),
        "modules": len(modules),
        "heavy": sorted({name.split(".")[0] for name in modules} & HEAVY),
        "import_seconds": round(sum(imports.values()), 2),
        "longest_imports": {name: round(s, 2) for name, s in list(imports.items())[:SHOWN]},
    }


def main() -> None:
    given = parser("cached_run", __doc__).parse_args()
    finish(measure(), given.json, text_of)


def text_of(found: dict[str, Any]) -> str:
    """The figures in words."""
    longest = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found["longest_imports"].items())
    return (
        f"all of {found['steps']} steps cached: {found['cpu_seconds']} CPU-seconds in the flow's process "
        f"(target: at most {TARGET}), {found['server_cpu_seconds']} in the server\n"
        f"  {found['modules']} modules, of the heavy ones: {', '.join(found['heavy']) or 'none'}\n"
        f"  imports (while they are timed, seconds): {found['import_seconds']}; {longest}"
    )


if __name__ == "__main__":
    main()
