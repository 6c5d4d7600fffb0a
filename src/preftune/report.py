"""The report of one DPO run: a single HTML file that needs nothing else, for people to read in a review."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import yaml

from preftune import plots
from preftune.data.pairs import REASONS
from preftune.pages import render
from preftune.plots import number

OPEN_ANSWERS = 6
LONG_TEXT = 1200  # characters: from here on a text scrolls in its own box
OUTCOMES = {
    "promote": "The DPO model moved towards the better answers and shows no damage: it can replace the SFT model.",
    "reject": "The DPO model must not replace the SFT model: keep the SFT model.",
    "inconclusive": "These measurements do not decide: keep the SFT model until more held-out pairs are measured.",
}


@dataclass(frozen=True)
class ReportInput:
    """All that a report tells.

    Args:
        name: The recipe's name.
        verdict: verdict.json, as `verdict.compare` returns it.
        curves: Rows of metrics.jsonl: `step` and `metrics` by name.
        margins: Held-out reward margins, one a pair.
        answers: (SFT's row, policy's row) of answers.jsonl on the same prompt.
        sources: The report of each dataset, as `checks.check_source` returns it.
        mixture: As `mixture.build_mixture` returns it.
        training: train.json.
        recipe: The resolved recipe, flat.
        steps: Step name → "cached" or "run".
        lineage: Label → text.
    """

    name: str
    verdict: dict[str, Any]
    curves: list[dict[str, Any]]
    margins: list[float]
    answers: list[tuple[dict[str, Any], dict[str, Any]]]
    sources: list[dict[str, Any]]
    mixture: dict[str, Any]
    training: dict[str, Any]
    recipe: dict[str, Any]
    steps: dict[str, str]
    lineage: dict[str, str]


class Measure(NamedTuple):
    """How one measure is shown: its human label, its unit, and which way is better ("" if neither)."""

    label: str
    unit: str  # share, nats, tokens, number
    better: str = ""
    note: str = ""


PREFERENCE, ANSWERS, CAPABILITY = "Preference on held-out pairs", "Generated answers", "Capability (lm-eval)"
MEASURES: dict[str, dict[str, Measure]] = {
    PREFERENCE: {
        "reward_accuracy": Measure("Reward accuracy", "share", "higher", "decides; SFT is 50% by definition"),
        "reward_margin": Measure("Reward margin", "number", "higher", "SFT is 0 by definition"),
        "ranking_accuracy": Measure("Ranking accuracy", "share", "higher", "chosen is likelier than rejected"),
        "ranking_accuracy_per_token": Measure("Ranking accuracy per token", "share", "higher", "length-normalised"),
        "chosen_logp_per_token": Measure("Log-likelihood of chosen", "nats", "higher", "per token"),
        "rejected_logp_per_token": Measure("Log-likelihood of rejected", "nats", "", "per token; DPO lowers it"),
    },
    ANSWERS: {
        "response_tokens": Measure("Answer length", "tokens"),
        "stop_rate": Measure("Answers that stop by themselves", "share", "higher"),
        "empty_rate": Measure("Empty answers", "share", "lower"),
        "seq_rep_4": Measure("Repetition", "share", "lower", "share of repeated 4-grams"),
        "nll_under_sft": Measure("NLL of the answers under SFT", "nats", "lower", "per token"),
        "kl_per_token": Measure("KL from SFT", "nats", "lower", "per token; SFT is 0 by definition"),
    },
    CAPABILITY: {},
}
LM_EVAL = {"acc": "accuracy", "acc_norm": "accuracy, length-normalised"}
KEY_MEASURES = ("reward_accuracy", "ranking_accuracy", "stop_rate", "seq_rep_4", "response_tokens")


def _is(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _text(value: Any, unit: str, signed: bool = False) -> str:
    """A value in its unit; a difference of shares is told in percentage points."""
    if not _is(value):
        return "not measured"
    if unit == "share":
        sign = round(value * 100, 1)
        text = f"{abs(sign):.1f}" + ("" if signed else "%")
    else:
        text = f"{abs(value):,.1f}" if unit == "tokens" else number(abs(value))
        sign = 0.0 if text in ("0.0", "0") else value
    return ("−" if sign < 0 else "+" if signed and sign > 0 else "") + text


def _range(low: Any, high: Any, unit: str, signed: bool = False) -> str:
    return f"{_text(low, unit, signed)} to\u00a0{_text(high, unit, signed)}" if _is(low) and _is(high) else ""


def _triple(metrics: dict[str, Any], name: str) -> tuple[Any, Any, Any]:
    return metrics.get(name), metrics.get(f"{name}_lo"), metrics.get(f"{name}_hi")


def _cell(triple: Sequence[Any], unit: str, signed: bool = False) -> dict[str, str]:
    value, low, high = triple
    points = " points" if signed and unit == "share" and _is(value) else ""
    return {
        "value": _text(value, unit, signed) + points,
        "interval": _range(low, high, unit, signed) if low != high else "",
    }


def _judgement(difference: Sequence[Any], better: str) -> str:
    """What a difference's interval says, in one word or two."""
    _, low, high = difference
    if not (_is(low) and _is(high)):
        return ""
    if low <= 0 <= high:
        return "no clear change"
    way = "higher" if low > 0 else "lower"
    return way if not better else "better" if way == better else "worse"


