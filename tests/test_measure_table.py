"""The table of all measures."""

from typing import Any

import pytest
from sample_evidence import make_verdict

from preftune.measure_table import measure_rows


@pytest.fixture
def rows() -> dict[str, dict[str, Any]]:
    verdict = make_verdict()
    verdict["metrics"]["policy"]["stop_rate"] = 0.5
    verdict["differences"] |= {"stop_rate": [-0.25, -0.4, -0.1], "empty_rate": [0.0, -0.1, 0.1]}
    verdict["differences"]["response_tokens"] = [12.5, 3.0, 20.0]
    verdict["metrics"]["policy"]["new_measure"] = 2.5
    verdict["metrics"]["policy"]["lm_eval/wiki/word_perplexity,none"] = 12.5
    return {r["name"]: r for group in measure_rows(verdict).values() for r in group}


def test_differences(rows: dict[str, dict[str, Any]]) -> None:
    stop = rows["stop_rate"]
    assert stop["policy"]["value"] == "50.0%"
    assert stop["difference"] == {"value": "−25.0 points", "interval": "−40.0 to\u00a0−10.0"}
    assert stop["judgement"] == "worse"
    assert rows["empty_rate"]["judgement"] == "no clear change"
    assert rows["response_tokens"]["judgement"] == "higher"


def test_what_sft_has_by_definition_is_judged_by_the_policy_s_own_interval(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["reward_accuracy"]["difference"] is None
    assert rows["reward_accuracy"]["judgement"] == "better"
    assert rows["lc_win_rate"]["judgement"] == "better"
    assert rows["kl_per_token"]["judgement"] == "no clear change"


def test_unknown_measures_and_lm_eval_s(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["new_measure"]["policy"]["value"] == "2.500"
    assert rows["new_measure"]["sft"]["value"] == "not measured"
    facts = rows["lm_eval/facts/exact_match"]
    assert (facts["label"], facts["sft"]["value"], facts["better"]) == ("facts: exact_match", "40.0%", "higher")
    perplexity = rows["lm_eval/wiki/word_perplexity,none"]
    assert (perplexity["policy"]["value"], perplexity["better"]) == ("12.500", "lower")


def test_without_a_judge_there_is_no_group_of_it() -> None:
    assert list(measure_rows(make_verdict())) == [
        "Judged answers",
        "Preference on held-out pairs",
        "Generated answers",
        "Capability (lm-eval)",
    ]
    assert "Judged answers" not in measure_rows(make_verdict(judged=False))
