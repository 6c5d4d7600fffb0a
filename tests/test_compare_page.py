"""The page that compares runs: everything told, everything escaped, nothing linked."""

import re
from dataclasses import replace

import pytest
from sample_evidence import make_run
from test_report import ESCAPED, EVIL, parse, section, words

from preftune.compare_page import ROOM, render_compare
from preftune.errors import UserError


@pytest.fixture(scope="module")
def page() -> str:
    return render_compare([make_run("a", 4.0), make_run("b", 6.0)])


def test_tells_the_runs_and_their_verdicts(page: str) -> None:
    runs = words(section(page, "runs"))
    assert "1: a a0123456789abcdef promote" in runs and "2: b b0123456789abcdef promote" in runs
    assert "82.5% 68.0% to 91.3% reward accuracy" in runs


def test_measures_on_the_pairs_in_common(page: str) -> None:
    fewer = replace(make_run("b", 6.0), pairs=make_run("b", 6.0).pairs[5:])
    measures = words(section(render_compare([make_run("a", 4.0), fewer]), "measures"))
    assert "On the 35 held-out pairs" in measures and "run 1: 40, run 2: 35" in measures
    assert "Reward accuracy reward_accuracy 35" in measures
    assert "Answer length response_tokens 9 72.0 74.0 +2.0 higher" in words(section(page, "measures"))
    assert "facts: exact_match lm_eval/facts/exact_match 30 33.3% 33.3% 0.0 points" in words(section(page, "measures"))


def test_what_differs(page: str) -> None:
    differs = words(section(page, "settings"))
    assert "beta 0.1 0.15" in differs and "key a b" in differs and "trained weights a b" in differs
    assert "output_dir" not in differs and "starting model" not in differs
    same = render_compare([make_run("a", 4.0), make_run("a", 4.0)])
    assert "The recipes are the same" in same and "Data and origin" not in same


def test_answers_side_by_side(page: str) -> None:
    answers = section(page, "answers")
    assert answers.count('<details class="answer"') == 9 and answers.count('<details class="answer" open>') == 4
    assert "The two answers are the same." in answers
    assert "run 1 and run 2 did not stop" in answers


def test_three_runs() -> None:
    other = make_run("c", 2.0)
    changed = [{**a, "text": a["text"].replace("morning", "evening")} for a in other.answers]
    page = render_compare([make_run("a", 4.0), make_run("b", 6.0), replace(other, answers=changed)])
    parse(page)
    answers = section(page, "answers")
    assert "<ins>evening</ins>" in answers and "<del>" not in answers
    assert "Runs 1 and 2: The two answers are the same." in answers
    assert '<th scope="rowgroup" colspan="9">' in page


def test_an_sft_run_may_be_among_them() -> None:
    sft = replace(make_run("base", 0.0), comparison=[], verdict={})
    page = render_compare([sft, make_run("a", 4.0)])
    parse(page)
    assert "none: an SFT run" in words(section(page, "runs"))
    assert "Ranking accuracy" in page


def test_runs_that_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="no held-out pair in common"):
        render_compare([make_run("a", 4.0), replace(make_run("b", 6.0), pairs=[])])
    no_answers = render_compare([make_run("a", 4.0), replace(make_run("b", 6.0), answers=[])])
    parse(no_answers)
    assert "answered no prompt in common" in no_answers


def test_everything_is_escaped() -> None:
    page = render_compare([make_run("a", 4.0, EVIL), make_run("b", 6.0, EVIL)])
    found = parse(page)
    assert len(found.ids) == len(set(found.ids)) and found.refers <= set(found.ids)
    assert all(b <= a + 1 for a, b in zip(found.levels, found.levels[1:], strict=False))
    assert "<script" not in page
    for before in ("a", "key", "above 50%", "its bar", "It comes tomorrow.", "before noon.", "order number 0?"):
        assert f"{before}{ESCAPED}" in page, before


def test_no_link_leads_away(page: str) -> None:
    assert not re.search(r"""(?:src|href|action|srcset)\s*=\s*["']?\s*(?!#|data:,)[^"'>]""", page)
    assert "default-src 'none'" in page


def test_same_twice(page: str) -> None:
    assert render_compare([make_run("a", 4.0), make_run("b", 6.0)]) == page


def test_long_answers_do_not_swell_the_page() -> None:
    runs = []
    for name in "ab":
        run = make_run(name, 4.0)
        text = "word & " * 20_000
        many = [{**a, "row_id": f"{a['row_id']}-{i}", "text": f"{i} {text}"} for a in run.answers for i in range(60)]
        runs.append(replace(run, answers=many))
    page = render_compare(runs)
    shown = section(page, "answers").count('<details class="answer"')
    assert len(page.encode()) < ROOM + 100_000
    assert f"{540 - shown} of 540 prompts are not shown" in page and 20 < shown < 540
    assert "more characters are not shown" in page
