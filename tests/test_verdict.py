"""Comparing policy and SFT on hand-made rows: measures, β, damage, and the outcome with its reason."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from simulated_evaluation import World, answer_rows, judged_rows, judgement

from preftune.errors import StepError
from preftune.measures import measures, rewards
from preftune.power import accuracy_needed
from preftune.schema import Gate
from preftune.statistics import wilson
from preftune.verdict import compare

Rows = dict[str, list[dict[str, Any]]]
DONE = {"steps": 8, "max_steps": 8}


def sft_rows(n: int = 40) -> Rows:
    """A healthy model: n pairs, n answers, n lm-eval documents."""
    return {
        "pairs": [
            {
                "row_id": f"x:{i}",
                "group_id": f"g{i}",
                "source": "x",
                "topic": "water" if i % 4 else None,
                "chosen_logp": -20.0 - i % 3,
                "rejected_logp": -21.0 + i % 2,
                "chosen_tokens": 10,
                "rejected_tokens": 5,
            }
            for i in range(n)
        ],
        "answers": [
            {
                "row_id": f"x:{i}",
                "group_id": f"g{i}",
                "source": "x",
                "topic": None,
                "prompt": [{"role": "user", "content": "Q"}],
                "text": f"An answer {i}.",
                "chosen": "A",
                "tokens": 20 + i % 5,
                "stopped": True,
                "seq_rep_4": 0.02,
                "logp": -20.0,
                "sft_logp": -20.0,
                "logp_tokens": 20,
            }
            for i in range(n)
        ],
        "lm_eval": [
            {
                "task": "preference_pairs",
                "doc_id": i,
                "id": f"x:{i}",
                "digest": f"d{i}",
                "cluster": None,
                "metrics": {"acc": float(i % 4 > 0), "acc_norm": float(i % 2)},
            }
            for i in range(n)
        ],
        "suite_answers": [],
    }


def write(folder: Path, rows: Rows) -> Path:
    folder.mkdir(exist_ok=True)
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
    both = {"acc": True, "acc_norm": True}
    about = {"metrics": {"acc": 0.75, "acc_norm": 0.5}, "main": "acc", "higher_is_better": both, "binary": both}
    tasks = {r["task"] for r in rows.get("lm_eval", [])}
    (folder / "lm_eval.json").write_text(json.dumps({task: about | {"n": 40} for task in sorted(tasks)}))
    return folder


def strict(text: str) -> Any:
    """JSON without NaN and Infinity."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def judged(
    tmp_path: Path,
    policy: Rows,
    sft: Rows | None = None,
    training: dict[str, Any] | None = None,
    beta: float = 0.1,
    judge: Path | None = None,
    **gate: Any,
) -> dict[str, Any]:
    """The verdict on a policy; the default SFT is healthy."""
    places = write(tmp_path / "sft", sft or sft_rows()), write(tmp_path / "policy", policy)
    return compare(*places, training or DONE, beta, Gate.model_validate(gate), tmp_path, judge=judge)


def moved(chosen: list[float], rejected: list[float]) -> Rows:
    """The healthy model with other log-probabilities of the pairs: differences to SFT, repeated over the pairs."""
    rows = sft_rows()
    for i, pair in enumerate(rows["pairs"]):
        pair["chosen_logp"] += chosen[i % len(chosen)]
        pair["rejected_logp"] += rejected[i % len(rejected)]
    return rows


def answered(**changes: Any) -> Rows:
    """A policy that ranks well (36 of 40 pairs) and answers with these changes."""
    rows = moved([1.0] * 9 + [-1.0], [0.0])
    for answer in rows["answers"]:
        answer.update(changes)
    return rows


# --- outcomes ---------------------------------------------------------------------------------------------


