"""The audit's page in a real browser: it asks for nothing, hostile text is text, a phone need not scroll sideways."""

import html
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_audit_page import make
from test_browser import CHROMIUM, browse

from preftune.audit.page import render_audit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]
EVIL = (
    "</title></style></textarea><script src='/leak'></script><script>document.title='owned'</script>"
    "<img src='/leak' onerror=\"document.title='owned'\"><link rel=stylesheet href='/leak'>"
    "<iframe src='/leak'></iframe>"
) + "x" * 300
# The page in a phone's and in a desk's width; what is seen there goes into the frame's own page as JSON.
FRAMES = """<!DOCTYPE html><link rel="icon" href="data:,"><body>
<iframe id="phone" style="width:390px;height:800px" src="/audit.html"></iframe>
<iframe id="desk" style="width:1200px;height:800px" src="/audit.html"></iframe>
<pre id="seen"></pre><script>
onload = () => {
  const seen = {};
  for (const name of ["phone", "desk"]) {
    const page = document.getElementById(name).contentDocument, root = page.documentElement;
    page.querySelectorAll("details").forEach(d => { d.open = true; });
    const box = side => page.querySelector(`.sides .${side}`).getBoundingClientRect();
    seen[name] = {
      title: page.title, wide: root.scrollWidth, room: root.clientWidth, text: page.body.innerText,
      foreign: page.querySelectorAll("script, img, iframe, object, link:not([rel=icon])").length,
      chosen: [box("chosen").left, box("chosen").top], rejected: [box("rejected").left, box("rejected").top],
      charts: [...page.querySelectorAll(".chart svg")].map(s => s.getBoundingClientRect().height),
    };
  }
  document.getElementById("seen").textContent = JSON.stringify(seen);
};
</script>"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the browser saw, and as `asked` the addresses that it asked for."""
    pages = {"/frames.html": FRAMES, "/audit.html": render_audit(make(tmp_path_factory.mktemp("audit"), EVIL))}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path in pages else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder: Path = tmp_path_factory.mktemp("browser")
    text = browse(f"http://127.0.0.1:{server.server_port}/frames.html", folder, 10_000)
    server.shutdown()
    server.server_close()
    found = re.search(r'<pre id="seen">(.*?)</pre>', text, re.S)
    assert found
    yield {**json.loads(html.unescape(found[1])), "asked": asked}


def test_asks_for_nothing(seen: dict[str, Any]) -> None:
    assert seen["asked"] == ["/frames.html", "/audit.html", "/audit.html"]


def test_hostile_text_is_text(seen: dict[str, Any]) -> None:
    for name in ("phone", "desk"):
        assert seen[name]["title"].startswith("Data audit: data/one.jsonl</title></style>")
        assert seen[name]["foreign"] == 0
        assert seen[name]["text"].count("<script src='/leak'></script>") > 20


def test_a_phone_need_not_scroll_sideways(seen: dict[str, Any]) -> None:
    assert 350 < seen["phone"]["room"] <= 390
    for name in ("phone", "desk"):
        assert seen[name]["wide"] <= seen[name]["room"]


def test_chosen_is_left_of_rejected_or_above_it(seen: dict[str, Any]) -> None:
    (left, top), (other_left, other_top) = seen["desk"]["chosen"], seen["desk"]["rejected"]
    assert (left < other_left, top == other_top) == (True, True)
    (left, top), (other_left, other_top) = seen["phone"]["chosen"], seen["phone"]["rejected"]
    assert (left == other_left, top < other_top) == (True, True)


def test_charts_are_drawn(seen: dict[str, Any]) -> None:
    assert len(seen["desk"]["charts"]) == 11
    assert min(seen["desk"]["charts"]) > 100
