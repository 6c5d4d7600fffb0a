"""The report's smaller tables."""

from typing import Any

import pytest
from sample_evidence import group, make_verdict, win_rate

from preftune.report_tables import (
    MOST_GROUPS,
    damage_row,
    gauge,
    group_rows,
    judge_facts,
    mt_bench_rows,
    task_rows,
    win_rate_rows,
)


@pytest.mark.parametrize(
    ("mean", "low", "p", "applies", "damage", "shown"),
    [
        (0.4, 0.3, 0.0002, True, "yes", "< 0.001"),
        (0.4, 0.3, 0.3, False, "no", "0.300"),
        (0.4, 0.1, None, False, "no", ""),
        (None, None, None, False, "not measured", ""),
    ],
)
def test_damage(mean: Any, low: Any, p: Any, applies: bool, damage: str, shown: str) -> None:
    row = damage_row({"name": "x", "mean": mean, "low": low, "bar": 0.2, "p": p, "applies": applies})
    assert (row["damage"], row["p"]) == (damage, shown)


def test_win_rates() -> None:
    found = win_rate_rows(make_verdict()["win_rates"], "ORPO")
    assert [(r["suite"], r["who"]) for r in found] == [
        ("Held-out prompts", "ORPO against SFT"),
        ("The recipe's own prompts", "ORPO against SFT"),
        ("AlpacaEval", "SFT against the reference answers"),
        ("AlpacaEval", "ORPO against the reference answers"),
        ("MT-Bench", "ORPO against SFT"),
    ]
    held_out, prompts = found[:2]
    assert [(p["label"], p["count"], p["width"]) for p in held_out["parts"]] == [
        ("won", 110, "55.00"),
        ("tied", 24, "12.00"),
        ("lost", 66, "33.00"),
    ]
    assert held_out["raw"]["value"] == "61.0%" and held_out["controlled"]["value"] == "58.0%"
    assert held_out["track"]["value"] == "58.00"
    assert prompts["controlled"] is None and prompts["why"] == "too few" and prompts["track"]["value"] == "100.00"


def test_no_comparison_at_all() -> None:
    nothing = {**win_rate(1, 0, 0), "n": 0, "losses": 0, "raw": [None, None, None], "length_ratio": [None] * 3}
    nothing |= {"identified": False, "controlled": [None] * 3}
    (row,) = win_rate_rows({"held_out": nothing}, "DPO")
    assert row["raw"]["value"] == "not measured" and row["track"] is None
    assert {p["width"] for p in row["parts"]} == {"0.00"}


def test_the_judge_s_health() -> None:
    verdict = make_verdict()
    facts = dict(judge_facts(verdict["judge"], verdict["win_rates"]["held_out"]))
    assert facts["Verdicts that flip with the order"] == "12.0%"
    assert facts["Verdicts for the longer answer"] == "70.0%"
    assert facts["Errors"] == "2 × time-out"
    assert facts["Cost"] == "1.234"
    of_reward_model: dict[str, Any] = {**verdict["judge"], "kind": "reward_model", "errors": {}, "stopped": None}
    of_reward_model |= {"prompt_tokens": None, "completion_tokens": None, "cost": None}
    facts = dict(judge_facts(of_reward_model, None))
    assert not {"Cost", "Tokens", "Errors", "Stopped early", "Verdicts for the longer answer"} & set(facts)
    unpriced = dict(judge_facts({**verdict["judge"], "cost": None}, None))
    assert unpriced["Cost"] == "no prices in the recipe"


def test_mt_bench() -> None:
    rows = mt_bench_rows(make_verdict()["mt_bench"])
    assert [r["label"] for r in rows] == ["All grades", "Turn 1", "Turn 2", "writing"]
    assert rows[0]["difference"] == {"value": "+1.50", "interval": "+0.70 to\u00a0+2.30"}
    assert rows[1]["difference"] is None and rows[3]["judgement"] == "better"


def test_tasks() -> None:
    task = {**make_verdict()["tasks"][0], "difference": [-0.1, -0.2, -0.05]}
    (row,) = task_rows([task])
    assert (row["judgement"], row["p"], row["p_holm"], row["test"]) == ("worse", "0.750", "1.000", "exact McNemar")
    (row,) = task_rows([{**task, "higher_is_better": False, "p": None, "p_holm": None, "test": None}])
    assert (row["judgement"], row["p"], row["test"]) == ("better", "", "")


def test_only_the_largest_groups_are_shown() -> None:
    found = group_rows([group(f"t{i}", i, 0.5) for i in range(MOST_GROUPS + 3)])
    assert [r["n"] for r in found["rows"]] == list(range(MOST_GROUPS + 2, 2, -1))
    assert found["hidden"] == 3


def test_the_gauge() -> None:
    found = gauge(make_verdict(judged=False)["primary"])
    assert found and (found["value"], found["mark"], found["bar_text"]) == ("82.50", "50.00", "50.0%")
    assert gauge({"name": "reward_accuracy", "value": None, "low": None, "high": None, "bar": 0.5}) is None
