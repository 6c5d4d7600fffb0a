"""Report, comparison and audit page in a real browser: axe finds nothing, nothing is asked for, hostile text is text.

axe-core cannot be loaded by the pages themselves, whose policy forbids scripts: it runs in copies without the policy.
"""

import html
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sample_evidence import make_input, make_run
from test_audit_page import make as make_audit
from test_browser import CHROMIUM, browse

from preftune.audit.page import render_audit
from preftune.compare_page import render_compare
from preftune.report import render_report

AXE = find_spec("axe_core_python")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
    pytest.mark.skipif(AXE is None, reason="no axe_core_python here (pip install axe-core-python)"),
]
EVIL = (
    "</title></style></textarea><script src='/leak'></script><script>document.title='owned'</script>"
    "<img src='/leak' onerror=\"document.title='owned'\"><link rel=stylesheet href='/leak'>"
)
PAGES = ("judged", "plain", "two", "three", "audit")
VIEWS = (("light", 390), ("dark", 1200))  # a phone by day, a desk by night
# Each page in its views; what is seen and what axe finds goes into the frames' own page as JSON.
FRAMES = """<!DOCTYPE html><html lang="en"><title>frames</title><link rel="icon" href="data:,"><body>
<pre id="seen"></pre><script>
const see = async (name, width) => {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:800px`;
  frame.src = `/${name}.html`;
  document.body.append(frame);
  await new Promise(done => { frame.onload = done; });
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(d => { d.open = true; });
  const found = await frame.contentWindow.axe.run(page);
  const seen = {
    title: page.title, wide: root.scrollWidth, room: root.clientWidth, text: page.body.innerText,
    background: getComputedStyle(page.body).backgroundColor, passes: found.passes.map(p => p.id),
    foreign: page.querySelectorAll("script:not([data-axe]), img, iframe, object, link:not([rel=icon])").length,
    violations: found.violations.map(v => `${v.id}: ${v.help}: ${v.nodes.map(n => n.target).slice(0, 4).join(" | ")}`),
  };
  frame.remove();
  return seen;
};
onload = async () => {
  const seen = {};
  for (const [name, width] of WANTED) seen[`${name} ${width}`] = await see(name, width);
  document.getElementById("seen").textContent = JSON.stringify(seen);
};
</script></body></html>"""


def with_axe(page: str, dark: bool) -> str:
    """A copy in which axe can run, always light or always dark."""
    media = "@media screen and (prefers-color-scheme: dark)"
    assert media in page
    page = page.replace(media, "@media screen" if dark else "@media not all")
    page = page.replace("color-scheme: light dark;", f"color-scheme: {'dark' if dark else 'light'};")
    page, removed = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert removed == 1
    return page.replace("</body>", '<script data-axe src="/axe.min.js"></script></body>')


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the browser saw, and as `asked` the addresses that it asked for."""
    plain, run = make_input(EVIL, judged=False), make_run("b", 6.0)
    run = replace(run, verdict={**run.verdict, "outcome": "inconclusive"})
    pages = {
        "judged": render_report(make_input(EVIL)),
        "plain": render_report(replace(plain, verdict={**plain.verdict, "outcome": "reject"})),
        "two": render_compare([make_run("a", 4.0, EVIL), make_run("b", 6.0, EVIL)]),
        "three": render_compare([make_run("a", 4.0), run, make_run("c", 2.0)]),
        "audit": render_audit(make_audit(tmp_path_factory.mktemp("audit"), EVIL)),
    }
    assert tuple(pages) == PAGES
    assert AXE and AXE.origin
    served = {"/axe.min.js": Path(AXE.origin).with_name("axe.min.js").read_text("utf-8")}
    for name, page in pages.items():
        served |= {f"/{name}-{mode}.html": with_axe(page, mode == "dark") for mode in ("light", "dark")}
    wanted = [(f"{name}-{mode}", width) for name in PAGES for mode, width in VIEWS]
    served["/frames.html"] = FRAMES.replace("WANTED", json.dumps(wanted))
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path in served else 404)
            kind = "text/javascript" if self.path.endswith(".js") else "text/html"
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.end_headers()
            self.wfile.write(served.get(self.path, "").encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder: Path = tmp_path_factory.mktemp("browser")
    address = f"http://127.0.0.1:{server.server_port}/frames.html"
    text = browse(address, folder, 120_000, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    server.shutdown()
    server.server_close()
    found = re.search(r'<pre id="seen">(.+?)</pre>', text, re.S)
    assert found, text[-2000:]
    yield {**json.loads(html.unescape(found[1])), "asked": asked, "served": set(served)}


def views(seen: dict[str, Any], page: str) -> dict[str, Any]:
    return {name: found for name, found in seen.items() if name.startswith(f"{page}-")}


@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_nothing(seen: dict[str, Any], page: str) -> None:
    found = views(seen, page)
    assert len(found) == 2
    assert {name: view["violations"] for name, view in found.items() if view["violations"]} == {}
    for view in found.values():  # it did look: contrast, landmarks, tables
        assert {"color-contrast", "region", "document-title", "aria-allowed-attr"} <= set(view["passes"])


def test_light_and_dark_were_looked_at(seen: dict[str, Any]) -> None:
    light, dark = (seen[f"judged-{mode} {width}"]["background"] for mode, width in VIEWS)
    assert (light, dark) == ("rgb(244, 246, 249)", "rgb(16, 20, 26)")


def test_asks_for_nothing(seen: dict[str, Any]) -> None:
    assert set(seen["asked"]) <= seen["served"]


@pytest.mark.parametrize("page", PAGES)
def test_hostile_text_is_text(seen: dict[str, Any], page: str) -> None:
    for view in views(seen, page).values():
        assert view["title"] != "owned" and view["foreign"] == 0
        assert page == "three" or view["text"].count("<script src='/leak'></script>") > 20


@pytest.mark.parametrize("page", PAGES)
def test_a_phone_need_not_scroll_sideways(seen: dict[str, Any], page: str) -> None:
    for name, view in views(seen, page).items():
        assert view["wide"] <= view["room"], name
    assert 350 < seen[f"{page}-light 390"]["room"] <= 390
