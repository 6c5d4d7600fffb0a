"""Rows of known shapes become rows that `to_pair` reads; each row has one verdict; unknown columns get advice."""

import itertools
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.adapters import SHAPES, adapt, recognise, suggest
from preftune.data.check_list import REASONS
from preftune.data.languages import LANGUAGES
from preftune.data.pairs import Drop, Pair, findings, to_pair


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def verdicts(rows: list[Any]) -> list[str | tuple[list[Any], str, str]]:
    """Of each row the reason, or its pair's prompt and the two answers' texts."""
    found: list[Any] = []
    for number, (row_id, row, generic) in enumerate(adapt((f"r{i}", r) for i, r in enumerate(rows))):
        assert row_id == f"r{number}" and row is rows[number]
        if isinstance(generic, Drop):
            found.append(generic.reason)
            continue
        try:
            pair = to_pair(generic, "source", row_id)
        except Drop as drop:
            found.append(drop.reason)
            continue
        names = findings(pair, generic)
        found.append(names[0] if names else (pair.prompt, pair.chosen[0]["content"], pair.rejected[0]["content"]))
    assert len(found) == len(rows)
    return found


def pair_of(row: dict[str, Any]) -> Pair:
    [(_, _, generic)] = adapt([("r0", row)])
    return to_pair(generic, "source", "r0")


def found(row: dict[str, Any], *languages: str) -> list[str]:
    [(_, _, generic)] = adapt([("r0", row)])
    return findings(to_pair(generic, "source", "r0"), generic, languages or None)


# --- which shape ------------------------------------------------------------------------------------------

ARENA: dict[str, Any] = {
    "question_id": "q",
    "model_a": "vicuna-13b",
    "model_b": "koala-13b",
    "winner": "model_a",
    "judge": "arena_user_1",
    "conversation_a": [user("Q"), bot("A")],
    "conversation_b": [user("Q"), bot("B")],
    "turn": 1,
    "anony": True,
    "language": "English",
    "tstamp": 1682352000.0,
    "openai_moderation": {"categories": {"hate": False}, "category_scores": {"hate": 0.0}, "flagged": False},
    "toxic_chat_tag": {
        "roberta-large": {"flagged": False, "probability": 0.1},
        "t5-large": {"flagged": False, "score": 0.1},
    },
}
HELPSTEER: dict[str, Any] = {
    "domain": "general",
    "language": "english",
    "context": [user("Q")],
    "response1": "A",
    "response2": "B",
    "overall_preference": -2,
    "individual_preference": [{"score": -2, "reasoning": "…", "feedback1": "…", "feedback2": "…"}],
}
STACK: dict[str, Any] = {
    "qid": 17,
    "question": "Q",
    "date": "2011/01/01",
    "metadata": ["https://stackoverflow.com"],
    "response_j": "A",
    "response_k": "B",
}
DISTILABEL: dict[str, Any] = {
    "system": "S",
    "input": "Q",
    "chosen": "A",
    "rejected": "B",
    "generations": ["A", "B"],
    "order": ["chosen", "rejected"],
    "labelling_model": "gpt-4-1106-preview",
    "labelling_prompt": [user("Rate them.")],
    "raw_labelling_response": "9 4",
    "rating": [9.0, 4.0],
    "rationale": "…",
    "status": "unchanged",
    "original_chosen": "A",
    "original_rejected": "B",
    "chosen_score": 9.0,
    "in_gsm8k_train": False,
}
GENERIC: dict[str, dict[str, Any]] = {
    "ultrafeedback_binarized": {
        "prompt": "Q",
        "prompt_id": "0f",
        "chosen": [user("Q"), bot("A")],
        "rejected": [user("Q"), bot("B")],
        "messages": [user("Q"), bot("A")],
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    },
    "cai-conversation-harmless": {
        "index": 3,
        "prompt": "Q",
        "init_prompt": "Q",
        "init_response": "B",
        "critic_prompt": "What is harmful about it?",
        "critic_response": "This.",
        "revision_prompt": "Write it again.",
        "revision_response": "A",
        "messages": [user("Q"), bot("A")],
        "chosen": [user("Q"), bot("A")],
        "rejected": [user("Q"), bot("B")],
    },
    "hh-rlhf": {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
    "Intel orca": {"system": "", "question": "Q", "chosen": "A", "rejected": "B"},
    "H4 orca": {
        "prompt": "Q",
        "prompt_id": "0f",
        "chosen": [user("Q"), bot("A")],
        "rejected": [user("Q"), bot("B")],
        "messages": [user("Q"), bot("A")],
    },
    "argilla cleaned": {
        "source": "evol_instruct",
        "prompt": "Q",
        "chosen": [user("Q"), bot("A")],
        "chosen-rating": 5.0,
        "chosen-model": "gpt-4",
        "rejected": [user("Q"), bot("B")],
        "rejected-rating": 3.75,
        "rejected-model": "llama",
    },
    "dpo-mix-7k": {
        "dataset": "argilla/distilabel-capybara-dpo",
        "chosen": [user("Q"), bot("A")],
        "rejected": [user("Q"), bot("B")],
        "chosen_rating": 5.0,
        "rejected_rating": 1.0,
    },
    "orpo-dpo-mix-40k": {
        "source": "Airoboros",
        "chosen": [user("Q"), bot("A")],
        "rejected": [user("Q"), bot("B")],
        "prompt": "Q",
        "question": "Q",
    },
    "tulu-3": {
        "id": "x_1",
        "prompt": "Q",
        "chosen": [user("Q"), bot("A")],
        "rejected": [user("Q"), bot("B")],
        "source": "ultrafeedback",
    },
    "Skywork": {"chosen": [user("Q"), bot("A")], "rejected": [user("Q"), bot("B")], "source": "magpie"},
    "trl-lib": {
        "chosen": [user("Q"), bot("A")],
        "rejected": [user("Q"), bot("B")],
        "score_chosen": 7.5,
        "score_rejected": 2.0,
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "A"},
        "rejected": {"from": "gpt", "value": "B"},
    },
}


