"""A local reward model as judge: the answer with the higher score wins, in whatever order they stand."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from preftune.children import read_json_lines, run_child
from preftune.content_cache import ContentCache
from preftune.digest import json_digest
from preftune.errors import OutOfMemory, UserError
from preftune.evaluation_schema import RewardModelJudge
from preftune.judges.find import FoundJudge
from preftune.judges.interface import IDENTICAL, Comparison, Grade, Judgement, Message, Opinion, Question
from preftune.judges.ledger import Ledger
from preftune.keys import threads

Answered = tuple[Sequence[Message], str]  # a prompt and its answer
Score = tuple[float | None, str | None]  # and why there is none


class RewardModel:
    """A sequence classifier with one output, in a child process.

    Args:
        found: From `find_judge`.
        cache: Scores that were computed before.
        cache_folder: Where it stands: the child adds to it.
        folder: The child's files stand below it while it runs.
        log: What the child prints.
        tell: Called with each line for the user.
    """

    def __init__(
        self,
        found: FoundJudge,
        cache: ContentCache,
        cache_folder: Path,
        folder: Path,
        log: Path,
        tell: Callable[[str], None],
    ) -> None:
        assert isinstance(found.settings, RewardModelJudge)
        self._found, self._settings = found, found.settings
        self._cache, self._cache_folder, self._folder = cache, cache_folder, folder / "reward_model"
        self._log, self._tell, self.ledger = log, tell, Ledger()

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """As in `Judge`: a score knows no order, so both orders say the same."""
        asked = [c for c in comparisons if not c.identical]
        self.ledger.identical += len(comparisons) - len(asked)
        keys = {self._key(side): side for c in asked for side in _sides(c)}
        scores = self._scores(keys)

        def judge(c: Comparison) -> Judgement:
            first, second = (scores[self._key(side)] for side in _sides(c))
            return self._judge(first, second)

        return [IDENTICAL if c.identical else judge(c) for c in comparisons]

    def score(self, answered: Sequence[Answered]) -> list[Score]:
        """The model's own scores.

        Args:
            answered: (prompt, answer) each.

        Returns:
            For each its score, or None and why there is none (`template`, `not_finite`).
        """
        keys = {self._key(side): side for side in answered}
        scores = self._scores(keys)
        return [scores[self._key(side)] for side in answered]

    def grade(self, questions: Sequence[Question]) -> list[Grade]:
        """Raises: a score has no scale from 1 to 10."""
        raise UserError(
            "a reward model cannot grade answers from 1 to 10", self._settings.place, "use a judge of kind openai"
        )

    def _judge(self, first: Score, second: Score) -> Judgement:
        (a, error_a), (b, error_b) = first, second
        if a is None or b is None:
            error = error_a or error_b or "not_finite"
            self.ledger.errors[error] += 2  # both orders
            opinion = Opinion(None, error)
        else:
            opinion = Opinion("tie" if a == b else "first" if a > b else "second", text=f"{a:.6g} : {b:.6g}")
        return Judgement((opinion, opinion))

    def _key(self, side: Answered) -> str:
        return json_digest({"reward_model": self._found.digest, "prompt": list(side[0]), "answer": side[1]})

    def _scores(self, sides: dict[str, Answered]) -> dict[str, Score]:
        scores: dict[str, Score] = {k: (v, None) for k in sides if (v := self._cache.get(k)) is not None}
        missing = {k: side for k, side in sides.items() if k not in scores}
        self.ledger.cached += len(scores)
        self.ledger.requests += len(missing)
        return scores | (self._compute(missing) if missing else {})

    def _compute(self, sides: dict[str, Answered]) -> dict[str, Score]:
        shutil.rmtree(self._folder, ignore_errors=True)  # of a try that was killed
        self._folder.mkdir(parents=True)
        rows = [{"key": key, "prompt": list(prompt), "text": text} for key, (prompt, text) in sides.items()]
        (self._folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        job = {
            "folder": str(self._folder),
            "cache": str(self._cache_folder),
            "model_path": self._found.path,
            "name": self._settings.model,
            "place": self._settings.place,
            "revision": self._found.revision,
            "threads": threads(),
            **self._settings.model_dump(include={"dtype", "batch_size", "max_length"}),
        }
        (self._folder / "job.json").write_text(json.dumps(job))
        quiet = {"TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "true", "PYTHONUNBUFFERED": "1"}
        try:
            run_child(
                [sys.executable, "-m", "preftune.judges.reward_scores", str(self._folder / "job.json")],
                folder=self._folder,
                log=self._log,
                env={**os.environ, **quiet, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(threads())},
                on_line=self._tell,
                what="the reward model",
            )
        except OutOfMemory as e:
            raise OutOfMemory(e.error, e.where, f"lower {self._settings.place}.batch_size, or max_length") from None
        found = read_json_lines(self._folder / "scores.jsonl")
        shutil.rmtree(self._folder)
        return {row["key"]: (row["score"], row["error"]) for row in found}


def _sides(c: Comparison) -> tuple[Answered, Answered]:
    return (c.prompt, c.first), (c.prompt if c.second_prompt is None else c.second_prompt, c.second)
