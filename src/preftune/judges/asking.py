"""Many questions to one endpoint, some at a time: how far they are, and what ends them all."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from preftune.children import interrupted
from preftune.errors import PreftuneError
from preftune.judges.endpoint import Endpoint
from preftune.judges.ledger import Ledger
from preftune.progress import SHOWN_SECONDS, clock

Item = TypeVar("Item")
Result = TypeVar("Result")


def ask_all(
    endpoint: Endpoint,
    what: str,
    one: Callable[[Item], Awaitable[Result]],
    items: Sequence[Item],
    concurrency: int,
    ledger: Ledger,
    tell: Callable[[str], None],
) -> list[Result]:
    """Asks about each item, in their order; progress is told.

    Args:
        endpoint: Whom `one` asks.
        what: What is done, for the lines of progress: `compared answers`.
        one: From an item to its result.
        items: What is asked about.
        concurrency: Items at a time.
        ledger: Counts the endpoint's requests.
        tell: Called with each line for the user.

    Returns:
        The results in the order of the items.

    Raises:
        UserError, StepError: What the first item to fail raised; the others end with it.
        KeyboardInterrupt: After a Ctrl-C.
    """
    if not items:
        return []
    progress = Progress(what, len(items), ledger, tell)

    async def counted(item: Item, begun: asyncio.Semaphore) -> Result:
        async with begun:  # what was begun is finished first: a budget that ends leaves few halves behind
            result = await one(item)
        progress.done += 1
        return result

    async def work() -> list[Result]:
        begun = asyncio.Semaphore(concurrency)
        async with endpoint:
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