def test_identical_models(tmp_path: Path) -> None:
    """Every margin is 0, so every pair counts one half: 20 of 40 and Wilson's interval around it."""
    found = judged(tmp_path, sft_rows())
    assert found["outcome"] == "inconclusive"
    metrics = found["metrics"]["policy"]
    assert metrics["reward_accuracy"] == 0.5 and metrics["reward_margin"] == 0.0
    expected = stats.binomtest(20, 40).proportion_ci(0.95, "wilson")
    assert (metrics["reward_accuracy_lo"], metrics["reward_accuracy_hi"]) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )
    assert all(value == [0.0, 0.0, 0.0] for value in found["differences"].values())
    assert all(d["mean"] <= 0 for d in found["damages"])
    assert found["displacement"] == {
        "mean_chosen_logp_change": 0.0,
        "mean_chosen_logp_change_per_token": [0.0, 0.0, 0.0],
        "share_fallen": 0.0,
    }
    assert "would decide" not in found["reasons"][0]


def test_a_better_policy(tmp_path: Path) -> None:
    """36 of 40: the lower bound is 0.7695."""
    found = judged(tmp_path, answered())
    assert found["outcome"] == "promote"
    assert found["metrics"]["policy"]["reward_accuracy"] == 0.9
    assert found["metrics"]["policy"]["reward_accuracy_lo"] == pytest.approx(wilson(36, 40)[0])


def test_a_worse_policy(tmp_path: Path) -> None:
    """It prefers the rejected answers."""
    found = judged(tmp_path, moved([-1.0] * 9 + [1.0], [0.0]))
    assert found["outcome"] == "reject" and "prefers the rejected answers" in found["reasons"][0]


def test_an_undecided_policy_is_told_how_many_pairs_it_takes(tmp_path: Path) -> None:
    """24 of 40 is 0.6."""
    found = judged(tmp_path, moved([1.0] * 6 + [-1.0] * 4, [0.0]))
    assert found["outcome"] == "inconclusive"
    assert f"about {accuracy_needed(0.6)} held-out pairs would decide" in found["reasons"][0]


def test_the_pairs_it_takes_are_counted_to_the_bar_in_force(tmp_path: Path) -> None:
    """0.9 on 40 pairs does not clear a bar of 0.85; see the bar's own size, not the one that clears 0.5."""
    found = judged(tmp_path, answered(), min_reward_accuracy=0.85)
    assert found["outcome"] == "inconclusive"
    assert f"about {accuracy_needed(0.9, 0.85)} held-out pairs would decide" in found["reasons"][0]


def test_chance_promotes_in_less_than_five_per_cent() -> None:
    """Exact: the binomial probability, for a policy no better than SFT, that the lower bound exceeds 0.5."""
    for n in (10, 32, 100, 500):
        chance = sum(stats.binom.pmf(k, n, 0.5) for k in range(n + 1) if wilson(k, n)[0] > 0.5)
        assert chance < 0.05


def test_a_training_that_stopped_short(tmp_path: Path) -> None:
    found = judged(tmp_path, answered(), training={"steps": 7, "max_steps": 8})
    assert found["outcome"] == "reject"
    assert found["reasons"] == ["training stopped at step 7 of 8"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": "", "tokens": 0, "sft_logp": -0.1, "logp": -0.1, "logp_tokens": 1}, "empty answers"),
        ({"text": " \n", "tokens": 1, "sft_logp": -0.1, "logp": -0.1, "logp_tokens": 1}, "empty answers"),
        ({"stopped": False}, "answers that stop by themselves"),
        ({"seq_rep_4": 0.76}, "repetition (seq-rep-4)"),
        # gibberish: little repetition, but 7.6 nats per token under SFT, against 2 x 1.0 + 1.0
        ({"sft_logp": -152.0}, "NLL of the answers under SFT"),
    ],
)
def test_a_damaged_policy_is_rejected_for_the_right_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    """And for no other, though it ranks the pairs well."""
    found = judged(tmp_path, answered(**changes))
    assert found["outcome"] == "reject"
    assert len(found["reasons"]) == 1 and found["reasons"][0].startswith(reason)
    assert "worse than SFT" in found["reasons"][0]


