"""Win rates and MT-Bench scores from hand-made verdicts: outcomes, flips, errors, position, suites, pairing."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from simulated_evaluation import judgement

from preftune.comparison_inputs import Inputs
from preftune.errors import StepError
from preftune.mt_bench_scores import mt_bench_scores
from preftune.schema import Gate
from preftune.statistics import clustered_interval, wilson
from preftune.win_rates import Comparison, judge_summary, win_rate, win_rates

SIDES = ("sft", "policy")
GATE = Gate.model_validate({})
Rows = list[dict[str, Any]]


def answers(n: int, sft: int = 40, policy: int = 40) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [({"row_id": f"x{i}", "text": "a" * sft}, {"row_id": f"x{i}", "text": "b" * policy}) for i in range(n)]


def held_out(winners: list[tuple[str | None, str | None]]) -> Rows:
    return [judgement("held_out", f"x{i}", 1, SIDES, w) for i, w in enumerate(winners)]


def inputs(rows: Rows, n: int, suites: Any = None, grades: Any = None, **about: Any) -> Inputs:
    judge = {"kind": "openai", "model": "m", "errors": {}, **about}
    return Inputs([], answers(n), {}, suites or {}, judge, rows, grades or [])


BOTH = ("policy", "policy")
NONE = ("sft", "sft")
FLIP = ("policy", "sft")


def test_outcomes_by_hand() -> None:
    """4 wins, 2 losses, 3 disagreements and 1 tie of 10: (4 + 4/2)/10."""
    rows = held_out([BOTH] * 4 + [NONE] * 2 + [FLIP] * 3 + [("tie", "tie")])
    found = win_rates(inputs(rows, 10))["held_out"]
    assert (found["n"], found["wins"], found["ties"], found["losses"]) == (10, 4, 4, 2)
    assert found["raw"][0] == 0.6 and found["raw"][1] < 0.6 < found["raw"][2]
    assert found["controlled"][0] == pytest.approx(0.6) and found["identified"]  # all are equally long
    assert found["flip_rate"] == 0.3 and found["missing"] == 0


def test_the_raw_interval_is_a_bootstrap_over_prompts() -> None:
    outcomes = [1.0] * 25 + [0.5] * 20 + [0.0] * 15
    winners = {1.0: BOTH, 0.5: FLIP, 0.0: NONE}
    found = win_rates(inputs(held_out([winners[o] for o in outcomes]), 60))["held_out"]["raw"]
    expected = stats.bootstrap(
        (np.array(outcomes),), np.mean, n_resamples=4999, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found == pytest.approx([35 / 60, expected.low, expected.high])


@pytest.mark.parametrize(("winner", "rate"), [(BOTH, 1.0), (NONE, 0.0), (("tie", "tie"), 0.5)])
def test_equal_outcomes_are_not_certain(winner: Any, rate: float) -> None:
    found = win_rates(inputs(held_out([winner] * 20), 20))["held_out"]
    assert found["raw"] == pytest.approx([rate, *wilson(20 * rate, 20)])


def test_a_judge_that_always_says_a() -> None:
    """The first place wins in both orders: ties throughout, and a judge that cannot be used."""
    found = inputs(held_out([("sft", "policy")] * 50), 50)
    rate, judge = win_rates(found)["held_out"], judge_summary(found, GATE)
    assert judge is not None
    assert rate["ties"] == rate["n"] == 50 and rate["raw"][0] == 0.5
    assert judge["flip_rate"] == 1.0 and judge["position_bias"] == 1.0
    assert not judge["usable"] and "100.0% of its verdicts change with the order" in judge["why"]


def test_position_bias_by_hand() -> None:
    """Orders with a winner: 2 x (first, second), 1 x (second, first): 3 of 6 name the place shown first; ties and
    errors do not count."""
    rows = held_out([NONE, NONE, BOTH, ("tie", "tie"), ("sft", None)])
    judge = judge_summary(inputs(rows, 5), GATE)
    assert judge is not None
    assert judge["position_bias"] == pytest.approx(4 / 7)  # and "sft" of the one that failed was shown first


@pytest.mark.parametrize(("flips", "usable"), [(16, True), (17, False)])
def test_the_bar_on_flips(flips: int, usable: bool) -> None:
    """40 % of 40 are allowed, one more is not."""
    judge = judge_summary(inputs(held_out([FLIP] * flips + [BOTH] * (40 - flips)), 40), GATE)
    assert judge is not None and judge["usable"] is usable


@pytest.mark.parametrize(("silent", "usable"), [(0, True), (2, True), (3, False)])
@pytest.mark.parametrize("written", [True, False])
def test_the_bar_on_errors(silent: int, usable: bool, written: bool) -> None:
    """2 % of 100 comparisons, whether the missing ones are lines with an error or no lines."""
    rows = held_out([(None, "sft")] * silent + [BOTH] * (100 - silent))
    found = inputs(rows if written else rows[silent:], 100, errors={"timed out": silent}, stopped="the budget")
    judge = judge_summary(found, GATE)
    assert judge is not None
    assert judge["error_rate"] == pytest.approx(silent / 100) and judge["usable"] is usable
    assert win_rates(found)["held_out"]["missing"] == silent
    if not usable:
        assert "3.0% of the comparisons have no verdict" in judge["why"]
        assert "3 × timed out" in judge["why"] and "the budget" in judge["why"]


def test_flips_count_only_where_there_are_two_verdicts() -> None:
    rows = held_out([FLIP, BOTH, (None, "sft"), (None, None)])
    assert win_rates(inputs(rows, 4))["held_out"]["flip_rate"] == 0.5


def test_no_verdict_at_all() -> None:
    found = inputs([], 10)
    rate, judge = win_rates(found)["held_out"], judge_summary(found, GATE)
    assert judge is not None
    assert rate["n"] == 0 and rate["controlled"] is None and rate["missing"] == 10
    assert not judge["usable"] and judge["error_rate"] == 1.0
    assert math.isnan(judge["flip_rate"]) and math.isnan(judge["position_bias"])


def test_without_a_judge() -> None:
    found = Inputs([], answers(3), {}, {})
    assert win_rates(found) == {} and judge_summary(found, GATE) is None and mt_bench_scores(found) is None


def test_length_ratio_and_who_is_longer() -> None:
    """SFT writes 40 characters, the policy 60 and 20 in turn: a ratio of 1; the longer wins 3 of 4 decided ones."""
    wanted = [Comparison(f"x{i}", 1, (40, 60 if i % 2 == 0 else 20)) for i in range(6)]
    rows = held_out([BOTH, NONE, BOTH, BOTH, FLIP, FLIP])
    found = win_rate(wanted, rows)
    assert found["length_ratio"][0] == 1.0 and found["longer_share"] == 0.5 and found["longer_wins"] == 0.75


def test_a_verdict_on_an_answer_that_nobody_gave() -> None:
    with pytest.raises(StepError, match="nobody gave: x3"):
        win_rates(inputs(held_out([BOTH] * 4), 3))


# --- suites -----------------------------------------------------------------------------------------------


def suite_row(suite: str, i: int, texts: list[str], reference: list[str] | None = None) -> dict[str, Any]:
    turns = [{"prompt": [], "text": t, "tokens": 1, "stopped": True} for t in texts]
    return {"suite": suite, "id": f"{suite}{i}", "category": "c", "turns": turns, "reference": reference}


def test_alpaca_eval_is_against_the_reference() -> None:
    """SFT wins 1 of 4 against it, the policy 3 of 4 with one verdict missing: paired on the three that both have."""
    suites = {
        "alpaca_eval": [
            (
                suite_row("alpaca_eval", i, ["a" * 10], ["r" * 20]),
                suite_row("alpaca_eval", i, ["b" * 30], ["r" * 20]),
            )
            for i in range(4)
        ]
    }
    rows = []
    for i in range(4):
        for who, wins in (("sft", i == 0), ("policy", i != 1)):
            winner = who if wins else "reference"
            rows.append(judgement("alpaca_eval", f"alpaca_eval{i}", 1, ("reference", who), (winner, winner)))
    rows[-1] = judgement("alpaca_eval", "alpaca_eval3", 1, ("reference", "policy"), (None, None))
    found = win_rates(inputs(rows, 0, suites))["alpaca_eval"]
    assert (found["sft"]["wins"], found["sft"]["n"]) == (1, 4)
    assert (found["policy"]["wins"], found["policy"]["n"], found["policy"]["missing"]) == (2, 3, 1)
    assert found["sft"]["length_ratio"][0] == 0.5 and found["policy"]["length_ratio"][0] == 1.5
    assert found["difference"][0] == pytest.approx(1 / 3)  # 1 − 1, 0 − 0 and 1 − 0


def test_mt_bench_turns_belong_together() -> None:
    """Two turns of a question win or lose together: 20 questions, not 40."""
    suites = {
        "mt_bench": [
            (suite_row("mt_bench", i, ["a" * 9] * 2), suite_row("mt_bench", i, ["b" * 9] * 2)) for i in range(20)
        ]
    }
    rows = [
        judgement("mt_bench", f"mt_bench{i}", turn, SIDES, BOTH if i % 4 else NONE)
        for i in range(20)
        for turn in (1, 2)
    ]
    found = win_rates(inputs(rows, 0, suites))["mt_bench"]
    outcomes, groups = [float(i % 4 > 0) for i in range(20) for _ in (1, 2)], [i for i in range(20) for _ in (1, 2)]
    assert found["n"] == 40
    assert found["raw"] == pytest.approx([0.75, *clustered_interval(outcomes, groups)])
    alone = win_rates(inputs([r for r in rows if r["turn"] == 1], 0, suites))["mt_bench"]
    assert alone["missing"] == 20
    assert found["controlled"][1:] == pytest.approx(alone["controlled"][1:], abs=1e-9)


def grade(i: int, who: str, turn: int, score: Any, category: str = "math") -> dict[str, Any]:
    return {"id": f"q{i}", "category": category, "who": who, "turn": turn, "score": score, "error": None, "text": ""}


def test_mt_bench_scores_by_hand() -> None:
    """Question 0: SFT 4 and 2, policy 6 and 3; question 1: SFT 8, policy 7; its second turn was not graded for SFT,
    so that nobody's counts."""
    rows = [
        *(grade(0, "sft", t, s) for t, s in ((1, 4), (2, 2))),
        *(grade(0, "policy", t, s) for t, s in ((1, 6), (2, 3))),
        grade(1, "sft", 1, 8, "writing"),
        grade(1, "policy", 1, 7, "writing"),
        grade(1, "sft", 2, None, "writing"),
        grade(1, "policy", 2, 10, "writing"),
    ]
    found = mt_bench_scores(inputs([], 0, grades=rows))
    assert found is not None
    assert (found["n"], found["missing"]) == (3, 1)
    assert found["sft"]["score"][0] == pytest.approx(14 / 3) and found["policy"]["score"][0] == pytest.approx(16 / 3)
    assert (found["sft"]["turn_1"][0], found["policy"]["turn_1"][0]) == (6, 6.5)
    assert (found["sft"]["turn_2"][0], found["policy"]["turn_2"][0]) == (2, 3)
    assert found["difference"] == pytest.approx([2 / 3, *clustered_interval([2.0, 1.0, -1.0], ["0", "0", "1"])])
    assert found["by_category"]["math"]["difference"][0] == 1.5 and found["by_category"]["writing"]["n"] == 1


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, "8"])
def test_a_grade_that_is_none_counts_for_nobody(bad: Any) -> None:
    rows = [grade(i, who, 1, 5 if who == "sft" else 7) for i in range(3) for who in SIDES]
    rows[0]["score"] = bad
    found = mt_bench_scores(inputs([], 0, grades=rows))
    assert found is not None and found["n"] == 2 and found["difference"] == [2.0, 2.0, 2.0]
