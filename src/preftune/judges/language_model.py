"""A language model as judge: prompts out, verdicts and ratings back, both orders of everything."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from preftune.content_cache import ContentCache
from preftune.evaluation_schema import OpenAIJudge
from preftune.judges import prompts, replies
from preftune.judges.asking import ask_all
from preftune.judges.endpoint import Endpoint
from preftune.judges.interface import (
    IDENTICAL,
    SWAPPED,
    Comparison,
    Grade,
    Judgement,
    Message,
    Opinion,
    Question,
)
from preftune.judges.ledger import Ledger

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")


class LanguageModelJudge:
    """A judge behind an OpenAI-compatible endpoint.

    Args:
        settings: The recipe's section.
        cache: What was replied before.
        tell: Called with each line for the user.

    Raises:
        UserError: If there is no key.
    """

    def __init__(self, settings: OpenAIJudge, cache: ContentCache, tell: Callable[[str], None]) -> None:
        self._tell, self._concurrency = tell, settings.concurrency
        self.ledger = Ledger(settings.max_requests, settings.max_cost, settings.prompt_price, settings.completion_price)
        self._endpoint = Endpoint(settings, cache, self.ledger, tell)
        self._sampling = {"temperature": 0, "max_tokens": settings.max_tokens}

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """As in `Judge`; identical answers are a tie that nobody is asked about."""
        return self._all("compared answers", self._compare, comparisons)

    def grade(self, questions: Sequence[Question]) -> list[Grade]:
        """As in `Judge`."""
        return self._all("graded answers", self._grade, questions)

    async def _compare(self, comparison: Comparison) -> Judgement:
        if comparison.identical:
            self.ledger.identical += 1
            return IDENTICAL
        orders = (comparison, comparison.swapped())
        (first, error_1, text_1), (second, error_2, text_2) = await asyncio.gather(
            *(self._value(prompts.pairwise(c), replies.verdict, False) for c in orders)
        )
        if second == "first" or second == "second":
            second = SWAPPED[second]
        return Judgement((Opinion(first, error_1, text_1), Opinion(second, error_2, text_2)))

    async def _grade(self, question: Question) -> Grade:
        return Grade(*await self._value(prompts.single(question), replies.rating, True))

    async def _value(
        self, messages: list[Message], read: Callable[[str], Value | None], rating: bool
    ) -> tuple[Value | None, str | None, str]:
        """(what the judge decided, why it did not, its words). Without a decision it is asked once more."""
        reply = await self._endpoint.reply(messages, self._sampling)
        value = read(reply.text) if reply.whole else None  # one that was cut might have gone on to decide otherwise
        text = reply.text
        if reply.error is None and value is None:
            self.ledger.asked_again += 1
            reply = await self._endpoint.reply(prompts.again(messages, reply.text, rating), self._sampling)
            value = read(reply.text) if reply.whole else None
            text = f"{text}\n[asked once more] {reply.text}"
        error = reply.error or ("malformed" if value is None else None)
        if error is not None:
            self.ledger.errors[error] += 1
        return value, error, text

    def _all(self, what: str, one: Callable[[Item], Awaitable[Result]], items: Sequence[Item]) -> list[Result]:
        return ask_all(self._endpoint, what, one, items, self._concurrency, self.ledger, self._tell)