@pytest.mark.parametrize("name", GENERIC)
def test_generic_rows_pass_unchanged(name: str) -> None:
    row = GENERIC[name]
    assert recognise(row) is None
    [(_, _, generic)] = adapt([("r0", row)])
    assert generic is row
    assert verdicts([row]) == [([user("Q")], "A", "B")]


def message(message_id: str, parent: str | None, role: str, text: str, **more: Any) -> dict[str, Any]:
    return {
        "message_id": message_id,
        "parent_id": parent,
        "message_tree_id": "t1",
        "text": text,
        "role": role,
        "lang": "en",
        "review_result": True,
        "deleted": False,
        "rank": None,
        "synthetic": False,
        **more,
    }


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        (ARENA, "arena"),
        (HELPSTEER, "helpsteer3"),
        (STACK, "stack-exchange"),
        (DISTILABEL, "distilabel"),
        (message("a", None, "prompter", "Q"), "tree"),
        ({"message_id": "a", "message_tree_id": "a", "role": "prompter", "text": "Q"}, "tree"),  # no empty fields
        # a recipe's `columns` adds chosen and rejected
        ({**STACK, "prompt": "Q", "chosen": "B", "rejected": "A"}, None),
        ({**message("a", None, "prompter", "Q"), "chosen": "A", "rejected": "B"}, None),
        ({**HELPSTEER, "chosen": "A", "rejected": "B"}, "helpsteer3"),
        ({**ARENA, "chosen": ARENA["conversation_a"], "rejected": ARENA["conversation_b"]}, "arena"),
        ({"conversation_a": [], "conversation_b": []}, None),
        ({"question": "Q", "response_j": "A"}, None),
        ({}, None),
    ],
)
def test_recognise(row: dict[str, Any], shape: str | None) -> None:
    assert recognise(row) == recognise(list(row)) == shape


