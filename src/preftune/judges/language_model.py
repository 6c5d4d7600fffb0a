"""A language model as judge: prompts out, verdicts and ratings back, both orders of everything."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from preftune.children import interrupted
from preftune.errors import PreftuneError
from preftune.evaluation_schema import OpenAIJudge
from preftune.judges import prompts, replies
from preftune.judges.cache import JudgementCache
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
from preftune.progress import clock

SHOWN_SECONDS = 10  # between two lines of progress
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

    def __init__(self, settings: OpenAIJudge, cache: JudgementCache, tell: Callable[[str], None]) -> None:
        self._tell, self._concurrency = tell, settings.concurrency
        self.ledger = Ledger(settings.max_requests, settings.max_cost, settings.prompt_price, settings.completion_price)
        self._endpoint = Endpoint(settings, cache, self.ledger, tell)

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
        reply = await self._endpoint.reply(messages)
        value = read(reply.text) if reply.whole else None  # one that was cut might have gone on to decide otherwise
        text = reply.text
        if reply.error is None and value is None:
            self.ledger.asked_again += 1
            reply = await self._endpoint.reply(prompts.again(messages, reply.text, rating))
            value = read(reply.text) if reply.whole else None
            text = f"{text}\n[asked once more] {reply.text}"
        error = reply.error or ("malformed" if value is None else None)
        if error is not None:
            self.ledger.errors[error] += 1
        return value, error, text

    def _all(self, what: str, one: Callable[[Item], Awaitable[Result]], items: Sequence[Item]) -> list[Result]:
        if not items:
            return []
        progress = Progress(what, len(items), self.ledger, self._tell)

        async def counted(item: Item, begun: asyncio.Semaphore) -> Result:
            async with begun:  # what was begun is finished first: a budget that ends leaves few halves behind
                result = await one(item)
            progress.done += 1
            return result

        async def work() -> list[Result]:
            begun = asyncio.Semaphore(self._concurrency)
            async with self._endpoint:
                watch = asyncio.create_task(progress.watch())
                try:
                    async with asyncio.TaskGroup() as group:
                        tasks = [group.create_task(counted(item, begun)) for item in items]
                finally:
                    watch.cancel()
                return [t.result() for t in tasks]

        try:
            results = asyncio.run(work())
        except BaseExceptionGroup as group:  # the first to fail ends the others
            first = group.exceptions[0]
            raise first from (None if isinstance(first, PreftuneError) else group)
        progress.show()
        return results


class Progress:
    """Lines such as `compared answers: 40/160 (0:12, about 0:36 left, 78 requests, cost 0.0123)`."""

    def __init__(self, what: str, total: int, ledger: Ledger, tell: Callable[[str], None]) -> None:
        self._what, self._total, self._ledger, self._tell = what, total, ledger, tell
        self._began, self.done, self._known = time.monotonic(), 0, 0

    def show(self) -> None:
        """Tells where it stands."""
        took = time.monotonic() - self._began
        parts = [clock(took)]
        if self._known < self.done < self._total:
            seconds = took / (self.done - self._known)
            parts.append(f"about {clock(seconds * (self._total - self.done))} left")
        parts.append(f"{self._ledger.requests} requests")
        if self._ledger.cost is not None:
            parts.append(f"cost {self._ledger.cost:.4f}")
        self._tell(f"{self._what}: {self.done}/{self._total} ({', '.join(parts)})")

    async def watch(self) -> None:
        """Shows it now and then; ends everything after a Ctrl-C whose exception was lost."""
        told = time.monotonic()
        await asyncio.sleep(0.5)
        self._known = self.done  # what the cache answered, at once: it says nothing about the rest
        while True:
            await asyncio.sleep(0.5)
            if interrupted.is_set():
                raise KeyboardInterrupt
            if time.monotonic() - told >= SHOWN_SECONDS:
                told = time.monotonic()
                self.show()
