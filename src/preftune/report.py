"""The report of one DPO run: a single HTML file that needs nothing else, for people to read in a review."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import jinja2
import yaml
from markupsafe import Markup

from preftune import plots
from preftune.pairs import REASONS
from preftune.plots import number

OPEN_ANSWERS = 6
LONG_TEXT = 1200  # characters: from here on a text scrolls in its own box
OUTCOMES = {
    "promote": "The DPO model prefers the better answers reliably and shows no damage: it can replace the SFT model.",
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


def _is(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _text(value: Any, unit: str, signed: bool = False) -> str:
    """A value in its unit; a difference of shares is told in percentage points."""
    if not _is(value):
        return "not measured"
    if unit == "share":
        scaled = round(value * 100, 1) + 0.0
        text = f"{abs(scaled):.1f}" + ("" if signed else "%")
        sign = scaled
    else:
        text = f"{abs(value):,.1f}" if unit == "tokens" else number(abs(value))
        sign = 0.0 if text in ("0.0", "0") else value
    return ("−" if sign < 0 else "+" if signed and sign > 0 else "") + text


def _range(low: Any, high: Any, unit: str, signed: bool = False) -> str:
    return f"{_text(low, unit, signed)} to {_text(high, unit, signed)}" if _is(low) and _is(high) else ""


def _triple(metrics: dict[str, Any], name: str) -> tuple[Any, Any, Any]:
    return metrics.get(name), metrics.get(f"{name}_lo"), metrics.get(f"{name}_hi")


def _cell(triple: Sequence[Any], unit: str, signed: bool = False) -> dict[str, str]:
    value, low, high = triple
    text = _text(value, unit, signed)
    if signed and unit == "share" and _is(value):
        text += " points"
    return {"value": text, "interval": _range(low, high, unit, signed) if low != high else ""}


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
    for name in sorted(names, key=lambda n: list(known).index(n) if n in known else len(known)):
        group, measure = known.get(name, (CAPABILITY, Measure(name, "number")))
        if name.startswith("lm_eval/"):
            _, task, metric = name.split("/", 2)
            measure = Measure(f"{task}: {LM_EVAL.get(metric, metric)}", "share", "higher")
        difference = verdict["differences"].get(name)
        row = {
            "name": name,
            "label": measure.label,
            "note": measure.note,
            "better": measure.better,
            "sft": _cell(_triple(both["sft"], name), measure.unit),
            "policy": _cell(_triple(both["policy"], name), measure.unit),
            "difference": _cell(difference, measure.unit, signed=True) if difference else None,
            "judgement": _judgement(difference, measure.better) if difference else "",
        }
        groups[group].append(row)
    return {group: rows for group, rows in groups.items() if rows}


def summary(verdict: dict[str, Any]) -> str:
    """The verdict's key numbers in one plain sentence."""
    sft, policy = verdict["metrics"]["sft"], verdict["metrics"]["policy"]
    value, low, high = _triple(policy, "reward_accuracy")
    between = _range(low, high, "share")
    interval = f" (95% interval {between})" if between else ""
    accuracy = f"shifts its preference towards the better answer in {_text(value, 'share')} of the pairs{interval}"
    if not _is(value):
        accuracy = "has no measured reward accuracy"
    stop = f"{_text(policy.get('stop_rate'), 'share')} of them stop by themselves"
    before = f"{_text(sft.get('stop_rate'), 'share')} for the SFT model"
    return (
        f"On {verdict['pairs']:,} held-out pairs the DPO model {accuracy}, where 50% is chance; "
        f"of its answers to {verdict['answers']:,} held-out prompts, {stop} ({before})."
    )


def _gauge(data: ReportInput) -> dict[str, Any] | None:
    """Reward accuracy with its interval and the bar, as percentages of the width."""
    value, low, high = _triple(data.verdict["metrics"]["policy"], "reward_accuracy")
    if not (_is(value) and _is(low) and _is(high)):
        return None
    bar = (data.recipe.get("gate") or {}).get("min_reward_accuracy", 0.5)
    at = {"value": value, "low": low, "high": high, "bar": bar if _is(bar) else 0.5}
    shown = {f"{k}_text": _text(v, "share") for k, v in at.items()}
    return {k: f"{100 * v:.2f}" for k, v in at.items()} | shown | {"width": f"{100 * (high - low):.2f}"}


def _damages(verdict: dict[str, Any]) -> list[dict[str, str]]:
    def within(d: dict[str, Any]) -> str:
        return ("yes" if d["low"] <= d["bar"] else "no") if _is(d["low"]) and _is(d["mean"]) else "not measured"

    numbers = ("mean", "low", "bar")
    return [
        {"name": d["name"], "within": within(d)} | {k: _text(d[k], "number", k != "bar") for k in numbers}
        for d in verdict["damages"]
    ]