def test_the_first_object_decides() -> None:
    """What is no object, or is of another shape, comes as it is, and to_pair says what is wrong."""
    rows = ["text", None, STACK, 3, {"question": "Q"}, {"prompt": "P", "chosen": "C", "rejected": "D"}, STACK]
    pair = ([user("Q")], "A", "B")
    assert verdicts(rows) == [
        "not_an_object",
        "not_an_object",
        pair,
        "not_an_object",
        "missing_answer",
        ([user("P")], "C", "D"),
        pair,
    ]
    assert verdicts([{"prompt": "P", "chosen": "C", "rejected": "D"}, STACK])[1] == "missing_answer"
    assert verdicts([]) == [] and verdicts(["a", "b"]) == ["not_an_object"] * 2


@pytest.mark.parametrize("first", [STACK, GENERIC["hh-rlhf"], ARENA])
def test_rows_are_not_held(first: dict[str, Any]) -> None:
    """A stream without end can be read (only a tree is held as a whole)."""
    endless: Iterator[tuple[str, Any]] = ((str(i), first) for i in itertools.count())
    assert [row_id for row_id, _, _ in itertools.islice(adapt(endless), 3)] == ["0", "1", "2"]


# --- the shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, ([user("Q")], "A", "B")),
        ({"winner": "model_b"}, ([user("Q")], "B", "A")),
        ({"winner": "tie"}, "tie"),
        ({"winner": "tie (bothbad)"}, "tie"),
        ({"winner": None}, "missing_answer"),
        ({"winner": "model_c"}, "missing_answer"),
        ({"winner": ["model_a"]}, "missing_answer"),
        ({"winner": np.array(["model_a", "tie"])}, "missing_answer"),
        ({"turn": 2}, "later_turn"),
        ({"turn": 2, "winner": "tie"}, "later_turn"),
        ({"turn": None}, ([user("Q")], "A", "B")),
        ({"turn": None, "conversation_b": [user("Q"), bot("B"), user("Q2"), bot("C")]}, "unequal_turns"),
        ({"conversation_b": [user("Q!"), bot("B")]}, "prompts_differ"),
        ({"conversation_b": [user("Q"), bot("A")]}, "identical"),
        ({"conversation_b": None}, "missing_answer"),
        ({"conversation_a": np.array([user("Q"), bot("A")])}, ([user("Q")], "A", "B")),  # from parquet
    ],
)
def test_arena(change: dict[str, Any], verdict: Any) -> None:
    assert verdicts([{**ARENA, **change}]) == [verdict]


@pytest.mark.parametrize(
    ("language", "languages", "expected"),
    [
        ("English", ("en",), []),
        ("German", ("en",), ["other_language"]),
        ("German", ("de",), []),
        ("PORTUGUESE", ("pt",), []),
        ("Esperanto", ("en",), ["other_language"]),
        ("Esperanto", ("esperanto",), []),
        ("unknown", ("en",), ["other_language"]),
        (None, ("en",), []),
    ],
)
def test_arena_spells_languages_out(language: Any, languages: tuple[str, ...], expected: list[str]) -> None:
    assert found({**ARENA, "language": language}, *languages) == expected


def test_language_codes_are_distinct() -> None:
    assert len(set(LANGUAGES.values())) == len(LANGUAGES) == 29
    assert all(len(code) == 2 for code in LANGUAGES.values())


@pytest.mark.parametrize(
    ("change", "is_toxic"),
    [
        ({}, False),
        ({"openai_moderation": {"flagged": True}}, True),
        ({"toxic_chat_tag": {"roberta-large": {"flagged": False}, "t5-large": {"flagged": True}}}, True),
        ({"toxic_chat_tag": {"roberta-large": {"flagged": True}, "t5-large": {"flagged": False}}}, True),
        ({"openai_moderation": None, "toxic_chat_tag": None}, False),
        ({"openai_moderation": "flagged", "toxic_chat_tag": {"roberta-large": True}}, False),
        ({"openai_moderation": {"flagged": "no"}}, False),
    ],
)
def test_arena_toxic(change: dict[str, Any], is_toxic: bool) -> None:
    assert found({**ARENA, **change}) == (["toxic"] if is_toxic else [])


