"""Comparing policy and SFT on the same held-out pairs and prompts: the measures, their intervals, the verdict."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preftune.children import read_json_lines
from preftune.gate import Damage, decide
from preftune.schema import Gate
from preftune.statistics import mean_interval, pairs_needed, wilson

SCHEMA = 1
Row = dict[str, Any]


def rewards(sft: Row, policy: Row, beta: float) -> tuple[float, float]:
    """The implicit rewards β·(log π − log π_ref) of (chosen, rejected), DPO eq. 4 (arXiv 2305.18290)."""
    return (
        beta * (policy["chosen_logp"] - sft["chosen_logp"]),
        beta * (policy["rejected_logp"] - sft["rejected_logp"]),
    )


def _share(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of 0, ½ and 1 with Wilson's interval."""
    if not all(math.isfinite(v) for v in values):
        return math.nan, math.nan, math.nan
    return sum(values) / len(values), *wilson(sum(values), len(values))


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    return sum(values) / len(values), *mean_interval(values)


def _above(a: float, b: float) -> float:
    """1 if a > b, ½ if equal, 0 if below; NaN stays NaN."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.nan
    return 1.0 if a > b else 0.5 if a == b else 0.0


def _nll(answer: Row) -> float:
    return -answer["sft_logp"] / max(answer["logp_tokens"], 1)


def measures(pairs: list[Row], answers: list[Row], lm_eval: list[Row]) -> dict[str, tuple[float, float, float]]:
    """The measures of one model: name → (value, low, high), 95 % intervals.

    Args:
        pairs: Lines of pairs.jsonl.
        answers: Lines of answers.jsonl.
        lm_eval: Lines of lm_eval.jsonl.
    """
    c_tok, r_tok = [max(p["chosen_tokens"], 1) for p in pairs], [max(p["rejected_tokens"], 1) for p in pairs]
    per_token = [(p["chosen_logp"] / c, p["rejected_logp"] / r) for p, c, r in zip(pairs, c_tok, r_tok, strict=True)]
    found = {
        "ranking_accuracy": _share([_above(p["chosen_logp"], p["rejected_logp"]) for p in pairs]),
        "ranking_accuracy_per_token": _share([_above(c, r) for c, r in per_token]),
        "chosen_logp_per_token": _mean([c for c, _ in per_token]),
        "rejected_logp_per_token": _mean([r for _, r in per_token]),
        "response_tokens": _mean([a["tokens"] for a in answers]),
        "stop_rate": _share([float(a["stopped"]) for a in answers]),
        "empty_rate": _share([float(not a["text"].strip()) for a in answers]),
        "seq_rep_4": _mean([a["seq_rep_4"] for a in answers]),
        "nll_under_sft": _mean([_nll(a) for a in answers]),
        "kl_per_token": _mean([(a["logp"] - a["sft_logp"]) / max(a["logp_tokens"], 1) for a in answers]),
    }
    for task in sorted({r["task"] for r in lm_eval}):
        for metric in ("acc", "acc_norm"):
            found[f"lm_eval/{task}/{metric}"] = _share([r[metric] for r in lm_eval if r["task"] == task])
    return found


def _joined(sft: list[Row], policy: list[Row], what: str) -> list[tuple[Row, Row]]:
    """Rows of both models on the same item."""
    assert [r["row_id"] for r in sft] == [r["row_id"] for r in policy], f"{what}: SFT and policy saw other items"
    return list(zip(sft, policy, strict=True))


def damages(answers: list[tuple[Row, Row]], lm_eval: list[tuple[Row, Row]], gate: Gate) -> list[Damage]:
    """The paired losses of policy against SFT, with their bars.

    Args:
        answers: (SFT's, policy's) answer to the same prompt.
        lm_eval: (SFT's, policy's) result on the same document.
        gate: The bars.
    """

    def damage(name: str, losses: list[float], bar: float) -> Damage:
        low, _ = mean_interval(losses, confidence=0.90)
        return Damage(name, sum(losses) / len(losses), low, bar)

    def over(f: Callable[[Row, Row], float]) -> list[float]:
        return [f(s, p) for s, p in answers]

    found = [
        damage(
            "answers that stop by themselves",
            over(lambda s, p: s["stopped"] - p["stopped"]),
            gate.max_stop_loss,
        ),
        damage(
            "empty answers",
            over(lambda s, p: (not p["text"].strip()) - (not s["text"].strip())),
            gate.max_empty_gain,
        ),
        damage(
            "repetition (seq-rep-4)",
            over(lambda s, p: p["seq_rep_4"] - s["seq_rep_4"]),
            gate.max_repetition_gain,
        ),
        damage(
            f"NLL of the answers under SFT, above {gate.max_nll_factor:g} × SFT's + {gate.max_nll_offset:g}",
            over(lambda s, p: _nll(p) - gate.max_nll_factor * _nll(s) - gate.max_nll_offset),
            0.0,
        ),
    ]
    for task in sorted({s["task"] for s, _ in lm_eval}):
        losses = [s["acc"] - p["acc"] for s, p in lm_eval if s["task"] == task]
        found.append(damage(f"lm-eval {task}", losses, gate.max_capability_loss))
    return found


def _flat(found: dict[str, tuple[float, float, float]]) -> dict[str, float]:
    flat = {}
    for name, (value, low, high) in found.items():
        flat |= {name: value, f"{name}_lo": low, f"{name}_hi": high}
    return flat


def _finite(value: Any) -> Any:
    """NaN → null: JSON knows no NaN."""
    if isinstance(value, float):
        return round(value, 10) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value


def compare(
    sft: Path,
    policy: Path,
    training: dict[str, Any],
    beta: float,
    gate: Gate,
    folder: Path,
    training_notes: Sequence[dict[str, str]] = (),
) -> dict[str, Any]:
    """Computes every measure of both models and decides.

    Args:
        sft: The baseline's folder.
        policy: The policy's folder.
        training: train.json.
        beta: The DPO β of the training.
        gate: The bars.
        folder: Where verdict.json and comparison.jsonl go.
        training_notes: What the training's curves show; passed on.

    Returns:
        verdict.json's content: schema, outcome, reasons, pairs, answers, metrics {sft, policy}, differences,
        damages, displacement, training_notes.
    """
    rows = {
        who: {name: read_json_lines(path / f"{name}.jsonl") for name in ("pairs", "answers", "lm_eval")}
        for who, path in (("sft", sft), ("policy", policy))
    }
    pairs = _joined(rows["sft"]["pairs"], rows["policy"]["pairs"], "pairs")
    answers = _joined(rows["sft"]["answers"], rows["policy"]["answers"], "answers")
    lm_eval = _joined(rows["sft"]["lm_eval"], rows["policy"]["lm_eval"], "lm-eval")
    found = {who: measures(r["pairs"], r["answers"], r["lm_eval"]) for who, r in rows.items()}
    reward = [rewards(s, p, beta) for s, p in pairs]
    margins = [c - r for c, r in reward]
    # The SFT model is its own reference: its rewards are 0 by definition.
    found["sft"] |= {"reward_accuracy": (0.5, 0.5, 0.5), "reward_margin": (0.0, 0.0, 0.0)}
    found["policy"] |= {
        "reward_accuracy": _share([_above(m, 0.0) for m in margins]),
        "reward_margin": _mean(margins),
    }
    # Likelihood displacement (arXiv 2410.08847): a fall of the chosen answers' likelihood is a note, no failure.
    shift = [p["chosen_logp"] - s["chosen_logp"] for s, p in pairs]
    displacement = {
        "mean_chosen_logp_change": sum(shift) / len(shift),
        "share_fallen": sum(d < 0 for d in shift) / len(shift),
    }
    found_damages = damages(answers, lm_eval, gate)
    accuracy = found["policy"]["reward_accuracy"]
    names = (
        "reward_accuracy",
        "reward_margin",
        "ranking_accuracy",
        "stop_rate",
        "nll_under_sft",
        "seq_rep_4",
    )
    verdict = decide(
        required={n: found["policy"][n][0] for n in names},
        steps=(training["steps"], training["max_steps"]),
        damages=found_damages,
        accuracy=accuracy,
        pairs=len(pairs),
        needed=pairs_needed(accuracy[0], gate.min_reward_accuracy) if math.isfinite(accuracy[0]) else None,
        gate=gate,
    )
    result = {
        "schema": SCHEMA,
        "outcome": verdict.outcome,
        "reasons": verdict.reasons,
        "pairs": len(pairs),
        "answers": len(answers),
        "beta": beta,
        "metrics": {who: _flat(f) for who, f in found.items()},
        "differences": _differences(pairs, answers, lm_eval),
        "damages": [{"name": d.name, "mean": d.mean, "low": d.low, "bar": d.bar} for d in found_damages],
        "displacement": displacement,
        "training_notes": list(training_notes),
    }
    result = _finite(result)
    (folder / "verdict.json").write_text(json.dumps(result, indent=1, ensure_ascii=False))
    with (folder / "comparison.jsonl").open("w") as f:
        for (s, _), (chosen, rejected) in zip(pairs, reward, strict=True):
            row = {
                "row_id": s["row_id"],
                "source": s["source"],
                "reward_chosen": chosen,
                "reward_rejected": rejected,
            }
            f.write(json.dumps(_finite({**row, "margin": chosen - rejected})) + "\n")
    return result


def _differences(
    pairs: list[tuple[Row, Row]], answers: list[tuple[Row, Row]], lm_eval: list[tuple[Row, Row]]
) -> dict[str, list[float]]:
    """Policy − SFT, paired, with a 95 % bootstrap interval: name → [difference, low, high]."""

    def ranking(row: Row) -> float:
        return _above(row["chosen_logp"], row["rejected_logp"])

    def ranking_per_token(row: Row) -> float:
        chosen, rejected = (row[f"{s}_logp"] / max(row[f"{s}_tokens"], 1) for s in ("chosen", "rejected"))
        return _above(chosen, rejected)

    of_answers: dict[str, Callable[[Row], float]] = {
        "response_tokens": lambda a: a["tokens"],
        "stop_rate": lambda a: float(a["stopped"]),
        "empty_rate": lambda a: float(not a["text"].strip()),
        "seq_rep_4": lambda a: a["seq_rep_4"],
        "nll_under_sft": _nll,
    }
    found = {
        "ranking_accuracy": [ranking(p) - ranking(s) for s, p in pairs],
        "ranking_accuracy_per_token": [ranking_per_token(p) - ranking_per_token(s) for s, p in pairs],
        **{
            f"{side}_logp_per_token": [
                (p[f"{side}_logp"] - s[f"{side}_logp"]) / max(s[f"{side}_tokens"], 1) for s, p in pairs
            ]
            for side in ("chosen", "rejected")
        },
        **{name: [f(p) - f(s) for s, p in answers] for name, f in of_answers.items()},
    }
    for task in sorted({s["task"] for s, _ in lm_eval}):
        for metric in ("acc", "acc_norm"):
            found[f"lm_eval/{task}/{metric}"] = [p[metric] - s[metric] for s, p in lm_eval if s["task"] == task]
    return {name: list(_mean(values)) for name, values in found.items()}
