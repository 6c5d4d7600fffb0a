"""The notes beside a verdict: each appears beyond its threshold, and not before it."""

import math
from dataclasses import replace
from typing import Any

import pytest

from preftune.comparison_inputs import Inputs, Task
from preftune.verdict_notes import verdict_notes

JUDGE = {"usable": True, "why": None, "flip_rate": 0.1, "position_bias": 0.5}
HELD_OUT = {"longer_wins": 0.5, "why": None}


def answer(text: str, kl: float = 1.0) -> dict[str, Any]:
    return {"text": text, "logp": -10.0 + kl, "sft_logp": -10.0}


def inputs(n: int = 100, answers: int = 50, length: int = 40, same: int = 0, kl: float = 1.0) -> Inputs:
    """Pairs of one prompt each; answers of 40 characters, the policy's of `length`, `same` of them alike."""
    pairs = [({"group_id": i}, {"group_id": i}) for i in range(n)]
    both = [(answer("a" * 40), answer("a" * 40 if i < same else "b" * length, kl)) for i in range(answers)]
    return Inputs(pairs, both, {}, {})


def names(made: Inputs | None = None, **changes: Any) -> list[str]:
    found: dict[str, Any] = {
        "accuracy": (0.6, 0.5, 0.7),
        "effective": 100.0,
        "displaced": {
            "mean_chosen_logp_change": 0.5,
            "mean_chosen_logp_change_per_token": [0.1, 0.0, 0.2],
            "share_fallen": 0.3,
        },
        "damaged": False,
        "judge": None,
        "rates": {},
    }
    notes = verdict_notes(inputs() if made is None else made, **found | changes)
    assert all(n["text"] and n["severity"] in ("warning", "note") for n in notes)
    assert [n["severity"] for n in notes] == sorted((n["severity"] for n in notes), reverse=True)
    return [n["name"] for n in notes]


def judged(judge: dict[str, Any] | None = None, held_out: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    return names(judge=JUDGE | (judge or {}), rates={"held_out": HELD_OUT | (held_out or {})}, **changes)


def test_nothing_to_note() -> None:
    assert names() == [] and judged() == []


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (inputs(n=99), "few_pairs"),
        (inputs(answers=49), "few_answers"),
        (inputs(length=53), "length_ratio"),  # 1.325
        (inputs(length=30), "length_ratio"),  # 0.75
        (inputs(same=25), "identical_answers"),
        (inputs(kl=30.1), "kl"),
    ],
)
def test_what_the_answers_show(made: Inputs, name: str) -> None:
    assert name in names(made, effective=float(len(made.pairs)))


@pytest.mark.parametrize("made", [inputs(length=51), inputs(length=32), inputs(same=24), inputs(kl=29.9)])
def test_and_what_they_do_not(made: Inputs) -> None:
    assert names(made) == []


def test_longer_answers_are_told_otherwise_with_a_judge() -> None:
    alone = verdict_notes(inputs(length=60), accuracy=(0.6, 0.5, 0.7), effective=100, displaced={}, damaged=False,
                          judge=None, rates={})  # fmt: skip
    (note,) = [n for n in alone if n["name"] == "length_ratio"]
    assert "1.50 times as long" in note["text"] and "only longer" in note["advice"]


def test_displacement_is_a_warning_beside_damage() -> None:
    fell = {
        "mean_chosen_logp_change": -2.0,
        "mean_chosen_logp_change_per_token": [-0.1, -0.2, 0.0],
        "share_fallen": 0.7,
    }
    for damaged, severity in ((False, "note"), (True, "warning")):
        (note,) = verdict_notes(
            inputs(), accuracy=(0.6, 0.5, 0.7), effective=100, displaced=fell, damaged=damaged, judge=None, rates={}
        )
        assert (note["name"], note["severity"]) == ("displacement", severity)
        assert "by 2 nats each (0.1 a token)" in note["text"] and "70%" in note["text"]


def test_pairs_that_share_a_prompt() -> None:
    assert names(effective=90.0) == ["grouped_pairs"] and names(effective=96.0) == []


@pytest.mark.parametrize(
    ("judge", "held_out", "expected"),
    [
        ({"flip_rate": 0.21}, {}, ["flip_rate"]),
        ({"flip_rate": 0.2}, {}, []),
        ({"usable": False, "why": "it flips", "flip_rate": 0.6}, {}, ["judge_unusable"]),
        ({"position_bias": 0.61}, {}, ["position_bias"]),
        ({"position_bias": 0.39}, {}, ["position_bias"]),
        ({"position_bias": 0.6}, {}, []),
        ({"position_bias": math.nan, "flip_rate": math.nan}, {"longer_wins": math.nan}, []),
        ({}, {"longer_wins": 0.75}, ["judge_length_bias"]),
        ({}, {"longer_wins": 0.74}, []),
        ({}, {"why": "never shorter"}, ["length_control"]),
    ],
)
def test_what_the_judge_shows(judge: dict[str, Any], held_out: dict[str, Any], expected: list[str]) -> None:
    assert judged(judge, held_out) == expected


def test_pairs_that_contradict_the_judge() -> None:
    assert judged(accuracy=(0.4, 0.3, 0.49)) == ["reward_accuracy"] and judged(accuracy=(0.45, 0.3, 0.5)) == []
    assert names(accuracy=(0.4, 0.3, 0.49)) == []  # without a judge it is the verdict itself


def test_a_task_that_cannot_be_gated() -> None:
    made = replace(inputs(), tasks={"t": Task("t", None, {}, {}, ({}, {}), [])})
    assert names(made) == ["ungated_task"]
