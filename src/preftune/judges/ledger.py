"""What judging took: requests, tokens, cost, errors by reason; and the budget that ends it."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

GIVE_UP_AFTER = 20  # questions in a row without a reply after all their tries: the endpoint is down, not busy
_NO_REPLY = ("timeout", "rate_limit", "server_error", "connection", "bad_reply")


class OverBudget(Exception):
    """No more requests are allowed."""


@dataclass
class Ledger:
    """Counts of one run.

    Args:
        max_requests: Budget; None: none.
        max_cost: Budget; None: none.
        prompt_price: Of a million tokens.
        completion_price: Of a million tokens.
    """

    max_requests: int | None = None
    max_cost: float | None = None
    prompt_price: float | None = None
    completion_price: float | None = None
    requests: int = 0
    cached: int = 0
    identical: int = 0
    asked_again: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    stopped: str | None = None
    ended: Literal["budget", "given_up"] | None = None  # by what
    in_flight: int = 0  # questions whose reply has not been counted yet
    began: float = field(default_factory=time.monotonic)
    _failed: int = 0
    _dearest: float = 0.0

    @property
    def cost(self) -> float | None:
        """In the prices' currency; None without prices."""
        return self._price(self.prompt_tokens, self.completion_tokens)

    def _price(self, prompt: int, completion: int) -> float | None:
        if self.prompt_price is None or self.completion_price is None:
            return None
        return (prompt * self.prompt_price + completion * self.completion_price) / 1e6

    def admit(self) -> None:
        """Counts a request that is about to be made.

        What is in flight is reckoned as dear as the dearest reply so far. So the cost can pass its budget only by the
        first reply (the first question goes alone), or by ones dearer than all before.

        Raises:
            OverBudget: If the budget does not allow it, or the endpoint was given up; `stopped` then says why.
        """
        expected = (self.cost or 0.0) + self.in_flight * self._dearest
        if self.ended is not None:
            raise OverBudget
        if self.max_requests is not None and self.requests >= self.max_requests:
            self.ended, self.stopped = "budget", f"max_requests: {self.requests} were made"
        elif self.max_cost is not None and expected > self.max_cost:
            self.ended, self.stopped = "budget", f"max_cost: one more could pass {self.max_cost:g}"
        if self.ended is not None:
            raise OverBudget
        self.requests += 1

    def failed(self, reason: str) -> None:
        """Counts a question that failed for good; after many in a row without any reply the endpoint is given up."""
        self._failed = self._failed + 1 if reason in _NO_REPLY else 0
        if self._failed >= GIVE_UP_AFTER and self.ended is None:
            self.ended, self.stopped = "given_up", f"given up: {self._failed} questions in a row ended in {reason}"

    def paid(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Counts a reply and what it took."""
        self._failed = 0
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self._dearest = max(self._dearest, self._price(prompt_tokens, completion_tokens) or 0.0)

    def result(self) -> dict[str, Any]:
        """As in judge.json."""
        names = ("requests", "cached", "identical", "asked_again", "prompt_tokens", "completion_tokens")
        return {
            **{n: getattr(self, n) for n in names},
            "errors": dict(sorted(self.errors.items())),
            "cost": None if self.cost is None else round(self.cost, 6),
            "stopped": self.stopped,
            "seconds": round(time.monotonic() - self.began, 1),
        }
