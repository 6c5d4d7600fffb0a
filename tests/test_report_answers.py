"""Which answers are shown side by side."""

from dataclasses import replace
from typing import Any

import pytest
from sample_evidence import judgement, make_input

from preftune.report_answers import held_out_answers, low_margin_pairs, suite_sections
from preftune.report_input import ReportInput


@pytest.fixture(scope="module")
def data() -> ReportInput:
    return make_input(prompts=30)


def ids(group: dict[str, Any]) -> list[str]:
    return [a["id"] for a in group["articles"]]


def margins(data: ReportInput) -> dict[str, float]:
    return {c["row_id"]: c["margin"] for c in data.comparison}


def test_with_a_judge_its_outcome_picks(data: ReportInput) -> None:
    found = held_out_answers(data)
    outcome = {j["id"]: j["outcome"] for j in data.judgements if j["suite"] == "held_out"}
    wins, losses, samples = found["groups"]
    assert [g["title"] for g in found["groups"]] == ["Best wins", "Worst losses", "Random samples"]
    margin = margins(data)
    won = sorted((i for i in outcome if outcome[i] == 1.0), key=lambda i: -margin[i])
    lost = sorted((i for i in outcome if outcome[i] == 0.0), key=lambda i: margin[i])
    assert ids(wins) == won[:4] and ids(losses) == lost[:4]
    shown = [*ids(wins), *ids(losses), *ids(samples), *(a["id"] for a in found["rest"])]
    assert len(ids(samples)) == 6 and len(shown) == len(set(shown)) == 30 - found["hidden"]
    assert held_out_answers(data) == found


def test_without_a_judge_the_margins_pick(data: ReportInput) -> None:
    found = held_out_answers(replace(data, judgements=[]))
    margin = margins(data)
    ranked = sorted((s["row_id"] for s, _ in data.answers), key=lambda i: -margin[i])
    assert [g["title"] for g in found["groups"]] == ["Largest margins", "Smallest margins", "Random samples"]
    assert ids(found["groups"][0]) == ranked[:4]
    assert ids(found["groups"][1]) == ranked[::-1][:4]
    assert "No judge" in found["how"]


def test_a_judge_without_any_verdict_picks_nothing(data: ReportInput) -> None:
    silent = [judgement("held_out", s["row_id"], None) for s, _ in data.answers]
    found = held_out_answers(replace(data, judgements=silent))
    assert found["groups"][0]["title"] == "Largest margins"
    assert "no verdict" in found["groups"][0]["articles"][0]["why"]


@pytest.mark.parametrize("prompts", [0, 1, 2, 5])
def test_few_answers_are_shown_once(prompts: int) -> None:
    data = make_input(judged=False, prompts=prompts)
    found = held_out_answers(data)
    shown = [i for g in found["groups"] for i in ids(g)] + [a["id"] for a in found["rest"]]
    assert sorted(shown) == sorted(s["row_id"] for s, _ in data.answers)


def test_an_article(data: ReportInput) -> None:
    groups = held_out_answers(data)["groups"]
    article = next(a for g in groups for a in g["articles"] if a["why"].startswith("DPO won; margin "))
    (turn,) = article["turns"]
    assert [t["who"] for t in turn["texts"]] == [
        *("SFT answer", "DPO answer", "Chosen in the dataset", "Rejected in the dataset"),
    ]
    sft, policy, *_ = turn["texts"]
    assert [text for only_here, text in sft["parts"] if only_here] == ["soon"]
    assert [text for only_here, text in policy["parts"] if only_here] == ["tomorrow"]
    assert turn["judged"][0]["result"] == "DPO won"


def test_the_pairs_furthest_below_zero(data: ReportInput) -> None:
    found = low_margin_pairs(data)
    below = sorted((m, i) for i, m in margins(data).items() if m < 0)
    assert [a["id"] for a in found] == [i for _, i in below[:5]]
    assert [t["who"] for t in found[0]["turns"][0]["texts"]] == ["Chosen", "Rejected"]
    assert low_margin_pairs(replace(data, pairs=[])) == []


def test_suites(data: ReportInput) -> None:
    alpaca, mt_bench, prompts = suite_sections(data)
    assert [(s["title"], s["total"], s["hidden"]) for s in (alpaca, mt_bench, prompts)] == [
        ("AlpacaEval", 2, 0),
        ("MT-Bench", 2, 0),
        ("The recipe's own prompts", 3, 0),
    ]
    assert prompts["articles"][0]["why"] == "DPO won"
    first = alpaca["articles"][0]
    assert first["why"] == "SFT against the reference: the reference won; DPO against the reference: the reference won"
    assert first["turns"][0]["texts"][2]["who"] == "Reference (a-reference-model)"
    poem = mt_bench["articles"][1]
    assert poem["start"].startswith("writing: Write a poem 1.")
    assert poem["why"] == "turn 1: DPO won; turn 2: DPO won"
    assert [len(t["prompt"]) for t in poem["turns"]] == [1, 1]  # the second turn's own words only
    assert poem["turns"][1]["prompt"][0]["content"] == "Now shorter."
    assert [t["facts"] for t in poem["turns"][0]["texts"]] == ["20 tokens, grade 7", "20 tokens, grade 8", ""]
    assert poem["turns"][1]["texts"][2]["parts"] == [(False, "Ode.")]
    assert len(mt_bench["articles"][0]["turns"][0]["texts"]) == 2  # no reference
