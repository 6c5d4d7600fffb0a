"""What the numbers show beside the verdict: notes that decide nothing. The thresholds without a source are our own."""

import math
from typing import Any, Literal

from preftune.comparison_inputs import Both, Inputs
from preftune.gate import SFT, Opponent
from preftune.measures import Triple
from preftune.statistics import ratio_interval
from preftune.task_losses import ungated
from preftune.win_rates import texts_identical

LONGER = 1.3  # mean length ratio (arXiv 2403.19159)
FAR = 30.0  # nats of KL in one answer; over-optimization grows with it (arXiv 2406.02900), the number is our own
FLIPS = 0.2
BIASED = 0.6  # share of verdicts for the answer shown first
BY_LENGTH = 0.75  # share of decided comparisons that the longer answer wins
FEW_PAIRS, FEW_ANSWERS = 100, 50
ALIKE = 0.5

Note = dict[str, str]


def _note(severity: Literal["warning", "note"], name: str, text: str, advice: str = "") -> Note:
    return {"severity": severity, "name": name, "text": text, "advice": advice}


def _length(answers: list[Both], judged: bool, opponent: Opponent) -> list[Note]:
    lengths = [[len(both[who]["text"]) for both in answers] for who in (0, 1)]
    value, low, high = ratio_interval(lengths[1], lengths[0])
    if not math.isfinite(value) or 1 / LONGER <= value <= LONGER:
        return []
    interval = f" (95 % interval {low:.2f} to {high:.2f})" if math.isfinite(low) and math.isfinite(high) else ""
    text = f"the policy's answers are {value:.2f} times as long as {opponent.short}'s on average{interval}"
    if value < 1:
        return [_note("note", "length_ratio", text, "read whether anything is missing in them")]
    if judged:
        advice = "judges like long answers: read the length-controlled win rate, not the raw one"
    else:
        advice = "DPO often learns length first: look in the report whether the answers are better, or only longer"
    return [_note("warning", "length_ratio", text, advice)]


def _pairs(pairs: list[Both], effective: float, displaced: dict[str, Any], damaged: bool) -> list[Note]:
    notes = []
    n, groups = len(pairs), len({s["group_id"] for s, _ in pairs})
    if n < FEW_PAIRS:
        text = f"{n} held-out pairs are few: see the power for what they can show"
        notes.append(_note("note", "few_pairs", text, "hold out more (test_split_size, or a larger test split)"))
    if effective < 0.95 * n:
        text = f"the {n} held-out pairs belong to {groups} prompts and count as {effective:.0f} independent ones"
        notes.append(_note("note", "grouped_pairs", text))
    change = displaced.get("mean_chosen_logp_change", math.nan)
    if change < 0:
        per_token, share = displaced["mean_chosen_logp_change_per_token"][0], displaced["share_fallen"]
        text = (
            f"the chosen answers became less likely: by {-change:.3g} nats each ({-per_token:.2g} a token) on average, "
            f"in {share:.0%} of the pairs"
        )
        advice = (
            "together with damaged answers this is likelihood displacement: a higher beta, fewer steps, or an SFT term "
            "(rpo_alpha)"
            if damaged
            else "DPO only asks for a wider margin, so this alone is no failure; watch the answers"
        )
        notes.append(_note("warning" if damaged else "note", "displacement", text, advice))
    return notes


def _answers(answers: list[Both]) -> list[Note]:
    if not answers:
        return []
    notes = []
    if len(answers) < FEW_ANSWERS:
        text = f"{len(answers)} answered prompts are few: only large damage can be seen on them"
        notes.append(_note("note", "few_answers", text, "raise evaluation.max_prompts"))
    same = texts_identical(answers)
    if same >= ALIKE:
        text = f"{same:.0%} of the prompts get word for word the same answer from both models"
        notes.append(_note("note", "identical_answers", text, "the policy hardly moved: train more, or a lower beta"))
    moved = sum(p["logp"] - p["sft_logp"] for _, p in answers) / len(answers)
    if moved > FAR:
        text = f"the policy's own answers are {moved:.3g} nats likelier under it than under SFT: it moved far"
        notes.append(_note("note", "kl", text, "gains beyond this are often none; a higher beta keeps it nearer"))
    return notes


def _judge(judge: dict[str, Any], held_out: dict[str, Any]) -> list[Note]:
    notes = []
    flips, bias, by_length = judge["flip_rate"], judge["position_bias"], held_out["longer_wins"]
    if not judge["usable"]:
        notes.append(_note("warning", "judge_unusable", f"the judge cannot be used: {judge['why']}"))
    elif flips > FLIPS:
        text = f"{flips:.0%} of the judge's verdicts change with the order of the answers; they count as ties"
        notes.append(_note("note", "flip_rate", text, "a stronger judge decides more of them"))
    if not 1 - BIASED <= bias <= BIASED and math.isfinite(bias):
        text = f"{bias:.0%} of the judge's verdicts name the answer that is shown first"
        notes.append(_note("note", "position_bias", text, "both orders are asked, so this costs certainty, not truth"))
    if by_length >= BY_LENGTH:
        text = f"the longer answer wins {by_length:.0%} of the comparisons that the judge decides"
        advice = "it may look at the length more than at the answer: read some of its verdicts"
        notes.append(_note("warning", "judge_length_bias", text, advice))
    if held_out["why"] is not None:
        text = f"the win rate at equal length is unknown: {held_out['why']}"
        notes.append(_note("warning", "length_control", text, "the raw win rate may be nothing but length"))
    return notes


def verdict_notes(
    inputs: Inputs,
    *,
    accuracy: Triple,
    effective: float,
    displaced: dict[str, Any],
    damaged: bool,
    judge: dict[str, Any] | None,
    rates: dict[str, Any],
    opponent: Opponent = SFT,
) -> list[Note]:
    """verdict.json's `notes`: warnings first.

    Args:
        inputs: The rows.
        accuracy: The policy's reward accuracy with its interval.
        effective: What the pairs are worth as independent ones.
        displaced: verdict.json's `displacement`.
        damaged: Whether any damage applies.
        judge: verdict.json's `judge`.
        rates: verdict.json's `win_rates`.
        opponent: Whom the policy is compared with.
    """
    notes = _pairs(inputs.pairs, effective, displaced, damaged)
    notes += _length(inputs.answers, judge is not None, opponent) + _answers(inputs.answers)
    if judge is not None and "held_out" in rates:
        notes += _judge(judge, rates["held_out"])
        if accuracy[2] < 0.5:
            text = f"the reward accuracy on held-out pairs is below 50 % ({accuracy[0]:.1%}), whatever the judge says"
            notes.append(_note("warning", "reward_accuracy", text, "look whether chosen and rejected are swapped"))
    for task in ungated(inputs.tasks):
        text = f"lm-eval {task}: its main metric has no value for a single document, so the gate does not look at it"
        notes.append(_note("note", "ungated_task", text))
    return sorted(notes, key=lambda n: n["severity"] != "warning")
