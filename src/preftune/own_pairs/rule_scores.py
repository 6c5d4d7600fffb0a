"""The rule's child: runs the user's file once, then its function for each answer; every score is kept at once.

Started as `python -m preftune.own_pairs.rule_scores JOB.json`.
"""

import importlib.util
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from preftune.children import child_main, die_with_parent, one_line, read_json_lines, tell
from preftune.content_cache import ContentCache
from preftune.errors import UserError


class _OutOfTimeError(BaseException):
    """The answer's seconds are over; no `except Exception` of the rule's catches it."""


def load_rule(path: Path, name: str) -> Callable[..., Any]:
    """Runs the file, as a module whose folder can be imported from; returns its function.

    Raises:
        UserError: If it fails.
    """
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as an import does: dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            raise
        where = f"{path.name}{_line(e, path)}"
        raise UserError(f"the rule's file fails: {_told(e)}", where, "correct the file") from None
    function = getattr(module, name)
    if not callable(function):
        raise UserError(f"{name!r} is no function", path.name, "name a function")
    return function


def _line(error: BaseException, path: Path) -> str:
    """`, line 3`: where in the file it happened."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _told(error: BaseException) -> str:
    return one_line(error)[:300] if isinstance(error, Exception) else f"{type(error).__name__}: {error}"[:300]


def score_one(function: Callable[..., Any], row: dict[str, Any], timeout: float, path: Path) -> dict[str, Any]:
    """One answer's score, or why it has none.

    Args:
        function: The rule.
        row: prompt, answer, row.
        timeout: Seconds.
        path: The rule's file, for the line of what it raises.

    Returns:
        score (None without one), error (None, `raised`, `timeout` or `not_a_number`), detail.
    """

    def over(*_: object) -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGALRM, over)
    try:
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            value = function(row["prompt"], row["answer"], row["row"])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _OutOfTimeError:
        return {"score": None, "error": "timeout", "detail": f"longer than {timeout:g} s"}
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # also SystemExit
        return {"score": None, "error": "raised", "detail": f"{_told(e)}{_line(e, path)}"}
    finally:
        signal.signal(signal.SIGALRM, before)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, str):
        return {"score": None, "error": "not_a_number", "detail": f"it returned {value!r}"[:300]}
    return {"score": number, "error": None}


def score(job: dict[str, Any]) -> None:
    """Scores answers, one after the other.

    Args:
        job: `folder` (with rows.jsonl: key, prompt, answer, row), `cache` (folder), `path`, `name`, `timeout`.

    Writes:
        scores.jsonl: key, score, error, detail; appended to, a line at a time. tried: the key of the answer that is
        being scored, for the parent, should the rule end this process.
    """
    from preftune.own_pairs.rule import TRIED

    folder, path = Path(job["folder"]), Path(job["path"])
    function = load_rule(path, job["name"])
    with (
        closing(ContentCache(Path(job["cache"]), "judgements", tell)) as cache,
        (folder / "scores.jsonl").open("a") as out,
    ):
        for row in read_json_lines(folder / "rows.jsonl"):
            (folder / TRIED).write_text(row["key"])
            found = score_one(function, row, job["timeout"], path)
            if found["error"] is None:
                cache.add(row["key"], found["score"])
            out.write(json.dumps({"key": row["key"], **found}) + "\n")
            out.flush()


if __name__ == "__main__":
    die_with_parent()
    os.environ.setdefault("DO_NOT_TRACK", "true")
    child_main(score)
