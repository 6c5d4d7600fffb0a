"""The labelling page: blind, safe text, only this machine, saved before it goes on, resumes."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from conftest import child_env
from starlette.testclient import TestClient

from preftune.errors import StepError, UserError
from preftune.own_pairs.label_page import first_is_left, make_app, serve
from preftune.own_pairs.labels import Label, LabelFile, LabelTask

EVIL = "</textarea></script><script>document.title='owned'</script><img src=/leak>\n  two  spaces & \x00"
TIME = "2026-01-02T03:04:05+00:00"


def task(n: int, prompt: str = "Why?", first: str = "because", second: str = "perhaps") -> LabelTask:
    messages = [{"role": "user", "content": f"{prompt} {n}"}]
    return LabelTask(f"key-{n}", messages, f"{first} {n}", f"{second} {n}", f"model-row-{n}", (731, -1))


TASKS = [task(n) for n in range(1, 5)]


@pytest.fixture
def file(tmp_path: Path) -> LabelFile:
    return LabelFile(tmp_path / "labels.jsonl")


def client(file: LabelFile, tasks: list[LabelTask] = TASKS, who: str = "anna") -> TestClient:
    return TestClient(make_app(tasks, file, who, "my pairs"), base_url="http://127.0.0.1:8765")


def side_of(key: str, winner: str, who: str = "anna") -> str:
    """The side on which this labeller sees the text."""
    return "left" if first_is_left(key, who) == (winner == "first") else "right"


def say(page: TestClient, key: str, side: str) -> Any:
    return page.post("/label", json={"task": key, "side": side})


def shown(page: str) -> str | None:
    """The key of the pair that a page shows."""
    return json.loads(re.findall(r"const task = (.+?), error", page)[0])


def test_both_answers_stand_on_their_sides(file: LabelFile) -> None:
    page = client(file)
    for n, t in enumerate(TASKS, 1):
        text = page.get(f"/?pair={n}").text
        left, right = re.findall(r'aria-label="Answer \d">(.*?)</div>', text)
        expected = (t.first, t.second) if first_is_left(t.key, "anna") else (t.second, t.first)
        assert (left, right) == expected
        assert f"Pair {n} of 4" in text and f"Why? {n}" in text and "<bdi>anna</bdi>" in text


def test_sides_are_drawn_for_each_task_and_labeller() -> None:
    drawn = {who: [first_is_left(f"task {n}", who) for n in range(400)] for who in ("anna", "ben")}
    assert drawn["anna"] == [first_is_left(f"task {n}", "anna") for n in range(400)]
    for sides in drawn.values():
        assert 150 < sum(sides) < 250  # 200 ± 5 standard deviations
    assert 150 < sum(a == b for a, b in zip(drawn["anna"], drawn["ben"], strict=True)) < 250


def test_the_side_that_was_meant_is_written_down(file: LabelFile) -> None:
    page = client(file)
    for t, winner in zip(TASKS[:2], ("first", "second"), strict=True):
        answer = say(page, t.key, side_of(t.key, winner))
        assert answer.status_code == 200 and answer.json() == {"saved": True}
    say(page, TASKS[2].key, "tie")
    say(page, TASKS[3].key, "skip")
    labels = file.read(pytest.fail)
    assert [x.winner for x in labels] == ["first", "second", "tie", "skip"]
    assert {(x.labeller, x.source) for x in labels} == {("anna", "page")}


def test_goes_on_with_what_is_not_labelled_also_after_a_restart(file: LabelFile) -> None:
    page = client(file)
    assert shown(page.get("/").text) == "key-1"
    say(page, "key-1", "skip")
    say(page, "key-3", "tie")  # in another window
    file.append(Label("key-2", "ben", "first", TIME, "page"), Label("key-9", "anna", "first", TIME, "page"))
    assert shown(client(file).get("/").text) == "key-2"
    assert shown(client(file, who="ben").get("/").text) == "key-1"
    say(page, "key-2", "left")
    text = page.get("/").text
    assert shown(text) == "key-4" and re.search(r'<progress value="3" max="4"', text)


def test_back_shows_what_was_said_and_a_new_label_counts(file: LabelFile) -> None:
    page = client(file)
    say(page, "key-1", "left")
    assert 'href="/?pair=1"' in page.get("/").text
    before = page.get("/?pair=1").text
    assert re.findall(r'data-side="(\w+)"[^>]*aria-pressed', before) == ["left"]
    assert "aria-pressed=" not in page.get("/").text.replace("button[aria-pressed]", "")
    say(page, "key-1", "right")
    assert re.findall(r'data-side="(\w+)"[^>]*aria-pressed', page.get("/?pair=1").text) == ["right"]
    assert len(file.read()) == 2


@pytest.mark.parametrize("pair", ["0", "5", "x", "-1", "٣", "1" * 5000, ""])
def test_no_such_pair_leads_to_the_first_one(file: LabelFile, pair: str) -> None:
    answer = client(file).get("/", params={"pair": pair}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/")


def test_the_end_tells_agreement_with_the_others(file: LabelFile) -> None:
    page = client(file)
    anna = ("first", "first", "second", "skip")
    for t, winner in zip(TASKS, anna, strict=True):
        say(page, t.key, side_of(t.key, winner) if winner != "skip" else "skip")
    text = page.get("/").text
    assert shown(text) is None and "All pairs are labelled" in text and "Nobody else" in text
    assert "3 preferences, 0 ties, 1 skipped" in text
    # ben agrees on 2 of 3; by chance 2/3*1/3 + 1/3*2/3 = 4/9: kappa (2/3 - 4/9) / (5/9) = .4
    file.append(
        *(Label(f"key-{n}", "ben <b>", w, TIME, "page") for n, w in enumerate(("first", "second", "second"), 1))
    )
    file.append(Label("key-1", "cem", "first", TIME, "argilla"), Label("key-9", "dan", "first", TIME, "page"))
    text = page.get("/").text
    rows = re.findall(r"<bdi>([^<]*)</bdi></th>" + r'<td class="n">(.*?)</td>' * 3, text)
    assert rows == [("ben &lt;b&gt;", "3", "66.7%", "0.40"), ("cem", "1", "100.0%", "–")]
    assert 'href="/?pair=4"' in text


def test_blind(file: LabelFile) -> None:
    """Nothing about where an answer comes from is in the page, not even in its source."""
    page = client(file)
    for text in [page.get("/").text, page.get("/?pair=2").text]:
        for ours in (r"<style.*?</style>", r'nonce="[^"]+"', r"key-\d"):
            text = re.sub(ours, "", text, flags=re.S)
        assert "because" in text and not re.search(r"731|-1|model-row|first|second|temperature", text)


def test_hostile_text_is_text(file: LabelFile) -> None:
    evil = LabelTask("key", [{"role": EVIL, "content": EVIL}], EVIL, EVIL + "!", "id", (0, 1))
    page = TestClient(make_app([evil], file, "<i>anna", EVIL), base_url="http://localhost")
    text = page.get("/").text
    assert text.count("<script") == 1 and "<img" not in text and "<i>" not in text and "\x00" not in text
    # prompt's role twice (heading, label) and text, two answers, title twice
    assert text.count("&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;") == 7
    assert "\n  two  spaces &amp; \ufffd" in text


def test_what_a_page_may_do(file: LabelFile) -> None:
    page = client(file)
    answer, other = page.get("/"), page.get("/")
    policy = answer.headers["content-security-policy"]
    (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert len(nonce) >= 20 and nonce not in other.text  # a new one for each page
    assert re.findall(r"<(?:script|style)[^>]*>", answer.text) == [
        f'<style nonce="{nonce}">',
        f'<script nonce="{nonce}">',
    ]
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    assert not re.search(r' style="| on\w+="|src=|https?://', answer.text)  # what the policy would refuse


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0", "192.168.0.7:8765"])
def test_another_name_for_this_machine_is_refused(file: LabelFile, host: str) -> None:
    page = client(file)
    assert page.get("/", headers={"host": host}).status_code == 400
    body = {"task": "key-1", "side": "left"}
    assert page.post("/label", json=body, headers={"host": host}).status_code == 400
    assert page.get("/", headers={"host": "localhost:8765"}).status_code == 200
    assert file.read() == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_only_json_is_taken(file: LabelFile, kind: str) -> None:
    """What another site's form or script can send without asking first."""
    body = json.dumps({"task": "key-1", "side": "left"})
    answer = client(file).post("/label", content=body, headers={"content-type": kind})
    assert answer.status_code == 415 and file.read() == []


