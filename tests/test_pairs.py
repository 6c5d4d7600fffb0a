"""From a row of any shape to a canonical pair, or to the reason why it is none."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preftune.pairs import REASONS, Drop, Pair, group_of, text_of, to_pair


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def pair(row: Any) -> Pair:
    return to_pair(row, "source", "row")


def reason(row: Any) -> str:
    """Why a row is dropped."""
    with pytest.raises(Drop) as e:
        pair(row)
    return e.value.reason


HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: 2+2?\n\nAssistant: {}"
SHAREGPT = {
    "conversations": [{"from": "human", "value": "Q"}],
    "chosen": {"from": "gpt", "value": "A"},
    "rejected": {"from": "gpt", "value": "B"},
}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, [user("Q")]),
        ({"question": "Q", "chosen": "A", "rejected": "B"}, [user("Q")]),
        ({"instruction": "Q", "chosen": "A", "rejected": "B"}, [user("Q")]),
        ({"query": "Q", "chosen": "A", "rejected": "B"}, [user("Q")]),
        ({"prompt": None, "input": "Q", "chosen": "A", "rejected": "B"}, [user("Q")]),
        ({"prompt": float("nan"), "input": "Q", "chosen": "A", "rejected": "B"}, [user("Q")]),
        ({"prompt": [user("Q")], "chosen": [bot("A")], "rejected": [bot("B")]}, [user("Q")]),
        ({"prompt": "Q", "chosen": [bot("A")], "rejected": [bot("B")]}, [user("Q")]),
        ({"prompt": user("Q"), "chosen": bot("A"), "rejected": bot("B")}, [user("Q")]),
        ({"chosen": [user("Q"), bot("A")], "rejected": [user("Q"), bot("B")]}, [user("Q")]),
        # a prompt beside whole conversations only repeats it, as text or as a list
        ({"prompt": "Q", "chosen": [user("Q"), bot("A")], "rejected": [user("Q"), bot("B")]}, [user("Q")]),
        ({"prompt": [user("Q")], "chosen": [user("Q"), bot("A")], "rejected": [user("Q"), bot("B")]}, [user("Q")]),
        (
            {
                "chosen": [system("S"), user("1"), bot("2"), user("3"), bot("A")],
                "rejected": [system("S"), user("1"), bot("2"), user("3"), bot("B")],
            },
            [system("S"), user("1"), bot("2"), user("3")],
        ),
        (SHAREGPT, [user("Q")]),
        ({**SHAREGPT, "system": "S"}, [system("S"), user("Q")]),
        ({"system": "S", "question": "Q", "chosen": "A", "rejected": "B"}, [system("S"), user("Q")]),
        ({"system_prompt": "S", "prompt": "Q", "chosen": "A", "rejected": "B"}, [system("S"), user("Q")]),
        ({"system": "", "question": "Q", "chosen": "A", "rejected": "B"}, [user("Q")]),
        ({"system": " ", "question": "Q", "chosen": "A", "rejected": "B"}, [user("Q")]),
        (
            {"system": "other", "prompt": [system("S"), user("Q")], "chosen": "A", "rejected": "B"},
            [system("S"), user("Q")],
        ),
        (
            {"chosen": HH.format("A"), "rejected": HH.format("B")},
            [user("Hi"), bot("Hello!"), user("2+2?")],
        ),
        (
            {"chosen": "Human: Q\n\nAssistant: A", "rejected": "Human: Q\n\nAssistant: B"},
            [user("Q")],
        ),
        # the prompt column may be a transcript that ends where the assistant is to write
        ({"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": "A", "rejected": "B"}, [user("Q")]),
        # parquet: arrays of dicts
        (
            {
                "chosen": np.array([user("Q"), bot("A")], dtype=object),
                "rejected": np.array([user("Q"), bot("B")], dtype=object),
            },
            [user("Q")],
        ),
        (
            {
                "prompt": [{"role": "Human", "content": "Q"}],
                "chosen": {"role": "GPT", "content": "A"},
                "rejected": {"role": "model", "content": "B"},
            },
            [user("Q")],
        ),
    ],
)
def test_shapes(row: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    """Every known shape gives the same canonical form."""
    found = pair(row)
    assert found.prompt == prompt
    assert (found.chosen, found.rejected) == ([bot("A")], [bot("B")])
    assert (found.source, found.row_id) == ("source", "row")
    assert found.group_id == group_of(prompt)


def test_instruction_and_input_are_both_the_prompt() -> None:
    """Alpaca's shape: the instruction says what to do, the input what with; neither may be lost."""
    found = pair({"instruction": "Translate:", "input": "Hallo", "chosen": "A", "rejected": "B"})
    assert "Translate:" in found.prompt[-1]["content"] and "Hallo" in found.prompt[-1]["content"]
    assert [m["role"] for m in found.prompt] == ["user"]
    assert pair({"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"}).prompt == [user("Q")]


