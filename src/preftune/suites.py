"""Suites: the questions that both models answer beside the held-out prompts, in the formats they are published in.

- `prompts`: a text file (one prompt a line), rows with a `prompt` (text or messages), or the recipe's own list.
- `alpaca_eval`: rows with `instruction`, and the reference `output` of a `generator` (arXiv 2404.04475).
- `mt_bench`: rows with `turns` (FastChat's question.jsonl) or a list in `prompt` (the hub's copies), `category`, and
  a `reference` answer for each turn where there is one (arXiv 2306.05685).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.data.sources import Source, find_source, read_rows
from preftune.data.text_rows import Row, text_lines
from preftune.digest import file_sha256, json_digest
from preftune.errors import UserError
from preftune.evaluation_schema import Suite
from preftune.schema import DatasetEntry
from preftune.workspace import Workspace

Question = dict[str, Any]
_PROMPT_COLUMNS = ("prompt", "question", "instruction", "text", "messages")


@dataclass(frozen=True)
class FoundSuite:
    """A suite that is there.

    Args:
        settings: The recipe's section.
        digest: What its questions depend on.
        source: Its dataset or file; None for a text file or the recipe's own list.
        path: The text file.
    """

    settings: Suite
    digest: str
    source: Source | None = None
    path: Path | None = None


def find_suite(suite: Suite, workspace: Workspace) -> FoundSuite:
    """Finds a suite's questions, without reading them.

    Raises:
        UserError: If they are not there.
    """
    limit = suite.max_questions
    if not isinstance(suite.questions, str):
        return FoundSuite(suite, json_digest([suite.name, limit, suite.questions]))
    path = workspace.resolve(suite.questions)
    if suite.questions.endswith(".txt"):
        if not path.is_file():
            raise UserError("there is no such file", _where(suite), f"paths are relative to {workspace.project}")
        return FoundSuite(suite, json_digest([suite.name, limit, file_sha256(path)]), path=path)
    try:
        source = find_source(DatasetEntry.model_validate({"id": suite.questions}), workspace)
    except UserError as e:
        raise UserError(e.error, _where(suite), e.advice.replace("preference pairs", "questions")) from None
    return FoundSuite(suite, json_digest([suite.name, limit, source.digest]), source)


def read_suite(found: FoundSuite) -> tuple[list[Question], list[str]]:
    """Reads a suite's questions, each once.

    Args:
        found: From `find_suite`.

    Returns:
        (questions, notices). A question: suite, id, category, turns (each a list of messages that it adds to the
        conversation), reference (list of texts, or None), generator.

    Raises:
        UserError: If a row is no question of this suite (with its file and line), or if nothing is left.
    """
    suite = found.settings
    read = {"prompts": _prompt, "alpaca_eval": _alpaca_eval, "mt_bench": _mt_bench}[suite.name]
    questions: dict[str, Question] = {}
    ids: set[str] = set()
    left_out: Counter[str] = Counter()
    for place, row in _rows(found):
        question = read(place, row)
        if any(not m["content"].strip() for turn in question["turns"] for m in turn) or not question["turns"]:
            left_out["empty"] += 1
            continue
        asked = json_digest(question["turns"])
        if asked in questions:
            left_out["there twice"] += 1
            continue
        if question["id"] in ids:
            question["id"] = place
        ids.add(question["id"])
        questions[asked] = {"suite": suite.name, **question}
        if len(questions) == suite.max_questions:
            break
    if not questions:
        raise UserError("no question is left", _where(suite), "name a file with questions")
    counts = ", ".join(f"{n} {why}" for why, n in left_out.items())
    return list(questions.values()), [f"{suite.name}: questions left out: {counts}"] if counts else []


def _where(suite: Suite) -> str:
    named = suite.questions if isinstance(suite.questions, str) else "questions"
    return f"evaluation.suites, {suite.name}: {named}"


def _rows(found: FoundSuite) -> Iterator[Row]:
    suite = found.settings
    if found.path is not None:
        yield from text_lines(found.path)
    elif found.source is None:
        yield from ((f"questions[{i}]", text) for i, text in enumerate(suite.questions))
    else:
        for split in found.source.splits:
            yield from read_rows(found.source, split)


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _wrong(place: str, what: str, needed: str) -> UserError:
    return UserError(what, place, f"a question needs {needed} (docs/recipes.md#suites)")


def _prompt(place: str, row: Any) -> Question:
    value = row
    if isinstance(row, Mapping):
        value = next((row[c] for c in _PROMPT_COLUMNS if row.get(c) is not None), None)
    if isinstance(value, str):
        turns = [_user(value)]
    elif isinstance(value, list) and value and all(_is_message(m) for m in value) and value[-1]["role"] == "user":
        turns = [[{"role": m["role"], "content": m["content"]} for m in value]]
    else:
        raise _wrong(place, "no prompt", "a text, or a prompt: text, or messages that end with the user's")
    category = row.get("category") if isinstance(row, Mapping) else None
    return _question(_id(row, place, "id", "prompt_id"), turns, category)


def _alpaca_eval(place: str, row: Any) -> Question:
    if not isinstance(row, Mapping) or not isinstance(row.get("instruction"), str):
        raise _wrong(place, "no question of AlpacaEval", "instruction and output")
    if not isinstance(row.get("output"), str) or not row["output"].strip():
        raise _wrong(place, "the reference output is missing", "output: the answer to compare with")
    generator = row.get("generator")
    question = _question(place, [_user(row["instruction"])], row.get("dataset"), [row["output"]])
    return question | {"generator": generator if isinstance(generator, str) else None}


def _mt_bench(place: str, row: Any) -> Question:
    turns = (row.get("turns") or row.get("prompt")) if isinstance(row, Mapping) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        raise _wrong(place, "no question of MT-Bench", "turns: a list of texts")
    reference: Any = row.get("reference")
    given = isinstance(reference, list) and reference and all(isinstance(r, str) for r in reference)
    ident = _id(row, place, "question_id", "prompt_id")
    return _question(ident, [_user(t) for t in turns], row.get("category"), reference if given else None)


def _question(ident: str, turns: list[Any], category: Any, reference: list[str] | None = None) -> Question:
    named = category if isinstance(category, str) and category else None
    return {"id": ident, "category": named, "turns": turns, "reference": reference, "generator": None}


def _id(row: Any, place: str, *columns: str) -> str:
    found = next((row[c] for c in columns if row.get(c) is not None), None) if isinstance(row, Mapping) else None
    return str(found) if isinstance(found, str | int) else place


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and value.get("role") in ("system", "user", "assistant")
        and isinstance(value.get("content"), str)
    )
