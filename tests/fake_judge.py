"""A small OpenAI-compatible server whose judge behaves as told: fairly, by a bias, badly, or not at all.

    with fake_judge(longest_wins) as server:
        settings = OpenAIJudge(kind="openai", model="fake", base_url=server.url)

A behaviour takes what was asked and returns what is replied; `then` and `sometimes` combine them.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-the-key-of-the-tests"


@dataclass(frozen=True)
class Asked:
    """A request.

    Args:
        body: As it came.
        number: From 0, of all requests.
        tries: How often this very body came before.
    """

    body: dict[str, Any]
    number: int
    tries: int

    @property
    def sections(self) -> dict[str, str]:
        """Heading → text, of the first user message, read without the product's own code."""
        content = next(m["content"] for m in self.body["messages"] if m["role"] == "user")
        mark = content.split()[1]
        parts = re.split(rf"^=== {mark} (.*) ===\n", content, flags=re.MULTILINE)
        end = f"\n=== {mark} end ==="
        return {h: t.removesuffix(end).removesuffix("\n") for h, t in zip(parts[1::2], parts[2::2], strict=True)}

    @property
    def grading(self) -> bool:
        return "answer A" not in " ".join(self.sections)

    def answer(self, which: str) -> str:
        """The text of answer A or B to the last question."""
        return [text for heading, text in self.sections.items() if heading.startswith(f"answer {which}")][-1]


@dataclass(frozen=True)
class Replied:
    """What is sent back; see the behaviours below."""

    text: str = ""
    status: int = 200
    error: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    finish: str = "stop"
    usage: tuple[int, int] | None = (100, 10)
    drop: bool = False
    raw: str | None = None


Behaviour = Callable[[Asked], Replied]


def says(text: str, **more: Any) -> Behaviour:
    """The same reply to everything."""
    return lambda _: Replied(text, **more)


def always_a(asked: Asked) -> Replied:
    """The first answer wins, whatever it is; every grade is 5."""
    return Replied("Rating: [[5]]" if asked.grading else "The first one. [[A]]")


def _verdict(a: float, b: float) -> Replied:
    return Replied(f"Compared. [[{'A' if a > b else 'B' if b > a else 'C'}]]")


def prefers(worth: Callable[[str], float]) -> Behaviour:
    """A fair judge: the answer that is worth more wins; the grade is the worth, from 1 to 10."""

    def behave(asked: Asked) -> Replied:
        if asked.grading:
            answer = [t for h, t in asked.sections.items() if h.startswith("answer")][-1]
            return Replied(f"Rating: [[{min(10, max(1, worth(answer))):g}]]")
        return _verdict(worth(asked.answer("A")), worth(asked.answer("B")))

    return behave


longest_wins: Behaviour = prefers(len)


def fails(status: int, message: str = "no", code: str | None = None, **headers: str) -> Behaviour:
    """An error in OpenAI's form."""
    error = {"message": message, "type": "error", "code": code, "param": None}
    return lambda _: Replied(status=status, error=error, headers=headers)


def slow(seconds: float, behaviour: Behaviour = always_a) -> Behaviour:
    return lambda asked: Replied(**{**behaviour(asked).__dict__, "seconds": seconds})


def drops(_: Asked) -> Replied:
    """Closes the connection without a word."""
    return Replied(drop=True)


def not_the_protocol(_: Asked) -> Replied:
    """A web page, as where `/v1` is missing."""
    return Replied(raw="<html>It works!</html>")


malformed: Behaviour = says("Both are fine answers, and I prefer the former.")
truncated: Behaviour = says("First I look at answer A, which [[A]]", finish="length")


def then(first: Behaviour, *others: Behaviour) -> Behaviour:
    """The first time that a question comes it is answered by the first, then by the others; the last one stays."""
    all_of_them = (first, *others)
    return lambda asked: all_of_them[min(asked.tries, len(others))](asked)


def sometimes(when: Callable[[Asked], bool], one: Behaviour, other: Behaviour) -> Behaviour:
    return lambda asked: (one if when(asked) else other)(asked)


def needs_key(behaviour: Behaviour = always_a, key: str = KEY) -> Behaviour:
    """Refuses other keys, and repeats them in its error, as some do."""

    def behave(asked: Asked) -> Replied:
        given = asked.body["_authorization"].removeprefix("Bearer ")
        return behaviour(asked) if given == key else fails(401, f"Incorrect API key provided: {given}")(asked)

    return behave


class FakeJudge(ThreadingHTTPServer):
    """What came (bodies, times, headers), what was answered, and how many requests were there at once at most."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour = behaviour
        self.requests: list[dict[str, Any]] = []
        self.answered: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeJudge
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            asked = Asked(
                {**body, "_authorization": self.headers.get("Authorization", "")},
                len(server.requests),
                sum(r == body for r in server.requests),
            )
            server.requests.append(body)
            server.times.append(time.monotonic())
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            self._reply(body, server.behaviour(asked) if self.path == "/v1/chat/completions" else Replied(status=404))
        finally:
            with server.lock:
                server.now -= 1

    def _reply(self, body: dict[str, Any], replied: Replied) -> None:
        time.sleep(replied.seconds)
        if replied.drop:
            self.close_connection = True
            return
        message = {"role": "assistant", "content": replied.text}
        usage = {"prompt_tokens": replied.usage[0], "completion_tokens": replied.usage[1]} if replied.usage else None
        whole = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": replied.finish, "message": message}],
            "usage": usage and {**usage, "total_tokens": sum(usage.values())},
        }
        found = whole if replied.status == 200 else {"error": replied.error}
        data = (json.dumps(found) if replied.raw is None else replied.raw).encode()
        self.send_response(replied.status)
        headers = {"Content-Type": "application/json" if replied.raw is None else "text/html", **replied.headers}
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        if replied.status == 200:
            with self.server.lock:
                self.server.answered.append(body)


@contextmanager
def fake_judge(behaviour: Behaviour) -> Iterator[FakeJudge]:
    """A running server; its `behaviour` may be exchanged."""
    server = FakeJudge(behaviour)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
