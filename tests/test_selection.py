"""Selection: best against worst, margins, ties, cut answers, the dataset's own answers, and length."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.own_pairs.selection import REASONS, Answer, Choice, answers_of, balanced, choose, length_accuracy
from preftune.pairs_schema import Pairs

ASKED = {
    "id": "p",
    "group": "g",
    "prompt": [{"role": "user", "content": "?"}],
    "answer": None,
    "topic": None,
    "row": {},
}
RULE = {"kind": "rule", "function": "r.py:f"}


def section(**keys: Any) -> Pairs:
    return Pairs.model_validate({"prompts": "p.jsonl", "scorer": RULE, **keys})


def answers(*scores: float | None, cut: tuple[int, ...] = (), own: float | None = None) -> list[Answer]:
    found = [Answer(i, f"answer {i}", i not in cut, s) for i, s in enumerate(scores)]
    return found if own is None else [Answer(-1, "own answer", True, own), *found]


def chosen(found: list[Answer], **keys: Any) -> tuple[list[tuple[int, int]], list[str]]:
    pairs, left = choose([ASKED], {"p": found}, section(**keys))
    return [(p.chosen.number, p.rejected.number) for p in pairs], [row["reason"] for row in left]


@pytest.mark.parametrize(
    ("scores", "keys", "expected"),
    [
        ((1, 3, 2, 0), {}, [(1, 3)]),
        ((1, 3, 2, 0), {"per_prompt": 2}, [(1, 3), (2, 0)]),
        ((1, 3, 2, 0), {"per_prompt": 9}, [(1, 3), (2, 0)]),  # no answer is used twice
        ((1, 3, 2, 0), {"per_prompt": 2, "margin": 1}, [(1, 3)]),  # 2 and 1 differ by no more than 1
        ((3, 1, 2), {"per_prompt": 2}, [(0, 1)]),  # nothing is left for the middle one
        ((5, 5, 1, 1), {}, [(0, 2)]),  # among equals the lowest number
        ((None, 2, 1), {}, [(1, 2)]),
    ],
)
def test_best_stands_against_worst(scores: tuple[float, ...], keys: dict[str, Any], expected: list[Any]) -> None:
    assert chosen(answers(*scores), **keys) == (expected, [])


@pytest.mark.parametrize(
    ("found", "keys", "reason"),
    [
        (answers(1, 1, 1), {}, "tie"),
        (answers(1, 2), {"margin": 1}, "below_margin"),
        (answers(1), {}, "no_answer"),
        ([], {}, "no_answer"),
        (answers(None, None, 3), {}, "no_score"),
        (answers(1, 2, cut=(0, 1)), {}, "all_cut"),
        (answers(1, 2, cut=(1,)), {}, "all_cut"),  # the better one was cut
        (answers(3, own=2.0), {"chosen": "dataset", "completions": 1}, "model_better"),
        (answers(2, own=2.0), {"chosen": "dataset", "completions": 1}, "tie"),
        (answers(1, 0), {"chosen": "dataset"}, "no_answer"),
    ],
)
def test_a_prompt_without_a_pair_has_one_reason(found: list[Answer], keys: dict[str, Any], reason: str) -> None:
    assert chosen(found, **keys) == ([], [reason])
    assert reason in REASONS


def test_a_cut_answer_is_rejected_but_never_chosen() -> None:
    assert chosen(answers(9, 5, 1, cut=(0, 2))) == ([(1, 2)], [])


def test_the_datasets_answer_is_always_the_chosen_one() -> None:
    found = answers(4, 2, 3, own=5.0)
    assert chosen(found, chosen="dataset") == ([(-1, 1)], [])
    assert chosen(found, chosen="dataset", per_prompt=3) == ([(-1, 1), (-1, 2), (-1, 0)], [])
    assert chosen(found, chosen="dataset", per_prompt=3, margin=1) == ([(-1, 1), (-1, 2)], [])
    pairs, _ = choose(
        [ASKED], {"p": answers(None, own=0.0)}, section(scorer=None, chosen="dataset", completions=1, temperatures=[0])
    )
    assert [(p.chosen.number, p.rejected.number, p.gap) for p in pairs] == [(-1, 0, 0.0)]


def test_each_text_counts_once_and_blank_or_failed_ones_never() -> None:
    prompt = {**ASKED, "answer": " same "}
    rows = [
        {"id": "p", "number": n, "text": text, "whole": True, "error": error}
        for n, text, error in (
            (2, "other", None),
            (0, "same", None),
            (1, " other\n", None),
            (3, " ", None),
            (4, "", "timeout"),
        )
    ]
    found = answers_of([prompt], rows, [{"id": "p", "number": 1, "score": 7.0}])
    assert found == {"p": [Answer(-1, "same", True, None), Answer(1, "other", True, 7.0)]}


def pair(chosen_length: int, rejected_length: int, gap: float = 1.0) -> Choice:
    return Choice(ASKED, Answer(0, "x" * chosen_length, True, gap), Answer(1, "x" * rejected_length, True, 0.0))


def test_length_accuracy_by_hand() -> None:
    assert length_accuracy([]) == 0.5
    assert length_accuracy([pair(2, 1)] * 3 + [pair(1, 2)]) == 0.75
    assert length_accuracy([pair(1, 2)] * 3 + [pair(2, 1)]) == 0.75
    assert length_accuracy([pair(2, 1), pair(1, 1)]) == 0.75
    assert length_accuracy([pair(1, 1)]) == 0.5


def test_balance_takes_out_the_smallest_gaps_of_the_longer_side() -> None:
    pairs = [pair(2, 1, gap) for gap in (5.0, 1.0, 3.0, 4.0)] + [pair(1, 2, 0.1)] * 2
    kept = balanced(pairs, 0.5, 0)
    assert [p.gap for p in kept] == [5.0, 4.0, 0.1, 0.1]
    assert balanced(pairs, 1.0, 0) == pairs
    # 4 of 6 are 0.67: 0.6 needs 3 of 5
    assert [p.gap for p in balanced(pairs, 0.6, 0)] == [5.0, 3.0, 4.0, 0.1, 0.1]


LENGTHS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.floats(0.1, 5))


@given(st.lists(LENGTHS, max_size=30), st.floats(0.5, 1), st.integers(0, 3))
def test_a_balanced_set_keeps_its_promise_and_the_order(rows: list[Any], most: float, seed: int) -> None:
    pairs = [pair(*row) for row in rows]
    kept = balanced(pairs, most, seed)
    assert length_accuracy(kept) <= max(most, 0.5) + 1e-6
    assert [p for p in pairs if any(p is k for k in kept)] == kept
    assert balanced(pairs, most, seed) == kept


@given(
    st.lists(st.tuples(st.none() | st.integers(0, 5), st.booleans()), max_size=7),
    st.integers(1, 4),
    st.sampled_from([0.0, 1.0, 2.5]),
)
def test_every_pair_keeps_the_rules(rows: list[tuple[float | None, bool]], per_prompt: int, margin: float) -> None:
    found = [Answer(i, f"a{i}", whole, score) for i, (score, whole) in enumerate(rows)]
    pairs, left = choose([ASKED], {"p": found}, section(per_prompt=per_prompt, margin=margin))
    assert (len(pairs) > 0) != (len(left) > 0)
    assert len(pairs) <= per_prompt
    assert all(p.gap > margin and p.chosen.whole for p in pairs)
    used = Counter(n for p in pairs for n in (p.chosen.number, p.rejected.number))
    assert not used or max(used.values()) == 1