def test_a_lost_capability(tmp_path: Path) -> None:
    """SFT is right on 30 of 40 documents, the policy on none."""
    policy = answered()
    for row in policy["lm_eval"]:
        row["metrics"]["acc"] = 0.0
    found = judged(tmp_path, policy)
    assert found["outcome"] == "reject" and found["reasons"][0].startswith("lm-eval preference_pairs")
    assert found["differences"]["lm_eval/preference_pairs/acc"][0] == -0.75
    (task,) = found["tasks"]
    assert (task["sft"], task["policy"], task["n"], task["metric"]) == (0.75, 0.0, 40, "acc")
    assert task["p"] == pytest.approx(2 * 0.5**30, abs=1e-10) and task["test"] == "exact McNemar"
    assert task["p_holm"] == pytest.approx(3 * task["p"], abs=1e-9)  # beside the tests of stops and of empties


def test_one_empty_answer_is_no_damage(tmp_path: Path) -> None:
    """1 of 40 is 2.5 points, above the bar of 1: but the lower bound is not."""
    policy = answered()
    policy["answers"][0].update(text="")
    found = judged(tmp_path, policy)
    (empty,) = [d for d in found["damages"] if d["name"] == "empty answers"]
    assert empty["mean"] == 0.025 > empty["bar"] >= empty["low"]
    assert found["outcome"] == "promote"


def test_damage_is_paired_with_sft(tmp_path: Path) -> None:
    """An SFT model that never stops and answers nothing cannot be made worse in that."""
    sft, policy = sft_rows(), answered()
    for rows in (sft, policy):
        for answer in rows["answers"]:
            answer.update(stopped=False, text="", seq_rep_4=0.9)
    assert judged(tmp_path, policy, sft)["outcome"] == "promote"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("pairs", "chosen_logp"),
        ("pairs", "rejected_logp"),
        ("answers", "sft_logp"),
        ("answers", "logp"),
        ("answers", "seq_rep_4"),
        ("lm_eval", "acc"),
        ("lm_eval", "acc_norm"),
    ],
)
def test_what_is_not_finite_is_never_promoted(tmp_path: Path, file: str, field: str, bad: float) -> None:
    """One value in one row of the policy; the verdict's files are still strict JSON."""
    policy = answered()
    row = policy[file][3]
    (row["metrics"] if file == "lm_eval" else row)[field] = bad
    found = judged(tmp_path, policy)
    assert found["outcome"] == "reject"
    assert any("not finite" in r or "could not be measured" in r for r in found["reasons"])
    assert strict((tmp_path / "verdict.json").read_text()) == found
    for line in (tmp_path / "comparison.jsonl").read_text().splitlines():
        strict(line)


@pytest.mark.parametrize(
    ("file", "field"),
    [
        (f, k)
        for f, ks in {"pairs": ("chosen_logp", "rejected_logp"), "answers": ("seq_rep_4", "logp")}.items()
        for k in ks
    ]
    + [("lm_eval", "acc"), ("lm_eval", "acc_norm")],
)
def test_null_is_not_a_number_either(tmp_path: Path, file: str, field: str) -> None:
    """A child that writes null for what is not finite."""
    for broken in ("sft", "policy"):
        sft, policy = sft_rows(), answered()
        row = {"sft": sft, "policy": policy}[broken][file][3]
        (row["metrics"] if file == "lm_eval" else row)[field] = None
        found = judged(tmp_path, policy, sft)
        assert found["outcome"] == "reject" and strict((tmp_path / "verdict.json").read_text()) == found


def test_nan_in_sft_is_never_promoted_either(tmp_path: Path) -> None:
    sft = sft_rows()
    sft["pairs"][0]["chosen_logp"] = math.nan
    assert judged(tmp_path, answered(), sft)["outcome"] == "reject"


def test_models_that_saw_other_items_are_not_compared(tmp_path: Path) -> None:
    for file in ("pairs", "answers", "lm_eval"):
        policy = answered()
        policy[file] = policy[file][1:]
        with pytest.raises(StepError, match="other items"):
            judged(tmp_path, policy)
        policy[file] = policy[file][1:] + policy[file][-1:] * 2  # as many rows, one of them twice
        with pytest.raises(StepError, match="other items"):
            judged(tmp_path, policy)


