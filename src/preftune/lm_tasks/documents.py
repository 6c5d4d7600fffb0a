"""The documents of the tasks that come with preftune, as lm-eval wants them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def read_documents(task: str) -> list[dict[str, Any]]:
    """The task's own documents (`facts.jsonl`, `instructions.jsonl`), in order."""
    with (FOLDER / f"{task}.jsonl").open(encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def as_dataset(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A data set with the one split `test`, in memory: nothing is written to the cache of `datasets`."""
    from datasets import Dataset

    return {"test": Dataset.from_list([dict(r) for r in rows])}


def facts(**_: Any) -> dict[str, Any]:
    """lm-eval's `custom_dataset` of the task facts."""
    return as_dataset(read_documents("facts"))


def instructions(**_: Any) -> dict[str, Any]:
    """lm-eval's `custom_dataset` of the task instructions; the rules as JSON, for their parameters differ."""
    rows = read_documents("instructions")
    return as_dataset([{**r, "rules": json.dumps(r["rules"])} for r in rows])
