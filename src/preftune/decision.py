"""From rows to the gate's decision: which measure decides, what must be there, what was damaged."""

import math
from dataclasses import dataclass, replace
from typing import Any

from preftune.comparison_inputs import Inputs
from preftune.gate import SFT, Damage, Opponent, Verdict, decide
from preftune.measures import Triple, above, answer_damages, effective, item_values, rewards, share
from preftune.power import Primary, power_of
from preftune.schema import Gate
from preftune.statistics import holm
from preftune.task_losses import compare_tasks, task_values
from preftune.win_rates import judge_summary, win_rates


@dataclass(frozen=True)
class Weighed:
    """What the gate looked at, and what it decided.

    Args:
        rewards: Of each pair: (chosen, rejected).
        accuracy: Held-out reward accuracy: (value, low, high).
        primary: The measure that decides.
        power: verdict.json's `power`.
        damages: The losses with their bars.
        tasks: verdict.json's `tasks`.
        judge: verdict.json's `judge`.
        rates: verdict.json's `win_rates`.
        verdict: The decision.
    """

    rewards: list[tuple[float, float]]
    accuracy: Triple
    primary: Primary
    power: dict[str, Any]
    damages: list[Damage]
    tasks: list[dict[str, Any]]
    judge: dict[str, Any] | None
    rates: dict[str, Any]
    verdict: Verdict

    @property
    def margins(self) -> list[float]:
        return [chosen - rejected for chosen, rejected in self.rewards]


def _average(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _required(inputs: Inputs, margins: list[float], accuracy: Triple, opponent: Opponent) -> dict[str, float]:
    """What must be there and finite: every measure that is computed item by item, of both models. (A judge's are
    judged by whether the judge can be used.)"""
    found = {"reward_accuracy": accuracy[0], "reward_margin": _average(margins)}
    for who, suffix in ((1, ""), (0, f" ({opponent.short})")):
        values = item_values([both[who] for both in inputs.pairs], [both[who] for both in inputs.answers])
        for task in inputs.tasks.values():
            values |= task_values(task, who)
        found |= {f"{name}{suffix}": _average(of) for name, of in values.items()}
    return found


def adjusted(damages: list[Damage]) -> list[Damage]:
    """The damages with Holm-adjusted p-values, over all that have one.

    Each 0/1 measure and each task is one more chance to exceed a bar by luck; adjusted together, all of them reject an
    undamaged policy in at most 2.5 of 100 comparisons (two-sided at 5 %), however many tasks there are.
    """
    p_values = iter(holm([d.p for d in damages if d.p is not None and math.isfinite(d.p)]))
    return [replace(d, p=next(p_values)) if d.p is not None and math.isfinite(d.p) else d for d in damages]


def primary_measure(
    accuracy: Triple, n: int, worth: float, judge: dict[str, Any] | None, rates: dict[str, Any], gate: Gate
) -> Primary:
    """What decides: the length-controlled win rate on the held-out prompts with a judge, else the reward accuracy.

    Args:
        accuracy: Reward accuracy with its interval.
        n: Held-out pairs.
        worth: What they are worth as pairs that stand alone.
        judge: verdict.json's `judge`.
        rates: verdict.json's `win_rates`.
        gate: The bars.
    """
    if judge is None:
        return Primary("reward_accuracy", *accuracy, gate.min_reward_accuracy, n, worth)
    found = rates.get("held_out") or {"n": 0, "controlled": None, "why": "no prompt was answered"}
    value, low, high = found["controlled"] or (math.nan, math.nan, math.nan)
    n = found["n"]
    return Primary("lc_win_rate", value, low, high, gate.min_win_rate, n, n, judge["why"], found["why"])


def weigh(
    inputs: Inputs, training: dict[str, Any] | None, beta: float, gate: Gate, opponent: Opponent = SFT
) -> Weighed:
    """Decides on rows in memory.

    Args:
        inputs: The rows.
        training: train.json; None for a policy that was not trained here.
        beta: The DPO β.
        gate: The bars.
        opponent: Whom the policy is compared with.
    """
    reward = [rewards(s, p, beta) for s, p in inputs.pairs]
    margins = [chosen - rejected for chosen, rejected in reward]
    right, groups = [above(m, 0.0) for m in margins], [s["group_id"] for s, _ in inputs.pairs]
    accuracy, worth = share(right, groups), effective(right, groups)
    rates, judge = win_rates(inputs), judge_summary(inputs, gate)
    tasks, capability = compare_tasks(inputs.tasks, gate)
    of_answers = answer_damages(inputs.answers, gate, opponent)
    damages = adjusted(of_answers + capability)
    tasks = [task | {"p_holm": d.p} for task, d in zip(tasks, damages[len(of_answers) :], strict=True)]
    primary = primary_measure(accuracy, len(inputs.pairs), worth, judge, rates, gate)
    power = power_of(primary)
    verdict = decide(
        required=_required(inputs, margins, accuracy, opponent),
        steps=None if training is None else (training["steps"], training["max_steps"]),
        damages=damages,
        primary=primary,
        needed=power["needed"],
        opponent=opponent,
    )
    return Weighed(reward, accuracy, primary, power, damages, tasks, judge, rates, verdict)
