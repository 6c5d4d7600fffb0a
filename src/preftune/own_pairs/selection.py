"""From scored answers to pairs: the best against the worst, ties left out, and not by length alone.

Pure: nothing here reads or writes a file.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preftune.pairs_schema import Pairs

Row = dict[str, Any]

# Why a prompt gave no pair, or a pair was left out: reason → words.
REASONS = {
    "no_answer": "no answer that could be scored (empty, failed, or all the same text)",
    "all_cut": "every answer was cut at max_new_tokens: none can be chosen",
    "no_score": "the scorer gave no score",
    "tie": "all scores are equal",
    "below_margin": "no two answers differ by more than the margin",
    "model_better": "the model's answer scored as well as the dataset's, or better",
    "length_balance": "left out so that length tells less (max_length_accuracy)",
}


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt.

    Args:
        number: Of the completion; -1: the dataset's own.
        text: Its text, without white space around it.
        whole: Whether it ended by itself; one that was cut is never chosen.
        score: None if there is none.
    """

    number: int
    text: str
    whole: bool
    score: float | None


@dataclass(frozen=True)
class Choice:
    """A pair.

    Args:
        prompt: The row of prompts.jsonl.
        chosen: The better answer.
        rejected: The worse one.
    """

    prompt: Row
    chosen: Answer
    rejected: Answer

    @property
    def longer(self) -> int:
        """1: the chosen answer has more characters; -1: fewer; 0: as many."""
        a, b = len(self.chosen.text), len(self.rejected.text)
        return (a > b) - (a < b)

    @property
    def gap(self) -> float:
        """Chosen's score less rejected's; 0 without scores."""
        if self.chosen.score is None or self.rejected.score is None:
            return 0.0
        return self.chosen.score - self.rejected.score


def answers_of(prompts: Sequence[Row], completions: Sequence[Row], scores: Sequence[Row]) -> dict[str, list[Answer]]:
    """The answers to each prompt, by its id: each text once, the dataset's own first, none that is blank or failed.

    Args:
        prompts: Rows of prompts.jsonl.
        completions: Rows of completions.jsonl.
        scores: Rows of scores.jsonl; none without a scorer.
    """
    scored = {(row["id"], row["number"]): row["score"] for row in scores}
    found: dict[str, dict[str, Answer]] = {row["id"]: {} for row in prompts}

    def add(prompt: str, number: int, text: str, whole: bool) -> None:
        if text.strip():
            answer = Answer(number, text.strip(), whole, scored.get((prompt, number)))
            found[prompt].setdefault(answer.text, answer)

    for row in prompts:
        add(row["id"], -1, row["answer"] or "", True)
    for row in sorted(completions, key=lambda row: row["number"]):
        if row["error"] is None:
            add(row["id"], row["number"], row["text"], row["whole"])
    return {prompt: list(answers.values()) for prompt, answers in found.items()}


def choose(prompts: Sequence[Row], answers: dict[str, list[Answer]], settings: Pairs) -> tuple[list[Choice], list[Row]]:
    """Pairs, and the prompts that gave none.

    Of each prompt the best whole answer stands against the worst one, then the next best against the next worst, as
    long as their scores differ by more than the margin; no answer is used twice. With `chosen: dataset` the dataset's
    answer stands against the worst ones of the model.

    Args:
        prompts: Rows of prompts.jsonl.
        answers: From `answers_of`.
        settings: The recipe's section.

    Returns:
        (pairs, left out: id, reason, prompt, answers (number, text, score)).
    """
    pairs: list[Choice] = []
    left: list[Row] = []
    for prompt in prompts:
        found = answers[prompt["id"]]
        chosen = _of_prompt(prompt, found, settings)
        if isinstance(chosen, str):
            left.append(_left_out(prompt, chosen, found))
        else:
            pairs += chosen
    if settings.max_length_accuracy is not None:
        kept = balanced(pairs, settings.max_length_accuracy, settings.seed)
        stay = {id(p) for p in kept}
        left += [_left_out(p.prompt, "length_balance", [p.chosen, p.rejected]) for p in pairs if id(p) not in stay]
        pairs = kept
    return pairs, left


