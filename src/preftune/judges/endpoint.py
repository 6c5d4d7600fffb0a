"""An OpenAI-compatible endpoint: a question goes out once, its reply is kept, and every failure gets a name."""

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from preftune.content_cache import ContentCache
from preftune.digest import json_digest
from preftune.errors import PreftuneError, StepError, UserError
from preftune.evaluation_schema import OpenAIEndpoint
from preftune.judges.interface import Message
from preftune.judges.ledger import Ledger, OverBudget

OPENAI = "https://api.openai.com/v1"
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|too (long|large|many tokens)|maximum.{0,40}(length|tokens)", re.IGNORECASE
)
_UNKNOWN = r"([Uu]nknown|[Uu]nrecogni[sz]ed|[Uu]nexpected|[Ee]xtra)"  # before a parameter's name
_FILTERED = re.compile(r"content[ _](filter|policy|management)", re.IGNORECASE)


@dataclass(frozen=True)
class Reply:
    """A reply.

    Args:
        text: Its words.
        whole: Whether it ended by itself, not at `max_tokens`.
        error: Why there is none: timeout, rate_limit, server_error, connection, too_long, refused, bad_request,
            bad_reply, budget, given_up.
    """

    text: str = ""
    whole: bool = True
    error: str | None = None


def base_url(settings: OpenAIEndpoint) -> str:
    """The endpoint's address; OpenAI's own if the recipe names none."""
    return (settings.base_url or OPENAI).rstrip("/")


