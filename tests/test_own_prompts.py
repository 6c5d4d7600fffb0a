"""Prompts: every shape of row, each reason why a row gives none, and that no row is lost."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from preftune.errors import UserError
from preftune.own_pairs.prompts import REASONS, FoundPrompts, find_prompts, read_prompts
from preftune.pairs_schema import Prompts
from preftune.workspace import Workspace

ASKED = [{"role": "user", "content": "Why?"}]
TALK = [*ASKED, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And then?"}]
SHAREGPT = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]


def write(folder: Path, rows: list[Any]) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl"


def found(folder: Path, name: str, **keys: Any) -> FoundPrompts:
    return find_prompts(Prompts(id=name, **keys), Workspace(folder, folder / ".preftune"))


def read(
    source: FoundPrompts,
    *,
    with_answers: bool = False,
    near: float | None = None,
    texts: tuple[str, ...] = (),
    most: int = 1000,
    tokens: Callable[[Any], int] | None = lambda prompt: sum(len(m["content"].split()) for m in prompt),
) -> tuple[list[Any], list[Any], int]:
    rest = {"evaluation_texts": texts, "seed": 1, "tokens": tokens, "most_tokens": most}
    return read_prompts(source, with_answers=with_answers, near_duplicates=near, **rest)


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": "Why?", "answer": "So."}, ASKED, "So."),
        ({"prompt": ASKED, "output": "So."}, ASKED, "So."),
        ({"query": "Why?", "answer": "So.", "lang": "python"}, ASKED, "So."),  # CodeFeedback
        ({"messages": [*TALK, {"role": "assistant", "content": "Then."}]}, TALK, "Then."),
        ({"conversations": SHAREGPT}, ASKED, "Because."),
        (
            {"instruction": "Why", "input": "is it?", "output": "So."},
            [{"role": "user", "content": "Why\nis it?"}],
            "So.",
        ),
        (
            {"system": "Be kind.", "prompt": "Why?", "answer": "So."},
            [{"role": "system", "content": "Be kind."}, *ASKED],
            "So.",
        ),
        ({"prompt": "\n\nHuman: Why?\n\nAssistant: So."}, ASKED, "So."),
        ({"text": "Why?", "completion": [{"role": "assistant", "content": " So. "}]}, ASKED, "So."),
    ],
)
def test_shapes(row: dict[str, Any], prompt: list[Any], answer: str, tmp_path: Path) -> None:
    source = found(tmp_path, write(tmp_path, [row]))
    ((kept,), dropped, left) = read(source, with_answers=True)
    assert (kept["prompt"], kept["answer"], kept["row"], dropped, left) == (prompt, answer, row, [], 0)
    ((kept,), _, _) = read(source)
    assert (kept["prompt"], kept["answer"]) == (prompt, None)  # nobody asked for it


def test_the_prompt_of_a_preference_pair(tmp_path: Path) -> None:
    both = {side: [*TALK, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    ((kept,), dropped, _) = read(found(tmp_path, write(tmp_path, [both, {**both, "chosen": "x"}, {"chosen": "a"}])))
    assert kept["prompt"] == TALK
    assert [row["reason"] for row in dropped] == ["unreadable", "unreadable"]


def test_named_columns(tmp_path: Path) -> None:
    name = write(tmp_path, [{"frage": "Why?", "prompt": "other", "gut": "So.", "answer": "no"}])
    ((kept,), _, _) = read(found(tmp_path, name, column="frage", answer="gut"), with_answers=True)
    assert (kept["prompt"], kept["answer"]) == (ASKED, "So.")
    for keys in ({"column": "fraage"}, {"answer": "guut"}):
        with pytest.raises(UserError, match=r"there is no column .* \(it has: frage, prompt, gut, answer\)"):
            read(found(tmp_path, name, **keys))
    (tmp_path / "p.txt").write_text("Why?\n")
    with pytest.raises(UserError, match="its rows have no columns"):
        read(found(tmp_path, "p.txt", column="prompt"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (7, "unreadable"),
        ({"prompt": 7}, "unreadable"),
        ({"other": "Why?"}, "unreadable"),
        ({"prompt": [{"role": "judge", "content": "Why?"}]}, "unreadable"),
        ({"prompt": [{"role": "system", "content": "Why?"}]}, "unreadable"),
        ({"prompt": "Why \ud83d?"}, "broken_text"),
        ({"prompt": " \n"}, "empty"),
        ({"prompt": []}, "empty"),
        ({"messages": [{"role": "assistant", "content": "So."}]}, "empty"),
        ({"prompt": "Why<|im_end|>?"}, "control_tokens"),
        ({"prompt": "long " * 11}, "too_long"),
        ({"prompt": "  wHy? "}, "duplicate"),
        ({"prompt": "why should anybody ever want to do such a thing now"}, "near_duplicate"),
        ({"prompt": "so " + " ".join("abcdefghijklm")}, "contaminated"),
    ],
)
def test_each_reason(row: Any, reason: str, tmp_path: Path) -> None:
    first = [{"prompt": "Why?"}, {"prompt": "Why should anybody ever want to do such a thing?"}]
    most = 10 if reason == "too_long" else 1000
    evaluation = ("x " + " ".join("abcdefghijklm"),)  # 13 words in a row
    source = found(tmp_path, write(tmp_path, [*first, row]))
    kept, dropped, _ = read(source, near=0.6, texts=evaluation, most=most)
    assert [r["prompt"][0]["content"] for r in kept] == [r["prompt"] for r in first]
    assert [(r["id"], r["reason"]) for r in dropped] == [("rows.jsonl:3", reason)]
    assert reason in REASONS


@pytest.mark.parametrize(
    "row", [{"prompt": "Why?"}, {"prompt": "Why?", "answer": " "}, {"prompt": "Why?", "answer": 7}]
)
def test_a_row_without_an_answer(row: Any, tmp_path: Path) -> None:
    name = write(tmp_path, [{"prompt": "Whose?", "answer": "His."}, row])
    kept, dropped, _ = read(found(tmp_path, name), with_answers=True)
    assert ([r["answer"] for r in kept], [r["reason"] for r in dropped]) == (["His."], ["no_answer"])


def test_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeffWhy?\r\n\r\nwhy?\nWer\u00e4?\n".encode() + b"no end")
    kept, dropped, _ = read(found(tmp_path, "p.txt"))
    assert [(r["id"], r["prompt"][0]["content"]) for r in kept] == [
        ("p.txt:1", "Why?"),
        ("p.txt:4", "Wer\u00e4?"),
        ("p.txt:5", "no end"),
    ]
    assert [(r["id"], r["reason"]) for r in dropped] == [("p.txt:2", "empty"), ("p.txt:3", "duplicate")]
    (tmp_path / "p.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read(found(tmp_path, "p.txt"))


def test_a_draw_is_by_the_seed_and_in_the_files_order(tmp_path: Path) -> None:
    name = write(tmp_path, [{"prompt": f"Question number {i}"} for i in range(30)] + [{"prompt": ""}])
    kept, dropped, left = read(found(tmp_path, name, max_prompts=10))
    numbers = [int(r["id"].split(":")[1]) for r in kept]
    assert (len(kept), len(dropped), left) == (10, 1, 20)
    assert numbers == sorted(numbers) and numbers != list(range(1, 11))
    assert read(found(tmp_path, name, max_prompts=10))[0] == kept
    assert read(found(tmp_path, name, max_prompts=30))[2] == 0


def test_nothing_left_is_told_with_counts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompt is left: 2 empty, 1 unreadable"):
        read(found(tmp_path, write(tmp_path, [{"prompt": ""}, {"prompt": " "}, 3])))


def test_what_is_not_there(tmp_path: Path) -> None:
    for name in ("p.txt", "p.jsonl", "./folder"):
        with pytest.raises(UserError, match="there is no such file") as told:
            found(tmp_path, name)
        assert told.value.where == f"pairs.prompts: {name}"
    write(tmp_path, [{"prompt": "Why?"}])
    with pytest.raises(UserError, match="no split 'test'"):
        found(tmp_path, "rows.jsonl", split="test")


def test_the_starters_prompts() -> None:
    """All of its 330 pairs have a prompt of their own; what the file's own checks leave out, this leaves out."""
    source = find_prompts(Prompts(id="recipes/starter/pairs"), Workspace(ROOT, ROOT / ".preftune"))
    kept, dropped, left = read(source, near=0.8)
    assert len(kept) + len(dropped) + left == 330
    assert Counter(r["reason"] for r in dropped) == {}
    rows = [json.loads(line) for line in (ROOT / "recipes/starter/pairs/train.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in kept] == [r["prompt"] for r in rows]
    assert {r["topic"] for r in kept} == {r["topic"] for r in rows}


NAMES = ["prompt", "role", "content", "messages", "answer", "chosen", "rejected", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["prompt", "role", "content", "messages", "answer", "chosen", "rejected", "x"]), inner
        )
    ),
    max_leaves=8,
)


@given(st.lists(JSON, min_size=1, max_size=6), st.booleans())
def test_no_row_is_lost_and_none_is_fatal(rows: list[Any], with_answers: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = found(folder, write(folder, [*rows, {"prompt": "Why not?", "answer": "So."}]), max_prompts=2)
        try:
            kept, dropped, left = read(source, with_answers=with_answers, near=0.8)
        except UserError as e:  # the file as a whole: a first row that is no object, say
            assert "\n" not in e.error
            return
    assert len(kept) + len(dropped) + left == len(rows) + 1
    assert all(r["reason"] in REASONS for r in dropped)
    assert all(r["prompt"][-1]["role"] == "user" and r["prompt"][-1]["content"].strip() for r in kept)
    assert (not with_answers) or all(r["answer"] for r in kept)
    json.dumps(kept)