FIRST, SECOND = ([user("Q")], "A", "B"), ([user("Q")], "B", "A")


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"overall_preference": -3}, FIRST),
        ({"overall_preference": -1}, FIRST),
        ({"overall_preference": 0}, "tie"),
        ({"overall_preference": 1}, SECOND),
        ({"overall_preference": 3.0}, SECOND),
        ({"overall_preference": None}, "missing_answer"),
        ({"overall_preference": float("nan")}, "missing_answer"),
        ({"overall_preference": "-3"}, "missing_answer"),
        ({"overall_preference": True}, "missing_answer"),
        ({"response2": None}, "missing_answer"),
        ({"response2": " "}, "empty_answer"),
        ({"context": []}, "empty_prompt"),
        ({"context": [user("1"), bot("2"), user("3")]}, ([user("1"), bot("2"), user("3")], "A", "B")),
        ({"context": [user("1"), bot("2")]}, "prompts_differ"),
        ({"chosen": "B", "rejected": "A"}, FIRST),  # the preference is believed, not the recipe's `columns`
    ],
)
def test_helpsteer3(change: dict[str, Any], verdict: Any) -> None:
    assert verdicts([{**HELPSTEER, **change}]) == [verdict]


def test_helpsteer3_languages() -> None:
    [(_, _, generic)] = adapt([("r0", {**HELPSTEER, "language": "Python"})])
    assert generic["language"] == "Python"
    for wanted in ("en", "English", "EN"):
        assert found({**HELPSTEER, "language": "english"}, wanted) == []
    assert found({**HELPSTEER, "language": "Python"}, "python") == []
    assert found({**HELPSTEER, "language": "Python"}, "en") == ["other_language"]
    assert found({k: v for k, v in HELPSTEER.items() if k != "language"}, "en") == []


def test_helpsteer3_s_domain_is_the_topic() -> None:
    [(_, _, generic)] = adapt([("r0", {**HELPSTEER, "domain": "STEM"})])
    assert to_pair(generic, "s", "r0").topic == "STEM"


def test_answers_that_look_like_transcripts_stay_answers() -> None:
    text = "Human: hello\n\nAssistant: hello"
    assert verdicts([{**HELPSTEER, "response1": text}]) == [([user("Q")], text, "B")]
    assert verdicts([{**STACK, "question": text, "response_k": text}]) == [([user(text)], "A", text)]
    rows = [message("q", None, "prompter", "Q"), message("a", "q", "assistant", text, rank=0)]
    assert verdicts([*rows, message("b", "q", "assistant", text + "!", rank=1)])[2] == ([user("Q")], text, text + "!")


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, FIRST),
        ({"response_k": None}, "missing_answer"),
        ({"response_k": float("nan")}, "missing_answer"),
        ({"response_j": ""}, "empty_answer"),
        ({"question": None}, "empty_prompt"),
        ({"response_k": "A"}, "identical"),
    ],
)
def test_stack_exchange(change: dict[str, Any], verdict: Any) -> None:
    assert verdicts([{**STACK, **change}]) == [verdict]


def test_stack_exchange_questions_are_groups() -> None:
    assert pair_of(STACK).group_id == pair_of({**STACK, "question": "other"}).group_id == "source:17"
    assert pair_of({**STACK, "qid": 18}).group_id == "source:18"
    assert ":" not in pair_of({**STACK, "qid": None}).group_id


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, ([{"role": "system", "content": "S"}, user("Q")], "A", "B")),
        ({"system": ""}, FIRST),
        ({"system": None, "status": "swapped"}, FIRST),  # they are swapped already
        ({"status": "tie"}, "tie"),
        ({"status": "tie", "rating": None, "chosen_score": None}, "tie"),
        ({"status": None, "system": ""}, FIRST),
        ({"status": np.array(["tie", "tie"]), "system": ""}, FIRST),
        ({"chosen_score": 7.0, "rejected_score": 7.0}, "tie"),
        ({"in_gsm8k_train": True}, "in_gsm8k_train"),
        ({"input": " "}, "empty_prompt"),
    ],
)
def test_distilabel(change: dict[str, Any], verdict: Any) -> None:
    assert verdicts([{**DISTILABEL, **change}]) == [verdict]


