"""Scores of answers: by a rule in a process of its own, by a judge in both orders, by a reward model."""

import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_judge import Behaviour, always_a, fails, fake_judge, longest_wins, malformed, sometimes
from test_reward_model import reward_model  # noqa: F401  (a fixture)

from preftune.errors import StepError, UserError
from preftune.own_pairs import rule
from preftune.own_pairs.rule import find_rule
from preftune.own_pairs.scores import score
from preftune.pairs_schema import Pairs, RuleScorer
from preftune.workspace import Workspace

Row = dict[str, Any]


def prompt(name: str = "p", answer: str | None = None, **columns: Any) -> Row:
    messages = [{"role": "user", "content": f"Question {name}?"}]
    return {"id": name, "group": name, "prompt": messages, "answer": answer, "topic": None, "row": columns}


def said(*texts: str, name: str = "p") -> list[Row]:
    row = {"id": name, "whole": True, "tokens": None, "temperature": 1.0, "error": None}
    return [{**row, "number": i, "text": text} for i, text in enumerate(texts)]


def scored(
    folder: Path, prompts: list[Row], answers: list[Row], scorer: Any, told: list[str] | None = None, **keys: Any
) -> tuple[dict[tuple[str, int], Any], Row]:
    workspace = Workspace(folder, folder / ".preftune").make()
    settings = Pairs.model_validate({"prompts": "p.txt", "completions": 9, "scorer": scorer, **keys})
    tell = (told if told is not None else []).append
    rows, counts = score(prompts, answers, settings, workspace, folder, folder / "log", tell)
    return {(r["id"], r["number"]): r["score"] if r["error"] is None else r["error"] for r in rows}, counts


def written(folder: Path, code: str, **keys: Any) -> Row:
    (folder / "my_rule.py").write_text(code)
    return {"kind": "rule", "function": "my_rule.py:score", **keys}


def kept(folder: Path) -> int:
    with sqlite3.connect(folder / ".preftune/judgements/judgements.sqlite") as rows:
        return rows.execute("SELECT count(*) FROM judgements").fetchone()[0]


def test_a_rule_sees_prompt_answer_and_row_and_is_asked_once(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "def score(prompt, answer, row):\n"
        "    with Path(__file__).with_name('calls').open('a') as f:\n"
        "        f.write('x')\n"
        "    print('to the log')\n"
        "    return len(prompt[-1]['content']) + 100 * len(answer) + row['weight']\n"
    )
    scorer = written(tmp_path, code)
    prompts = [prompt(weight=0.5), prompt("q", weight=1000)]
    answers = [*said("a", "bb", " a ", ""), *said("alone", name="q")]
    found, counts = scored(tmp_path, prompts, answers, scorer)
    # "Question p?" has 11 characters; the same text again, a blank one and one that stands alone are not asked about
    assert found == {("p", 0): 111.5, ("p", 1): 211.5}
    assert counts == {"scored": 2, "cached": 0, "errors": {}}
    again, counts = scored(
        tmp_path, prompts, [*answers, *said("ccc", name="q")[0:0], *said("x", "y", name="q")], scorer
    )
    assert again[("p", 0)] == 111.5 and counts["cached"] == 2
    assert (tmp_path / "calls").read_text() == "x" * (2 + counts["scored"] - 2)
    assert "to the log" in (tmp_path / "log").read_text()
    written(tmp_path, code.replace("100", "10"))  # another rule
    assert scored(tmp_path, prompts, answers, scorer)[0][("p", 1)] == 31.5


FAULTY = """
import os, time
def score(prompt, answer, row):
    if answer == 'raises': raise KeyError('no such thing')
    if answer == 'exits': raise SystemExit(3)
    if answer == 'sleeps':
        try:
            time.sleep(30)
        except Exception:
            pass
    if answer == 'dies': os._exit(7)
    return {'nan': float('nan'), 'text': '5', 'none': None, 'huge': 10 ** 400, 'true': True}.get(answer, 1)
"""


def test_what_a_rule_does_wrong_costs_that_answer_only(tmp_path: Path) -> None:
    told: list[str] = []
    names = ("good", "raises", "dies", "exits", "sleeps", "nan", "text", "none", "huge", "true")
    scorer = written(tmp_path, FAULTY, timeout=0.3)
    found, counts = scored(tmp_path, [prompt()], said(*names), scorer, told)
    assert [found[("p", i)] for i in range(10)] == [
        *(1.0, "raised", "crashed", "raised", "timeout"),
        *("not_a_number", "not_a_number", "not_a_number", "not_a_number", 1.0),
    ]
    assert counts["errors"] == {"not_a_number": 4, "raised": 2, "crashed": 1, "timeout": 1}
    assert any("KeyError: 'no such thing', line 4" in line for line in told), told
    assert kept(tmp_path) == 2  # what failed is tried again: the rule may have been mended by its data
    assert scored(tmp_path, [prompt()], said(*names), scorer)[1]["cached"] == 2


