"""Suites in their published formats: what is read, what is left out and counted, what is refused with which words."""

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import UserError
from preftune.evaluation_schema import Suite
from preftune.suites import Question, find_suite, read_suite
from preftune.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, tmp_path / "home").make()


def read(workspace: Workspace, name: str, questions: Any, **more: Any) -> tuple[list[Question], list[str]]:
    return read_suite(find_suite(Suite.model_validate({"name": name, "questions": questions, **more}), workspace))


def write(workspace: Workspace, name: str, content: Any) -> str:
    path = workspace.project / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return name


def asked(questions: list[Question]) -> list[list[str]]:
    return [[m["content"] for turn in q["turns"] for m in turn] for q in questions]


def test_the_guides_list_of_prompts(workspace: Workspace) -> None:
    found, notices = read(workspace, "prompts", ["What are the benefits of exercise?", " ", "Say hello.", "Say hello."])
    assert asked(found) == [["What are the benefits of exercise?"], ["Say hello."]]
    assert found[0] == {
        **{"suite": "prompts", "id": "questions[0]", "category": None, "reference": None, "generator": None},
        "turns": [[{"role": "user", "content": "What are the benefits of exercise?"}]],
    }
    assert notices == ["prompts: questions left out: 1 empty, 1 there twice"]


def test_prompts_from_files(workspace: Workspace) -> None:
    text = write(workspace, "p.txt", "One\n\nTwo\n")
    assert asked(read(workspace, "prompts", text)[0]) == [["One"], ["Two"]]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    lines = write(workspace, "p.jsonl", [{"prompt": "A", "id": 7, "category": "c"}, "B", {"prompt": turns}])
    found, _ = read(workspace, "prompts", lines)
    assert asked(found) == [["A"], ["B"], ["Be brief.", "Hi"]]
    assert (found[0]["id"], found[0]["category"], found[1]["id"]) == ("7", "c", "p.jsonl:2")


def test_alpaca_eval_as_published(workspace: Workspace) -> None:
    """alpaca_eval.json is one list; `dataset` is where an instruction comes from."""
    row = {"instruction": "Name an actor.", "output": "Meryl Streep", "generator": "gpt4", "dataset": "helpful_base"}
    name = write(workspace, "alpaca_eval.json", [row, {**row, "instruction": "Name two."}])
    found, _ = read(workspace, "alpaca_eval", name, max_questions=1)
    assert len(found) == 1
    assert (found[0]["reference"], found[0]["generator"], found[0]["category"]) == (
        ["Meryl Streep"],
        "gpt4",
        "helpful_base",
    )


def test_mt_bench_in_both_published_forms(workspace: Workspace) -> None:
    """FastChat's question.jsonl, and the hub's copy, where the turns stand in `prompt`."""
    fastchat = {"question_id": 81, "category": "writing", "turns": ["Write a post.", "Rewrite it."]}
    math = {"question_id": 111, "category": "math", "turns": ["1+1?", "times 2?"], "reference": ["2", "4"]}
    found, _ = read(workspace, "mt_bench", write(workspace, "question.jsonl", [fastchat, math]))
    assert [q["id"] for q in found] == ["81", "111"]
    assert found[1]["reference"] == ["2", "4"] and found[0]["reference"] is None
    assert found[0]["turns"] == [[{"role": "user", "content": t}] for t in fastchat["turns"]]
    hub = [
        {"prompt": q["turns"], "prompt_id": q["question_id"], "category": q["category"], "reference": []}
        for q in (fastchat, math)
    ]
    again, _ = read(workspace, "mt_bench", write(workspace, "hub.jsonl", hub))
    assert [(q["id"], q["turns"]) for q in again] == [(q["id"], q["turns"]) for q in found]


def test_two_questions_with_one_id_stay_two(workspace: Workspace) -> None:
    """Both models' answers are joined by id."""
    found, _ = read(
        workspace, "prompts", write(workspace, "p.jsonl", [{"id": 1, "prompt": "A"}, {"id": 1, "prompt": "B"}])
    )
    assert [q["id"] for q in found] == ["1", "p.jsonl:2"]


@pytest.mark.parametrize(
    ("name", "file", "content", "where", "what"),
    [
        ("prompts", "p.jsonl", [{"prompt": "A"}, {"answer": "x"}], "p.jsonl:2", "no prompt"),
        ("prompts", "p.jsonl", [{"prompt": [{"role": "assistant", "content": "x"}]}], "p.jsonl:1", "no prompt"),
        ("alpaca_eval", "a.jsonl", [{"instruction": "A"}], "a.jsonl:1", "reference output is missing"),
        ("alpaca_eval", "a.jsonl", [{"turns": ["A"]}], "a.jsonl:1", "no question of AlpacaEval"),
        ("mt_bench", "m.jsonl", [{"turns": "A"}], "m.jsonl:1", "no question of MT-Bench"),
        ("prompts", "p.txt", "\n \n", "p.txt", "no question is left"),
        ("prompts", "p.json", "{", "p.json", "JSON"),
    ],
)
def test_what_is_refused(name: str, file: str, content: Any, where: str, what: str, workspace: Workspace) -> None:
    with pytest.raises(UserError, match=what) as e:
        read(workspace, name, write(workspace, file, content))
    assert where in e.value.where and e.value.advice


@pytest.mark.parametrize("name", ["nowhere.txt", "nowhere.jsonl", "./nowhere"])
def test_a_file_that_is_not_there(name: str, workspace: Workspace) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(workspace, "prompts", name)


def test_the_digest_is_that_of_the_questions(workspace: Workspace) -> None:
    """The file's place does not count; its content and how many are asked do."""

    def digest(**keys: Any) -> str:
        return find_suite(Suite.model_validate({"name": "prompts", **keys}), workspace).digest

    first = write(workspace, "a.jsonl", [{"prompt": "A"}])
    (workspace.project / "b.jsonl").write_bytes((workspace.project / first).read_bytes())
    assert digest(questions="a.jsonl") == digest(questions="b.jsonl")
    assert digest(questions="a.jsonl") != digest(questions="a.jsonl", max_questions=1)
    before = digest(questions="a.jsonl")
    write(workspace, "a.jsonl", [{"prompt": "B"}])
    assert digest(questions="a.jsonl") != before