def test_models_that_were_asked_different_things_are_not_compared(tmp_path: Path) -> None:
    """The same document, but another prompt: another template, or other few-shot examples."""
    policy = answered()
    policy["lm_eval"][7]["digest"] = "another"
    with pytest.raises(StepError, match=r"asked different things in 1 of 40 documents \(the first is x:7\)"):
        judged(tmp_path, policy)


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    policy = answered()
    expected = judged(tmp_path, policy)
    for rows in policy.values():
        rows.reverse()
    assert judged(tmp_path, policy)["metrics"] == expected["metrics"]
    assert (tmp_path / "verdict.json").exists()


# --- the numbers ------------------------------------------------------------------------------------------


def test_rewards_by_hand() -> None:
    """β·(log π − log π_ref): 0.1·(−8 + 10) = 0.2 and 0.1·(−15 + 12) = −0.3."""
    sft = {"chosen_logp": -10.0, "rejected_logp": -12.0}
    policy = {"chosen_logp": -8.0, "rejected_logp": -15.0}
    assert rewards(sft, policy, 0.1) == pytest.approx((0.2, -0.3))


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
def test_beta_scales_margins_and_nothing_else(tmp_path: Path, beta: float) -> None:
    """Margins of 2 − (−3) = 5 and −1 − 0 = −1 nats, half of the pairs each: mean 2β; accuracy 0.5 for every β."""
    found = judged(tmp_path, moved([2.0, -1.0], [-3.0, 0.0]), beta=beta)
    metrics = found["metrics"]["policy"]
    assert metrics["reward_margin"] == pytest.approx(2 * beta)
    assert metrics["reward_accuracy"] == 0.5 and found["beta"] == beta
    rows = [json.loads(line) for line in (tmp_path / "comparison.jsonl").read_text().splitlines()]
    assert [r["margin"] for r in rows] == pytest.approx([5 * beta, -1 * beta] * 20)
    assert [r["reward_chosen"] for r in rows[:2]] == pytest.approx([2 * beta, -1 * beta])
    assert [r["reward_rejected"] for r in rows[:2]] == pytest.approx([-3 * beta, 0], abs=1e-12)
    assert rows[1]["row_id"] == "x:1" and rows[1]["source"] == "x"
    displaced = found["displacement"]
    assert (displaced["mean_chosen_logp_change"], displaced["share_fallen"]) == (0.5, 0.5)
    assert displaced["mean_chosen_logp_change_per_token"][0] == pytest.approx(0.05)  # 0.5 nats over 10 tokens
    assert found["metrics"]["sft"]["reward_margin"] == 0.0
    assert found["metrics"]["sft"]["reward_accuracy"] == 0.5


def test_ties_count_one_half(tmp_path: Path) -> None:
    """20 pairs won, 10 lost, 10 tied of 40: (20 + 5)/40 = 0.625."""
    found = judged(tmp_path, moved([1.0, 1.0, -1.0, 0.0], [0.0]))
    assert found["metrics"]["policy"]["reward_accuracy"] == 0.625


def test_measures_by_hand() -> None:
    """Two pairs, two answers.

    Pair 1: chosen −6 over 3 tokens (−2), rejected −5 over 5 (−1): wrong in sum and per token.
    Pair 2: chosen −4 over 4 (−1), rejected −4 over 2 (−2): a tie in sum, right per token.
    Answers: 10 and 20 tokens; one stopped; one empty; NLL 12/6 = 2 and 0 (no token); KL (−9 + 12)/6 = 0.5 and 0.
    """
    pairs = [
        {"group_id": "a", "chosen_logp": -6.0, "rejected_logp": -5.0, "chosen_tokens": 3, "rejected_tokens": 5},
        {"group_id": "b", "chosen_logp": -4.0, "rejected_logp": -4.0, "chosen_tokens": 4, "rejected_tokens": 2},
    ]
    answers = [
        {"tokens": 10, "stopped": True, "text": "a", "seq_rep_4": 0.5, "logp": -9, "sft_logp": -12, "logp_tokens": 6},
        {"tokens": 20, "stopped": False, "text": " ", "seq_rep_4": 0.0, "logp": 0, "sft_logp": 0, "logp_tokens": 0},
    ]
    found = {name: value[0] for name, value in measures(pairs, answers).items()}
    assert found == {
        "ranking_accuracy": 0.25,
        "ranking_accuracy_per_token": 0.5,
        "chosen_logp_per_token": -1.5,
        "rejected_logp_per_token": -1.5,
        "response_tokens": 15.0,
        "stop_rate": 0.5,
        "empty_rate": 0.5,
        "seq_rep_4": 0.25,
        "nll_under_sft": 1.0,
        "kl_per_token": 0.25,
    }