def test_a_browser_that_asks_first_is_not_answered(file: LabelFile) -> None:
    asks = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = client(file).options("/label", headers=asks)
    assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"task": "key-9", "side": "left"}', 404),
        (b'{"task": "key-1", "side": "first"}', 400),
        (b'{"task": "key-1"}', 404),
        (b'{"task": ["key-1"], "side": "left"}', 404),
        (b"[]", 404),
        (b"\xff{", 404),
        (b"[" * 9_000, 404),
        (b" " * 20_000, 413),
    ],
)
def test_what_is_no_label_is_refused(file: LabelFile, body: bytes, status: int) -> None:
    answer = client(file).post("/label", content=body, headers={"content-type": "application/json; charset=utf-8"})
    assert answer.status_code == status and answer.json()["error"]
    assert file.read() == []


def test_a_label_that_cannot_be_saved_is_told(file: LabelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    page = client(file)

    def full(*labels: Label) -> None:
        raise StepError("labels cannot be saved: No space left on device", "labels.jsonl", "free disk space")

    monkeypatch.setattr(file, "append", full)
    answer = say(page, "key-1", "left")
    assert answer.status_code == 500
    assert answer.json() == {"error": "labels cannot be saved: No space left on device. free disk space"}
    assert shown(page.get("/").text) == "key-1"


def test_a_file_that_cannot_be_read_is_told(file: LabelFile) -> None:
    page = client(file)
    file.path.mkdir()
    answer = page.get("/")
    assert answer.status_code == 500 and "cannot be read" in answer.text


def test_nothing_to_label(file: LabelFile) -> None:
    with pytest.raises(UserError, match="nothing to label"):
        make_app([], file, "anna", "my pairs")
    with pytest.raises(UserError, match="no labeller's name"):
        make_app(TASKS, file, " ", "my pairs")


def test_a_taken_port(file: LabelFile) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with pytest.raises(UserError, match=r"port \d+ cannot be used"):
            serve(make_app(TASKS, file, "anna", "my pairs"), s.getsockname()[1])


SERVE = """
import sys, pathlib
sys.path.insert(0, {tests!r})
from test_label_page import TASKS
from preftune.own_pairs.label_page import make_app, serve
from preftune.own_pairs.labels import LabelFile
serve(make_app(TASKS, LabelFile(pathlib.Path({path!r})), "anna", "t"), 0, lambda address: print(address, flush=True))
print("ended", flush=True)
"""


def test_serves_this_machine_only_and_ends_with_ctrl_c(file: LabelFile) -> None:
    code = SERVE.format(tests=str(Path(__file__).parent), path=str(file.path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_env()
    )
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert "Pair 1 of 4" in answer.read().decode()
        with socket.socket() as s:  # another address of this very machine
            assert s.connect_ex(("127.0.0.2", int(address.rsplit(":", 1)[1]))) != 0
        request = urllib.request.Request(f"{address}/label", b'{"task": "key-1", "side": "tie"}')
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert json.load(answer) == {"saved": True}
        assert [x.winner for x in file.read()] == ["tie"]  # on the disk before the answer came
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}/etc/passwd", timeout=20)
        started = time.monotonic()
        os.kill(process.pid, 2)
        out, errors = process.communicate(timeout=30)
        assert time.monotonic() - started < 10
        assert (process.returncode, out, errors) == (0, "ended\n", "")
    finally:
        process.kill()
        process.wait()