def test_rows_are_not_changed() -> None:
    for row in (ARENA, HELPSTEER, STACK, {**DISTILABEL, "status": "tie"}):
        before = repr(row)
        list(adapt([("0", row)]))
        assert repr(row) == before


# --- trees ------------------------------------------------------------------------------------------------


def answers(*ranks: Any, parent: str = "q", name: str = "a", **more: Any) -> list[dict[str, Any]]:
    """Answers a0, a1, … to one message, with these ranks and the texts A0, A1, …"""
    return [
        message(f"{name}{i}", parent, "assistant", f"{name.upper()}{i}", rank=rank, **more)
        for i, rank in enumerate(ranks)
    ]


ROOT = message("q", None, "prompter", "Q")


def pair(chosen: str, rejected: str, *prompt: str) -> tuple[list[Any], str, str]:
    turns = prompt or ("Q",)
    return [(bot if i % 2 else user)(text) for i, text in enumerate(turns)], chosen, rejected


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        # adjacent ranks: each is rejected for the next better one
        ([0, 1, 2], ["best_answer", pair("A0", "A1"), pair("A1", "A2")]),
        ([2, 0, 1], [pair("A2", "A0"), "best_answer", pair("A1", "A2")]),
        ([0, 3, 7], ["best_answer", pair("A0", "A1"), pair("A1", "A2")]),
        ([1.0, 4.0], ["best_answer", pair("A0", "A1")]),  # a table with missing ranks holds floats
        # not ranked
        ([0], ["no_rank"]),
        ([None], ["no_rank"]),
        ([0, None], ["no_rank", "no_rank"]),
        ([None, None], ["no_rank", "no_rank"]),
        ([1, None, 0], [pair("A2", "A0"), "no_rank", "best_answer"]),
        ([0, float("nan"), 1], ["best_answer", "no_rank", pair("A0", "A2")]),
        ([0, "1", True], ["no_rank", "no_rank", "no_rank"]),
        # equal ranks: a pair with what is better than both; a tie only where nothing is better
        ([0, 1, 1], ["best_answer", pair("A0", "A1"), pair("A0", "A2")]),
        ([0, 0, 1], ["best_answer", "tie", pair("A0", "A2")]),
        ([0, 0], ["best_answer", "tie"]),
        ([2, 0, 2, 1, 1], [pair("A3", "A0"), "best_answer", pair("A3", "A2"), pair("A1", "A3"), pair("A1", "A4")]),
    ],
)
def test_siblings(ranks: list[Any], expected: list[Any]) -> None:
    assert verdicts([ROOT, *answers(*ranks)]) == ["not_an_answer", *expected]


def test_a_whole_tree() -> None:
    """Two levels, the messages out of order."""
    followup = message("q2", "a1", "prompter", "Q2")
    rows = [*answers(1, 0, parent="q2", name="b"), followup, *answers(0, 1), ROOT]
    assert verdicts(rows) == [
        pair("B1", "B0", "Q", "A1", "Q2"),
        "best_answer",
        "not_an_answer",
        "best_answer",
        pair("A0", "A1"),
        "not_an_answer",
    ]


def test_what_a_tree_s_rows_carry() -> None:
    """All of a tree is one group, and a row keeps its language."""
    rows = [(str(i), row) for i, row in enumerate([ROOT, *answers(0, 1, lang="de")])]
    *_, (row_id, raw, generic) = adapt(rows)
    assert (row_id, raw) == ("2", rows[2][1])
    made = to_pair(generic, "source", row_id)
    assert made.group_id == "source:t1"
    assert findings(made, generic, ("en",)) == ["other_language"]
    assert findings(made, generic, ("de",)) == []


