"""Completions from an endpoint: what it is asked, what is never asked twice, what fails and is counted."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_judge import Asked, Behaviour, FakeJudge, Replied, drops, fails, fake_judge, says, slow, sometimes

from preftune.errors import StepError, UserError
from preftune.judges.ledger import GIVE_UP_AFTER
from preftune.own_pairs.completions import complete
from preftune.own_pairs.sampling import seed_of
from preftune.pairs_schema import Pairs
from preftune.workspace import Workspace

Row = dict[str, Any]


def prompts(count: int) -> list[Row]:
    return [{"id": f"row-{i}", "prompt": [{"role": "user", "content": f"Question {i}?"}]} for i in range(count)]


def done(
    server: FakeJudge,
    folder: Path,
    count: int = 3,
    generator: Row | None = None,
    tell: Callable[[str], None] = print,
    **keys: Any,
) -> tuple[list[Row], Row]:
    section: Row = {
        "prompts": "p.txt",
        "generator": {"kind": "openai", "model": "fake", "base_url": server.url, "retries": 0, **(generator or {})},
        "completions": 4,
        "temperatures": [0.7, 1.0],
        "max_new_tokens": 12,
        "scorer": {"kind": "rule", "function": "rule.py:score"},
    }
    settings = Pairs.model_validate(section | keys)
    return complete(prompts(count), settings, "", {}, Workspace(folder, folder / "home"), "k", tell)


def echo(asked: Asked) -> Replied:
    """Says what it was asked, and how often before."""
    b = asked.body
    return Replied(f" {b['messages'][-1]['content']} {b.get('temperature')} {b.get('seed')} tries {asked.tries}\n")


def test_each_completion_is_asked_for_with_a_seed_of_its_own(tmp_path: Path) -> None:
    with fake_judge(echo) as server:
        rows, counts = done(server, tmp_path)
    assert rows == [
        {
            "id": f"row-{i}",
            "number": n,
            "text": f"Question {i}? {(0.7, 1.0)[n % 2]} {seed_of(42, n)} tries 0",
            "whole": True,
            "tokens": None,
            "temperature": (0.7, 1.0)[n % 2],
            "error": None,
        }
        for i in range(3)
        for n in range(4)
    ]
    asked = [
        {
            "messages": p["prompt"],
            "model": "fake",
            "temperature": (0.7, 1.0)[n % 2],
            "max_tokens": 12,
            "seed": seed_of(42, n),
        }
        for p in prompts(3)
        for n in range(4)
    ]
    assert len(server.requests) == 12
    assert all(body in server.requests for body in asked)
    took = {"prompt_tokens": 1200, "completion_tokens": 120, "cost": None, "stopped": None}
    assert counts.pop("seconds") >= 0
    assert counts == {"made": 12, "cached": 0, "errors": {}, "again": 0, "requests": 12, **took}


def test_top_p_is_sent_where_it_says_something(tmp_path: Path) -> None:
    with fake_judge(echo) as server:
        done(server, tmp_path, 1, top_p=0.9)
    assert [r["top_p"] for r in server.requests] == [0.9] * 4


def test_the_same_again_asks_nothing(tmp_path: Path) -> None:
    with fake_judge(echo) as server:
        rows, _ = done(server, tmp_path)
        again, counts = done(server, tmp_path)
        assert again == rows
        assert (counts["made"], counts["cached"], counts["requests"], len(server.requests)) == (0, 12, 0, 12)
        more, counts = done(server, tmp_path, 4, completions=5)
        assert (counts["made"], counts["cached"], len(server.requests)) == (8, 12, 20)
        assert [r for r in more if r["id"] != "row-3" and r["number"] < 4] == rows


def test_a_cut_answer_is_not_whole(tmp_path: Path) -> None:
    with fake_judge(says("and then", finish="length")) as server:
        rows, _ = done(server, tmp_path, 1)
        assert [(r["text"], r["whole"], r["error"]) for r in rows] == [("and then", False, None)] * 4
        assert done(server, tmp_path, 1)[0] == rows


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("seed", fails(400, "Unrecognized request argument supplied: seed")),
        ("seed", fails(400, "'seed' is not supported with this model.")),
        ("seed", fails(400, 'Invalid JSON payload received. Unknown name "seed": Cannot find field.')),
        ("seed", fails(422, "[{'type': 'extra_forbidden', 'loc': ['body', 'seed'], 'msg': 'Extra inputs are not …'}]")),
        ("top_p", fails(400, "Unsupported parameter: 'top_p' is not supported with this model.")),
        ("temperature", fails(400, "'temperature' does not support 0.7. Only the default (1) value is supported.")),
    ],
)
def test_an_endpoint_that_takes_no_such_parameter(name: str, refusal: Behaviour, tmp_path: Path) -> None:
    """Without a seed the requests of one prompt at one temperature are the same, and their replies are two answers."""
    told: list[str] = []
    with fake_judge(sometimes(lambda a: name in a.body, refusal, echo)) as server:
        rows, counts = done(server, tmp_path, 2, {"concurrency": 1}, told.append, top_p=0.9)
        assert (counts["made"], counts["requests"], counts["errors"]) == (8, 9, {})
        assert sum(name in r for r in server.requests) == 1
        assert len({r["text"] for r in rows}) == 8
        assert len([t for t in told if f"fake takes no {name}" in t]) == 1
        again, counts = done(server, tmp_path, 2, top_p=0.9)
    assert (again, counts["requests"], counts["cached"]) == (rows, 0, 8)


@pytest.mark.parametrize(
    ("behaviour", "reason", "again"),
    [
        (slow(2, echo), "timeout", 4),
        (fails(429), "rate_limit", 4),
        (fails(500), "server_error", 4),
        (drops, "connection", 4),
        (lambda _: Replied(raw="<html>"), "bad_reply", 4),
        (fails(400, "This model's maximum context length is 2048 tokens."), "too_long", 0),
        (fails(400, "no", "content_filter"), "refused", 0),
        (says("…", finish="content_filter"), "refused", 0),
        (fails(400, "who knows"), "bad_request", 0),
    ],
)
def test_what_fails_is_counted_by_its_reason(behaviour: Behaviour, reason: str, again: int, tmp_path: Path) -> None:
    """The second prompt's four fail; asked again, they are all that is asked for."""
    second = sometimes(lambda a: "Question 1?" in str(a.body), behaviour, echo)
    with fake_judge(second) as server:
        generator = {"timeout": 0.5, "concurrency": 2}
        rows, counts = done(server, tmp_path, 2, generator)
        assert (counts["made"], counts["errors"], counts["again"]) == (4, {reason: 4}, again)
        assert [(r["text"], r["whole"], r["error"]) for r in rows[4:]] == [("", False, reason)] * 4
        assert all(r["text"] and not r["error"] for r in rows[:4])
        server.behaviour = echo
        before = len(server.requests)
        _, counts = done(server, tmp_path, 2, generator)
        assert (counts["made"], counts["cached"], counts["errors"], counts["again"]) == (4, 4, {}, 0)
        assert len(server.requests) == before + 4


