"""Evidence for report and comparison, as the steps before them write it; every text from outside can carry `evil`."""

import math
import random
from typing import Any

from preftune.data.pairs import Pair
from preftune.report_input import ReportInput
from preftune.run_comparison import RunEvidence

Row = dict[str, Any]
TOPICS = ("delivery", "returns", None)
NOTES = [
    {"severity": "warning", "name": "margin-flat", "text": "the margin did not grow", "advice": "read some pairs"},
    {"severity": "note", "name": "clipping", "text": "75% of the gradients were cut", "advice": ""},
]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def held_out_pairs(n: int, evil: str = "") -> list[Pair]:
    return [
        Pair(
            prompt=[
                {"role": "system", "content": "You help customers of a small shop." + evil},
                *user(f"Where is my order number {i}?" + evil),
            ],
            chosen=[{"role": "assistant", "content": f"I looked it up: {i} arrives tomorrow before noon." + evil}],
            rejected=[{"role": "assistant", "content": f"I looked it up: {i} may arrive some day, who knows." + evil}],
            source=f"shop-chats{evil}" if i % 3 else "ultrafeedback",
            row_id=f"test.jsonl:{i}",
            group_id=f"g{i}",
        )
        for i in range(n)
    ]


def pair_rows(pairs: list[Pair], gain: float, evil: str = "") -> list[Row]:
    """pairs.jsonl of a model that moved towards the chosen answers by about `gain` nats."""
    rng = random.Random(0)
    rows = []
    for i, pair in enumerate(pairs):
        base, shift = -60 - 20 * rng.random(), rng.gauss(gain, 4)
        topic = TOPICS[i % 3]
        rows.append(
            {
                **{"row_id": pair.row_id, "group_id": pair.group_id, "source": pair.source},
                "topic": topic and topic + evil,
                "chosen_logp": base + (shift - gain if gain else 0.0),
                "rejected_logp": base - rng.gauss(0, 4) - (shift + gain if gain else 0.0),
                **{"chosen_tokens": 30, "rejected_tokens": 28},
            }
        )
    return rows


def answer_rows(pairs: list[Pair], gain: float, evil: str = "") -> list[Row]:
    """answers.jsonl: the fifth does not stop, the eighth is empty."""
    rows = []
    for i, pair in enumerate(pairs):
        tokens = 40 + 7 * (i % 30) + int(gain)
        when = "tomorrow" if gain else "soon"
        rows.append(
            {
                **{"row_id": pair.row_id, "group_id": pair.group_id, "source": pair.source, "topic": None},
                "prompt": pair.prompt,
                "text": "" if i == 7 else f"Your order {i} left our house this morning.\nIt comes {when}." + evil,
                "chosen": pair.chosen[-1]["content"],
                **{"tokens": tokens, "stopped": i != 4, "seq_rep_4": 0.01 * (i % 30)},
                **{"logp": -1.4 * tokens, "sft_logp": -(1.4 + gain / 100) * tokens, "logp_tokens": tokens + 1},
            }
        )
    return rows


def suite_rows(gain: float, evil: str = "") -> list[Row]:
    """suite_answers.jsonl: three prompts of the recipe, two of AlpacaEval, two of MT-Bench."""
    new = " and gladly" if gain else ""

    def turn(prompt: list[dict[str, str]], text: str) -> Row:
        return {"prompt": prompt, "text": text + evil, "tokens": 20, "stopped": True}

    rows: list[Row] = [
        {
            **{"suite": "prompts", "id": str(i), "category": None, "reference": None, "generator": None},
            "turns": [turn(user(f"Name {i} rivers.{evil}"), f"The Rhine{new}, number {i}.")],
        }
        for i in range(3)
    ]
    rows += [
        {
            **{"suite": "alpaca_eval", "id": f"a{i}", "category": f"helpful_base{evil}"},
            **{"reference": [f"Use {i} eggs.{evil}"], "generator": f"a-reference-model{evil}"},
            "turns": [turn(user(f"A cake, please: {i}{evil}"), f"Take {i} eggs{new}.")],
        }
        for i in range(2)
    ]
    for i in range(2):
        first = user(f"Write a poem {i}.{evil}")
        text = f"Roses are red{new}, {i}."
        second = [*first, {"role": "assistant", "content": text + evil}, *user(f"Now shorter.{evil}")]
        rows.append(
            {
                **{"suite": "mt_bench", "id": str(81 + i), "category": "writing" + evil, "generator": None},
                "reference": [f"An ode.{evil}", f"Ode.{evil}"] if i else None,
                "turns": [turn(first, text), turn(second, f"Red{new}.")],
            }
        )
    return rows


