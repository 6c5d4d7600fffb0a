"""From a row of any shape to a canonical pair, or to the reason why it is none."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preftune.data.check_list import CHOICE, CONTENT, REASONS, STRUCTURE
from preftune.data.pairs import LONGEST_TEXT, Drop, Pair, findings, group_of, text_of, to_pair


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def pair(row: Any) -> Pair:
    return to_pair(row, "source", "row")


def found(row: dict[str, Any], *languages: str) -> list[str]:
    """The checks that a row's pair fails."""
    return findings(pair(row), row, languages or None)


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
        ({"prompt": "Q", "chosen": [Q, A], "rejected": []}, "last_turn_not_assistant"),
        ({"prompt": "Q", "chosen": [Q, A], "rejected": [Q, user("B")]}, "last_turn_not_assistant"),
        # conversations of different lengths
        ({"chosen": [Q, system("S"), A], "rejected": [Q, bot("B")]}, "unequal_turns"),
        ({"chosen": HH.format("A"), "rejected": "\n\nHuman: Hi!\n\nAssistant: B"}, "unequal_turns"),
        ({"chosen": [Q, A], "rejected": [Q, A, user("more"), bot("B")]}, "unequal_turns"),
        ({"chosen": [Q, A], "rejected": [system("S"), Q, bot("B")]}, "unequal_turns"),
        ({"chosen": [Q, A, bot("more")], "rejected": [Q, bot("B")]}, "unequal_turns"),
        ({"chosen": [Q, A], "rejected": [bot("B")]}, "unequal_turns"),
        ({"chosen": [Q, A], "rejected": [user("other"), bot("B")]}, "prompts_differ"),
        ({"chosen": HH.format("A"), "rejected": HH.replace("Hi", "Hey").format("B")}, "prompts_differ"),
        ({"chosen": HH.format("A"), "rejected": HH.replace("Hello", "Hey").format("B")}, "prompts_differ"),
        ({"chosen": [Q, A, A], "rejected": [Q, Q, bot("B")]}, "prompts_differ"),
        ({"chosen": [system("S"), A], "rejected": [system("S"), bot("B")]}, "empty_prompt"),
        ({"chosen": [Q, system("S"), A], "rejected": [Q, system("S"), bot("B")]}, "prompts_differ"),
        ({"prompt": [Q, A], "chosen": "C", "rejected": "B"}, "prompts_differ"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "group_id": "a\udc00"}, "broken_text"),
        ({"prompt": "Q", "chosen": np.float64(1), "rejected": "B"}, "wrong_type"),
    ],
)
def test_reasons(row: Any, why: str) -> None:
    assert reason(row) == why


@pytest.mark.parametrize(
    ("chosen", "rejected", "why"),
    [
        # the conversations part at the first answer: the user's later words are no answer
        ([Q, A, user("x"), bot("1")], [Q, bot("B"), user("y"), bot("2")], "prompts_differ"),
        ([Q, A, user("x"), bot("1")], [Q, bot("B")], "unequal_turns"),
        ([Q, A, user("x"), bot("1")], [Q, bot("B"), user("x"), bot("1")], "prompts_differ"),
    ],
)
def test_conversations_that_part_before_the_last_turn(chosen: list[Any], rejected: list[Any], why: str) -> None:
    """There is no shared prompt for the last answer, and the user's turns are not to be learned."""
    assert reason({"chosen": chosen, "rejected": rejected}) == why


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
        ({"score_chosen": "8", "score_rejected": " 7.5 "}, (8.0, 7.5)),
        ({"score_chosen": "eight", "score_rejected": ""}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_scores(columns: dict[str, Any], expected: tuple[float | None, float | None]) -> None:
    """Only numbers are scores, and a missing one is no tie."""
    found = pair({"prompt": "Q", "chosen": "A", "rejected": "B", **columns})
    assert (found.score_chosen, found.score_rejected) == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"topic": "code"}, "code"),
        ({"category": " home,\ngarden "}, "home, garden"),
        ({"domain": "stem", "subset": "x"}, "stem"),
        ({"topic": None, "category": 7, "domain": "", "subset": "chat"}, "chat"),
        ({"topic": "long " * 17}, None),  # 84 characters
        ({"topic": "half \ud83d"}, "half ?"),
        ({"topics": "code"}, None),
        ({}, None),
    ],
)
def test_topics(columns: dict[str, Any], expected: str | None) -> None:
    """The first short label; it survives the file that carries the pair through the mixture."""
    found = pair({"prompt": "Q", "chosen": "A", "rejected": "B", **columns})
    assert found.topic == expected
    assert Pair.model_validate_json(found.model_dump_json()).topic == expected


def test_pairs_of_older_files_have_no_topic() -> None:
    row = json.loads(pair({"prompt": "Q", "chosen": "A", "rejected": "B"}).model_dump_json())
    del row["topic"]
    assert Pair.model_validate(row).topic is None


def test_groups_ignore_case_and_white_space() -> None:
    assert group_of([user("What  is\nIT?")]) == group_of([user("what is it?")])
    assert group_of([user("a")]) != group_of([user("b")])
    assert group_of([user("a")]) != group_of([system("S"), user("a")])


