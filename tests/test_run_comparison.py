"""Runs compared on the items in common, by hand and by scipy."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sample_evidence import make_run
from scipy import stats

from preftune.errors import UserError
from preftune.run_comparison import (
    RunEvidence,
    answers_in_common,
    cautions,
    compare_runs,
    differing,
    pairs_in_common,
)


def pair(i: int, chosen: float | None, rejected: float | None, **more: Any) -> dict[str, Any]:
    row = {"row_id": f"r{i}", "group_id": f"g{i}", "source": "s", "topic": None}
    row |= {"chosen_logp": chosen, "rejected_logp": rejected, "chosen_tokens": 10, "rejected_tokens": 5}
    return {**row, **more}


def run(name: str, pairs: list[dict[str, Any]], margins: list[float] | None = None, **changes: Any) -> RunEvidence:
    rows = zip(pairs, margins, strict=True) if margins else []
    comparison = [{"row_id": p["row_id"], "source": p["source"], "margin": m} for p, m in rows]
    evidence = {"pairs": pairs, "comparison": comparison, "answers": [], "lm_eval": []}
    return replace(make_run(name, 1.0), **{**evidence, **changes})


def found(*runs: RunEvidence) -> dict[str, Any]:
    return {c.name: c for c in compare_runs(runs)}


def test_by_hand() -> None:
    one = run("a", [pair(0, -10, -10), pair(1, -20, -30), pair(2, -20, -15)], [0.5, -0.5, 0.0])
    two = run("b", [pair(0, -10, -20), pair(1, -10, -30), pair(2, -10, -15)], [0.5, 0.5, 0.5])
    measures = found(one, two)
    assert measures["ranking_accuracy"].values == pytest.approx([0.5, 1.0])  # (½ + 1 + 0) / 3
    assert measures["ranking_accuracy"].differences[0][0] == pytest.approx(0.5)
    assert measures["ranking_accuracy_per_token"].values == pytest.approx([1.0, 1.0])
    assert measures["chosen_logp_per_token"].values == pytest.approx([-5 / 3, -1.0])
    assert measures["reward_accuracy"].values == pytest.approx([0.5, 1.0])  # (1 + 0 + ½) / 3
    assert {c.n for c in measures.values()} == {3}


def test_intervals_are_paired_and_scipy_s() -> None:
    rng = np.random.default_rng(1)
    base, gain = rng.normal(-50, 20, 60), rng.normal(1, 2, 60)
    one = run("a", [pair(i, float(b), -50.0) for i, b in enumerate(base)])
    two = run("b", [pair(i, float(b + g), -50.0) for i, (b, g) in enumerate(zip(base, gain, strict=True))])
    (mean, low, high) = found(one, two)["chosen_logp_per_token"].differences[0]
    wanted = stats.bootstrap((gain / 10,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(5))
    assert mean == pytest.approx(gain.mean() / 10)
    assert (low, high) == pytest.approx(tuple(wanted.confidence_interval), abs=0.006)
    assert high - low < 0.15  # unpaired, the spread of 20 nats would make it above 1


def test_three_runs_against_the_first() -> None:
    runs = [make_run("a", 4.0), make_run("b", 6.0), make_run("c", 2.0)]
    tokens = found(*runs)["response_tokens"]
    assert tokens.values[0] + 2 == tokens.values[1] and tokens.values[0] - 2 == tokens.values[2]
    assert tokens.differences == [(2.0, 2.0, 2.0), (-2.0, -2.0, -2.0)]
    facts = found(*runs)["lm_eval/facts/exact_match"]
    assert facts.n == 30 and facts.values == pytest.approx([1 / 3] * 3)


def test_only_pairs_in_common_with_the_same_text() -> None:
    one = run("a", [pair(0, -1, -2), pair(1, -1, -2), pair(2, -1, -2, digest="x"), pair(3, -1, -2, digest="x")])
    two = run("b", [pair(1, -1, -2), pair(2, -1, -2, digest="y"), pair(3, -1, -2, digest="x"), pair(9, -1, -2)])
    assert [rows[0]["row_id"] for rows in pairs_in_common([one, two])] == ["r1", "r3"]
    other_prompt = run("c", [pair(1, -1, -2, group_id="other"), pair(3, -1, -2, digest="x")])
    assert [rows[0]["row_id"] for rows in pairs_in_common([one, two, other_prompt])] == ["r3"]
    longer = run("d", [pair(1, -1, -2, chosen_tokens=11)])
    with pytest.raises(UserError, match="no held-out pair in common") as raised:
        pairs_in_common([one, longer])
    assert "a (a0123456)" in raised.value.where and raised.value.advice


def test_answers_to_another_prompt_are_not_compared() -> None:
    one, two = make_run("a", 4.0), make_run("b", 6.0)
    changed = [
        {**a, "prompt": [{"role": "user", "content": "else"}]} if i < 2 else a for i, a in enumerate(two.answers)
    ]
    assert len(answers_in_common([one, replace(two, answers=changed)])) == 7
    assert "stop_rate" not in found(one, replace(two, answers=[]))


def test_one_run_is_no_comparison() -> None:
    with pytest.raises(UserError, match="at least two runs"):
        pairs_in_common([make_run("a", 1.0)])


def test_what_is_not_finite_stays_so() -> None:
    one, two = run("a", [pair(0, -1, -2), pair(1, None, -2)]), run("b", [pair(0, -1, -2), pair(1, -1, -2)])
    measure = found(one, two)["ranking_accuracy"]
    assert math.isnan(measure.values[0]) and all(map(math.isnan, measure.differences[0]))


def test_items_that_share_a_group_are_not_taken_for_independent() -> None:
    """Four copies of each pair or document tell no more than one: the interval must not shrink by half."""
    rng = np.random.default_rng(2)
    gain = rng.normal(0, 2, 30)
    copies = [(i, k) for i in range(30) for k in range(4)]

    def measured(shared: bool) -> tuple[float, float]:
        group = [{"group_id": f"g{i}" if shared else f"g{i}-{k}"} for i, k in copies]
        one = [pair(n, -50.0, -50.0, **g) for n, g in enumerate(group)]
        two = [
            pair(n, -50.0 + float(gain[i]), -50.0, **g) for n, ((i, _), g) in enumerate(zip(copies, group, strict=True))
        ]
        lm_eval = [
            [
                {
                    **{"task": "t", "id": str(n), "digest": "d", "cluster": str(i) if shared else None},
                    "metrics": {"acc": float(gain[i] > 0) if who else 0.0},
                }
                for n, (i, _) in enumerate(copies)
            ]
            for who in (0, 1)
        ]
        measures = found(run("a", one, lm_eval=lm_eval[0]), run("b", two, lm_eval=lm_eval[1]))
        ends = [measures[name].differences[0] for name in ("chosen_logp_per_token", "lm_eval/t/acc")]
        return tuple(high - low for _, low, high in ends)  # pyright: ignore[reportReturnType]

    for together, alone in zip(measured(True), measured(False), strict=True):
        assert 1.7 < together / alone < 2.5


def test_an_sft_run_has_no_rewards() -> None:
    sft = replace(make_run("sft", 0.0), comparison=[], verdict={})
    assert "reward_accuracy" not in found(sft, make_run("a", 4.0))
    assert "ranking_accuracy" in found(sft, make_run("a", 4.0))


def test_two_sources_with_the_same_row_ids_keep_their_margins() -> None:
    rows = [pair(0, -1, -2), pair(0, -1, -2, source="t", group_id="h")]
    assert found(run("a", rows, [1.0, -1.0]), run("b", rows, [1.0, 1.0]))["reward_accuracy"].values == [0.5, 1.0]


def test_keys_that_differ() -> None:
    one = {"beta": 0.1, "output_dir": "x", "gate": {"a": 1, "b": [1]}, "tracking": {"experiment": "e"}, "same": None}
    two = {"beta": 0.2, "output_dir": "y", "gate": {"a": 1, "b": [2]}, "tracking": {}, "same": None, "new": {"x": 1}}
    assert differing([one, two]) == [("beta", [0.1, 0.2]), ("gate.b", [[1], [2]]), ("new.x", [None, 1])]
    assert differing([one, dict(one)]) == []


def test_cautions() -> None:
    one = make_run("a", 1.0, recipe={"model_name_or_path": "m", "evaluation": {"temperature": 0.0}})
    assert cautions([one, replace(one, recipe={**one.recipe, "beta": 3})]) == []
    (text,) = cautions([one, replace(one, recipe={**one.recipe, "model_name_or_path": "n"})])
    assert "different models" in text
    (text,) = cautions([one, replace(one, recipe={**one.recipe, "evaluation": {"temperature": 0.7}})])
    assert "not generated in the same way" in text
