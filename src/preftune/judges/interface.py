"""What every judge does, whatever it is: compare two answers in both orders, or grade one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from preftune.judges.ledger import Ledger

Message = dict[str, str]  # role and content
Side = Literal["first", "second"]
SWAPPED: dict[Side, Side] = {"first": "second", "second": "first"}


@dataclass(frozen=True)
class Comparison:
    """Two answers to the same prompt.

    Args:
        prompt: The conversation up to the answers; its last message is the user's.
        first: An answer.
        second: Another one.
        references: Answers that are known to be right, one for each of the user's messages, where there are any.
        second_prompt: The conversation that `second` answers, where its earlier answers are others (the second turn
            of MT-Bench); None: `prompt`.
    """

    prompt: Sequence[Message]
    first: str
    second: str
    references: tuple[str, ...] = ()
    second_prompt: Sequence[Message] | None = None

    def swapped(self) -> "Comparison":
        """The same with the second answer first."""
        other = None if self.second_prompt is None else self.prompt
        prompt = self.prompt if self.second_prompt is None else self.second_prompt
        return Comparison(prompt, self.second, self.first, self.references, other)

    @property
    def identical(self) -> bool:
        """Whether there is nothing to compare."""
        prompts = self.second_prompt is None or list(self.second_prompt) == list(self.prompt)
        return prompts and self.first == self.second


@dataclass(frozen=True)
class Question:
    """One answer that is to be graded.

    Args:
        prompt: The conversation up to the answer; its last message is the user's.
        answer: The answer.
        references: As in `Comparison`.
    """

    prompt: Sequence[Message]
    answer: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opinion:
    """What a judge says in one order.

    Args:
        winner: Of the comparison, not of the order in which it was shown; None without a verdict.
        error: Why there is no verdict.
        text: The judge's words.
    """

    winner: Side | Literal["tie"] | None
    error: str | None = None
    text: str = ""


@dataclass(frozen=True)
class Judgement:
    """Both orders of one comparison.

    Args:
        orders: Shown with `first` first, then with `second` first.
    """

    orders: tuple[Opinion, Opinion]

    @property
    def flipped(self) -> bool:
        """Whether the order decided: both have a verdict, and they disagree."""
        a, b = (o.winner for o in self.orders)
        return a is not None and b is not None and a != b

    @property
    def outcome(self) -> float | None:
        """The win of `second`: 1, ½ or 0; None if either order has no verdict.

        What wins in both orders wins, all else is a tie (FastChat's rule, arXiv 2306.05685 section 3.4).
        """
        a, b = (o.winner for o in self.orders)
        if a is None or b is None:
            return None
        return 0.5 if a != b or a == "tie" else float(a == "second")


@dataclass(frozen=True)
class Grade:
    """A score from 1 to 10.

    Args:
        score: None without a rating.
        error: Why there is none.
        text: The judge's words.
    """

    score: float | None
    error: str | None = None
    text: str = ""


class Judge(Protocol):
    """Compares and grades."""

    ledger: Ledger  # what it did, and what that took

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """Judges each comparison in both orders.

        Returns:
            In the order of the comparisons. A judge that fails on one says so in its `error`.

        Raises:
            UserError: If nothing can be judged at all: the key, the model's name, the address.
            StepError: If the judge cannot be reached.
        """
        ...

    def grade(self, questions: Sequence[Question]) -> list[Grade]:
        """Grades each answer; returns and raises as `compare`.

        Raises:
            UserError: Also if this judge does not grade.
        """
        ...


_NOT_ASKED = Opinion("tie", text="identical answers: not asked")
IDENTICAL = Judgement((_NOT_ASKED, _NOT_ASKED))