@pytest.mark.parametrize(
    ("value", "expected"),
    [("t1", "source:t1"), (17, "source:17"), (0, "source:0"), (" t1 ", "source:t1")],
)
def test_the_source_s_own_groups(value: Any, expected: str) -> None:
    """They are the source's: another source's t1 is another group."""
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "group_id": value}
    assert pair(row).group_id == expected
    assert to_pair(row, "other", "row").group_id == expected.replace("source", "other")


@pytest.mark.parametrize("value", [None, float("nan"), "", "  "])
def test_no_group_of_its_own(value: Any) -> None:
    """Rows without one must not become one group."""
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "group_id": value}
    assert pair(row).group_id == group_of([user("Q")])


def test_an_empty_system_turn_is_left_out() -> None:
    row = {"chosen": [system(" "), Q, A], "rejected": [system(" "), Q, bot("B")]}
    assert pair(row).prompt == [Q]
    assert pair({**row, "system": "S"}).prompt == [system("S"), Q]
    assert pair({"prompt": [system(""), Q], "chosen": "A", "rejected": "B"}).prompt == [Q]
    assert reason({"prompt": [system("")], "chosen": "A", "rejected": "B"}) == "empty_prompt"


PLAIN = {"prompt": "Q", "chosen": "A", "rejected": "B"}
TALK = {"chosen": [Q, A, user("Q2"), bot("C")], "rejected": [Q, A, user("Q2"), bot("D")]}


@pytest.mark.parametrize(
    "row", [PLAIN, TALK, SHAREGPT, {**PLAIN, "system": "S"}, {"chosen": HH.format(1), "rejected": HH.format(2)}]
)
def test_good_pairs_have_no_findings(row: dict[str, Any]) -> None:
    assert found(row) == []


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({**PLAIN, "tie": True}, "tie"),
        ({**PLAIN, "score_chosen": 7, "score_rejected": 7.0}, "tie"),
        ({**PLAIN, "chosen-rating": 3, "rejected-rating": 3}, "tie"),
        ({**PLAIN, "score_chosen": 0, "score_rejected": 0}, "tie"),
        ({**PLAIN, "score_chosen": 1, "score_rejected": 4.5}, "score_inverted"),
        ({**PLAIN, "chosen_rating": -2, "rejected_rating": 0}, "score_inverted"),
        ({**PLAIN, "rejected": "A"}, "identical"),
        ({**PLAIN, "rejected": " A\n"}, "identical"),
        ({**PLAIN, "chosen": " B\n"}, "identical"),
        ({"chosen": [Q, A], "rejected": [Q, A]}, "identical"),
        ({"chosen": [Q, Q, A], "rejected": [Q, Q, bot("B")]}, "not_alternating"),
        ({"chosen": [bot("Hi"), Q, A], "rejected": [bot("Hi"), Q, bot("B")]}, "not_alternating"),
        ({"chosen": [Q, A, bot("C")], "rejected": [Q, A, bot("D")]}, "not_alternating"),
        ({"prompt": "Q", "chosen": [A, bot("more")], "rejected": "B"}, "not_alternating"),
        ({"prompt": "Q", "chosen": "A", "rejected": [bot("B"), bot("more")]}, "not_alternating"),
        ({"prompt": [system("S"), system("T"), Q], "chosen": "A", "rejected": "B"}, "not_alternating"),
        ({"prompt": [Q, A, system("S"), Q], "chosen": "A", "rejected": "B"}, "not_alternating"),
        ({**PLAIN, "chosen": "A<|im_end|>"}, "control_tokens"),
        ({**PLAIN, "prompt": "Q </s>"}, "control_tokens"),
        ({**PLAIN, "rejected": "B<end_of_turn>"}, "control_tokens"),
        ({**PLAIN, "prompt": "[INST] Q [/INST]"}, "control_tokens"),
        ({**PLAIN, "system": "<<SYS>>"}, "control_tokens"),
        ({**PLAIN, "chosen": "A\0"}, "control_characters"),
        ({**PLAIN, "prompt": "\0Q"}, "control_characters"),
        ({**PLAIN, "rejected": "B" * (LONGEST_TEXT + 1)}, "too_long"),
        ({**PLAIN, "prompt": "Q" * (LONGEST_TEXT + 1)}, "too_long"),
        ({**TALK, "prompt": "another question"}, "prompt_mismatch"),
        ({**TALK, "prompt": "\n\nHuman: Q\n\nAssistant: another answer\n\nHuman: Q2\n\nAssistant:"}, "prompt_mismatch"),
        ({**TALK, "prompt": "Q\ud83d"}, "prompt_mismatch"),
        ({**PLAIN, "toxic": True}, "toxic"),
        ({**PLAIN, "in_gsm8k_train": True}, "in_gsm8k_train"),
    ],
)
def test_findings(row: dict[str, Any], name: str) -> None:
    """A row with one defect has one finding."""
    assert found(row) == [name]