@pytest.mark.parametrize("mark", [{"deleted": True}, {"review_result": False}])
def test_deleted_messages(mark: dict[str, Any]) -> None:
    """The message itself, its siblings' chance of a pair, and all below it."""
    a0, a1, a2 = answers(0, 1, 2)
    q2 = message("q2", "a1", "prompter", "Q2")
    below = answers(0, 1, parent="q2", name="b")
    gone = {**a1, **mark}
    assert verdicts([ROOT, a0, gone, a2, q2, *below]) == [
        "not_an_answer",
        "best_answer",
        "deleted",
        pair("A0", "A2"),
        "not_an_answer",
        "deleted",
        "deleted",
    ]
    assert verdicts([ROOT, a0, gone]) == ["not_an_answer", "no_rank", "deleted"]
    assert verdicts([{**ROOT, **mark}, a0, a1]) == ["not_an_answer", "deleted", "deleted"]
    assert verdicts([ROOT, a0, a1, {**q2, **mark}, *below])[3:] == ["not_an_answer", "deleted", "deleted"]


@pytest.mark.parametrize("nothing", [None, "", float("nan")])
def test_a_root_has_no_parent(nothing: Any) -> None:
    """Formats write that in different ways; JSON may leave the field out."""
    assert verdicts([{**ROOT, "parent_id": nothing}, *answers(0, 1)])[1:] == ["best_answer", pair("A0", "A1")]
    root = {k: v for k, v in ROOT.items() if k not in ("parent_id", "rank")}
    assert verdicts([root, *answers(0, 1)])[1:] == ["best_answer", pair("A0", "A1")]


def test_unknown_marks_do_not_delete() -> None:
    rows = [ROOT, *answers(0, 1, deleted=None, review_result=None)]
    assert verdicts(rows)[1:] == ["best_answer", pair("A0", "A1")]


def test_an_answer_without_text_is_no_sibling() -> None:
    a0, a1, a2 = answers(0, 1, 2)
    assert verdicts([ROOT, a0, {**a1, "text": " "}, a2])[1:] == ["best_answer", "empty_answer", pair("A0", "A2")]
    assert verdicts([ROOT, a0, {**a1, "text": None}])[1:] == ["no_rank", "empty_answer"]


def test_broken_trees() -> None:
    """A parent that is not there, answers without a question, and a circle have no prompt."""
    lost = answers(0, 1, parent="gone")
    assert verdicts(lost) == ["empty_prompt", "empty_prompt"]
    assert verdicts([*lost, message("q2", "a0", "prompter", "Q2"), *answers(0, 1, parent="q2", name="b")])[2:] == [
        "not_an_answer",
        "empty_prompt",
        "empty_prompt",
    ]
    roots = [
        message(i, parent, "assistant", i, rank=n) for n, (i, parent) in enumerate([("a", None), ("b", ""), ("c", 1.5)])
    ]
    assert verdicts(roots) == ["empty_prompt"] * 3
    circle = [message("a", "b", "assistant", "A", rank=0), message("b", "a", "prompter", "B")]
    assert verdicts([*circle, *answers(0, 1, parent="b", name="c")]) == [
        "empty_prompt",
        "not_an_answer",
        "empty_prompt",
        "empty_prompt",
    ]
    assert verdicts([message("a", "a", "assistant", "A", rank=0)]) == ["empty_prompt"]


def test_odd_messages() -> None:
    """The first of two messages with one id counts; roles that nobody knows are told."""
    a0, a1 = answers(0, 1)
    again = {**a1, "text": "again"}
    assert verdicts([ROOT, a0, a1, again, ROOT])[1:] == ["best_answer", pair("A0", "A1"), "duplicate", "not_an_answer"]
    assert verdicts([ROOT, {**a0, "role": "tool"}, {**a1, "role": None}])[1:] == ["unknown_role", "unknown_role"]
    no_ids = [{**a, "message_id": None} for a in (a0, a1)]
    assert verdicts([ROOT, *no_ids])[1:] == ["best_answer", pair("A0", "A1")]
    assert verdicts([ROOT, a0, "text", None, a1])[1:] == [
        "best_answer",
        "not_an_object",
        "not_an_object",
        pair("A0", "A1"),
    ]
    # a prompt that to_pair does not take: two assistant's turns, or a text that is none
    assert verdicts([ROOT, a0, *answers(0, 1, parent="a0", name="b")])[2:] == ["best_answer", "prompts_differ"]
    assert verdicts([{**ROOT, "text": None}, a0, a1])[2] == "wrong_type"


