"""A judge at work on what two models answered: held-out prompts, one's own, AlpacaEval's and MT-Bench's."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from preftune.children import read_json_lines
from preftune.content_cache import ContentCache
from preftune.errors import StepError, UserError
from preftune.evaluation_schema import OpenAIJudge
from preftune.judges.find import FoundJudge
from preftune.judges.interface import Comparison, Grade, Judge, Judgement, Question
from preftune.judges.language_model import LanguageModelJudge
from preftune.judges.reward_model import RewardModel

Row = dict[str, Any]
Named = tuple[Row, Comparison]  # suite, id, turn, pair; and what is compared
_WORDS = 2000  # characters of the judge's words that are kept beside a verdict; the cache has them all


def _joined(sft: Path, policy: Path, file: str, names: tuple[str, ...]) -> list[tuple[Row, Row]]:
    """The lines of both models on the same item."""
    a, b = read_json_lines(sft / file), read_json_lines(policy / file)
    if [[r[n] for n in names] for r in a] != [[r[n] for n in names] for r in b]:
        raise StepError("SFT and policy answered other prompts", file, "evaluate both with the same recipe")
    return list(zip(a, b, strict=True))


def _name(suite: str, item: Any, turn: int, *pair: str) -> Row:
    return {"suite": suite, "id": str(item), "turn": turn, "pair": list(pair)}


def _references(row: Row, turn: int) -> tuple[str, ...]:
    """The reference answers up to a turn; none unless this turn has one."""
    found = (row["reference"] or [])[:turn]
    return tuple(found) if len(found) == turn and all(found) else ()


def comparisons(answers: list[tuple[Row, Row]], suites: list[tuple[Row, Row]]) -> list[Named]:
    """Everything that is compared, the held-out prompts first: a budget that ends early ends the others.

    Args:
        answers: (SFT's, policy's) lines of answers.jsonl.
        suites: (SFT's, policy's) lines of suite_answers.jsonl.
    """
    found = [
        (_name("held_out", s["row_id"], 1, "sft", "policy"), Comparison(s["prompt"], s["text"], p["text"]))
        for s, p in answers
    ]
    for s, p in suites:
        suite = s["suite"]
        if suite == "alpaca_eval":
            if not s["reference"]:
                raise UserError("an alpaca_eval question has no reference output", f"id {s['id']}", "add `output`")
            prompt, reference = s["turns"][0]["prompt"], s["reference"][0]
            for who, row in (("sft", s), ("policy", p)):
                compared = Comparison(prompt, reference, row["turns"][0]["text"])
                found.append((_name(suite, s["id"], 1, "reference", who), compared))
            continue
        for turn, (a, b) in enumerate(zip(s["turns"], p["turns"], strict=True), 1):
            other = b["prompt"] if b["prompt"] != a["prompt"] else None
            references = _references(s, turn) if suite == "mt_bench" else ()
            compared = Comparison(a["prompt"], a["text"], b["text"], references, other)
            found.append((_name(suite, s["id"], turn, "sft", "policy"), compared))
    return found


def questions(suites: list[tuple[Row, Row]]) -> list[tuple[Row, Question]]:
    """What is graded: each turn of MT-Bench, of both models.

    Args:
        suites: As in `comparisons`.
    """
    return [
        (
            {"id": str(row["id"]), "category": row["category"], "who": who, "turn": turn},
            Question(answer["prompt"], answer["text"], _references(row, turn)),
        )
        for both in suites
        if both[0]["suite"] == "mt_bench"
        for who, row in zip(("sft", "policy"), both, strict=True)
        for turn, answer in enumerate(row["turns"], 1)
    ]


def _judgement_row(named: Row, judgement: Judgement) -> Row:
    side = {"first": named["pair"][0], "second": named["pair"][1], "tie": "tie", None: None}
    orders = [{"winner": side[o.winner], "error": o.error, "text": o.text[:_WORDS]} for o in judgement.orders]
    return {**named, "orders": orders, "outcome": judgement.outcome, "flipped": judgement.flipped}


def _grade_row(named: Row, grade: Grade) -> Row:
    return {**named, "score": grade.score, "error": grade.error, "text": grade.text[:_WORDS]}


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run_judge(
    found: FoundJudge,
    sft_folder: Path,
    policy_folder: Path,
    folder: Path,
    cache_folder: Path,
    log: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Lets a judge compare what both models answered. A run that was stopped goes on where it was: what was judged
    before comes from the cache.

    Args:
        found: The judge.
        sft_folder: With the SFT model's answers.jsonl and suite_answers.jsonl.
        policy_folder: With the policy's.
        folder: Where judgements.jsonl, grades.jsonl and judge.json go.
        cache_folder: Where judgements are kept for all runs.
        log: What a reward model's process prints.
        tell: Called with each line for the user.

    Returns:
        judge.json.

    Raises:
        UserError: If the judge refuses (key, model), or cannot judge this.
        StepError: If it cannot be reached, or if the two folders hold answers to different prompts.
    """
    answers = _joined(sft_folder, policy_folder, "answers.jsonl", ("row_id",))
    suites = _joined(sft_folder, policy_folder, "suite_answers.jsonl", ("suite", "id"))
    folder.mkdir(parents=True, exist_ok=True)
    compared, graded = comparisons(answers, suites), questions(suites)
    cache = ContentCache(cache_folder, "judgements", tell)
    try:
        judge: Judge
        if isinstance(found.settings, OpenAIJudge):
            judge = LanguageModelJudge(found.settings, cache, tell)
        else:
            judge = RewardModel(found, cache, cache_folder, folder, log, tell)
        judgements = judge.compare([c for _, c in compared])
        grades = judge.grade([q for _, q in graded]) if graded else []
    finally:
        cache.close()
    _write(folder / "judgements.jsonl", (_judgement_row(n, j) for (n, _), j in zip(compared, judgements, strict=True)))
    _write(folder / "grades.jsonl", (_grade_row(n, g) for (n, _), g in zip(graded, grades, strict=True)))
    summary = {"kind": found.settings.kind, "model": found.settings.model, **judge.ledger.result()}
    (folder / "judge.json").write_text(json.dumps(summary, indent=1))
    if judge.ledger.stopped:
        tell(f"the judge was stopped ({judge.ledger.stopped}): the rest has no verdict; a new run goes on from here")
    return summary
