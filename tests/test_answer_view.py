"""A prompt and its answers as a page shows them."""

from typing import Any

import pytest
from sample_evidence import judgement, user

from preftune.answer_view import LONGEST, joined, judged_words, mark_differences, messages, shown_text, size, within

NAMES = {"sft": "SFT", "policy": "DPO", "reference": "the reference"}


def article(text: str) -> dict[str, Any]:
    turn = {"prompt": messages(user("Why?")), "texts": [shown_text("SFT answer", "sft", text)], "note": ""}
    return {"turns": [{**turn, "judged": [], "graded": []}]}


def test_long_texts_are_cut_and_it_is_said_by_how_much() -> None:
    found = shown_text("SFT answer", "sft", "a" * 100_000)
    assert len(found["parts"][0][1]) == LONGEST and found["hidden"] == 100_000 - LONGEST
    (message,) = messages(user("b" * (LONGEST + 1)))
    assert (len(message["content"]), message["hidden"]) == (LONGEST, 1)
    assert shown_text("SFT answer", "sft", " \n")["empty"]


@pytest.mark.parametrize(
    ("first", "second", "note"),
    [
        ("one two three", "one two four", ""),
        ("one two three", "one two three", "same"),
        ("one two three", "alpha beta", "too little"),
        ("", "alpha beta", ""),
    ],
)
def test_what_is_said_where_nothing_is_marked(first: str, second: str, note: str) -> None:
    a, b = shown_text("SFT answer", "sft", first), shown_text("DPO answer", "dpo", second)
    said = mark_differences(a, b)
    assert note in said and bool(note) == bool(said)
    assert [text for only_here, text in b["parts"] if only_here] == (["four"] if second.endswith("four") else [])


def test_a_conversation_of_several_turns_is_one_text() -> None:
    assert joined(user("hello")) == "hello"
    assert joined([*user("hello"), {"role": "assistant", "content": "hi"}]) == "user: hello\n\nassistant: hi"


def test_the_judge_s_words() -> None:
    found = judged_words(judgement("held_out", "1", 1.0), NAMES)
    assert found["result"] == "DPO won" and found["versus"] == "DPO against SFT"
    assert found["words"] == [{"label": "In both orders. Verdict: DPO", "text": "The second answer is clearer."}]
    flipped = judged_words(judgement("held_out", "1", 0.5, flipped=True), NAMES)
    assert flipped["result"] == "tie (the verdict flips with the order)"
    labels = [w["label"] for w in flipped["words"]]
    assert labels == ["Shown first: SFT. Verdict: tie", "Shown first: DPO. Verdict: SFT"]
    missing = judged_words(judgement("alpaca_eval", "1", None, pair=["reference", "policy"]), NAMES)
    assert missing["result"] == "no verdict" and missing["versus"] == "DPO against the reference"
    assert missing["words"] == [{"label": "In both orders. Verdict: none (time-out)", "text": ""}]


def test_what_fits() -> None:
    """Bytes as they stand in the page: an & takes five."""
    assert size(article("&" * 100)) - size(article("a" * 100)) == 400
    assert size(article("é" * 100)) - size(article("e" * 100)) == 100
    articles = [article("a" * 1000) for _ in range(10)]
    assert len(within(articles, 3 * size(articles[0]))) == 3
    assert within(articles, size(articles[0]) - 1) == []