def test_transcripts_of_different_words() -> None:
    """A common string prefix of two answers stays in the answers."""
    found = pair({"chosen": HH.format("The answer is 4."), "rejected": HH.format("The answer is 5.")})
    assert found.chosen == [bot("The answer is 4.")] and found.rejected == [bot("The answer is 5.")]


Q, A = user("Q"), bot("A")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("text", "not_an_object"),
        (None, "not_an_object"),
        ([1, 2], "not_an_object"),
        ({}, "missing_answer"),
        ({"prompt": "Q", "chosen": "A"}, "missing_answer"),
        ({"prompt": "Q", "chosen": "A", "rejected": None}, "missing_answer"),
        ({"prompt": "Q", "chosen": float("nan"), "rejected": "B"}, "missing_answer"),
        ({"prompt": "Q", "chosen": 4, "rejected": "B"}, "wrong_type"),
        ({"prompt": "Q", "chosen": True, "rejected": "B"}, "wrong_type"),
        ({"prompt": 3, "chosen": "A", "rejected": "B"}, "wrong_type"),
        ({"prompt": "Q", "chosen": ["A"], "rejected": "B"}, "wrong_type"),
        ({"prompt": "Q", "chosen": [{"role": "assistant", "content": None}], "rejected": "B"}, "wrong_type"),
        ({"prompt": "Q", "chosen": [{"role": "assistant"}], "rejected": "B"}, "wrong_type"),
        ({"prompt": "Q", "chosen": [{"role": "tool", "content": "A"}], "rejected": "B"}, "unknown_role"),
        ({"prompt": "Q", "chosen": [{"content": "A"}], "rejected": "B"}, "unknown_role"),
        ({"chosen": "A", "rejected": "B"}, "empty_prompt"),
        ({"prompt": None, "chosen": "A", "rejected": "B"}, "empty_prompt"),
        ({"prompt": "  \n", "chosen": "A", "rejected": "B"}, "empty_prompt"),
        ({"prompt": [], "chosen": "A", "rejected": "B"}, "empty_prompt"),
        ({"prompt": [system("S")], "chosen": "A", "rejected": "B"}, "empty_prompt"),
        ({"prompt": "Q", "chosen": "", "rejected": "B"}, "empty_answer"),
        ({"prompt": "Q", "chosen": "A", "rejected": " \n\t"}, "empty_answer"),
        ({"chosen": HH.format("A"), "rejected": HH.format("")}, "empty_answer"),
        ({"prompt": "Q", "chosen": [], "rejected": "B"}, "last_turn_not_assistant"),
        ({"chosen": [Q, A], "rejected": [Q]}, "last_turn_not_assistant"),
        ({"chosen": [Q, A, user("more")], "rejected": [Q, bot("B")]}, "last_turn_not_assistant"),
        ({"chosen": [Q, system("S"), A], "rejected": [Q, bot("B")]}, "last_turn_not_assistant"),
        ({"chosen": [Q, A], "rejected": [user("other"), bot("B")]}, "prompts_differ"),
        ({"chosen": HH.format("A"), "rejected": "\n\nHuman: Hi!\n\nAssistant: B"}, "prompts_differ"),
        ({"prompt": [Q, A], "chosen": "C", "rejected": "B"}, "prompts_differ"),
        ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "identical"),
        ({"prompt": "Q", "chosen": "A", "rejected": " A\n"}, "identical"),
        ({"chosen": [Q, A], "rejected": [Q, A]}, "identical"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "score_chosen": 7, "score_rejected": 7.0}, "tie"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "chosen-rating": 3, "rejected-rating": 3}, "tie"),
        ({"prompt": "Q", "chosen": "A<|im_end|>", "rejected": "B"}, "control_tokens"),
        ({"prompt": "Q </s>", "chosen": "A", "rejected": "B"}, "control_tokens"),
        ({"prompt": "[INST] Q [/INST]", "chosen": "A", "rejected": "B"}, "control_tokens"),
    ],
)
def test_reasons(row: Any, why: str) -> None:
    assert reason(row) == why


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        # the conversations part at the first answer: the user's later words are no answer
        ([Q, A, user("x"), bot("1")], [Q, bot("B"), user("y"), bot("2")]),
        ([Q, A, user("x"), bot("1")], [Q, bot("B")]),
        ([Q, A, user("x"), bot("1")], [Q, bot("B"), user("x"), bot("1")]),
    ],
)
def test_conversations_that_part_before_the_last_turn(chosen: list[Any], rejected: list[Any]) -> None:
    """There is no shared prompt for the last answer, and the user's turns are not to be learned."""
    assert reason({"chosen": chosen, "rejected": rejected}) in ("prompts_differ", "last_turn_not_assistant")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"score_chosen": 8, "score_rejected": 2.5}, (8.0, 2.5)),
        ({"chosen_score": 8, "rejected_score": 2}, (8.0, 2.0)),
        ({"chosen-rating": 5, "rejected-rating": 1}, (5.0, 1.0)),
        ({"chosen_rating": 5.0}, (5.0, None)),
        ({"score_chosen": None, "score_rejected": None}, (None, None)),
        ({"score_chosen": float("nan"), "score_rejected": float("nan")}, (None, None)),
        ({"score_chosen": True, "score_rejected": True}, (None, None)),
        ({"score_chosen": "8", "score_rejected": "8"}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_scores(columns: dict[str, Any], expected: tuple[float | None, float | None]) -> None:
    """Only numbers are scores, and a missing one is no tie."""
    found = pair({"prompt": "Q", "chosen": "A", "rejected": "B", **columns})
    assert (found.score_chosen, found.score_rejected) == expected


def test_groups_ignore_case_and_white_space() -> None:
    assert group_of([user("What  is\nIT?")]) == group_of([user("what is it?")])
    assert group_of([user("a")]) != group_of([user("b")])
    assert group_of([user("a")]) != group_of([system("S"), user("a")])


def test_text_of_keeps_roles_apart() -> None:
    assert text_of([user("a"), bot("b")]) == "user: a\nassistant: b"
    assert text_of([]) == ""


def test_every_reason_is_told_in_words() -> None:
    assert all(len(text) > 10 for text in REASONS.values())
    with pytest.raises(AssertionError):
        Drop("no_such_reason")


# --- anything that JSON can hold --------------------------------------------------------------------------

texts = st.one_of(
    st.sampled_from(["", " ", "Q", "A", "B", HH.format("x"), "\n\nHuman: a", "Human: b\n\nAssistant:", "<|im_end|>"]),
    st.text(max_size=4),
    st.sampled_from(["\ud83d", "a\udc00"]),  # half an emoji: JSON can hold it, UTF-8 cannot
)
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "", None, 3])
messages = st.fixed_dictionaries({}, optional={"role": roles, "content": st.one_of(texts, st.none(), st.integers())})
good = st.builds(
    lambda r, c: {"role": r, "content": c}, st.sampled_from(["user", "assistant", "system"]), st.sampled_from("QAB")
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=3,
)
fields = st.one_of(texts, good, st.lists(good, max_size=4), st.lists(messages, max_size=3), messages, anything)
scores = st.one_of(st.floats(), st.integers(), st.none(), st.just("5"))
rows = st.one_of(
    anything,
    st.fixed_dictionaries(
        {"chosen": fields, "rejected": fields},
        optional={
            "prompt": fields,
            "question": fields,
            "conversations": fields,
            "system": fields,
            "score_chosen": scores,
            "score_rejected": scores,
        },
    ),
)