@pytest.mark.parametrize(
    "row",
    [
        {**PLAIN, "tie": False, "toxic": False, "in_gsm8k_train": False},
        {**PLAIN, "tie": None, "toxic": None, "in_gsm8k_train": None},
        {**PLAIN, "tie": "no", "toxic": "no", "in_gsm8k_train": 1},  # flags are true or false, nothing else
        {**PLAIN, "score_chosen": 7, "score_rejected": 6.9},
        {**PLAIN, "score_chosen": 7},
        {**PLAIN, "score_chosen": float("nan"), "score_rejected": float("nan")},
        {**PLAIN, "rejected": "a"},
        {**PLAIN, "chosen": "A B", "rejected": "A  B"},
        {"prompt": [system("S"), Q, A, Q], "chosen": "A", "rejected": "B"},
        {**PLAIN, "chosen": "<b>bold</b> <|unknown|> INST im_end"},
        {**PLAIN, "chosen": "A\t\r\n\x01"},
        {**PLAIN, "chosen": "A" * LONGEST_TEXT},
        {**TALK, "prompt": "Q"},
        {**TALK, "prompt": " Q2\n"},
        {**TALK, "prompt": ""},
        {**TALK, "prompt": None},
        {**TALK, "prompt": [user("another")]},  # only a text can be compared
        {**TALK, "question": "another question"},
        {**TALK, "prompt": "\n\nHuman: Q\n\nAssistant: A\n\nHuman: Q2\n\nAssistant:"},
        {"prompt": "\n\nHuman: Q\n\nAssistant: A\n\nHuman: Q2\n\nAssistant:", "chosen": "C", "rejected": "D"},
        {"prompt": "Human: Q\n\nAssistant:", "chosen": "C", "rejected": "D"},
    ],
)
def test_what_is_no_finding(row: dict[str, Any]) -> None:
    assert found(row) == []


@pytest.mark.parametrize(
    ("columns", "languages", "is_other"),
    [
        ({"language": "de"}, ("en",), True),
        ({"lang": "pt-BR"}, ("en", "pt"), True),
        ({"language": "EN"}, ("en",), False),
        ({"lang": "pt-BR"}, ("pt-BR",), False),
        ({"lang": "de"}, ("en", "de"), False),
        ({"language": None, "lang": "de"}, ("en",), True),
        ({"language": "de"}, (), False),  # none is asked for
        ({}, ("en",), False),  # the row does not say
        ({"language": None}, ("en",), False),
        ({"language": float("nan")}, ("en",), False),
        ({"language": ["de"]}, ("en",), False),
    ],
)
def test_languages(columns: dict[str, Any], languages: tuple[str, ...], is_other: bool) -> None:
    assert found({**PLAIN, **columns}, *languages) == (["other_language"] if is_other else [])


def test_every_finding_is_told() -> None:
    row = {**TALK, "chosen": [Q, Q, bot("\0</s>")], "rejected": [Q, Q, bot("\0</s>")], "toxic": True, "lang": "de"}
    expected = ["other_language", "identical", "not_alternating", "control_tokens", "control_characters", "toxic"]
    assert found(row, "en") == expected


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
            "group_id": anything,
            "language": anything,
            "tie": anything,
            "toxic": anything,
        },
    ),
)


@settings(deadline=None, max_examples=600)
@given(rows)
@example({"prompt": "Q\ud83d", "chosen": "A", "rejected": "B"})
@example({"prompt": "Q", "chosen": "A\ud83d", "rejected": "B"})
@example({"prompt": "Q", "chosen": "A", "rejected": "B", "score_chosen": 10**400})
@example({"prompt": "Q", "chosen": "A", "rejected": "B", "group_id": "\ud83d"})
@example({"prompt": "Q\ud83d", "chosen": [{"role": "user", "content": "Q"}, A], "rejected": [Q, {**A, "content": "B"}]})
def test_any_row_is_dropped_or_a_valid_pair(row: Any) -> None:
    """Only Drop is raised; a pair's prompt ends with the user, its answers are the assistant's; findings has names."""
    try:
        made = pair(row)
    except Drop as drop:
        assert drop.reason in STRUCTURE
        return
    assert made.prompt[-1]["role"] == "user"
    assert any(m["role"] == "user" and m["content"].strip() for m in made.prompt)
    for answer in (made.chosen, made.rejected):
        assert answer and {m["role"] for m in answer} == {"assistant"}
        assert answer[-1]["content"].strip()
    for side in ("prompt", "chosen", "rejected"):
        assert all(isinstance(m["content"], str) for m in getattr(made, side))
    names = findings(made, row, ("en",))
    assert set(names) <= {*CHOICE, *CONTENT} and len(set(names)) == len(names)
    if [m["content"].strip() for m in made.chosen] == [m["content"].strip() for m in made.rejected]:
        assert "identical" in names
    if made.score_chosen is not None and made.score_chosen == made.score_rejected:
        assert "tie" in names
    # it can be written and read again
    again = Pair.model_validate_json(made.model_dump_json())
    assert (again.prompt, again.chosen, again.rejected) == (made.prompt, made.chosen, made.rejected)
    assert json.loads(made.model_dump_json())["group_id"] == made.group_id


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
