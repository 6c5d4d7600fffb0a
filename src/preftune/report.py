"""The report of one run: a single HTML file that needs nothing else, for people to read in a review."""

import json
from typing import Any

import yaml

from preftune import answer_plots, plots, training_plots
from preftune.answer_view import SCROLLED
from preftune.data.pairs import REASONS
from preftune.display import cell, interval_text, is_number, number, triple, value_text
from preftune.measure_table import PRIMARY, measure_rows
from preftune.pages import render
from preftune.report_answers import held_out_answers, low_margin_pairs, suite_sections
from preftune.report_input import ReportInput
from preftune.report_tables import (
    damage_row,
    gauge,
    group_rows,
    judge_facts,
    mt_bench_rows,
    task_rows,
    win_rate_rows,
)

__all__ = ["ReportInput", "measure_rows", "render_report", "report_charts", "training_sentence"]

OUTCOMES = {
    "promote": "{Called} moved towards the better answers and shows no damage: it can replace the SFT model.",
    "reject": "{Called} must not replace the SFT model: keep the SFT model.",
    "inconclusive": "These measurements do not decide: keep the SFT model until more is measured.",
}
KEY_MEASURES = (
    *("lc_win_rate", "mt_bench/score", "reward_accuracy", "ranking_accuracy", "stop_rate", "seq_rep_4"),
    "response_tokens",
)


def summary(data: ReportInput) -> str:
    """The verdict's key numbers in plain words."""
    verdict, called = data.verdict, data.called
    sft, policy = verdict["metrics"]["sft"], verdict["metrics"]["policy"]
    sentences = []
    if is_number(policy.get("lc_win_rate")):
        _, low, high = triple(policy, "lc_win_rate")
        interval = f" (95% interval {interval_text(low, high, 'share')})" if is_number(low) else ""
        sentences.append(
            f"With the length of the answers taken out, the judge prefers {called} to the SFT model in "
            f"{policy['lc_win_rate']:.1%} of the comparisons{interval}, where 50% is a draw."
        )
    value, low, high = triple(policy, "reward_accuracy")
    accuracy = "has no measured reward accuracy"
    if is_number(value):
        interval = f" (95% interval {interval_text(low, high, 'share')})" if is_number(low) else ""
        accuracy = f"moved towards the better answer in {value:.1%} of them{interval}, where 50% is chance"
    sentences.append(f"On {verdict['pairs']:,} held-out pairs {called} {accuracy}.")
    stop, before = (value_text(found.get("stop_rate"), "share") for found in (policy, sft))
    sentences.append(
        f"Of its answers to {verdict['answers']:,} held-out prompts, the share that stop by themselves is {stop} "
        f"(SFT: {before})."
    )
    return " ".join(sentences)


def _drift(data: ReportInput) -> list[str]:
    """Likelihood displacement and KL, a sentence each."""
    found = data.verdict["displacement"]
    change, share = found["mean_chosen_logp_change"], found["share_fallen"]
    displacement = "The change of the chosen answers' log-likelihood was not measured."
    if is_number(change) and is_number(share):
        moved = f"{'fell' if change < 0 else 'rose'} by {number(abs(change))} nats an answer on average"
        each = cell(found["mean_chosen_logp_change_per_token"], "nats", signed=True)
        interval = f", 95% interval {each['interval']}" if each["interval"] else ""
        displacement = (
            f"The log-likelihood of the chosen answers {moved} ({each['value']} per token{interval}); it fell for "
            f"{share:.1%} of the pairs."
        )
    value, low, high = triple(data.verdict["metrics"]["policy"], "kl_per_token")
    interval = f" (95% interval {interval_text(low, high, 'nats')})" if is_number(low) and low != high else ""
    kl = f"{number(value)} nats per token{interval}" if is_number(value) else "not measured"
    return [displacement, f"The KL divergence from SFT, on the answers of {data.called}, is {kl}."]


def _length(data: ReportInput) -> str:
    """How much longer the policy's answers are, in a sentence."""
    found = (data.verdict["win_rates"].get("held_out") or {}).get("length_ratio")
    if not found:
        sft, policy = (sum(len(both[who]["text"]) for both in data.answers) for who in (0, 1))
        found = [policy / sft if sft else None, None, None]
    ratio, low, high = found
    if not is_number(ratio):
        return ""
    interval = f" (95% interval {interval_text(low, high, 'score')})" if is_number(low) else ""
    return f"On average {data.called}'s answers are {ratio:.2f} times as long as those of the SFT model{interval}."