def test_a_deep_tree_is_quick() -> None:
    """20,000 messages in one line and as many answers that share a parent: no walk is repeated for each of them."""
    line = [
        message(str(i), str(i - 1) if i else None, "assistant" if i % 2 else "prompter", "x") for i in range(20_000)
    ]
    wide = answers(*range(20_000))
    started = time.perf_counter()
    assert sum(isinstance(v, Drop) for _, _, v in adapt(enumerate_rows(line))) == 20_000
    kept = [v for _, _, v in adapt(enumerate_rows([ROOT, *wide])) if not isinstance(v, Drop)]
    assert len(kept) == 19_999
    assert time.perf_counter() - started < 5


def enumerate_rows(rows: list[Any]) -> Iterator[tuple[str, Any]]:
    return ((str(i), row) for i, row in enumerate(rows))


ids = st.sampled_from([None, "a", "b", "c", "d", "", 1, float("nan")])
roles = st.sampled_from(["prompter", "assistant", "assistant", "assistant", "system", None])
messages = st.fixed_dictionaries(
    {"message_id": ids, "message_tree_id": ids, "text": st.sampled_from(["A", "B", "", None]), "role": roles},
    optional={
        "parent_id": ids,
        "rank": st.sampled_from([None, 0, 1, 1.0, 2, "0", float("nan"), float("inf")]),
        "deleted": st.sampled_from([True, False, None]),
        "review_result": st.sampled_from([True, False, None]),
        "lang": st.sampled_from(["en", None, 3]),
    },
)


@settings(deadline=None, max_examples=400)
@given(st.lists(messages, max_size=12))
def test_any_tree_gives_each_message_one_verdict(rows: list[Any]) -> None:
    """Ids may repeat, lead nowhere, or in a circle."""
    made = verdicts(rows)
    assert all(v in REASONS for v in made if isinstance(v, str))
    for row, verdict in zip(rows, made, strict=True):
        if row["role"] != "assistant":
            assert verdict in ("not_an_answer", "unknown_role")
        elif not isinstance(verdict, str):
            assert verdict[2] == row["text"] and not row.get("deleted") and row.get("review_result") is not False


def test_a_tree_gives_the_same_pairs_in_any_order() -> None:
    rows = [ROOT, *answers(0, 1, 2), message("q2", "a0", "prompter", "Q2"), *answers(1, 0, parent="q2", name="b")]
    expected = sorted(map(repr, verdicts(rows)))
    for seed in range(10):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert sorted(map(repr, verdicts(shuffled))) == expected


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from(["tie", "model_b", "English", "Q", "", "a\ud83d"]),
    st.lists(st.sampled_from([user("Q"), bot("A"), 3]), max_size=2),
    st.dictionaries(st.sampled_from(["flagged", "x"]), st.sampled_from([True, None, {"flagged": True}])),
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([ARENA, HELPSTEER, STACK, DISTILABEL]), st.data())
def test_any_value_in_a_known_shape(row: dict[str, Any], data: st.DataObject) -> None:
    """Nothing but Drop, whatever stands in the columns."""
    changed = {k: data.draw(st.one_of(st.just(v), anything)) for k, v in row.items()}
    [verdict] = verdicts([changed])
    assert not isinstance(verdict, str) or verdict in REASONS


