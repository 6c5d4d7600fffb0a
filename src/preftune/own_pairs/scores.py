"""Who scores the answers: a rule, a judge that compares each two of them in both orders, or a reward model."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from preftune.content_cache import ContentCache
from preftune.errors import StepError, UserError
from preftune.judges.find import find_judge
from preftune.judges.interface import Comparison, Judgement
from preftune.judges.language_model import LanguageModelJudge
from preftune.judges.reward_model import RewardModel
from preftune.own_pairs.rule import find_rule, score_by_rule
from preftune.own_pairs.selection import Answer, answers_of
from preftune.pairs_schema import OpenAIScorer, Pairs, RewardModelScorer, RuleScorer
from preftune.workspace import Workspace

Row = dict[str, Any]


def score(
    prompts: Sequence[Row],
    completions: Sequence[Row],
    settings: Pairs,
    workspace: Workspace,
    folder: Path,
    log: Path,
    tell: Callable[[str], None],
) -> tuple[list[Row], Row]:
    """Scores every answer that could stand in a pair; what was scored before comes from the cache.

    Args:
        prompts: Rows of prompts.jsonl.
        completions: Rows of completions.jsonl.
        settings: The recipe's section, with a scorer other than people.
        workspace: Where judgements are kept.
        folder: A child's files stand below it while it runs.
        log: What a child prints.
        tell: Called with each line for the user.

    Returns:
        Rows of scores.jsonl, and scores.json: counts of the scorer's kind, errors by reason, and `again`.

    Raises:
        UserError: If the scorer cannot score at all.
        StepError: If it cannot be reached, or failed.
    """
    answers = answers_of(prompts, completions, [])
    # An answer that stands alone is in no pair.
    asked = [(p, a) for p in prompts for a in answers[p["id"]] if len(answers[p["id"]]) > 1]
    scorer, kept = settings.scorer, workspace.home / "judgements"
    if isinstance(scorer, RuleScorer):
        return score_by_rule(find_rule(scorer, workspace), asked, kept, folder, log, tell)
    with closing(ContentCache(kept, "judgements", tell)) as cache:
        if isinstance(scorer, OpenAIScorer):
            return _by_comparing(LanguageModelJudge(scorer, cache, tell), prompts, answers, settings)
        assert isinstance(scorer, RewardModelScorer), "people's labels are read in steps.py"
        model = RewardModel(find_judge(scorer, workspace), cache, kept, folder, log, tell)
        return _by_reward_model(model, asked)


def _by_reward_model(model: RewardModel, asked: Sequence[tuple[Row, Answer]]) -> tuple[list[Row], Row]:
    found = model.score([(prompt["prompt"], answer.text) for prompt, answer in asked])
    rows = [
        {"id": prompt["id"], "number": answer.number, "score": value, "error": error}
        for (prompt, answer), (value, error) in zip(asked, found, strict=True)
    ]
    errors = Counter(row["error"] for row in rows if row["error"])
    if rows and errors.total() == len(rows):
        counts = ", ".join(f"{n} {reason}" for reason, n in errors.most_common())
        raise UserError(f"the reward model gave none of {len(rows)} answers a score ({counts})", "pairs.scorer")
    counts = {"scored": len(rows) - errors.total(), "errors": dict(errors.most_common())}
    return rows, {**counts, "cached": model.ledger.cached}


def _compared(answers: list[Answer], by_dataset: bool) -> list[tuple[Answer, Answer]]:
    """Which answers to one prompt are compared: each two, or the dataset's own with each of the model's."""
    return [p for p in itertools.combinations(answers, 2) if not by_dataset or -1 in (p[0].number, p[1].number)]


def _by_comparing(
    judge: LanguageModelJudge, prompts: Sequence[Row], answers: dict[str, list[Answer]], settings: Pairs
) -> tuple[list[Row], Row]:
    """An answer's score is the mean of its comparisons: a win is 1, a tie ½."""
    by_dataset = settings.chosen == "dataset"
    both = [(prompt, a, b) for prompt in prompts for a, b in _compared(answers[prompt["id"]], by_dataset)]
    judgements = judge.compare([Comparison(prompt["prompt"], a.text, b.text) for prompt, a, b in both])
    _check_some(judge, judgements)
    won: dict[tuple[str, int], list[float]] = {}
    for (prompt, a, b), judgement in zip(both, judgements, strict=True):
        for answer in (a, b):
            won.setdefault((prompt["id"], answer.number), [])
        if (outcome := judgement.outcome) is not None:  # of b
            won[prompt["id"], a.number].append(1 - outcome)
            won[prompt["id"], b.number].append(outcome)
    rows = [
        {
            "id": prompt,
            "number": number,
            "score": sum(outcomes) / len(outcomes) if outcomes else None,
            "error": None if outcomes else "no_verdict",
        }
        for (prompt, number), outcomes in won.items()
    ]
    ledger = judge.ledger.result()
    return rows, {
        "comparisons": len(both),
        "without_verdict": sum(j.outcome is None for j in judgements),
        "flips": sum(j.flipped for j in judgements),
        "again": _may_pass(ledger["errors"]),
        **ledger,
    }


def _may_pass(errors: dict[str, int]) -> int:
    """Verdicts that are missing for reasons which may have passed when asked again."""
    return sum(n for reason, n in errors.items() if reason != "malformed")


def _check_some(judge: LanguageModelJudge, judgements: Sequence[Judgement]) -> None:
    """Refuses to go on where not one comparison has a verdict."""
    if not judgements or any(j.outcome is not None for j in judgements):
        return
    errors = judge.ledger.result()["errors"]
    counts = ", ".join(f"{n} {reason}" for reason, n in errors.items())
    text = f"the judge gave no readable verdict in any of {len(judgements)} comparisons ({counts})"
    if _may_pass(errors):
        raise StepError(text, "pairs.scorer", "run the same command again: what was judged is kept")
    raise UserError(text, "pairs.scorer", "name a stronger model: it must end its reply with [[A]], [[B]] or [[C]]")
