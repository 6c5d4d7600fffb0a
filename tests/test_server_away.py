"""Waiting for Prefect's server with Prefect's real client: refused connections, then answers; and giving up."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from test_server import free_port

from tasks import policy


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def port() -> Iterator[int]:
    found = free_port()
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{found}/api"}):
        yield found


def test_it_waits_until_the_server_is_there(port: int) -> None:
    away = 2.0
    started: list[HTTPServer] = []

    def start() -> None:
        started.append(HTTPServer(("127.0.0.1", port), _Healthy))
        started[0].serve_forever()

    later = threading.Timer(away, start)
    later.start()
    began = time.monotonic()
    policy.wait_for_server()
    waited = time.monotonic() - began
    started[0].shutdown()
    later.join()
    started[0].server_close()
    assert waited >= away - 0.1
    assert waited < policy.SERVER_AWAY_SECONDS / 10


def test_it_does_not_wait_for_ever(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks next then gets the client's own error."""
    monkeypatch.setattr(policy, "SERVER_AWAY_SECONDS", 1)
    began = time.monotonic()
    policy.wait_for_server()
    assert 1 <= time.monotonic() - began < 60