def is_local(url: str) -> bool:
    """Whether an address is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def api_key(settings: OpenAIEndpoint) -> str:
    """The key, from the environment; for a server on this machine a placeholder will do.

    Raises:
        UserError: If there is none, or if it cannot be a key.
    """
    key = os.environ.get(settings.api_key_env, "").strip()
    where = f"{settings.place}.api_key_env: {settings.api_key_env}"
    if not key and not is_local(base_url(settings)):
        host = urlsplit(base_url(settings)).hostname
        raise UserError(
            f"the {settings.role} at {host} needs a key, and this environment variable is empty",
            where,
            f"export {settings.api_key_env}=… (a server that asks for no key takes any value)",
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError("the variable holds characters that no key has", where, "export the key again")
    return key or "none"


def _http_client(settings: OpenAIEndpoint, ledger: Ledger) -> Any:
    """Counts every request that is really made, and ends one that takes too long however slowly bytes trickle in."""
    import httpx2

    class Counted(httpx2.AsyncClient):
        async def send(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
            ledger.admit()
            try:
                async with asyncio.timeout(settings.timeout):
                    return await super().send(request, **kwargs)
            except TimeoutError:
                raise httpx2.ReadTimeout("no whole reply in time", request=request) from None

    return Counted(
        timeout=settings.timeout,
        limits=httpx2.Limits(max_connections=settings.concurrency),
        follow_redirects=False,  # answers go to the address in the recipe, and nowhere else
        trust_env=not is_local(base_url(settings)),  # a proxy cannot reach this machine's own servers
    )


class Endpoint:
    """Questions to one model. Used as an async context manager; what it learnt of the endpoint outlasts one use.

    The first question goes alone: what is wrong with key, model or address shows after one request, and so does what
    the endpoint wants in place of a parameter.

    Args:
        settings: The recipe's section.
        cache: What was replied before.
        ledger: Counts, and the budget.
        tell: Called with what the user should know.

    Raises:
        UserError: As `api_key`.
    """

    def __init__(
        self, settings: OpenAIEndpoint, cache: ContentCache, ledger: Ledger, tell: Callable[[str], None]
    ) -> None:
        self._settings, self._cache, self._ledger, self._tell = settings, cache, ledger, tell
        self._key, self._url = api_key(settings), base_url(settings)
        self._names = {"max_tokens": "max_tokens"}  # what the endpoint calls a parameter; "": it takes none such
        self._answered = False

    async def __aenter__(self) -> "Endpoint":
        from openai import AsyncOpenAI, Omit

        self._slots = asyncio.Semaphore(1)
        self._widened = False
        self._locks: dict[str, asyncio.Lock] = {}
        own: Any = {} if self._url == OPENAI else {f"OpenAI-{name}": Omit() for name in ("Organization", "Project")}
        self._client = AsyncOpenAI(
            api_key=self._key,
            base_url=self._url,
            default_headers=own,  # whose account it is there concerns no other endpoint
            max_retries=self._settings.retries,
            timeout=self._settings.timeout,
            http_client=_http_client(self._settings, self._ledger),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    def cache_key(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> str:
        """What a reply depends on. A changed wording of our prompts is another question, so it needs no version.

        Args:
            messages: The conversation.
            sampling: As in `reply`: all of it, also a seed that the endpoint turned out to take none of.
        """
        return json_digest({"url": self._url, "model": self._settings.model, "messages": list(messages), **sampling})

    async def reply(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Reply:
        """The reply to a conversation, from the cache if it was ever given.

        Args:
            messages: The conversation.
            sampling: The request's parameters: temperature, max_tokens, top_p, seed.

        Raises:
            UserError: If the endpoint refuses key, model or request.
            StepError: If nothing listens at the address.
        """
        key = self.cache_key(messages, sampling)
        async with self._locks.setdefault(key, asyncio.Lock()):  # the same question twice at once is asked once
            if (known := self._cache.get(key)) is not None:
                self._ledger.cached += 1
                return Reply(known["text"], known["whole"])
            async with self._slots:
                self._ledger.in_flight += 1
                try:
                    found = await self._ask(messages, sampling)
                except PreftuneError:  # the others end, too: no request more until they do
                    self._ledger.ended = "given_up"
                    raise
                finally:
                    self._ledger.in_flight -= 1
                self._widen()
            if found.error is None:
                self._cache.add(key, {"text": found.text, "whole": found.whole})
            return found

    def _widen(self) -> None:
        if not self._widened:
            self._widened = True
            for _ in range(self._settings.concurrency - 1):
                self._slots.release()

    def _sent(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters by the names that the endpoint knows them by."""
        return {self._names.get(n, n): v for n, v in sampling.items() if self._names.get(n, n)}

    async def _ask(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Reply:
        from openai import APIError, BadRequestError, UnprocessableEntityError

        asked: Any = list(messages)
        while True:
            parameters = self._sent(sampling)
            try:
                done: Any = await self._client.chat.completions.create(
                    model=self._settings.model, messages=asked, **parameters
                )
                break
            except OverBudget:
                return Reply(error=self._ledger.ended)
            except APIError as e:
                refused = isinstance(e, BadRequestError | UnprocessableEntityError)
                if refused and self._adapt(str(e), parameters, sampling):
                    continue
                reason = self._reason(e)
            except ValueError:  # neither JSON nor of the right form
                reason = self._bad_reply()
            self._ledger.failed(reason)
            return Reply(error=reason)
        return self._read(done)

    def _read(self, done: Any) -> Reply:
        choices = getattr(done, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            reason = self._bad_reply()
            self._ledger.failed(reason)
            return Reply(error=reason)
        self._answered = True
        usage = done.usage
        self._ledger.paid(*((usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)))
        if choices[0].finish_reason == "content_filter" or getattr(choices[0].message, "refusal", None):
            return Reply(error="refused")
        content = choices[0].message.content
        text = self._without_key(content) if isinstance(content, str) else ""
        if usage is None and self._settings.max_cost is not None:
            raise UserError(
                "the endpoint counts no tokens, so max_cost cannot be kept",
                f"{self._settings.place}.max_cost",
                "set max_requests in its place",
            )
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair could not be written
        return Reply(text, whole=choices[0].finish_reason != "length")

    def _adapt(self, message: str, sent: dict[str, Any], sampling: Mapping[str, Any]) -> bool:
        """Takes another parameter where a model refuses the usual one; False if that is not the matter."""
        if sent != self._sent(sampling):  # another question was faster
            return True
        if "max_tokens" in sent and "max_completion_tokens" in message:
            self._names["max_tokens"] = "max_completion_tokens"
            return True
        for name in ("temperature", "seed", "top_p"):
            refused = rf"\b{name}\W.{{0,80}}(support|only|default|allow|permit)|{_UNKNOWN}.{{0,60}}\b{name}\b"
            if name in sent and re.search(refused, message):
                self._tell(f"{self._settings.model} takes no {name}: its answers may differ from run to run")
                self._names[name] = ""
                return True
        return False

    def _reason(self, error: Any) -> str:
        """Names a failure that concerns this question; raises for one that concerns them all."""
        import httpx2
        from openai import APIConnectionError, APITimeoutError

        if isinstance(error, APITimeoutError):
            return "timeout"
        if isinstance(error, APIConnectionError):
            if isinstance(error.__cause__, httpx2.ConnectError):
                raise StepError(
                    f"nothing answers at the {self._settings.role}'s address: {error.__cause__ or 'no connection'}",
                    self._url,
                    f"start the server, or correct {self._settings.place}.base_url; what was answered so far is kept",
                )
            return "connection"
        status = getattr(error, "status_code", None)
        if status is None:
            return self._bad_reply()
        message, code = self._message(error), str(error.code)
        if status == 429 and code != "insufficient_quota":
            return "rate_limit"
        if status in (408, 409) or status >= 500:
            return "timeout" if status == 408 else "server_error"
        if status in (400, 413, 422):
            if status == 413 or code == "context_length_exceeded" or _TOO_LONG.search(message):
                return "too_long"
            if code == "content_filter" or _FILTERED.search(message):
                return "refused"
            if self._answered:
                return "bad_request"
        advice = {
            401: f"put a valid key into {self._settings.api_key_env}",
            403: f"this key (from {self._settings.api_key_env}) may not use the model {self._settings.model}",
            404: f"correct {self._settings.place}.model, or base_url (it usually ends in /v1)",
            429: "the account has no quota left",
        }.get(status, f"correct {self._settings.place}")
        raise UserError(f"the {self._settings.role} refuses (status {status}): {message}", self._url, advice)

    def _bad_reply(self) -> str:
        if self._answered:
            return "bad_reply"
        raise UserError(
            "what answers there does not speak the chat-completions protocol",
            self._url,
            f"correct {self._settings.place}.base_url: it usually ends in /v1",
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if len(self._key) > 6 else text

    def _message(self, error: Any) -> str:
        """The server's own words: one line, shortened, without the key."""
        body = error.body if isinstance(error.body, dict) else {}
        text = " ".join(self._without_key(str(body.get("message") or body.get("detail") or error.message)).split())
        return text if len(text) <= 300 else f"{text[:299]}…"
