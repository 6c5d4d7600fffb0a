"""The texts of evaluation sets that must not be trained on: of those that come with preftune, and of those that the
recipe names (`validation.decontaminate`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from preftune.data.pairs import PROMPT_COLUMNS
from preftune.data.sources import Source, find_source, read_rows
from preftune.errors import UserError
from preftune.lm_tasks.documents import read_documents
from preftune.schema import DatasetEntry, Validation
from preftune.workspace import Workspace

# Where an evaluation set keeps its questions: ours, MT-Bench's `turns`, a plain text, message lists.
_COLUMNS = (*PROMPT_COLUMNS, "turns", "text", "messages")


def own_texts() -> list[str]:
    """The questions of the tasks facts and instructions: whoever trains on them can no longer be measured by them."""
    return [d["question"] for d in read_documents("facts")] + [d["prompt"] for d in read_documents("instructions")]


def evaluation_sources(validation: Validation, workspace: Workspace) -> list[Source]:
    """The files and folders that the recipe names.

    Raises:
        UserError: If one is not there.
    """
    return [find_source(DatasetEntry.model_validate({"id": name}), workspace) for name in validation.decontaminate]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):  # a message; what an assistant says is no question
        if value.get("role", value.get("from")) not in ("assistant", "gpt", "system"):
            yield from _texts(value.get("content", value.get("value")))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def evaluation_texts(sources: list[Source]) -> list[str]:
    """The questions of evaluation sets, from all their splits.

    Raises:
        UserError: If a set holds no text in any of the known columns.
    """
    found: list[str] = []
    for source in sources:
        before = len(found)
        for split in source.splits:
            for _, row in read_rows(source, split):
                if isinstance(row, Mapping):
                    value = next((row[c] for c in _COLUMNS if row.get(c) is not None), None)
                    found += [t for t in _texts(value) if t.strip()]
                else:
                    found += [t for t in _texts(row) if t.strip()]
        if len(found) == before:
            raise UserError(
                "the evaluation set holds no questions",
                f"validation.decontaminate: {source.entry.id}",
                f"name a file with one of the columns {', '.join(_COLUMNS)}",
            )
    return found