def test_each_measure_has_its_interval(tmp_path: Path) -> None:
    """Shares have Wilson's; every value lies in its interval."""
    metrics = judged(tmp_path, answered())["metrics"]
    assert set(metrics["sft"]) == set(metrics["policy"])
    for found in metrics.values():
        for name in [n for n in found if not n.endswith(("_lo", "_hi"))]:
            assert found[f"{name}_lo"] <= found[name] <= found[f"{name}_hi"], name
    assert metrics["policy"]["stop_rate_lo"] == pytest.approx(wilson(40, 40)[0])


def test_differences_are_policy_minus_sft(tmp_path: Path) -> None:
    policy = moved([3.0], [-1.0])
    for answer in policy["answers"]:
        answer["tokens"] += 7
    found = judged(tmp_path, policy)["differences"]
    assert found["response_tokens"] == [7.0, 7.0, 7.0]
    assert found["chosen_logp_per_token"] == pytest.approx([0.3] * 3)  # 3 nats over 10 tokens
    assert found["rejected_logp_per_token"] == pytest.approx([-0.2] * 3)  # 1 nat over 5 tokens


def test_the_file_is_the_result_and_repeats(tmp_path: Path) -> None:
    first = judged(tmp_path, answered())
    text = (tmp_path / "verdict.json").read_text()
    assert strict(text) == first and first["schema"] == 2
    assert (first["pairs"], first["answers"]) == (40, 40)
    again = judged(tmp_path, copy.deepcopy(answered()))
    assert again == first and (tmp_path / "verdict.json").read_text() == text


def test_without_lm_eval(tmp_path: Path) -> None:
    """tasks: [] leaves them out; the verdict needs them not."""
    sft, policy = sft_rows(), answered()
    sft["lm_eval"], policy["lm_eval"] = [], []
    found = judged(tmp_path, policy, sft)
    assert found["outcome"] == "promote" and not any("lm_eval" in n for n in found["metrics"]["policy"])
    assert found["tasks"] == [] and found["judge"] is None and found["win_rates"] == {} and found["mt_bench"] is None
    for folder in ("sft", "policy"):
        (tmp_path / folder / "lm_eval.json").unlink()
        (tmp_path / folder / "suite_answers.jsonl").unlink()
    places = tmp_path / "sft", tmp_path / "policy"
    assert compare(*places, DONE, 0.1, Gate.model_validate({}), tmp_path)["outcome"] == "promote"


def test_a_policy_that_was_not_trained_here(tmp_path: Path) -> None:
    """There are no steps to check."""
    places = write(tmp_path / "sft", sft_rows()), write(tmp_path / "policy", answered())
    assert compare(*places, None, 0.1, Gate.model_validate({}), tmp_path)["outcome"] == "promote"


