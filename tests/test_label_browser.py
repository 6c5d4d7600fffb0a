"""The labelling page in a real browser: 20 pairs by keyboard, a reload in the middle, hostile text, axe.

Chromium is driven through its DevTools protocol; what it evaluates for us is not bound by the page's policy.
"""

import base64
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import child_env
from test_browser import CHROMIUM
from websockets.sync.client import connect

from preftune.own_pairs.label_page import first_is_left
from preftune.own_pairs.labels import Label, LabelFile, LabelTask

AXE = find_spec("axe_core_python")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]
EVIL = "<script>document.title='owned'</script><img src=/leak onerror=\"document.title='owned'\">"
CODES = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Backspace": 8}
LONG = "\n".join(f"Line {n}:   three spaces, and words that go on for a while so that they wrap." for n in range(80))


def make_tasks(count: int) -> list[LabelTask]:
    tasks = []
    for n in range(1, count + 1):
        messages = [{"role": "user", "content": f"Question {n}: what should I cook tonight, with rice and an egg?"}]
        first, second = f"Answer A to {n}. Fry the rice,\n  then the egg.", f"Answer B to {n}. " + "Boil it. " * (n * 3)
        tasks.append(LabelTask(f"key-{n}", messages, first, second, f"row-{n}", (0, 1)))
    messages = [
        {"role": "system", "content": f"Be brief. {EVIL}"},
        {"role": "user", "content": f"What does {EVIL} do?\n\n{LONG}"},
    ]
    tasks[2] = LabelTask("key-3", messages, f"It runs {EVIL}", LONG + EVIL, "row-3", (0, 1))
    return tasks