@pytest.mark.parametrize(
    ("code", "message", "where"),
    [
        ("import no_such_module\ndef score(p, a, r): return 1\n", "No module named 'no_such_module'", "line 1"),
        (
            "def score(p, a, r):\n    return r['x']\n",
            "gave none of 2 answers a score (2 raised): KeyError: 'x', line 2",
            "score",
        ),
        ("def score(p, a):\n    return 1\n", "takes 2 positional arguments but 3 were given", "score"),
        ("def score(p, a, r):\n    return 'good'\n", "it returned 'good'", "score"),
        ("score = 7\n", "'score' is no function", "my_rule.py"),
    ],
)
def test_a_rule_that_scores_nothing(code: str, message: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        scored(tmp_path, [prompt()], said("a", "b"), written(tmp_path, code))
    assert message in told.value.error and where in told.value.where, told.value
    assert "\n" not in told.value.error


def test_a_rule_that_always_ends_its_process_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "MOST_CRASHES", 1)
    with pytest.raises(StepError, match="the rule"):
        scored(tmp_path, [prompt()], said("a", "b", "c"), written(tmp_path, "import os\ndef score(*_): os._exit(1)\n"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "there is no such file"),
        ("def score(:\n", "it is no Python"),
        ("def other(): ...\n", "there is no function 'score' in it (it has: other)"),
        ("x = 1\n", "(it has none)"),
    ],
)
def test_a_rule_that_is_not_there(code: str | None, message: str, tmp_path: Path) -> None:
    if code is not None:
        (tmp_path / "r.py").write_text(code)
    with pytest.raises(UserError, match=re.escape(message)):
        find_rule(RuleScorer(kind="rule", function="r.py:score"), Workspace(tmp_path, tmp_path))


def test_finding_a_rule_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("from os import getcwd as score\nraise RuntimeError\n")
    scorer = RuleScorer(kind="rule", function="r.py:score")
    one = find_rule(scorer, Workspace(tmp_path, tmp_path))
    (tmp_path / "r.py").write_text("score = print\n")
    other = find_rule(scorer, Workspace(tmp_path, tmp_path))
    slower = find_rule(scorer.model_copy(update={"timeout": 11.0}), Workspace(tmp_path, tmp_path))
    assert len({one.digest, other.digest, slower.digest}) == 3


def judge(url: str) -> Row:
    return {"kind": "openai", "model": "m", "base_url": url, "retries": 0, "concurrency": 2}


def test_a_judge_compares_each_two_in_both_orders(tmp_path: Path) -> None:
    with fake_judge(longest_wins) as server:
        found, counts = scored(tmp_path, [prompt()], said("bb", "a", "dddd", "ccc"), judge(server.url))
        assert len(server.requests) == 12  # six pairs, twice
        assert scored(tmp_path, [prompt()], said("bb", "a", "dddd", "ccc"), judge(server.url))[0] == found
        assert len(server.requests) == 12
    # by length dddd beats three others, ccc two, bb one, a none
    assert found == {("p", 2): 1.0, ("p", 3): 2 / 3, ("p", 0): 1 / 3, ("p", 1): 0.0}
    assert (counts["comparisons"], counts["flips"], counts["without_verdict"], counts["again"]) == (6, 0, 0, 0)


def test_the_first_always_wins_makes_ties(tmp_path: Path) -> None:
    with fake_judge(always_a) as server:
        found, counts = scored(tmp_path, [prompt()], said("a", "bb", "ccc"), judge(server.url))
    assert set(found.values()) == {0.5} and counts["flips"] == 3


def test_the_datasets_answer_is_compared_with_each_of_the_models(tmp_path: Path) -> None:
    with fake_judge(longest_wins) as server:
        found, counts = scored(tmp_path, [prompt(answer="dd")], said("a", "ccc"), judge(server.url), chosen="dataset")
    assert found == {("p", -1): 0.5, ("p", 0): 0.0, ("p", 1): 1.0}
    assert counts["comparisons"] == 2


@pytest.mark.parametrize(
    ("behaviour", "error", "again"),
    [(malformed, "no_verdict", 0), (fails(500), "no_verdict", 2)],
    ids=["malformed", "down"],
)
def test_missing_verdicts_are_counted(behaviour: Behaviour, error: str, again: int, tmp_path: Path) -> None:
    """The second prompt's comparison fails; the first one's has a verdict."""
    nothing_of_q = sometimes(lambda asked: "Question q?" in json.dumps(asked.body), behaviour, longest_wins)
    prompts, answers = [prompt(), prompt("q")], [*said("a", "bb"), *said("a", "bb", name="q")]
    with fake_judge(nothing_of_q) as server:
        found, counts = scored(tmp_path, prompts, answers, judge(server.url))
    assert found == {("p", 0): 0.0, ("p", 1): 1.0, ("q", 0): error, ("q", 1): error}
    assert (counts["without_verdict"], counts["again"]) == (1, again)


def test_a_judge_without_any_verdict_is_told(tmp_path: Path) -> None:
    with fake_judge(malformed) as server, pytest.raises(UserError, match=r"in any of 1 comparisons \(2 malformed\)"):
        scored(tmp_path, [prompt()], said("a", "b"), judge(server.url))
    with fake_judge(fails(500)) as server, pytest.raises(StepError, match=r"\(2 server_error\)"):
        scored(tmp_path / "x", [prompt()], said("a", "b"), judge(server.url))


def test_a_reward_models_own_scores(tmp_path: Path, reward_model: Callable[..., Path]) -> None:  # noqa: F811
    scorer = {"kind": "reward_model", "model": str(reward_model)}
    found, counts = scored(tmp_path, [prompt()], said("Yes.", "No, never."), scorer)
    assert all(isinstance(v, float) for v in found.values()) and len(set(found.values())) == 2
    assert counts == {"scored": 2, "errors": {}, "cached": 0}
    again, counts = scored(tmp_path, [prompt()], said("Yes.", "No, never."), scorer)
    assert again == found and counts["cached"] == 2