def test_pairs_of_one_prompt_are_no_independent_ones(tmp_path: Path) -> None:
    """Four pairs a prompt that all move alike are worth one: 36 of 40 right are 9 of 10, nearly (the clustered
    variance of n items in groups of m alike is m·(1 − 1/m)·p(1 − p)/n + p(1 − p)/(n − 1), arXiv 2411.00640).
    """
    sft, policy = sft_rows(), sft_rows()
    for i, pair in enumerate(policy["pairs"]):
        pair["chosen_logp"] += 1.0 if i < 36 else -1.0
        pair["group_id"] = sft["pairs"][i]["group_id"] = f"g{i // 4}"
    found = judged(tmp_path, policy, sft)
    variance = 0.9 * 0.1
    alone = variance / 39
    clustered = alone + (10 * (4**2 * variance) - 40 * variance) / 40**2
    worth = 40 * alone / clustered
    assert found["primary"]["n"] == 40 and found["primary"]["effective_n"] == pytest.approx(worth)
    assert found["primary"]["low"] == pytest.approx(wilson(0.9 * worth, worth)[0])
    assert found["primary"]["low"] < wilson(36, 40)[0]
    assert "grouped_pairs" in [n["name"] for n in found["notes"]]


def test_by_source_and_topic(tmp_path: Path) -> None:
    """30 pairs have the topic; of these i % 4 in (1, 2, 3) the policy moves i % 4 == 1 the wrong way."""
    sft, policy = sft_rows(), moved([1.0, -1.0, 1.0, 1.0], [0.0])
    for rows in (sft, policy):
        for pair in rows["pairs"][:12]:
            pair["source"] = "y"
    found = judged(tmp_path, policy, sft)
    (topic,) = found["by_topic"]
    assert (topic["name"], topic["n"]) == ("water", 30)
    assert topic["reward_accuracy"] == pytest.approx([2 / 3, *wilson(20, 30)])
    assert [(s["name"], s["n"]) for s in found["by_source"]] == [("x", 28), ("y", 12)]
    assert found["by_source"][1]["reward_accuracy"][0] == 0.75
    # chosen −20 − i%3 against rejected −21 + i%2: i%3 = 0 wins or ties, i = 0, 6 win; 3, 9 tie; 1, 5, 7, 11 … lose
    expected = sum(1.0 if (a := -20 - i % 3) > (b := -21 + i % 2) else 0.5 if a == b else 0.0 for i in range(12))
    assert found["by_source"][1]["ranking_accuracy"]["sft"] == pytest.approx(expected / 12)
    rows = [json.loads(line) for line in (tmp_path / "comparison.jsonl").read_text().splitlines()]
    assert [r["topic"] for r in rows[:2]] == [None, "water"]


# --- with a judge -----------------------------------------------------------------------------------------