@settings(deadline=None, max_examples=600)
@given(rows)
@example({"prompt": "Q\ud83d", "chosen": "A", "rejected": "B"})
@example({"prompt": "Q", "chosen": "A\ud83d", "rejected": "B"})
@example({"prompt": "Q", "chosen": "A", "rejected": "B", "score_chosen": 10**400})
def test_any_row_is_dropped_or_a_valid_pair(row: Any) -> None:
    """Only Drop is raised; a pair's prompt ends with the user, its answers are the assistant's and differ."""
    try:
        found = pair(row)
    except Drop as drop:
        assert drop.reason in REASONS
        return
    assert found.prompt[-1]["role"] == "user"
    assert any(m["role"] == "user" and m["content"].strip() for m in found.prompt)
    for answer in (found.chosen, found.rejected):
        assert answer and {m["role"] for m in answer} == {"assistant"}
        assert answer[-1]["content"].strip()
    assert [m["content"].strip() for m in found.chosen] != [m["content"].strip() for m in found.rejected]
    for side in ("chosen", "rejected"):
        assert all(isinstance(m["content"], str) for m in getattr(found, side))
    if found.score_chosen is not None:
        assert found.score_chosen != found.score_rejected
    # it can be written and read again
    again = Pair.model_validate_json(found.model_dump_json())
    assert (again.prompt, again.chosen, again.rejected) == (found.prompt, found.chosen, found.rejected)
    assert json.loads(found.model_dump_json())["group_id"] == found.group_id


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("shape", ["list", "transcript"])
def test_list_and_transcript_agree(turns: int, shape: str) -> None:
    """A conversation of plain words gives the same pair as a list and as a transcript."""
    prompt = [m for i in range(turns) for m in (user(f"u{i}"), bot(f"a{i}"))] + [user("last")]
    if shape == "list":
        row: dict[str, Any] = {"chosen": [*prompt, bot("good")], "rejected": [*prompt, bot("bad")]}
    else:
        text = "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in prompt)
        row = {"chosen": f"{text}\n\nAssistant: good", "rejected": f"{text}\n\nAssistant: bad"}
    found = pair(row)
    assert (found.prompt, found.chosen, found.rejected) == (prompt, [bot("good")], [bot("bad")])