def _source(source: dict[str, Any]) -> dict[str, Any]:
    def split(side: str) -> dict[str, Any]:
        found = source[side]
        reasons = [(count, reason, REASONS.get(reason, reason)) for reason, count in found["dropped"].items()]
        return {**found, "side": side, "reasons": reasons, "longer": value_text(found.get("chosen_longer"), "share")}

    return {**source, "splits": [split(side) for side in ("train", "test") if side in source]}


def training_sentence(found: dict[str, Any] | None) -> str:
    """What was trained, in a sentence.

    Args:
        found: train.json; None for a model that was not trained here.
    """
    if found is None:
        return "This model was not trained here: it was evaluated as it was found."

    def count(name: str) -> str:
        return f"{found[name]:,}" if is_number(found.get(name)) else "?"

    parts = f" ({count('trainable_parameters')} of {count('parameters')} parameters trained)"
    how = "LoRA adapter" if found.get("adapter") else "full model"
    passes = ""
    if is_number(found.get("epochs")):
        passes = f" (epochs: {found['epochs']:.3g}, processes: {count('world_size')})"
    return f"{count('steps')} of {count('max_steps')} steps on {count('pairs')} pairs{passes}; {how}{parts}."


def _shares(data: ReportInput) -> plots.Chart | None:
    def measured(who: str, name: str) -> tuple[float, float, float] | None:
        found = triple(data.verdict["metrics"][who], name)
        return found if all(map(is_number, found)) else None

    labels = {"stop_rate": "stops", "empty_rate": "empty", "seq_rep_4": "repetition"}
    rows = [(label, measured("sft", name), measured("policy", name)) for name, label in labels.items()]
    return answer_plots.shares_chart(rows, data.column)


def report_charts(data: ReportInput) -> dict[str, plots.Chart]:
    """The charts that the data allow, by name, in the report's order."""
    sft, policy = ([int(both[who]["tokens"]) for both in data.answers] for who in (0, 1))
    margins = [row["margin"] for row in data.comparison if row["margin"] is not None]
    drawn = {
        "loss": training_plots.loss_chart(data.curves),
        "rewards": training_plots.rewards_chart(data.curves),
        "accuracy": training_plots.accuracy_chart(data.curves),
        "margins": answer_plots.margins_chart(margins),
        "answer-lengths": answer_plots.lengths_chart(sft, policy, data.column),
        "answer-shares": _shares(data),
    }
    return {name: chart for name, chart in drawn.items() if chart}


def render_report(data: ReportInput) -> str:
    """Renders the report.

    Args:
        data: What it tells.

    Returns:
        One HTML document without any external reference; the same for the same data.
    """
    verdict = data.verdict
    groups = measure_rows(verdict)
    rows = {row["name"]: row for found in groups.values() for row in found}
    plain = json.loads(json.dumps(data.recipe, default=str))
    charts = report_charts(data)
    called = data.called[0].upper() + data.called[1:]
    return render(
        "report.html.j2",
        data=data,
        verdict=verdict,
        called=called,
        meaning=OUTCOMES[verdict["outcome"]].format(Called=called),
        summary=summary(data),
        training=training_sentence(data.training),
        gauge=gauge(verdict["primary"]),
        primary=PRIMARY[verdict["primary"]["name"]],
        groups=groups,
        tiles=[rows[name] for name in KEY_MEASURES if name in rows],
        win_rates=win_rate_rows(verdict["win_rates"], data.column),
        judge=judge_facts(verdict["judge"], verdict["win_rates"].get("held_out")) if verdict["judge"] else [],
        mt_bench=mt_bench_rows(verdict["mt_bench"]) if verdict["mt_bench"] else [],
        tasks=task_rows(verdict["tasks"]),
        damages=[damage_row(d) for d in verdict["damages"]],
        sources_table=group_rows(verdict["by_source"]),
        topics_table=group_rows(verdict["by_topic"]),
        drift=_drift(data),
        length=_length(data),
        curves=[charts[name] for name in ("loss", "rewards", "accuracy") if name in charts],
        margins=charts.get("margins"),
        answer_charts=[charts[name] for name in ("answer-lengths", "answer-shares") if name in charts],
        answers=held_out_answers(data),
        low_margins=low_margin_pairs(data),
        suites=suite_sections(data),
        long=SCROLLED,
        sources=[_source(s) for s in data.sources],
        recipe=yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100),
    )