def judge_folder(tmp_path: Path, rows: list[dict[str, Any]], **about: Any) -> Path:
    folder = tmp_path / "judge"
    folder.mkdir(exist_ok=True)
    (folder / "judgements.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "judge.json").write_text(json.dumps({"kind": "openai", "model": "a judge", "errors": {}, **about}))
    return folder


def verdicts(winners: list[tuple[str | None, str | None]]) -> list[dict[str, Any]]:
    """The winner in each order, for as many prompts as there are."""
    return [judgement("held_out", f"x:{i}", 1, ("sft", "policy"), w) for i, w in enumerate(winners)]


def test_a_judge_decides(tmp_path: Path) -> None:
    """30 of 40 prompts are won; the texts are as long as SFT's, so that nothing is taken out: Wilson is not used, but
    lies near (30/40: 0.598 to 0.858)."""
    judge = judge_folder(tmp_path, verdicts([("policy", "policy")] * 30 + [("sft", "sft")] * 10), requests=80)
    found = judged(tmp_path, moved([-1.0, 1.0], [0.0]), judge=judge)  # the pairs alone would not decide
    assert found["outcome"] == "promote" and found["primary"]["name"] == "lc_win_rate"
    assert found["primary"]["value"] == found["metrics"]["policy"]["win_rate"] == 0.75
    assert found["primary"]["low"] == pytest.approx(0.598, abs=0.03)
    assert found["metrics"]["sft"]["win_rate"] == found["metrics"]["sft"]["lc_win_rate"] == 0.5
    assert found["judge"]["usable"] and found["judge"]["comparisons"] == 40 and found["judge"]["requests"] == 80


def test_a_judge_overrules_the_pairs(tmp_path: Path) -> None:
    """36 of 40 pairs moved the right way, but the answers lose."""
    judge = judge_folder(tmp_path, verdicts([("sft", "sft")] * 30 + [("policy", "policy")] * 10))
    found = judged(tmp_path, answered(), judge=judge)
    assert found["outcome"] == "reject" and "the judge prefers SFT's answers" in found["reasons"][0]
    assert "reward_accuracy" not in [n["name"] for n in found["notes"]]


def test_identical_models_and_a_judge(tmp_path: Path) -> None:
    """All ties at equal length: ½, and no certainty about it."""
    found = judged(tmp_path, sft_rows(), judge=judge_folder(tmp_path, verdicts([("tie", "tie")] * 40)))
    assert found["outcome"] == "inconclusive" and found["primary"]["value"] == 0.5
    assert "identical_answers" in [n["name"] for n in found["notes"]]


@pytest.mark.parametrize(("silent", "usable"), [(0, True), (1, False), (40, False)])
def test_a_judge_that_is_silent_too_often(tmp_path: Path, silent: int, usable: bool) -> None:
    """1 of 40 is 2.5 %, above the bar of 2 %: not decided, though every other answer wins. Verdicts that are missing
    altogether count like those with an error."""
    rows = verdicts([("policy", None)] * silent + [("policy", "policy")] * (40 - silent))
    for there in (rows, rows[silent:]):
        judge = judge_folder(tmp_path, there, errors={"it timed out": silent} if silent else {})
        found = judged(tmp_path, answered(), judge=judge)
        assert found["outcome"] == ("promote" if usable else "inconclusive")
        assert found["judge"]["error_rate"] == silent / 40
        assert usable or f"{silent / 40:.1%} of the comparisons have no verdict" in found["reasons"][0]
        assert strict((tmp_path / "verdict.json").read_text()) == found


def test_a_judge_whose_budget_ended(tmp_path: Path) -> None:
    judge = judge_folder(tmp_path, verdicts([("policy", "policy")] * 20), stopped="max_requests: 40 were made")
    found = judged(tmp_path, answered(), judge=judge)
    assert found["outcome"] == "inconclusive" and "max_requests: 40 were made" in found["reasons"][0]


def test_a_judge_may_not_be_promoted_by_a_number_that_is_none(tmp_path: Path) -> None:
    """An outcome that is no outcome counts as missing."""
    for bad in (math.nan, math.inf, 2.0, None, "win"):
        rows = [r | {"outcome": bad} for r in verdicts([("policy", "policy")] * 40)]
        found = judged(tmp_path, answered(), judge=judge_folder(tmp_path, rows))
        assert found["outcome"] == "inconclusive" and found["judge"]["error_rate"] == 1


def test_verdicts_on_other_answers(tmp_path: Path) -> None:
    rows = verdicts([("policy", "policy")] * 41)
    with pytest.raises(StepError, match="an answer that nobody gave: x:40"):
        judged(tmp_path, answered(), judge=judge_folder(tmp_path, rows))


def test_notes_of_a_judged_run(tmp_path: Path) -> None:
    """Longer answers, a judge that likes them and the first place, and pairs that moved the wrong way."""
    rng, world = np.random.default_rng(0), World(prompts=40, longer=1.6, by_length=6.0, ties=0.25)
    sft, policy = sft_rows(), moved([-1.0] * 9 + [1.0], [0.0])
    sft["answers"], policy["answers"] = answer_rows(world, rng)
    for rows in (sft, policy):
        for i, answer in enumerate(rows["answers"]):
            answer["row_id"] = f"x:{i}"
    rows = judged_rows(world, (sft["answers"], policy["answers"]), rng)
    found = judged(tmp_path, policy, sft, judge=judge_folder(tmp_path, rows))
    notes = {n["name"]: n for n in found["notes"]}
    assert {"length_ratio", "judge_length_bias", "flip_rate", "reward_accuracy", "displacement"} <= set(notes)
    assert "times as long as SFT's" in notes["length_ratio"]["text"]
    assert [n["severity"] for n in found["notes"]] == sorted((n["severity"] for n in found["notes"]), reverse=True)