def _displacement(verdict: dict[str, Any]) -> str:
    found = verdict.get("displacement") or {}
    change, share = found.get("mean_chosen_logp_change"), found.get("share_fallen")
    if not (_is(change) and _is(share)):
        return "Not measured."
    fell = "fell" if change < 0 else "rose"
    return (
        f"The log-likelihood of the chosen answers {fell} by {number(abs(change))} nats on average; "
        f"it fell for {share:.1%} of the pairs."
    )


def _kl(verdict: dict[str, Any]) -> str:
    value, low, high = _triple(verdict["metrics"]["policy"], "kl_per_token")
    interval = _range(low, high, "nats")
    within = f" (95% interval {interval})" if interval and low != high else ""
    return f"{number(value)} nats per token{within}" if _is(value) else "not measured"


def _shares(verdict: dict[str, Any]) -> plots.Chart | None:
    def triple(who: str, name: str) -> tuple[float, float, float] | None:
        found = _triple(verdict["metrics"][who], name)
        return found if all(map(_is, found)) else None

    labels = {"stop_rate": "stops", "empty_rate": "empty", "seq_rep_4": "repetition"}
    return plots.shares_chart([(x, {"SFT": triple("sft", n), "DPO": triple("policy", n)}) for n, x in labels.items()])


def _answer(sft: dict[str, Any], policy: dict[str, Any]) -> dict[str, Any]:
    prompt = [{"role": str(m.get("role", "")), "content": str(m.get("content", ""))} for m in sft["prompt"]]
    chosen = {"who": "Chosen in the dataset", "kind": "chosen", "text": sft.get("chosen") or ""}
    models = [
        {
            "who": who,
            "kind": kind,
            "text": row["text"],
            "tokens": row["tokens"],
            "rep": _text(row["seq_rep_4"], "share"),
        }
        | {"stopped": row["stopped"]}
        for who, kind, row in (("SFT answer", "sft", sft), ("DPO answer", "dpo", policy))
    ]
    last = " ".join(prompt[-1]["content"].split()) if prompt else ""
    return {
        "row_id": sft["row_id"],
        "prompt": prompt,
        "texts": [*models, chosen],
        "start": last if len(last) <= 100 else last[:99] + "…",
        "cut": " and ".join(a["who"].split()[0] for a in models if not a["stopped"]),
    }


def _source(source: dict[str, Any]) -> dict[str, Any]:
    splits = [
        source[side]
        | {"side": side, "longer": _text(source[side].get("chosen_longer"), "share")}
        | {"reasons": [(n, r, REASONS.get(r, r)) for r, n in source[side]["dropped"].items()]}
        for side in ("train", "test")
        if side in source
    ]
    return {**source, "splits": splits}


def _training(found: dict[str, Any]) -> str:
    """What was trained, in a sentence."""

    def count(name: str) -> str:
        return f"{found[name]:,}" if _is(found.get(name)) else "?"

    how = "a LoRA adapter" if found.get("adapter") else "the full model"
    share = ""
    if _is(found.get("trainable_parameters")) and found.get("parameters"):
        share = f" ({count('trainable_parameters')} trainable of {count('parameters')} parameters)"
    epochs = f", {found['epochs']:.2g} epochs" if _is(found.get("epochs")) else ""
    devices = f", {found['world_size']} processes" if found.get("world_size", 1) > 1 else ""
    return f"{count('steps')} of {count('max_steps')} steps on {count('pairs')} pairs{epochs}{devices}: {how}{share}."


def _yaml(recipe: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(recipe, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def render_report(data: ReportInput) -> str:
    """Renders the report.

    Args:
        data: What it tells.

    Returns:
        One HTML document without any external reference; the same for the same data.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["svg"] = lambda chart: Markup(chart.svg)  # plots.py: only our own labels and numbers
    tokens = [[int(row["tokens"]) for row in rows] for rows in zip(*data.answers, strict=True)] or [[], []]
    curves = (plots.loss_chart, plots.rewards_chart, plots.accuracy_chart)
    text = environment.get_template("report.html.j2").render(
        data=data,
        verdict=data.verdict,
        meaning=OUTCOMES.get(data.verdict["outcome"], ""),
        summary=summary(data.verdict),
        training=_training(data.training),
        gauge=_gauge(data),
        groups=measure_rows(data.verdict),
        damages=_damages(data.verdict),
        displacement=_displacement(data.verdict),
        kl=_kl(data.verdict),
        curves=[chart for draw in curves if (chart := draw(data.curves))],
        margins=plots.margins_chart(data.margins),
        answer_charts=[chart for chart in (plots.lengths_chart(*tokens), _shares(data.verdict)) if chart],
        answers=[_answer(*both) for both in data.answers],
        open_answers=OPEN_ANSWERS,
        long=LONG_TEXT,
        sources=[_source(s) for s in data.sources],
        recipe=_yaml(data.recipe),
        number=number,
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be written to a file
