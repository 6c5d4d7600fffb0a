"""What several benchmarks share: rows of the starter recipe, models, CPU-seconds, processes of their own, output."""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes/starter/config_starter.yaml"
MODEL = Path(".preftune/models/SmolLM2-135M-Instruct")
QUIET = {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "true"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PREFTUNE_THREADS": "1"}


def starter_rows(name: str, count: int | None = None) -> list[dict[str, Any]]:
    """Rows of the starter recipe.

    Args:
        name: `train` or `test`.
        count: The first so many; None: all.
    """
    lines = (ROOT / f"recipes/starter/pairs/{name}.jsonl").read_text().splitlines()
    if len(lines) < (count or 0):
        raise SystemExit(f"the starter recipe has {len(lines)} {name} pairs only")
    return [json.loads(line) for line in lines[:count]]


def tiny_model(folder: Path) -> Path:
    """The tests' model: 60 thousand random parameters, for counts; not for seconds."""
    code = f"import conftest, pathlib; conftest.build_tiny_model(pathlib.Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", check=True, capture_output=True)
    return folder


def tiny_project(folder: Path) -> Path:
    """A project on the tests' model (24 pairs, LoRA off, 6 steps); returns the recipe's path."""
    model = tiny_model(folder / "models" / "tiny-instruct")
    code = (
        "import conftest, pathlib\n"
        f"make = conftest.make_project.__wrapped__(pathlib.Path({str(model)!r}))\n"
        f"print(make(pathlib.Path({str(folder)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(done.stdout.strip())


def starter_model(wanted: Path | None) -> Path:
    """The folder of SmolLM2-135M-Instruct, or another one that was named.

    Raises:
        SystemExit: If there is no such model.
    """
    folder = (wanted or MODEL).resolve()
    for name in ("tokenizer.json", "chat_template.jinja"):
        if not (folder / name).exists():
            fetch = f"run `python -m preftune.embedded {MODEL}`, or name a folder with --model"
            raise SystemExit(f"no {name} in {folder}: {fetch}")
    return folder


def cpu_seconds(*who: int) -> float:
    """CPU-seconds, user and system, of all threads; other work on the machine counts for little in them.

    Args:
        who: `resource.RUSAGE_SELF` (where nothing is named), `RUSAGE_CHILDREN` (those that have ended).
    """
    used = [resource.getrusage(w) for w in who or (resource.RUSAGE_SELF,)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def interleaved(ways: Mapping[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Does the same work in several ways, in turns.

    Returns:
        Each way's least CPU-seconds in this process and in the processes that it started and ended; each way's last
        result.
    """
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    least: dict[str, float] = {}
    results: dict[str, Any] = {}
    for number in range(rounds):
        for name, way in ways.items():
            before = cpu_seconds(*both)
            results[name] = way()
            used = cpu_seconds(*both) - before
            least[name] = min(least.get(name, used), used)
            print(f"  round {number + 1} of {rounds}: {name} {used:.2f} CPU-seconds", file=sys.stderr)
    return least, results


def fresh_process(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m ARGUMENTS` to its end, one thread and offline, with nothing of this machine's Prefect, MLflow or
    preftune settings.

    Raises:
        SystemExit: If it fails, with the end of what it wrote to stderr.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW", "PREFTUNE"))}
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    env = {**kept, **QUIET, **ONE_THREAD, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path, **environment}
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"python -m {' '.join(arguments)} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return done


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def finish(found: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], str]) -> None:
    """Prints the figures, as JSON or in words."""
    print(json.dumps(found, indent=1) if as_json else text(found))


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """With `--json`, which all benchmarks have."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    made.add_argument("--json", action="store_true", help="print the figures as JSON")
    return made
