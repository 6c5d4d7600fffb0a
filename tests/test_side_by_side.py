"""The words in which two answers differ."""

import time

import pytest

from preftune.side_by_side import differences


def marked(parts: list[tuple[bool, str]]) -> list[str]:
    return [text for only_here, text in parts if only_here]


def joined(parts: list[tuple[bool, str]]) -> str:
    return "".join(text for _, text in parts)


def test_the_words_that_only_one_has_are_marked() -> None:
    found = differences("Your order left today. It comes soon.", "Your parcel left today. It comes very soon.")
    assert marked(found.first) == ["order "]
    assert marked(found.second) == ["parcel ", "very "]
    # 9 and 10 words (full stops count), 8 of them in common: 1 − 16/19
    assert found.share == pytest.approx(1 - 16 / 19)
    assert found.marked


def test_an_exchange_in_the_middle_is_found_by_hand_counted_words() -> None:
    found = differences("a b c d e f", "a c b d e f")
    assert joined(found.first) == "a b c d e f" and joined(found.second) == "a c b d e f"
    assert marked(found.first) in (["b "], ["c "])
    assert found.share == pytest.approx(1 - 10 / 12)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("One  two\n\nthree.", "One two\n three!"),
        (" leading", "trailing "),
        ("naïve café, e\u0301clair", "naïve cafe, eclair"),
        ("今天天气很好。", "今天天气不好。"),
        ("a\x00b c", "a\x00b d"),
        ("שלום לך", "שלום לכם"),
    ],
)
def test_no_character_is_lost(first: str, second: str) -> None:
    found = differences(first, second)
    assert joined(found.first) == first
    assert joined(found.second) == second


def test_a_few_words_in_common_within_a_long_change_are_no_island() -> None:
    found = differences(
        "We sell red and round apples in June, July and August to all of our customers.",
        "We sell some rather old and very dry pears in June, July and August to all of our customers.",
    )
    assert marked(found.first) == ["red and round apples "]
    assert marked(found.second) == ["some rather old and very dry pears "]
    assert marked(differences("one two x three four", "one 2 x 3 four").second) == ["2 ", "3 "]


def test_chinese_is_compared_by_the_character() -> None:
    assert marked(differences("今天天气很好。", "今天天气不好。").second) == ["不"]


def test_white_space_alone_is_no_difference() -> None:
    found = differences("one two\nthree", "one  two three")
    assert (found.share, found.marked) == (0, False)


def test_what_is_too_different_is_not_marked() -> None:
    found = differences("alpha beta gamma delta", "alpha one two three")
    assert found.share == 0.75 and not found.marked
    assert found.first == [(False, "alpha beta gamma delta")]
    assert differences("alpha beta gamma", "alpha beta three").marked


@pytest.mark.parametrize(("first", "second"), [("", ""), ("", "words here"), ("words", ""), (" \n", "words")])
def test_empty_texts(first: str, second: str) -> None:
    found = differences(first, second)
    assert not found.marked and joined(found.first) == first and joined(found.second) == second


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a " * 2000, "b a " * 1000),
        ("I'm sorry. " * 363, "I'm sorry, " * 363),
        (" ".join(map(str, range(120))) * 10, " ".join(map(str, range(0, 240, 2))) * 10),
    ],
)
def test_answers_that_repeat_themselves_take_no_minutes(first: str, second: str) -> None:
    began = time.monotonic()
    differences(first, second)
    assert time.monotonic() - began < 5


def test_a_repetitive_answer_with_one_more_word_is_not_called_different() -> None:
    first = "I'm sorry. " * 300
    found = differences(first, first + "Goodbye now.")
    assert marked(found.second) == ["Goodbye now."]
    assert found.share < 0.01
