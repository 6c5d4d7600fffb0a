"""Scoring the held-out pairs, against lm-eval's own HFLM: `python -m benchmarks.scoring [--json]`; see README.md
beside this file.
"""

import os
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import ONE_THREAD, QUIET, finish, interleaved, parser, starter_model, starter_rows

os.environ |= QUIET | ONE_THREAD

ROUNDS = 3
TARGET = 0.75
PAIRS_AT_ONCE = 8  # the recipe's default evaluation.batch_size; HFLM gets as many sequences


def measure(model: Path, count: int) -> dict[str, Any]:
    """Both ways on the same pairs, from text to log-probabilities, the model in memory."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from preftune.data.pairs import to_pair
    from preftune.evaluation import WHITE_SPACE
    from preftune.lm_in_memory import ModelInMemory
    from preftune.lm_tasks.preference_pairs import preference_pairs
    from preftune.scoring import answer_logps
    from preftune.tokens import tokenize_pair

    torch.set_num_threads(1)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
    pairs = [to_pair(row, "starter", str(i)) for i, row in enumerate(starter_rows("test", count))]

    def ours() -> tuple[list[Any], list[Any]]:
        """As the evaluation child does it, uncut; with the tokens that end each answer, which lm-eval leaves out."""
        tokens = [tokenize_pair(tokenizer, p) for p in pairs]
        sides = [(t.prompt, t.chosen) for t in tokens] + [(t.prompt, t.rejected) for t in tokens]
        longest = max(len(p) + len(a) for p, a in sides)
        return sides, answer_logps(loaded, sides, max_length=longest, batch_size=PAIRS_AT_ONCE * 2, lead=WHITE_SPACE)

    task = TaskManager(include_path=None, include_defaults=False).load([preference_pairs(tokenizer, pairs)])
    task = task["tasks"]["preference_pairs"]
    task.build_all_requests()
    requests: list[Instance] = list(task.instances)
    size = PAIRS_AT_ONCE * 2
    hflm: Any = HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=size, add_bos_token=False)  # pyright: ignore

    def theirs() -> list[float]:
        return [nats for nats, _ in hflm.loglikelihood(requests, disable_tqdm=True)]

    seconds, found = interleaved({"preftune": ours, "lm_eval": theirs}, ROUNDS)
    # lm-eval's question about an answer (its text alone, from the white space before it) is looked up in our scores.
    sides, scores = found["preftune"]
    scored = [(p, a, s) for (p, a), s in zip(sides, scores, strict=True)]
    memory: Any = ModelInMemory(  # pyright: ignore
        loaded, tokenizer, batch_size=PAIRS_AT_ONCE, scored=scored, progress=_nothing_is_computed
    )
    same = [nats for nats, _ in memory.loglikelihood(requests, disable_tqdm=True)]
    return {
        "model": model.name,
        "pairs": count,
        "tokens_a_pair": round(statistics.fmean(len(p) + len(a) for p, a in sides) * 2, 1),
        "cpu_seconds": {name: round(s, 2) for name, s in seconds.items()},
        "ratio": round(seconds["preftune"] / seconds["lm_eval"], 3),
        "accuracy": {"preftune": _accuracy(same), "lm_eval": _accuracy(found["lm_eval"])},
        "max_abs_logp_diff": max(abs(a - b) for a, b in zip(same, found["lm_eval"], strict=True)),
    }


def _nothing_is_computed(what: str) -> Any:
    def told(done: int, total: int) -> None:
        raise SystemExit(f"{what}: {total} were not found among those that were scored")

    return told


def _accuracy(logps: list[float]) -> float:
    """How often the chosen answer, the first of two, is the likelier one."""
    return sum(a > b for a, b in zip(logps[::2], logps[1::2], strict=True)) / (len(logps) // 2)


def main() -> None:
    arguments = parser("scoring", __doc__)
    arguments.add_argument("--model", type=Path, help="model folder (default: SmolLM2-135M-Instruct's)")
    arguments.add_argument("--pairs", type=int, default=24, help="held-out pairs of the starter recipe (at most 90)")
    given = arguments.parse_args()
    finish(measure(starter_model(given.model), given.pairs), given.json, text_of)


def text_of(found: dict[str, Any]) -> str:
    """The figures in words."""
    seconds, accuracy = found["cpu_seconds"], found["accuracy"]
    return (
        f"{found['model']}, {found['pairs']} pairs of {found['tokens_a_pair']} tokens, CPU-seconds of one thread\n"
        f"  preftune {seconds['preftune']}, lm-eval {seconds['lm_eval']}: {found['ratio']} (target: at most {TARGET})\n"
        f"  accuracy {accuracy['preftune']:.4f} and {accuracy['lm_eval']:.4f}; "
        f"log-probabilities differ by at most {found['max_abs_logp_diff']:.1e} nats"
    )


if __name__ == "__main__":
    main()