def _of_prompt(prompt: Row, answers: list[Answer], settings: Pairs) -> list[Choice] | str:
    """The prompt's pairs, or why there is none."""
    own = [a for a in answers if a.number == -1]
    models = [a for a in answers if a.number != -1]
    by_dataset = settings.chosen == "dataset"
    if not models or len(answers) < 2 or (by_dataset and not own):
        return "no_answer"
    if settings.scorer is None:
        return [Choice(prompt, own[0], models[0])]
    scored = [a for a in answers if a.score is not None]
    if len(scored) < 2 or (by_dataset and own[0].score is None):
        return "no_score"
    best = own if by_dataset else sorted((a for a in scored if a.whole), key=_best_first)
    if not best:
        return "all_cut"
    worst = sorted((a for a in scored if a.number != -1), key=_worst_first)
    chosen: list[Choice] = []
    used: set[int] = set()
    for good in best * settings.per_prompt if by_dataset else best:
        bad = next((a for a in worst if a.number not in used and a is not good), None)
        if bad is None or len(chosen) == settings.per_prompt or (not by_dataset and good.number in used):
            break
        pair = Choice(prompt, good, bad)
        if not pair.gap > settings.margin:
            break
        chosen.append(pair)
        used |= {bad.number} if by_dataset else {good.number, bad.number}
    return chosen or _why(best[0], scored, by_dataset)


def _best_first(answer: Answer) -> tuple[float, int]:
    assert answer.score is not None
    return -answer.score, answer.number


def _worst_first(answer: Answer) -> tuple[float, int]:
    assert answer.score is not None
    return answer.score, answer.number


def _why(best: Answer, scored: list[Answer], by_dataset: bool) -> str:
    """Why the best answer that may be chosen does not stand far enough above the worst one."""
    scores = [a.score for a in scored if a.score is not None]
    if min(scores) == max(scores):
        return "tie"
    others = [s for a, s in zip(scored, scores, strict=True) if a is not best]
    if by_dataset and best.score is not None and best.score <= min(others):
        return "model_better"
    if not by_dataset and best.score is not None and best.score <= min(others):
        return "all_cut"  # those that are better were cut
    return "below_margin"


def _left_out(prompt: Row, reason: str, answers: list[Answer]) -> Row:
    shown = [{"number": a.number, "text": a.text, "whole": a.whole, "score": a.score} for a in answers]
    return {"id": prompt["id"], "reason": reason, "prompt": prompt["prompt"], "answers": shown}


def length_accuracy(pairs: Sequence[Choice]) -> float:
    """How often guessing by length is right: always the longer answer, or always the shorter one, whichever is better;
    equal lengths count half. 0.5 at least; 0.5 without pairs."""
    if not pairs:
        return 0.5
    longer = sum((p.longer + 1) / 2 for p in pairs) / len(pairs)
    return max(longer, 1 - longer)


def balanced(pairs: Sequence[Choice], most: float, seed: int) -> list[Choice]:
    """The pairs without as many as must go for `length_accuracy` to be at most `most`: of the side that length
    favours, those whose scores differ least (at random among equals).

    Args:
        pairs: The pairs.
        most: 0.5 to 1.
        seed: Of the order among equals.
    """
    side = 1 if sum(p.longer for p in pairs) > 0 else -1
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    going = sorted((i for i in order if pairs[i].longer == side), key=lambda i: pairs[i].gap)
    kept = set(range(len(pairs)))
    right = sum((side * p.longer + 1) / 2 for p in pairs)
    for i in going:
        if right <= most * len(kept) + 1e-9:
            break
        kept.discard(i)
        right -= 1
    return [pairs[i] for i in sorted(kept)]
