"""The page of `preftune pairs label`: two answers side by side, blind, one key for each decision.

Only this machine can reach it. Another site that is open in the same browser can neither read it (the host's name is
checked, so that a name that points here is of no use) nor send labels (only JSON is taken, for which a browser asks
first, and is not answered).
"""

import json
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from preftune.digest import json_digest
from preftune.display import value_text
from preftune.errors import PreftuneError, UserError
from preftune.own_pairs.labels import LabelFile, LabelTask, agreement, labeller_name, new_label, standing
from preftune.pages import render

HOST = "127.0.0.1"
LONGEST_BODY = 10_000  # bytes; a label has a hundred
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",  # also when one goes back in the browser
}
_POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Labelling:
    """What the page shows, and to whom.

    Args:
        tasks: By their keys, in the order of the page.
        file: Where labels go.
        labeller: Whose labels they are.
        title: What is labelled, in the heading.
    """

    tasks: dict[str, LabelTask]
    file: LabelFile
    labeller: str
    title: str

    def mine(self) -> dict[str, str]:
        """This labeller's winners by task."""
        labels = standing(self.file.read())
        return {x.task: x.winner for x in labels if x.labeller == self.labeller and x.task in self.tasks}

    def sides(self, key: str) -> dict[str, str]:
        """What each decision means for this labeller: left, right, tie, skip → winner."""
        order = ("first", "second") if first_is_left(key, self.labeller) else ("second", "first")
        return {"left": order[0], "right": order[1], "tie": "tie", "skip": "skip"}

    def pair(self, number: int, said: dict[str, str], nonce: str) -> str:
        """The page of one task, from 1."""
        task = list(self.tasks.values())[number - 1]
        sides = self.sides(task.key)
        return self._page(
            nonce,
            said,
            task=task.key,
            number=number,
            prompt=task.prompt,
            answers=[(side, getattr(task, sides[side])) for side in ("left", "right")],
            before=next((side for side, winner in sides.items() if winner == said.get(task.key)), None),
        )

    def end(self, said: dict[str, str], nonce: str) -> str:
        """The page when all is labelled."""
        labels = [label for label in self.file.read() if label.task in self.tasks]
        rows = [row for row in agreement(labels) if self.labeller in row["labellers"]]
        others = [
            {
                "name": next(name for name in row["labellers"] if name != self.labeller),
                "tasks": row["tasks"],
                "agreed": value_text(row["agreed"], "share"),
                "kappa": "–" if row["kappa"] is None else f"{row['kappa']:.2f}".replace("-", "−"),
            }
            for row in rows
        ]
        ties, skipped = (list(said.values()).count(winner) for winner in ("tie", "skip"))
        counts = {"preferences": len(said) - ties - skipped, "ties": ties, "skipped": skipped}
        return self._page(nonce, said, task=None, number=len(self.tasks) + 1, counts=counts, others=others)

    def _page(self, nonce: str, said: dict[str, str], **values: Any) -> str:
        common = {"title": self.title, "labeller": self.labeller, "total": len(self.tasks), "done": len(said)}
        return render("label.html.j2", nonce=nonce, **common, **values)


def first_is_left(key: str, labeller: str) -> bool:
    """Whether the first text stands on the left: by chance, but always the same for this task and labeller."""
    return int(json_digest([key, labeller]), 16) % 2 == 0


def make_app(tasks: Sequence[LabelTask], file: LabelFile, labeller: str, title: str) -> Any:
    """The page as a Starlette application.

    Args:
        tasks: In the order in which they are shown; each key once.
        file: Where labels go; it is read anew for each page, so that several may write to it.
        labeller: Whose labels they are.
        title: What is labelled, in the heading.

    Raises:
        UserError: If the name is none, there is no task, or the file cannot be read.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Route

    page = Labelling({task.key: task for task in tasks}, file, labeller_name(labeller), title)
    if not page.tasks:
        raise UserError("there is nothing to label", title, "no prompt has two different answers")
    page.mine()
    keys = list(page.tasks)

    def failed(error: str, status: int) -> Response:
        return JSONResponse({"error": error}, status, _HEADERS)

    def show(request: Request) -> Response:
        try:
            said = page.mine()
            number = next((n for n, key in enumerate(keys, 1) if key not in said), len(keys) + 1)
            if (asked := request.query_params.get("pair")) is not None:
                if not (asked.isascii() and asked.isdecimal() and len(asked) < 9 and 1 <= int(asked) <= len(keys)):
                    return RedirectResponse("/", headers=_HEADERS)
                number = int(asked)
            nonce = secrets.token_urlsafe(16)
            text = page.end(said, nonce) if number > len(keys) else page.pair(number, said, nonce)
        except PreftuneError as e:
            return PlainTextResponse(str(e), 500, _HEADERS)
        return HTMLResponse(text, headers={**_HEADERS, "Content-Security-Policy": _POLICY.format(nonce)})

    async def save(request: Request) -> Response:
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return failed("a label is sent as JSON", 415)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LONGEST_BODY:
                return failed("a label is not so long", 413)
        key, side = _read(body)
        if key not in page.tasks:
            return failed("this pair is not among those to label: load the page again", 404)
        winner = page.sides(key).get(side)
        if winner is None:
            return failed("this is no decision: left, right, tie or skip", 400)
        try:
            await run_in_threadpool(file.append, new_label(key, page.labeller, winner, "page"))
        except PreftuneError as e:
            return failed(f"{e.error}. {e.advice}", 500)
        return JSONResponse({"saved": True}, headers=_HEADERS)

    return Starlette(
        routes=[Route("/", show), Route("/label", save, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
    )


def _read(body: bytes) -> tuple[str, str]:
    """(task, side) of what was sent; empty texts for what is none."""
    try:
        sent = json.loads(body)
        key, side = sent["task"], sent["side"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "", ""
    return (key, side) if isinstance(key, str) and isinstance(side, str) else ("", "")


def serve(app: Any, port: int, tell: Callable[[str], None] = lambda _: None) -> None:
    """Serves the page on this machine until Ctrl-C.

    Args:
        app: From `make_app`.
        port: On 127.0.0.1; 0: a free one.
        tell: Called with the address as soon as it answers.

    Raises:
        UserError: If something else listens on the port.
    """
    import uvicorn

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()
        except OSError as e:
            raise UserError(f"port {port} cannot be used: {e.strerror}", "--port", "name another port") from None
        tell(f"http://{HOST}:{listener.getsockname()[1]}")
        config = uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=5
        )
        with suppress(KeyboardInterrupt):  # what was labelled is on the disk
            uvicorn.Server(config).run(sockets=[listener])