def measure_rows(verdict: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The table of all measures: group → rows, also for measures this module does not know.

    Args:
        verdict: verdict.json.
    """
    both = verdict["metrics"]
    known = {name: (group, m) for group, found in MEASURES.items() for name, m in found.items()}
    names = [n for n in {**both["sft"], **both["policy"]} if not n.endswith(("_lo", "_hi"))]
    groups: dict[str, list[dict[str, Any]]] = {group: [] for group in MEASURES}
    for name in [n for n in known if n in names] + [n for n in names if n not in known]:
        group, measure = known.get(name, (CAPABILITY, Measure(name, "number")))
        if name.startswith("lm_eval/"):
            _, task, metric = name.split("/", 2)
            measure = Measure(f"{task}: {LM_EVAL.get(metric, metric)}", "share", "higher")
        difference = verdict["differences"].get(name)  # none where SFT is its own reference
        row = measure._asdict() | {
            "name": name,
            "sft": _cell(_triple(both["sft"], name), measure.unit),
            "policy": _cell(_triple(both["policy"], name), measure.unit),
            "difference": _cell(difference, measure.unit, signed=True) if difference else None,
            "judgement": _judgement(difference, measure.better) if difference else "",
        }
        groups[group].append(row)
    return {group: rows for group, rows in groups.items() if rows}


def summary(verdict: dict[str, Any]) -> str:
    """The verdict's key numbers in plain words."""
    sft, policy = verdict["metrics"]["sft"], verdict["metrics"]["policy"]
    value, low, high = _triple(policy, "reward_accuracy")
    accuracy = "has no measured reward accuracy"
    if _is(value):
        interval = f" (95% interval {_range(low, high, 'share')})" if _is(low) and _is(high) else ""
        accuracy = f"moved towards the better answer in {value:.1%} of them{interval}, where 50% is chance"
    stop, before = (_text(found.get("stop_rate"), "share") for found in (policy, sft))
    return (
        f"On {verdict['pairs']:,} held-out pairs the DPO model {accuracy}. Of its answers to {verdict['answers']:,} "
        f"held-out prompts, the share that stop by themselves is {stop} (SFT: {before})."
    )


def _gauge(data: ReportInput) -> dict[str, Any] | None:
    """Reward accuracy with its interval and the bar, as percentages of the width."""
    value, low, high = _triple(data.verdict["metrics"]["policy"], "reward_accuracy")
    if not (_is(value) and _is(low) and _is(high)):
        return None
    bar = (data.recipe.get("gate") or {}).get("min_reward_accuracy", 0.5)
    at = {"value": value, "low": low, "high": high, "bar": bar if _is(bar) else 0.5}
    shown = {f"{k}_text": _text(v, "share") for k, v in at.items()}
    return {k: f"{100 * v:.2f}" for k, v in {**at, "width": high - low}.items()} | shown


def _damage(found: dict[str, Any]) -> dict[str, str]:
    measured = _is(found["low"]) and _is(found["mean"])
    within = ("yes" if found["low"] <= found["bar"] else "no") if measured else "not measured"
    numbers = {k: _text(found[k], "number", signed=k != "bar") for k in ("mean", "low", "bar")}
    return {"name": found["name"], "within": within, **numbers}


def _drift(verdict: dict[str, Any]) -> list[str]:
    """Likelihood displacement and KL, a sentence each."""
    found = verdict.get("displacement") or {}
    change, share = found.get("mean_chosen_logp_change"), found.get("share_fallen")
    displacement = "The change of the chosen answers' log-likelihood was not measured."
    if _is(change) and _is(share):
        moved = f"{'fell' if change < 0 else 'rose'} by {number(abs(change))} nats on average"
        displacement = f"The log-likelihood of the chosen answers {moved}; it fell for {share:.1%} of the pairs."
    value, low, high = _triple(verdict["metrics"]["policy"], "kl_per_token")
    interval = f" (95% interval {_range(low, high, 'nats')})" if _is(low) and low != high else ""
    kl = f"{number(value)} nats per token{interval}" if _is(value) else "not measured"
    return [displacement, f"The KL divergence from SFT, on the DPO model's own answers, is {kl}."]


def _shares(verdict: dict[str, Any]) -> plots.Chart | None:
    def triple(who: str, name: str) -> tuple[float, float, float] | None:
        return found if all(map(_is, found := _triple(verdict["metrics"][who], name))) else None

    labels = {"stop_rate": "stops", "empty_rate": "empty", "seq_rep_4": "repetition"}
    return plots.shares_chart([(x, {"SFT": triple("sft", n), "DPO": triple("policy", n)}) for n, x in labels.items()])


def _answer(sft: dict[str, Any], policy: dict[str, Any]) -> dict[str, Any]:
    prompt = [{"role": str(m.get("role", "")), "content": str(m.get("content", ""))} for m in sft["prompt"]]
    chosen = {"who": "Chosen in the dataset", "kind": "chosen", "text": sft.get("chosen") or ""}
    models = [
        {k: row[k] for k in ("text", "tokens", "stopped")}
        | {"who": f"{who} answer", "kind": who.lower(), "rep": _text(row["seq_rep_4"], "share")}
        for who, row in (("SFT", sft), ("DPO", policy))
    ]
    last = " ".join(m["content"] for m in prompt[-1:])
    return {
        "row_id": sft["row_id"],
        "prompt": prompt,
        "texts": [*models, chosen],
        "start": textwrap.shorten(last, 100, placeholder=" …") or "(empty)",
        "cut": " and ".join(a["who"].split()[0] for a in models if not a["stopped"]),
    }


def _source(source: dict[str, Any]) -> dict[str, Any]:
    def split(side: str) -> dict[str, Any]:
        found = source[side]
        reasons = [(count, reason, REASONS.get(reason, reason)) for reason, count in found["dropped"].items()]
        return {**found, "side": side, "reasons": reasons, "longer": _text(found.get("chosen_longer"), "share")}

    return {**source, "splits": [split(side) for side in ("train", "test") if side in source]}


def training_sentence(found: dict[str, Any]) -> str:
    """What was trained, in a sentence."""

    def count(name: str) -> str:
        return f"{found[name]:,}" if _is(found.get(name)) else "?"

    parts = f" ({count('trainable_parameters')} of {count('parameters')} parameters trained)"
    how = "LoRA adapter" if found.get("adapter") else "full model"
    passes = f" (epochs: {found['epochs']:.3g}, processes: {count('world_size')})" if _is(found.get("epochs")) else ""
    return f"{count('steps')} of {count('max_steps')} steps on {count('pairs')} pairs{passes}; {how}{parts}."


def report_charts(data: ReportInput) -> dict[str, plots.Chart]:
    """The charts that the data allow, by name, in the report's order."""
    tokens = [[int(row["tokens"]) for row in rows] for rows in zip(*data.answers, strict=True)] or [[], []]
    drawn = {
        "loss": plots.loss_chart(data.curves),
        "rewards": plots.rewards_chart(data.curves),
        "accuracy": plots.accuracy_chart(data.curves),
        "margins": plots.margins_chart(data.margins),
        "answer-lengths": plots.lengths_chart(*tokens),
        "answer-shares": _shares(data.verdict),
    }
    return {name: chart for name, chart in drawn.items() if chart}


def render_report(data: ReportInput) -> str:
    """Renders the report.

    Args:
        data: What it tells.

    Returns:
        One HTML document without any external reference; the same for the same data.
    """
    groups = measure_rows(data.verdict)
    plain = json.loads(json.dumps(data.recipe, default=str))
    charts = report_charts(data)
    return render(
        "report.html.j2",
        data=data,
        verdict=data.verdict,
        meaning=OUTCOMES.get(data.verdict["outcome"], ""),
        summary=summary(data.verdict),
        training=training_sentence(data.training),
        gauge=_gauge(data),
        groups=groups,
        tiles=[row for rows in groups.values() for row in rows if row["name"] in KEY_MEASURES],
        damages=[_damage(d) for d in data.verdict["damages"]],
        drift=_drift(data.verdict),
        curves=[charts[name] for name in ("loss", "rewards", "accuracy") if name in charts],
        training_notes=data.verdict["training_notes"],
        margins=charts.get("margins"),
        answer_charts=[charts[name] for name in ("answer-lengths", "answer-shares") if name in charts],
        answers=[_answer(*both) for both in data.answers],
        open_answers=OPEN_ANSWERS,
        long=LONG_TEXT,
        sources=[_source(s) for s in data.sources],
        recipe=yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100),
    )
