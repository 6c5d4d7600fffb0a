"""The table of all measures: how each is called, its unit, which way is better."""

from typing import Any, NamedTuple

from preftune.display import cell, is_number, judgement, triple


class Measure(NamedTuple):
    """How one measure is shown: its human label, its unit, and which way is better ("" if neither)."""

    label: str
    unit: str  # share, nats, tokens, score, number
    better: str = ""
    note: str = ""


JUDGED, PREFERENCE = "Judged answers", "Preference on held-out pairs"
ANSWERS, CAPABILITY = "Generated answers", "Capability (lm-eval)"
MEASURES: dict[str, dict[str, Measure]] = {
    JUDGED: {
        "win_rate": Measure("Win rate", "share", "higher", "on the held-out prompts; SFT is 50% by definition"),
        "lc_win_rate": Measure("Win rate, length-controlled", "share", "higher", "as if both answers were as long"),
        "mt_bench/score": Measure("MT-Bench", "score", "higher", "the judge's grades, 1 to 10"),
        "alpaca_eval/win_rate": Measure("AlpacaEval win rate", "share", "higher", "against the reference answers"),
        "alpaca_eval/lc_win_rate": Measure("AlpacaEval win rate, length-controlled", "share", "higher"),
    },
    PREFERENCE: {
        "reward_accuracy": Measure("Reward accuracy", "share", "higher", "SFT is 50% by definition"),
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
        "kl_per_token": Measure("KL from SFT", "nats", "", "per token, how far it moved; SFT is 0 by definition"),
    },
    CAPABILITY: {},
}
PRIMARY = {"reward_accuracy": "reward accuracy", "lc_win_rate": "length-controlled win rate"}  # what can decide
LM_EVAL = {"acc": "accuracy", "acc_norm": "accuracy, length-normalised"}
# What the SFT model has by definition: the policy's own interval tells how it differs from that.
BY_DEFINITION = {"win_rate": 0.5, "lc_win_rate": 0.5, "reward_accuracy": 0.5, "reward_margin": 0.0, "kl_per_token": 0.0}
NO_SHARES = ("perplexity", "bits_per_byte", "bleu", "ter", "chrf")  # lm-eval's metrics that are no shares


def lm_eval_measure(name: str) -> Measure:
    """How a metric of an lm-eval task is shown.

    Args:
        name: `lm_eval/<task>/<metric>`.
    """
    _, task, metric = name.split("/", 2)
    label = f"{task}: {LM_EVAL.get(metric, metric)}"
    if any(word in metric for word in NO_SHARES):
        return Measure(label, "number", "lower" if "perplexity" in metric or "bits" in metric else "")
    return Measure(label, "share", "higher")


def measure_of(name: str) -> tuple[str, Measure]:
    """(group, how it is shown) of a measure; one that this module does not know is shown as a plain number."""
    if name.startswith("lm_eval/"):
        return CAPABILITY, lm_eval_measure(name)
    known = [(group, found[name]) for group, found in MEASURES.items() if name in found]
    return known[0] if known else (CAPABILITY, Measure(name, "number"))


def ordered(names: list[str]) -> list[str]:
    """The measures' names in the table's order, each once, the unknown ones last."""
    known = [name for found in MEASURES.values() for name in found]
    return [n for n in known if n in names] + [n for n in dict.fromkeys(names) if n not in known]


def measure_rows(verdict: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The table of all measures: group → rows, also for measures this module does not know.

    Args:
        verdict: verdict.json.
    """
    both = verdict["metrics"]
    names = [n for who in ("sft", "policy") for n in both[who] if not n.endswith(("_lo", "_hi"))]
    groups: dict[str, list[dict[str, Any]]] = {group: [] for group in MEASURES}
    for name in ordered(names):
        group, measure = measure_of(name)
        difference = verdict["differences"].get(name)
        against = difference
        if name in BY_DEFINITION and all(map(is_number, found := triple(both["policy"], name))):
            against = [value - BY_DEFINITION[name] for value in found]
        row = measure._asdict() | {
            "name": name,
            "sft": cell(triple(both["sft"], name), measure.unit),
            "policy": cell(triple(both["policy"], name), measure.unit),
            "difference": cell(difference, measure.unit, signed=True) if difference else None,
            "judgement": judgement(against, measure.better),
            "by_definition": name in BY_DEFINITION,
        }
        groups[group].append(row)
    return {group: rows for group, rows in groups.items() if rows}
