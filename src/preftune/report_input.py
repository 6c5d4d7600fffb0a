"""What a report is made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preftune.data.pairs import Pair

Row = dict[str, Any]


@dataclass(frozen=True)
class ReportInput:
    """All that a report tells.

    Args:
        name: The recipe's name.
        policy_name: What the measured model is called in tables: DPO, ORPO, or policy for one that was not
            trained here.
        verdict: verdict.json, as `verdict.compare` returns it.
        curves: Rows of metrics.jsonl: `step` and `metrics` by name.
        comparison: Rows of comparison.jsonl: the held-out pairs' rewards and margins.
        pairs: The held-out pairs' texts; those that were not measured may be among them.
        answers: (SFT's row, policy's row) of answers.jsonl on the same prompt.
        suite_answers: (SFT's row, policy's row) of suite_answers.jsonl on the same question.
        judgements: Rows of judgements.jsonl; empty without a judge.
        grades: Rows of grades.jsonl; empty without MT-Bench.
        sources: The report of each dataset, as `checks.check_source` returns it.
        mixture: As `mixture.build_mixture` returns it.
        training: train.json; None for a policy that was not trained here.
        recipe: The resolved recipe, flat.
        steps: Step name → "cached" or "run".
        lineage: Label → text.
    """

    name: str
    policy_name: str
    verdict: Row
    curves: list[Row]
    comparison: list[Row]
    pairs: Sequence[Pair]
    answers: list[tuple[Row, Row]]
    suite_answers: list[tuple[Row, Row]]
    judgements: list[Row]
    grades: list[Row]
    sources: list[Row]
    mixture: Row
    training: Row | None
    recipe: Row
    steps: dict[str, str]
    lineage: dict[str, str]

    @property
    def column(self) -> str:
        """The policy's name at the head of a column."""
        return self.policy_name[:1].upper() + self.policy_name[1:]

    @property
    def called(self) -> str:
        """The policy in a sentence."""
        return "the policy" if self.policy_name == "policy" else f"the {self.policy_name} model"
