"""Which texts of an evaluation set must not be trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.data.decontamination import evaluation_sources, evaluation_texts, own_texts
from preftune.data.overlap import shares_words
from preftune.errors import UserError
from preftune.lm_tasks.documents import read_documents
from preftune.schema import Validation
from preftune.workspace import Workspace


def texts(folder: Path, rows: list[Any]) -> list[str]:
    (folder / "bench.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    workspace = Workspace(folder, folder / ".preftune")
    return evaluation_texts(evaluation_sources(Validation(decontaminate=("bench.jsonl",)), workspace))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "one"}, ["one"]),
        ({"question_id": 81, "category": "writing", "turns": ["first", "and then"]}, ["first", "and then"]),
        ({"question": "Q", "answer": "not a question"}, ["Q"]),
        ({"instruction": "do it", "generator": "x"}, ["do it"]),
        ({"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]}, ["U"]),
        ({"messages": [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]}, ["U"]),
        ({"conversations": [{"from": "human", "value": "U"}, {"from": "gpt", "value": "A"}]}, ["U"]),
        ("a bare text", ["a bare text"]),
        ({"prompt": None, "text": "T"}, ["T"]),
    ],
)
def test_questions_of_known_forms(tmp_path: Path, row: Any, expected: list[str]) -> None:
    assert texts(tmp_path, [row]) == expected


def test_all_splits_count(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for split in ("test", "dev"):
        (tmp_path / "set" / f"{split}.jsonl").write_text(json.dumps({"prompt": split}) + "\n")
    workspace = Workspace(tmp_path, tmp_path / ".preftune")
    found = evaluation_texts(evaluation_sources(Validation(decontaminate=("set",)), workspace))
    assert sorted(found) == ["dev", "test"]


def test_a_set_without_questions_or_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no questions") as e:
        texts(tmp_path, [{"label": 1}, {"prompt": " "}])
    assert "bench.jsonl" in e.value.where
    with pytest.raises(UserError, match="no such file or folder"):
        evaluation_sources(Validation(decontaminate=("gone.jsonl",)), Workspace(tmp_path, tmp_path))


def test_our_own_questions_must_not_be_trained_on() -> None:
    """Every question of facts and instructions is found where it is asked as it stands; its like is not."""
    own = own_texts()
    assert len(own) == len(read_documents("facts")) + len(read_documents("instructions"))
    assert sorted(shares_words(own, own)) == list(range(len(own)))
    asked = [
        "what is the capital of  FRANCE",
        "What is the capital of France, and why?",
        "What is the capital of Malta?",
    ]
    assert list(shares_words(asked, own)) == [0]