# --- data of no known shape -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "mapping"),
    [
        ("instruction output_good output_bad", "prompt: instruction, chosen: output_good, rejected: output_bad"),
        ("task good_output bad_output", "prompt: task, chosen: good_output, rejected: bad_output"),
        ("bad good text", "prompt: text, chosen: good, rejected: bad"),
        ("id query better worse", "prompt: query, chosen: better, rejected: worse"),
        ("prompt winner loser", "prompt: prompt, chosen: winner, rejected: loser"),
        (
            "prompt winning_response losing_response",
            "prompt: prompt, chosen: winning_response, rejected: losing_response",
        ),
        ("question accepted declined", "prompt: question, chosen: accepted, rejected: declined"),
        ("prompt preferred dispreferred", "prompt: prompt, chosen: preferred, rejected: dispreferred"),
        ("prompt non_preferred preferred", "prompt: prompt, chosen: preferred, rejected: non_preferred"),
        ("question positive negative", "prompt: question, chosen: positive, rejected: negative"),
        ("anchor pos neg", "prompt: anchor, chosen: pos, rejected: neg"),
        ("question best_answer worst_answer", "prompt: question, chosen: best_answer, rejected: worst_answer"),
        (
            "question best_answer incorrect_answers",
            "prompt: question, chosen: best_answer, rejected: incorrect_answers",
        ),
        ("title response_j response_k", "prompt: title, chosen: response_j, rejected: response_k"),
        ("x y_w y_l", "prompt: x, chosen: y_w, rejected: y_l"),
        ("userPrompt goodAnswer badAnswer", "prompt: userPrompt, chosen: goodAnswer, rejected: badAnswer"),
        (
            "prompt chosen_response rejected_response",
            "prompt: prompt, chosen: chosen_response, rejected: rejected_response",
        ),
        # what is said about the answers is no answer
        ("good_model good_score good bad_score bad prompt", "prompt: prompt, chosen: good, rejected: bad"),
        # the two that differ in nothing else
        ("good_style bad_answer good_answer question", "prompt: question, chosen: good_answer, rejected: bad_answer"),
    ],
)
def test_a_mapping_to_paste(columns: str, mapping: str) -> None:
    text, found = suggest(columns.split())
    assert found and ", ".join(f"{k}: {v}" for k, v in found.items()) == mapping
    assert repr(found["chosen"]) in text and repr(found["rejected"]) in text


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("question answer", "SFT data"),
        ("query answer resource lang", "SFT data"),
        ("instruction input output", "SFT data"),
        ("messages", "SFT data"),
        ("conversations id", "SFT data"),
        ("text", "SFT data"),
        (
            "conversation_a conversation_b model_a model_b",
            "nearly those of lmsys/chatbot_arena_conversations, but there is no winner",
        ),
        ("context response1 response2", "nearly those of nvidia/HelpSteer3, but there is no overall_preference"),
        ("message_id role text parent_id", "nearly those of OpenAssistant/oasst1, but there is no message_tree_id"),
        ("qid question response_j", "nearly those of lvwerra/stack-exchange-paired, but there is no response_k"),
        (" ".join(ARENA), "those of lmsys/chatbot_arena_conversations, but no row tells which"),
        ("prompt response_a response_b winner", "'winner' says row by row which answer is better"),
        ("prompt response_a response_b better", "'better' says row by row"),
        ("prompt response_1 response_2 preference_strength", "'preference_strength' says row by row"),
        ("prompt gpt llama preferred", "'preferred' says row by row"),
        ("prompt completion label", "one answer and what is thought of it ('label')"),
        ("prompt chosen", "'chosen' sounds like one of two answers"),
        ("prompt bad_answer", "'bad_answer' sounds like one of two answers"),
        (
            "prompt response_a response_b",
            "'response_a' and 'response_b' hold answers, but no column says which is better",
        ),
        ("prompt chosen rejected", "no row has both"),
        ("foo bar", "name the columns"),
        ("prompt", "name the columns"),
        ("", "name the columns"),
    ],
)
def test_no_mapping_but_advice(columns: str, says: str) -> None:
    text, mapping = suggest(columns.split())
    assert mapping is None and says in text


@given(
    st.lists(
        st.one_of(st.text(max_size=12), st.sampled_from([c for s in SHAPES.values() for c in s] + ["good", "bad"]))
    )
)
def test_any_columns_get_advice(columns: list[str]) -> None:
    """What is to be pasted names columns that are there, each once."""
    text, mapping = suggest(columns)
    assert text
    if mapping:
        assert {"chosen", "rejected"} <= set(mapping) <= {"prompt", "chosen", "rejected"}
        assert set(mapping.values()) <= set(columns) and len(set(mapping.values())) == len(mapping)
