"""The peak memory of a training step beside TRL's: `python -m benchmarks.memory [--json]`; see README.md."""

import json
import random
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import finish, fresh_process, parser, starter_model
from benchmarks.step import MICRO, trainer_of

LENGTH = 1024


def peak(kind: str, model: Path, pairs: int) -> dict[str, float]:
    """Runs one optimizer step on pairs of 1024 tokens (both sequences; half of them the shared prompt).

    Args:
        kind: As `step.trainer_of`'s.
        model: Folder of the starting model.
        pairs: In the one micro-batch.

    Returns:
        GiB resident before the step, and at its most.
    """
    import torch

    torch.set_num_threads(1)
    generator = random.Random(1)

    def ids(count: int) -> list[int]:
        return [generator.randrange(1000, 40_000) for _ in range(count)]

    half = LENGTH // 2
    rows = [{"prompt_ids": ids(half), "chosen_ids": ids(half), "rejected_ids": ids(half)} for _ in range(pairs)]
    with tempfile.TemporaryDirectory() as name:
        trainer = trainer_of(kind, model, rows, Path(name), LENGTH, lora=True)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        trainer.train()
    gib = 2**30
    return {
        "before": pages * resource.getpagesize() / gib,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / gib,
    }


def measure(model: Path) -> dict[str, Any]:
    """Each way in a process of its own."""
    found: dict[str, Any] = {"length": LENGTH, "micro_batch": MICRO}
    for kind in ("trl", "preftune"):
        told = fresh_process("benchmarks.memory", f"--part={kind}", f"--model={model}").stdout
        found[kind] = json.loads(told[told.index('{"before"') :].splitlines()[0])
        print(kind, found[kind], file=sys.stderr)
    found["ratio"] = found["preftune"]["peak"] / found["trl"]["peak"]
    return found


def main() -> None:
    arguments = parser("memory", __doc__)
    arguments.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct")
    arguments.add_argument("--part", choices=("trl", "preftune"), help="one way only, in this process")
    given = arguments.parse_args()
    if given.part:
        print(json.dumps(peak(given.part, starter_model(given.model), MICRO)))
    else:
        finish(measure(starter_model(given.model)), given.json, text_of)


def text_of(found: dict[str, Any]) -> str:
    """The figures in words."""
    return f"{found['ratio']:.2f} of TRL's peak: {found['preftune']['peak']:.1f} against {found['trl']['peak']:.1f} GiB"


if __name__ == "__main__":
    main()