def test_a_budget_ends_it_and_the_next_run_makes_the_rest(tmp_path: Path) -> None:
    told: list[str] = []
    generator = {"max_requests": 5, "concurrency": 2}
    with fake_judge(slow(0.02, echo)) as server:
        rows, counts = done(server, tmp_path, 3, generator, told.append)
        assert len(server.requests) == 5
        assert (counts["made"], counts["errors"], counts["again"]) == (5, {"budget": 7}, 7)
        assert counts["stopped"] == "max_requests: 5 were made"
        assert "the generator was stopped (max_requests: 5 were made)" in told[-1]
        assert [r["error"] for r in rows] == [None] * 5 + ["budget"] * 7  # prompt by prompt
        rounds = [done(server, tmp_path, 3, generator)[1] for _ in range(2)]
        assert [(r["made"], r["cached"], r["again"]) for r in rounds] == [(5, 5, 2), (2, 10, 0)]
    assert Counter(map(str, server.requests)).most_common(1)[0][1] == 1
    assert len(server.requests) == 12


def test_what_is_down_is_given_up(tmp_path: Path) -> None:
    with fake_judge(sometimes(lambda a: a.number < 4, echo, fails(500))) as server:
        _, counts = done(server, tmp_path, 10, {"concurrency": 1})
    failed = {"given_up": 36 - GIVE_UP_AFTER, "server_error": GIVE_UP_AFTER}
    assert (counts["made"], counts["errors"], counts["again"]) == (4, failed, 36)
    assert len(server.requests) == 4 + GIVE_UP_AFTER


def test_not_one_answer_is_an_error(tmp_path: Path) -> None:
    with fake_judge(fails(500)) as server, pytest.raises(StepError, match=r"none of 4 .*\(4 × server_error\)"):
        done(server, tmp_path, 1)
    first = itertools.count()
    refuses = sometimes(lambda _: next(first) < 1, fails(500), fails(400, "no", "content_filter"))
    with fake_judge(refuses) as server, pytest.raises(StepError, match=r"3 × refused, 1 × server_error"):
        done(server, tmp_path, 1)
    with fake_judge(fails(400, "no", "content_filter")) as server, pytest.raises(UserError, match="4 × refused"):
        done(server, tmp_path, 1)


def test_what_concerns_all_is_told_in_the_generators_name(tmp_path: Path) -> None:
    with fake_judge(fails(401, "no such key")) as server, pytest.raises(UserError, match="the generator refuses"):
        done(server, tmp_path)
    assert len(server.requests) == 1
    with pytest.raises(StepError, match="nothing answers at the generator's address") as told:
        done(server, tmp_path)
    assert "pairs.generator.base_url" in told.value.advice
