"""A rule: a Python function of the user's that scores answers, in a process of its own."""

import ast
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.children import read_json_lines, run_child
from preftune.content_cache import ContentCache
from preftune.digest import file_sha256, json_digest
from preftune.errors import StepError, UserError
from preftune.own_pairs.selection import Answer
from preftune.pairs_schema import RuleScorer
from preftune.workspace import Workspace

Row = dict[str, Any]
MOST_CRASHES = 20  # of the rule's process, in one run
TRIED = "tried"  # the file that names the answer which is being scored


@dataclass(frozen=True)
class FoundRule:
    """A rule that is there.

    Args:
        path: Its file.
        name: The function.
        timeout: Seconds for one answer.
        digest: Of its file, and the settings.
    """

    path: Path
    name: str
    timeout: float
    digest: str


def find_rule(scorer: RuleScorer, workspace: Workspace) -> FoundRule:
    """Finds a rule, without running its file.

    Raises:
        UserError: If there is no such file or function, or if the file is no Python.
    """
    file, _, name = scorer.function.rpartition(":")
    path, where = workspace.resolve(file), f"pairs.scorer.function: {scorer.function}"
    if not path.is_file():
        raise UserError("there is no such file", where, f"paths are relative to {workspace.project}")
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as e:
        line = f", line {e.lineno}" if isinstance(e, SyntaxError) and e.lineno else ""
        raise UserError(f"it is no Python: {getattr(e, 'msg', e)}", f"{path.name}{line}", "correct the file") from None
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    assigned = {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    imported = {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    if name not in {*names, *assigned, *imported}:
        have = f"it has: {', '.join(names)}" if names else "it has none"
        raise UserError(f"there is no function {name!r} in it ({have})", where, "correct the name")
    return FoundRule(path, name, scorer.timeout, json_digest([file_sha256(path), name, scorer.timeout]))


def score_by_rule(
    found: FoundRule,
    asked: Sequence[tuple[Row, Answer]],
    cache_folder: Path,
    folder: Path,
    log: Path,
    tell: Callable[[str], None],
) -> tuple[list[Row], Row]:
    """Scores answers. Each score is kept at once; what failed is tried again by the next run.

    Args:
        found: The rule.
        asked: (row of prompts.jsonl, answer) each.
        cache_folder: Where scores are kept.
        folder: The child's files stand below it while it runs.
        log: What the rule prints.
        tell: Called with each line for the user.

    Returns:
        Rows of scores.jsonl (with `detail`: what the rule raised), and counts: scored, cached, errors by reason.

    Raises:
        UserError: If the file cannot be run, or if not one answer gets a score.
        StepError: If the rule ends its process again and again.
    """
    keys = [_key(found, prompt, answer) for prompt, answer in asked]
    with closing(ContentCache(cache_folder, "judgements", tell)) as cache:
        values: dict[str, Row] = {k: {"score": v} for k in keys if (v := cache.get(k)) is not None}
    cached = sum(k in values for k in keys)
    missing = {
        key: {"key": key, "prompt": prompt["prompt"], "answer": answer.text, "row": prompt["row"]}
        for key, (prompt, answer) in zip(keys, asked, strict=True)
        if key not in values
    }
    if missing:
        values |= _run(found, missing, cache_folder, folder / "rule", log, tell)
    rows = [
        {"id": prompt["id"], "number": answer.number, "score": v.get("score"), "error": v.get("error")}
        | ({"detail": v["detail"]} if v.get("detail") else {})
        for (prompt, answer), v in ((item, values[key]) for item, key in zip(asked, keys, strict=True))
    ]
    errors = Counter(row["error"] for row in rows if row["error"])
    if rows and errors.total() == len(rows):
        raise _nothing_scored(found, rows, errors)
    for reason, count in errors.most_common():
        first = next(row for row in rows if row["error"] == reason)
        tell(f"rule: {count} of {len(rows)} answers without a score: {reason} ({first.get('detail') or 'no detail'})")
    return rows, {"scored": len(rows) - errors.total(), "cached": cached, "errors": dict(errors.most_common())}


def _key(found: FoundRule, prompt: Row, answer: Answer) -> str:
    return json_digest({"rule": found.digest, "prompt": prompt["prompt"], "answer": answer.text, "row": prompt["row"]})


def _nothing_scored(found: FoundRule, rows: list[Row], errors: Counter[str]) -> UserError:
    counts = ", ".join(f"{n} {reason}" for reason, n in errors.most_common())
    detail = next((row["detail"] for row in rows if row.get("detail")), "")
    return UserError(
        f"the rule gave none of {len(rows)} answers a score ({counts}){f': {detail}' if detail else ''}",
        f"{found.path.name}: {found.name}",
        "correct the rule: it takes (prompt, answer, row) and returns a number",
    )


def _run(
    found: FoundRule,
    missing: dict[str, Row],
    cache_folder: Path,
    folder: Path,
    log: Path,
    tell: Callable[[str], None],
) -> dict[str, Row]:
    """The missing scores, by key; a process that the rule ended is started again behind the answer that it died of."""
    shutil.rmtree(folder, ignore_errors=True)  # of a try that was killed
    folder.mkdir(parents=True)
    job = {"folder": str(folder), "cache": str(cache_folder), "path": str(found.path), "name": found.name}
    (folder / "job.json").write_text(json.dumps({**job, "timeout": found.timeout}))
    values: dict[str, Row] = {}
    crashes = 0
    while left := [row for key, row in missing.items() if key not in values]:
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in left))
        (folder / TRIED).unlink(missing_ok=True)
        try:
            run_child(
                [sys.executable, "-m", "preftune.own_pairs.rule_scores", str(folder / "job.json")],
                folder=folder,
                log=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                on_line=tell,
                what="the rule",
            )
            died = None
        except UserError:
            raise
        except StepError as e:
            died = e
        values |= {row.pop("key"): row for row in read_json_lines(folder / "scores.jsonl")}
        if died is None:
            break
        tried = (folder / TRIED).read_text() if (folder / TRIED).exists() else ""
        crashes += 1
        if tried not in missing or tried in values or crashes > MOST_CRASHES:
            raise died
        values[tried] = {"score": None, "error": "crashed", "detail": died.error}
    shutil.rmtree(folder)
    return values