def judgement(suite: str, id: str, outcome: float | None, flipped: bool = False, turn: int = 1, **more: Any) -> Row:
    pair = more.get("pair", ["sft", "policy"])
    winner = {1.0: pair[1], 0.0: pair[0], 0.5: "tie", None: None}[outcome]
    words = more.get("words", "") + ("The second answer is clearer." if winner else "")
    order = {"winner": winner, "error": None if winner else "time-out", "text": words or None}
    other = {**order, "winner": pair[0], "text": f"On second thought.{words}"} if flipped else order
    return {
        **{"suite": suite, "id": id, "turn": turn, "pair": pair},
        **{"orders": [order, other], "outcome": outcome, "flipped": flipped},
    }


def judgements(answers: list[Row], evil: str = "") -> list[Row]:
    """Of nine prompts five are won, two lost, one flipped, one without a verdict; the same again from there."""
    outcomes = (1.0, 1.0, 0.0, 1.0, 0.5, 1.0, None, 0.0, 1.0)
    rows = [
        judgement("held_out", row["row_id"], outcome, flipped=outcome == 0.5, words=evil)
        for row, outcome in zip(answers, outcomes * (len(answers) // 9 + 1), strict=False)
    ]
    rows += [judgement("prompts", str(i), 1.0, words=evil) for i in range(3)]
    for who in ("sft", "policy"):
        rows += [judgement("alpaca_eval", f"a{i}", 0.0, pair=["reference", who], words=evil) for i in range(2)]
    rows += [judgement("mt_bench", str(81 + i), 1.0, turn=t, words=evil) for i in range(2) for t in (1, 2)]
    return rows


def grades(evil: str = "") -> list[Row]:
    return [
        {
            **{"id": str(81 + i), "category": "writing" + evil, "who": who, "turn": turn},
            **{"score": 6 + i if who == "sft" else 8, "error": None, "text": f"A fair answer.{evil}"},
        }
        for i in range(2)
        for who in ("sft", "policy")
        for turn in (1, 2)
    ]


def metrics(gain: float, judged: bool) -> dict[str, float]:
    """Flat, with intervals."""
    values = {
        **({"win_rate": 0.61 if gain else 0.5, "lc_win_rate": 0.58 if gain else 0.5} if judged else {}),
        **({"mt_bench/score": 8.0 if gain else 6.5} if judged else {}),
        **({"alpaca_eval/win_rate": 0.1, "alpaca_eval/lc_win_rate": 0.12} if judged else {}),
        "reward_accuracy": 0.825 if gain else 0.5,
        "reward_margin": 0.61 if gain else 0.0,
        "ranking_accuracy": 0.65 if gain else 0.55,
        "ranking_accuracy_per_token": 0.6 if gain else 0.5,
        "chosen_logp_per_token": -2.31 if gain else -2.3,
        "rejected_logp_per_token": -2.7 if gain else -2.5,
        "response_tokens": 72.0 if gain else 68.0,
        "stop_rate": 8 / 9,
        "empty_rate": 1 / 9,
        "seq_rep_4": 0.08,
        "nll_under_sft": 1.44 if gain else 1.4,
        "kl_per_token": 0.04 if gain else 0.0,
        "lm_eval/facts/exact_match": 0.4,
        "lm_eval/preference_pairs/acc": 0.6,
    }
    spread = {
        name: 0.05 if gain or name not in ("reward_accuracy", "win_rate", "lc_win_rate") else 0 for name in values
    }
    ends = {f"{n}_lo": v - spread[n] for n, v in values.items()} | {f"{n}_hi": v + spread[n] for n, v in values.items()}
    return values | ends


def win_rate(n: int, wins: int, ties: int) -> Row:
    value = (wins + ties / 2) / n
    return {
        **{"n": n, "wins": wins, "ties": ties, "losses": n - wins - ties, "identified": True},
        **{"raw": [value, value - 0.06, value + 0.06], "controlled": [value - 0.03, value - 0.1, value + 0.04]},
        **{"why": None, "length_ratio": [1.06, 1.02, 1.11], "longer_share": 0.6, "longer_wins": 0.7},
        **{"missing": 0, "flip_rate": 0.12, "fitted": None, "balanced": None},
    }


def judged_part(evil: str) -> Row:
    """What a verdict holds only with a judge."""
    return {
        "primary": {"name": "lc_win_rate", "value": 0.58, "low": 0.52, "high": 0.64, "bar": 0.5, "n": 200},
        "judge": {
            **{"kind": "openai", "model": f"judge-large{evil}", "comparisons": 213, "flip_rate": 0.12},
            **{"error_rate": 0.0094, "position_bias": 0.56, "usable": True, "why": None, "requests": 380},
            **{"cached": 46, "prompt_tokens": 210_345, "completion_tokens": 40_211, "cost": 1.2345},
            **{"errors": {f"time-out{evil}": 2}, "stopped": f"max_requests reached{evil}"},
        },
        "win_rates": {
            "held_out": win_rate(200, 110, 24),
            "prompts": {**win_rate(3, 3, 0), "controlled": [None, 0.0, 1.0], "identified": False, "why": "too few"},
            "alpaca_eval": {
                **{"sft": win_rate(2, 0, 0), "policy": win_rate(2, 1, 0), "difference": [0.1, -0.1, 0.3]},
            },
            "mt_bench": win_rate(4, 4, 0),
        },
        "mt_bench": {
            "sft": {"score": [6.5, 6.1, 6.9], "turn_1": [6.5, 6.0, 7.0], "turn_2": [6.5, 6.0, 7.0]},
            "policy": {"score": [8.0, 7.5, 8.4], "turn_1": [8.0, 7.2, 8.8], "turn_2": [8.0, 7.2, 8.8]},
            **{"difference": [1.5, 0.7, 2.3], "n": 2, "missing": 0},
            "by_category": {
                f"writing{evil}": {
                    **{"n": 2, "difference": [1.5, 0.7, 2.3]},
                    **{"sft": [6.5, 6.1, 6.9], "policy": [8.0, 7.5, 8.4]},
                }
            },
        },
    }


def group(name: str, n: int, value: float) -> Row:
    accuracy = [value, value - 0.1, min(value + 0.1, 1.0)]
    return {"name": name, "n": n, "reward_accuracy": accuracy, "ranking_accuracy": {"sft": 0.5, "policy": 0.6}}


def make_verdict(evil: str = "", judged: bool = True) -> Row:
    """verdict.json, schema 2."""
    names = ["ranking_accuracy", "response_tokens", "stop_rate", "empty_rate", "seq_rep_4", "nll_under_sft"]
    damages = [
        {"name": "answers that stop by themselves", "mean": 0.0, "low": -0.05, "bar": 0.1, "applies": False},
        {"name": "repetition (seq-rep-4)", "mean": 0.4, "low": 0.3, "bar": 0.2, "applies": True},
        {"name": f"lm-eval facts{evil}", "mean": 0.01, "low": -0.02, "bar": 0.02, "applies": False},
    ]
    task = {"metric": "exact_match", "n": 120, "sft": 0.41, "policy": 0.4, "difference": [-0.01, -0.05, 0.03]}
    task |= {"higher_is_better": True}
    return {
        **{"schema": 2, "outcome": "promote", "pairs": 40, "answers": 9, "beta": 0.1},
        "reasons": [f"length-controlled win rate 58.0%: above 50%{evil}", f"no damage measure exceeds its bar{evil}"],
        "advice": [f"read the worst losses before you promote it{evil}"],
        "primary": {"name": "reward_accuracy", "value": 0.825, "low": 0.68, "high": 0.913, "bar": 0.5, "n": 40},
        "power": {
            **{"n": 40, "at": [{"true": 0.59, "power": 0.4}], "detectable": 0.72, "needed": None},
            "text": f"with 40 pairs, a true accuracy of 59 % would be seen 4 times in 10{evil}",
        },
        "metrics": {"sft": metrics(0.0, judged), "policy": metrics(4.0, judged)},
        "differences": {name: [0.1, 0.02, 0.18] for name in names} | {"stop_rate": [0.0, -0.1, 0.1]},
        "damages": [{**d, "kind": "stop", "p": None} for d in damages],
        "tasks": [
            {**task, "task": "facts", "p": 0.75, "p_holm": 1.0, "clusters": None, "test": "exact McNemar"},
            {**task, "task": f"prompts{evil}", "p": 0.0004, "p_holm": 0.0008, "clusters": 60, "test": "clustered t"},
        ],
        **{"judge": None, "win_rates": {}, "mt_bench": None},
        **(judged_part(evil) if judged else {}),
        "by_source": [group(f"shop-chats{evil}", 26, 0.85), group("ultrafeedback", 14, 0.78)],
        "by_topic": [group(f"delivery{evil}", 14, 0.9), group("returns", 13, 0.7)],
        "displacement": {
            **{"mean_chosen_logp_change": -2.4, "share_fallen": 0.7},
            "mean_chosen_logp_change_per_token": [-0.08, -0.12, -0.04],
        },
        "notes": [
            {"severity": "warning", "name": "flips", "text": f"12 % flip{evil}", "advice": f"a larger judge{evil}"},
            {"severity": "note", "name": "few-pairs", "text": "40 pairs are few", "advice": ""},
        ],
        "training_notes": NOTES,
    }


def curves() -> list[Row]:
    rows = []
    for step in range(0, 121, 10):
        won = 1 - math.exp(-step / 50)
        values = {
            "loss": 0.69 - 0.2 * won,
            "rewards/chosen": -0.1 * won,
            "rewards/rejected": -0.8 * won,
            "rewards/margins": 0.7 * won,
            "rewards/accuracies": 0.5 + 0.25 * won,
        }
        found = {f"train/{k}": v for k, v in values.items()}
        if step % 40 == 0:
            found |= {f"eval/{k}": v * 0.97 for k, v in values.items()}
        rows.append({"step": step, "metrics": found})
    return rows


def comparison_rows(sft: list[Row], policy: list[Row], beta: float = 0.1) -> list[Row]:
    """comparison.jsonl, as `verdict.compare` writes it."""
    rows = []
    for s, p in zip(sft, policy, strict=True):
        chosen, rejected = (beta * (p[f"{side}_logp"] - s[f"{side}_logp"]) for side in ("chosen", "rejected"))
        row = {"row_id": s["row_id"], "source": s["source"], "topic": s["topic"], "margin": chosen - rejected}
        rows.append({**row, "reward_chosen": chosen, "reward_rejected": rejected})
    return rows


def make_input(evil: str = "", judged: bool = True, gain: float = 4.0, prompts: int = 9) -> ReportInput:
    """A whole report's evidence: 40 pairs, 9 prompts, three suites."""
    pairs = held_out_pairs(max(40, prompts), evil)
    sft, policy = (answer_rows(pairs[:prompts], g, evil) for g in (0.0, gain))
    ids = [f"data/shop-chats.jsonl{evil}", "HuggingFaceH4/ultrafeedback_binarized"]
    split = {"split": "train", "read": 1200, "kept": 1150, "dropped": {"duplicate": 44, "tie": 6}}
    split |= {"mean_chars": {"chosen": 201.5, "rejected": 188.1}, "chosen_longer": 0.5414}
    training = {"steps": 120, "max_steps": 120, "pairs": 960, "epochs": 1.0, "adapter": True, "world_size": 2}
    return ReportInput(
        name=f"shop-assistant{evil}",
        policy_name="DPO",
        verdict=make_verdict(evil, judged),
        curves=curves(),
        comparison=comparison_rows(pair_rows(pairs, 0.0, evil), pair_rows(pairs, gain, evil)),
        pairs=pairs,
        answers=list(zip(sft, policy, strict=True)),
        suite_answers=list(zip(suite_rows(0.0, evil), suite_rows(gain, evil), strict=True)) if judged else [],
        judgements=judgements(sft, evil) if judged else [],
        grades=grades(evil) if judged else [],
        sources=[
            {"id": i, "source_digest": "9f2c" * 16, "notices": [f"split 'train' was read{evil}"], "train": split}
            for i in ids
        ],
        mixture={
            **{"train": 960, "test": 40, "overlap": 3},
            "by_source": {ids[0]: 700, ids[1]: 260},
            "shares": {ids[0]: 0.7292, ids[1]: 0.2708},
            "notices": [f"no test split is named: 10% of the prompts are held out{evil}"],
        },
        training=training | {"trainable_parameters": 1_200_000, "parameters": 134_515_008},
        recipe={"model_name_or_path": f"org/model{evil}", "learning_rate": 5e-6, "gate": {"min_reward_accuracy": 0.5}},
        steps={"check": "cached", "mix": "cached", "train": "run", "evaluate": "run"},
        lineage={f"base model{evil}": f"SmolLM2-135M-Instruct{evil}", "git revision": "4c1d9aa"},
    )


def make_run(name: str, gain: float, evil: str = "", **changes: Any) -> RunEvidence:
    """A run on 40 pairs; with more `gain` it moved further."""
    pairs = held_out_pairs(40, evil)
    measured = pair_rows(pairs, gain, evil)
    lm_eval = [
        {
            **{"task": "facts", "doc_id": i, "id": f"f{i}", "digest": "d" * 16, "cluster": None},
            "metrics": {"exact_match": float((i + int(gain)) % 3 == 0)},
        }
        for i in range(30)
    ]
    evidence: Row = {
        **{"name": name + evil, "run_id": f"{name}{evil}0123456789abcdef", "verdict": make_verdict(evil, judged=False)},
        "pairs": measured,
        "comparison": comparison_rows(pair_rows(pairs, 0.0, evil), measured),
        "answers": answer_rows(pairs[:9], gain, evil),
        "lm_eval": lm_eval,
        "recipe": {"beta": gain / 40, f"key{evil}": evil + name, "evaluation": {"seed": 0}, "output_dir": name},
        "lineage": {"trained weights": name + evil, "starting model": "abc"},
    }
    return RunEvidence(**{**evidence, **changes})