class Browser:
    """One tab of a headless Chromium."""

    def __init__(self, folder: Path) -> None:
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={folder}", "--remote-debugging-port=0", "--no-first-run", "about:blank"]
        # No name but the page's own is found, so nothing outside this machine can be asked for.
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        told = folder / "DevToolsActivePort"
        wait(lambda: told.exists() and told.read_text().count("\n") >= 1)
        port, path = told.read_text().split("\n")[:2]
        self._socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None)
        self._count, self.asked, self._session = 0, [], ""
        tab = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("method") == "Network.requestWillBeSent":
                self.asked.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        wait(lambda: self.value("document.readyState") == "complete" and self.value("location.href").startswith(url))

    def press(self, key: str) -> None:
        code = CODES.get(key, ord(key[0].upper()))
        text = {} if key in CODES else {"text": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def view(self, width: int, height: int, mode: str) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": mode}])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def shown(self) -> str | None:
        """What is in the line of progress, when the page is whole."""
        script = "document.readyState === 'complete' ? document.querySelector('.count')?.textContent.trim() : null"
        return self.value(script)

    def wait_for(self, count: str) -> None:
        wait(lambda: self.shown() == count)

    def close(self) -> None:
        self._socket.close()
        self.process.terminate()
        self.process.wait(30)


def wait(true: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


SERVE = """
import sys, pathlib
sys.path.insert(0, {tests!r})
from test_label_browser import make_tasks
from preftune.own_pairs.label_page import make_app, serve
from preftune.own_pairs.labels import LabelFile
app = make_app(make_tasks({count}), LabelFile(pathlib.Path({path!r})), "anna", "cooking-pairs")
serve(app, 0, lambda address: print(address, flush=True))
"""


class Server:
    """The page in a process of its own."""

    def __init__(self, path: Path, count: int) -> None:
        code = SERVE.format(tests=str(Path(__file__).parent), count=count, path=str(path))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=child_env()
        )
        assert self.process.stdout
        self.address = self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[tuple[Browser, str, LabelFile]]:
    """(browser, address, file) of a page with 20 pairs."""
    file = LabelFile(tmp_path / "labels.jsonl")
    server = Server(file.path, 20)
    browser.asked.clear()
    browser.view(1200, 900, "light")
    browser.open(server.address)
    browser.wait_for("Pair 1 of 20")
    yield browser, server.address, file
    if server.process.poll() is None:
        server.end()


def key_for(task: LabelTask, winner: str, n: int) -> str:
    """The key with which anna says this, in turns one or the other of both."""
    both = {"tie": ("ArrowDown", "t"), "skip": ("s", "S")}
    left = first_is_left(task.key, "anna") == (winner == "first")
    return both.get(winner, ("ArrowLeft", "1") if left else ("ArrowRight", "2"))[n % 2]


def test_twenty_pairs_by_keyboard(page: tuple[Browser, str, LabelFile], tmp_path: Path) -> None:
    browser, address, file = page
    tasks = make_tasks(20)
    meant = [("first", "second", "tie", "first", "skip", "second", "second")[n % 7] for n in range(20)]
    used = set()
    for n, (task, winner) in enumerate(zip(tasks, meant, strict=True)):
        if n == 9:  # a reload goes on where it was
            browser.call("Page.reload")
            browser.wait_for("Pair 10 of 20")
        if n == 12:  # back, and forth with the same decision as before
            browser.press("u")
            browser.wait_for("Pair 12 of 20")
            assert browser.value("document.querySelector('button[aria-pressed=true]').dataset.side")
            browser.open(f"{address}/")
            browser.wait_for("Pair 13 of 20")
        used.add(key_for(task, winner, n // 7))
        browser.press(key_for(task, winner, n // 7))
        browser.wait_for(f"Pair {n + 2} of 20" if n < 19 else "20 of 20")
        assert len(file.read(pytest.fail)) == n + 1  # on the disk before the next pair is shown
    assert used == {"ArrowLeft", "ArrowRight", "ArrowDown", "1", "2", "t", "s", "S"}
    assert [(x.task, x.winner) for x in file.read()] == [(t.key, w) for t, w in zip(tasks, meant, strict=True)]
    assert "All pairs are labelled" in browser.value("document.body.innerText")
    browser.screenshot(tmp_path / "end.png")
    assert (tmp_path / "end.png").stat().st_size > 5_000
    assert {url.split("?")[0] for url in browser.asked if not url.startswith("data:")} == {
        f"{address}/",
        f"{address}/label",
    }


def test_a_changed_mind(page: tuple[Browser, str, LabelFile]) -> None:
    browser, _, file = page
    browser.press("ArrowLeft")
    browser.wait_for("Pair 2 of 20")
    browser.press("Backspace")
    browser.wait_for("Pair 1 of 20")
    browser.press("ArrowRight")
    browser.wait_for("Pair 2 of 20")
    assert [x.task for x in file.read()] == ["key-1", "key-1"]
    assert {x.winner for x in file.read()} == {"first", "second"}


def test_script_is_shown_as_text(page: tuple[Browser, str, LabelFile], tmp_path: Path) -> None:
    browser, address, _ = page
    browser.open(f"{address}/?pair=3")
    browser.wait_for("Pair 3 of 20")
    assert browser.value("document.body.innerText").count(EVIL) == 4  # both turns, both answers
    assert browser.value("document.title").startswith("3 of 20")
    assert browser.value("document.querySelectorAll('script, img, iframe, link:not([rel=icon])').length") == 1
    assert not [url for url in browser.asked if "leak" in url]
    # white space is kept; what is long scrolls in its box, and takes the focus, so that keys can scroll it
    long = "[...document.querySelectorAll('.one .text')].find(b => b.textContent.startsWith('Line 0'))"
    assert "Line 1:   three" in browser.value(f"{long}.innerText")
    assert browser.value(f"{long}.scrollHeight > {long}.clientHeight && {long}.tabIndex === 0")
    assert browser.value("document.documentElement.scrollHeight <= innerHeight")  # all of it is in sight
    browser.value(f"{long}.focus()")
    browser.press("ArrowDown")
    wait(lambda: browser.value(f"{long}.scrollTop") > 0)
    assert browser.shown() == "Pair 3 of 20"
    browser.screenshot(tmp_path / "label.png")


def test_a_label_that_is_not_saved_is_told(page: tuple[Browser, str, LabelFile]) -> None:
    browser, _, file = page
    file.path.mkdir()  # nothing can be written there
    browser.press("1")
    wait(lambda: browser.value("document.getElementById('error').textContent"))
    assert "The label is not saved: labels cannot be saved" in browser.value("document.body.innerText")
    assert browser.shown() == "Pair 1 of 20"
    file.path.rmdir()
    browser.press("1")
    browser.wait_for("Pair 2 of 20")
    assert len(file.read()) == 1


def test_a_page_whose_program_ended_says_so(browser: Browser, tmp_path: Path) -> None:
    server = Server(tmp_path / "labels.jsonl", 3)
    browser.open(server.address)
    browser.wait_for("Pair 1 of 3")
    server.end()
    browser.press("t")
    wait(lambda: "does not answer: the label is not saved" in browser.value("document.body.innerText"))
    assert browser.shown() == "Pair 1 of 3" and not (tmp_path / "labels.jsonl").exists()


def test_buttons_and_the_browsers_own_keys(page: tuple[Browser, str, LabelFile]) -> None:
    browser, _, file = page
    for modifiers in (1, 2, 4):  # Alt, Ctrl, Meta: these are the browser's
        browser.call(
            "Input.dispatchKeyEvent", type="rawKeyDown", key="1", windowsVirtualKeyCode=49, modifiers=modifiers
        )
    browser.call("Input.dispatchKeyEvent", type="rawKeyDown", key="1", windowsVirtualKeyCode=49, autoRepeat=True)
    assert browser.value("new Promise(done => setTimeout(() => done(true), 300))")
    assert file.read() == []
    browser.value("document.querySelector('[data-side=tie]').click()")
    browser.wait_for("Pair 2 of 20")
    assert [x.winner for x in file.read()] == ["tie"]


@pytest.mark.skipif(AXE is None, reason="no axe_core_python here (pip install axe-core-python)")
@pytest.mark.parametrize(("mode", "width"), [("light", 400), ("dark", 1200)])
def test_axe_finds_nothing(page: tuple[Browser, str, LabelFile], mode: str, width: int, tmp_path: Path) -> None:
    browser, address, file = page
    assert AXE and AXE.origin
    axe = Path(AXE.origin).with_name("axe.min.js").read_text("utf-8")
    browser.view(width, 800, mode)
    browser.open(f"{address}/?pair=3")

    def look(name: str) -> None:
        browser.value(axe + ";true")
        found = browser.value("axe.run().then(f => [f.passes.map(p => p.id), f.violations.map(v => v.help)])")
        assert found[1] == [], name
        assert {"color-contrast", "region", "document-title"} <= set(found[0])
        background = browser.value("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(244, 246, 249)" if mode == "light" else "rgb(16, 20, 26)")
        wide, room = browser.value("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide <= room <= width, name
        assert browser.value("(document.querySelector('.choices, a').getBoundingClientRect().bottom)") <= 800
        browser.screenshot(tmp_path / f"{name}-{mode}.png")

    look("pair")
    time_ = "2026-01-02T03:04:05+00:00"
    said = [Label(t.key, who, "tie", time_, "page") for t in make_tasks(20) for who in ("anna", "ben")]
    file.append(*said, Label("key-3", "anna", "first", time_, "page"))
    browser.open(f"{address}/?pair=3")  # with a label of before
    look("labelled")
    browser.open(f"{address}/")
    browser.wait_for("20 of 20")
    assert "95.0%" in browser.value("document.body.innerText")
    look("end")
