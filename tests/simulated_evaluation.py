"""Made-up evaluations of two models: rows as the evaluation and the judge write them, with realistic noise."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from preftune.comparison_inputs import Inputs, Task

Rows = list[dict[str, Any]]
TASKS = {"preference_pairs": "acc", "facts": "exact_match", "instructions": "prompt_strict"}
TOPICS = ("cooking", "travel", "code", None)


@dataclass(frozen=True)
class World:
    """What is true of the two models. The defaults: no difference at all.

    Args:
        pairs: Held-out pairs.
        prompts: Held-out prompts that are answered.
        documents: Of each task.
        accuracy: Probability that a pair's reward margin is above 0.
        stops, empties, loops: Probability of an answer that stops, is empty, loops: (SFT's, policy's).
        gibberish: Whether the policy's answers are noise to SFT.
        right: Probability of a right document: (SFT's, policy's).
        longer: Mean length of the policy's answers over SFT's.
        win: The judge's probability for the policy at equal length, of the decided ones.
        by_length: How much the judge's log-odds rise with tanh(Δ/std Δ).
        ties: Share of comparisons that the judge answers differently in the other order.
    """

    pairs: int = 200
    prompts: int = 80
    documents: int = 100
    accuracy: float = 0.5
    stops: tuple[float, float] = (0.8, 0.8)
    empties: tuple[float, float] = (0.01, 0.01)
    loops: tuple[float, float] = (0.08, 0.08)
    gibberish: bool = False
    right: tuple[float, float] = (0.4, 0.4)
    longer: float = 1.0
    win: float = 0.5
    by_length: float = 0.0
    ties: float = 0.3


def pair_rows(world: World, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """pairs.jsonl of both models."""
    sft, policy = [], []
    for i in range(world.pairs):
        tokens = rng.integers(20, 200, 2)
        logps = -tokens * rng.normal(1.2, 0.2, 2)
        common, margin = rng.normal(0, 5), abs(rng.normal(0, 3)) + 1e-6
        margin *= 1 if rng.random() < world.accuracy else -1
        row = {
            "row_id": f"made:{i}",
            "group_id": f"g{i}",
            "source": "made-a" if i % 3 else "made-b",
            "topic": TOPICS[i % len(TOPICS)],
            "chosen_tokens": int(tokens[0]),
            "rejected_tokens": int(tokens[1]),
        }
        sft.append(row | {"chosen_logp": float(logps[0]), "rejected_logp": float(logps[1])})
        moved = logps + common + np.array([margin / 2, -margin / 2])
        policy.append(row | {"chosen_logp": float(moved[0]), "rejected_logp": float(moved[1])})
    return sft, policy


WORDS = "the garden needs water and light every day of a week so plan ahead and look after it before you leave it be "


def _text(rng: np.random.Generator, characters: int) -> str:
    """Words in no order, as long as is asked for."""
    start = int(rng.integers(0, len(WORDS)))
    words = WORDS[start:] + WORDS * (characters // len(WORDS) + 1)
    return words[: max(1, characters - 1)].strip() + "."


def answer_rows(world: World, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """answers.jsonl of both models: their noise is independent, as that of two different models is."""
    both: tuple[Rows, Rows] = ([], [])
    for i in range(world.prompts):
        expected = 400 * math.exp(rng.normal(0, 0.4))
        for who in (0, 1):
            length = expected * math.exp(rng.normal(0, 0.35)) * (world.longer if who else 1)
            text = "" if rng.random() < world.empties[who] else _text(rng, round(length))
            tokens = max(1, len(text) // 4)
            nll = max(0.05, rng.normal(0.65, 0.2)) if not (who and world.gibberish) else rng.normal(7.6, 0.5)
            kl = 0.0 if who == 0 else rng.normal(0.05, 0.03)
            loops = rng.random() < world.loops[who]
            both[who].append(
                {
                    "row_id": f"made:{i}",
                    "group_id": f"g{i}",
                    "source": "made-a" if i % 3 else "made-b",
                    "topic": TOPICS[i % len(TOPICS)],
                    "prompt": [{"role": "user", "content": f"What does garden {i} need?"}],
                    "text": text,
                    "chosen": "Water and light.",
                    "tokens": 0 if not text else tokens,
                    "stopped": bool(rng.random() < world.stops[who]),
                    "seq_rep_4": float(rng.uniform(0.3, 0.9) if loops else rng.beta(1, 40)),
                    "logp": float((kl - nll) * tokens),
                    "sft_logp": float(-nll * tokens),
                    "logp_tokens": tokens,
                }
            )
    return both


def task_rows(world: World, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """lm_eval.jsonl of both models: documents differ in difficulty, which pairs them."""
    both: tuple[Rows, Rows] = ([], [])
    for task, metric in TASKS.items():
        for i in range(world.documents):
            hard = rng.random()
            for who in (0, 1):
                # A document that is hard for one is hard for the other: a common part and one of its own.
                right = (hard if rng.random() < 0.6 else rng.random()) < world.right[who]
                both[who].append(
                    {
                        "task": task,
                        "doc_id": i,
                        "id": f"{task}-{i}",
                        "digest": f"{i:016x}",
                        "cluster": None,
                        "metrics": {metric: float(right)},
                    }
                )
    return both


def task_totals(rows: Rows) -> dict[str, Any]:
    """lm_eval.json of one model."""
    found = {}
    for task, metric in TASKS.items():
        values = [r["metrics"][metric] for r in rows if r["task"] == task]
        if values:
            found[task] = {
                "metrics": {metric: sum(values) / len(values)},
                "main": metric,
                "higher_is_better": {metric: True},
                "binary": {metric: True},
                "n": len(values),
            }
    return found


def judgement(
    suite: str, id_: str, turn: int, pair: tuple[str, str], winners: tuple[str | None, ...]
) -> dict[str, Any]:
    """One line of judgements.jsonl, from the winner in each order ("tie", or None: no verdict)."""
    first, second = winners
    if first is None or second is None:
        outcome = None
    elif first == second and first != "tie":
        outcome = float(first == pair[1])
    else:
        outcome = 0.5
    orders = [
        {"winner": w, "error": None if w else "the endpoint timed out", "text": f"[[{w}]]" if w else ""}
        for w in winners
    ]
    flipped = None not in winners and first != second
    return {
        "suite": suite,
        "id": id_,
        "turn": turn,
        "pair": list(pair),
        "orders": orders,
        "outcome": outcome,
        "flipped": flipped,
    }


def judged_rows(world: World, answers: tuple[Rows, Rows], rng: np.random.Generator) -> Rows:
    """judgements.jsonl on the held-out prompts: a judge that likes length as much as the world says."""
    delta = np.array([len(p["text"]) - len(s["text"]) for s, p in zip(*answers, strict=True)], dtype=float)
    pull = world.by_length * np.tanh(delta / delta.std(ddof=1)) if delta.std() else np.zeros(len(delta))
    odds = math.log(world.win / (1 - world.win))
    rows = []
    for row, p in zip(answers[0], 1 / (1 + np.exp(-(odds + pull))), strict=True):
        won = "policy" if rng.random() < p else "sft"
        # With a bias for a place, the other order gives the other answer.
        other = {"policy": "sft", "sft": "policy"}[won] if rng.random() < world.ties else won
        rows.append(judgement("held_out", row["row_id"], 1, ("sft", "policy"), (won, other)))
    return rows


def simulated(world: World, rng: np.random.Generator, judged: bool = False) -> Inputs:
    """All rows of one comparison, joined as `read_inputs` joins them.

    Args:
        world: What is true.
        rng: The noise.
        judged: With a judge of the held-out prompts.
    """
    pairs, answers, documents = pair_rows(world, rng), answer_rows(world, rng), task_rows(world, rng)
    both = list(zip(*documents, strict=True))
    tasks = {
        name: Task(name, m, {m: True}, {m: True}, ({m: 0.0}, {m: 0.0}), [r for r in both if r[0]["task"] == name])
        for name, m in TASKS.items()
    }
    return Inputs(
        list(zip(*pairs, strict=True)),
        list(zip(*answers, strict=True)),
        tasks,
        {},
        {"kind": "openai", "model": "made up"} if judged else None,
        judged_rows(world, answers, rng) if judged else [],
    )
