"""Datasets on the hub, against a small server that answers as the hub does: the real clients, real requests."""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preftune.data import hub, readers, sources
from preftune.errors import StepError, UserError
from preftune.schema import DatasetEntry
from preftune.workspace import Workspace

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def rows(*numbers: int) -> list[dict[str, str]]:
    return [{"prompt": f"Q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in numbers]


def json_lines(*numbers: int) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows(*numbers)).encode()


def parquet(*numbers: int) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows(*numbers)), out, row_group_size=2)
    return out.getvalue().to_pybytes()


CARD = b"""---
configs:
- config_name: default
  data_files:
  - split: train_prefs
    path: data/train_prefs-*
  - split: test_prefs
    path: data/test_prefs-*
- config_name: swapped
  data_files:
  - split: train
    path: data/test_prefs-*
---
"""
REPOS: dict[str, dict[str, bytes]] = {
    "H4/ultra": {
        "README.md": CARD,
        "data/train_prefs-00000-of-00002.parquet": parquet(0, 1, 2, 3, 4),
        "data/train_prefs-00001-of-00002.parquet": parquet(5, 6, 7),
        "data/test_prefs-00000-of-00001.parquet": parquet(8),
    },
    "Anthropic/hh": {
        "README.md": b"---\nlicense: mit\n---\n",
        "harmless-base/train.jsonl.gz": gzip.compress(json_lines(0, 1)),
        "harmless-base/test.jsonl.gz": gzip.compress(json_lines(2)),
        "helpful-base/train.jsonl.gz": gzip.compress(json_lines(3)),
        "helpful-base/test.jsonl.gz": gzip.compress(json_lines(4)),
    },
    "lv/stack": {
        f"data/{part}/train-{i:05d}-of-00002.parquet": parquet(10 * n + i)
        for n, part in enumerate(("rl", "reward"))
        for i in range(2)
    },
    "some/script": {"script.py": b"raise SystemExit(3)", "README.md": b"# x\n"},
    "some/text": {"train.txt": b"x\n"},
    "some/nothing": {"README.md": b"# x\n"},
    "some/broken": {"train.jsonl": json_lines(0) + b"{broken\n", "test.jsonl": json_lines(1)},
    "some/gated": {"train.jsonl": json_lines(0)},
    "some/plain": {"my-pairs.jsonl": json_lines(0, 1, 2)},
    "m-a-p/CodeFeedback-Filtered-Instruction": {
        "CodeFeedback.jsonl": b"".join(
            json.dumps({"query": f"Sort {i}", "answer": f"sorted({i})", "lang": "python"}).encode() + b"\n"
            for i in range(3)
        )
    },
}


class Hub(BaseHTTPRequestHandler):
    """The hub's answers to what huggingface_hub and datasets ask. `some/gated` is gated."""

    protocol_version = "HTTP/1.1"
    log: list[str] = []  # noqa: RUF012

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(json.dumps({"error": code}).encode(), status, X_Error_Code=code, X_Error_Message=code)

    def do_POST(self) -> None:
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        files = REPOS[self.path.split("/api/datasets/")[1].split("/paths-info/")[0]]
        entries = [self.entry(p, files[p]) for p in asked.get("paths", []) if p in files]
        self.answer(json.dumps(entries).encode(), Content_Type="application/json")

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(content), "oid": f"{hash(content) % 10**12:040d}"}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        Hub.log.append(f"{self.command} {path}")
        kind, _, rest = path.removeprefix("/").removeprefix("api/").partition("/")
        name = "/".join(rest.split("/")[:2])
        what = rest.removeprefix(name).removeprefix("/")
        if kind != "datasets" or name not in REPOS:
            return self.refuse(401, "RepoNotFound")
        files = REPOS[name]
        if path.startswith("/api/"):
            self.api(name, what, files)
        elif name == "some/gated":
            self.refuse(403, "GatedRepo")
        else:
            file = what.removeprefix(f"resolve/{COMMIT}/")
            if file in files:
                self.file(files[file])
            else:
                self.refuse(404, "EntryNotFound")
        return None

    def api(self, name: str, what: str, files: dict[str, bytes]) -> None:
        if what == "auth-check":
            if name == "some/gated":
                return self.refuse(403, "GatedRepo")
            return self.answer(b"{}")
        if what.startswith("tree/"):
            below = what.removeprefix("tree/").partition("/")[2]
            found: list[Any] = [self.entry(p, c) for p, c in files.items() if p.startswith(below)]
            folders = {str(d) for p in files for d in Path(p).parents if str(d) != "." and str(d).startswith(below)}
            found += [{"type": "directory", "path": d, "size": 0, "oid": "0" * 40} for d in folders if d != below]
            if not found:
                return self.refuse(404, "EntryNotFound")
            return self.answer(json.dumps(found).encode(), Content_Type="application/json")
        if what not in ("", f"revision/{COMMIT}", "revision/main"):
            return self.refuse(404, "RevisionNotFound")
        info = {"id": name, "sha": COMMIT, "gated": "auto" if name == "some/gated" else False, "private": False}
        siblings = [{"rfilename": p} for p in files]
        return self.answer(
            json.dumps({**info, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}).encode(),
            Content_Type="application/json",
        )

    def file(self, content: bytes) -> None:
        headers = {"ETag": f'"{hash(content) % 10**12}"', "Accept_Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last or len(content) - 1)
            whole = f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"
            return self.answer(content[start : end + 1], 206, Content_Range=whole, **headers)
        return self.answer(content, **headers)


CHILD = """
import json, sys
from pathlib import Path
from preftune.data import shuffle
from preftune.errors import PreftuneError
from preftune.own_pairs.prompts import find_prompts, read_prompts
from preftune.pairs_schema import Prompts
from preftune.schema import DatasetEntry
from preftune.data.sources import find_source, read_rows
from preftune.workspace import Workspace

here = Path(sys.argv[1])
for line in sys.stdin:
    asked = json.loads(line)
    answer = {}
    try:
        if asked.pop("as_prompts", False):
            found = find_prompts(Prompts(**asked), Workspace(here, here))
            rest = {"evaluation_texts": [], "seed": 0, "tokens": None, "most_tokens": 0, "near_duplicates": None}
            answer = {"digest": found.digest, "rows": read_prompts(found, with_answers=True, **rest)[0]}
            print("ANSWER " + json.dumps(answer), flush=True)
            continue
        entry = DatasetEntry(**asked)
        source = find_source(entry, Workspace(here, here))
        answer = {"kind": source.kind, "digest": source.digest, "splits": source.splits, "rows": {}}
        for split in source.splits:
            answer["rows"][split] = list(read_rows(source, split, 1))
    except PreftuneError as e:
        answer = {**answer, "kind": type(e).__name__, **e.as_json()}
    print("ANSWER " + json.dumps(answer), flush=True)
"""


class Asker:
    """A process whose hub is our server; imports are paid once."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        self.child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            text=True,
        )

    def __call__(self, name: str, **entry: Any) -> dict[str, Any]:
        assert self.child.stdin and self.child.stdout
        Hub.log.clear()
        print(json.dumps({"id": name, **entry}), file=self.child.stdin, flush=True)
        for line in self.child.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise AssertionError("the child died")


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    asker = Asker(tmp_path_factory.mktemp("hub"), f"http://127.0.0.1:{server.server_port}")
    yield asker
    assert asker.child.stdin and asker.child.stdout
    asker.child.stdin.close()
    asker.child.stdout.close()
    asker.child.wait(30)
    server.shutdown()
    server.server_close()
    thread.join()


def plain(answer: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    return {split: [row for _, row in read] for split, read in answer["rows"].items()}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "entry", "expected"),
    [
        ("H4/ultra", {}, {"train_prefs": [*range(8)], "test_prefs": [8]}),
        ("H4/ultra", {"config": "swapped"}, {"train": [8]}),
        ("Anthropic/hh", {"data_dir": "harmless-base"}, {"train": [0, 1], "test": [2]}),
        ("Anthropic/hh", {}, {"train": [0, 1, 3], "test": [2, 4]}),
        ("lv/stack", {"data_dir": "data/rl"}, {"train": [0, 1]}),
        ("some/plain", {"revision": "main"}, {"train": [0, 1, 2]}),
    ],
)
def test_layouts(ask: Asker, name: str, entry: dict[str, Any], expected: dict[str, list[int]], streaming: bool) -> None:
    """The splits that `configs:`, `data_dir` and the files' names say; a stream brings the same rows."""
    answer = ask(name, **entry, **({"streaming": True, "max_rows": 1} if streaming else {}))
    assert answer["kind"] == "hub" and answer["digest"] == f"{name}@{COMMIT}"
    read = plain(answer)
    if streaming:
        read = {split: sorted(r, key=lambda row: row["prompt"]) for split, r in read.items()}
    assert read == {split: rows(*numbers) for split, numbers in expected.items()}
    ids = [row_id for r in answer["rows"].values() for row_id, _ in r]
    assert len(set(ids)) == len(ids)
    prefix = f"hf://datasets/{name}@{COMMIT}/"
    assert all(f.startswith(prefix) for files in answer["splits"].values() for f in files)


def test_row_ids_and_files(ask: Asker) -> None:
    answer = ask("H4/ultra")
    assert [i for i, _ in answer["rows"]["train_prefs"]] == [
        *(f"train_prefs-00000-of-00002.parquet[{i}]" for i in range(5)),
        *(f"train_prefs-00001-of-00002.parquet[{i}]" for i in range(3)),
    ]
    streamed = ask("H4/ultra", streaming=True, max_rows=1)
    assert sorted(streamed["rows"]["train_prefs"]) == sorted(answer["rows"]["train_prefs"])


def test_what_is_fetched(ask: Asker) -> None:
    """Whole files go through the cache, once; a stream leaves no copy."""

    def asked_for() -> set[str]:
        return {line for line in Hub.log if "/resolve/" in line and line.startswith("GET") and ".jsonl" in line}

    ask("some/plain", streaming=True, max_rows=1)
    assert len(asked_for()) == 1
    ask("Anthropic/hh", data_dir="helpful-base", streaming=True, max_rows=1)
    first = asked_for()
    assert len(first) == 2
    ask("Anthropic/hh", data_dir="helpful-base", streaming=True, max_rows=1)
    assert asked_for() == first
    ask("some/broken")
    before = asked_for()
    ask("some/broken")
    assert before and asked_for() == set()


@pytest.mark.parametrize(
    ("name", "entry", "what", "advice"),
    [
        ("some/gated", {}, "the dataset is gated and your token has no access", "huggingface.co/datasets/some/gated"),
        ("no/such", {}, "neither a file or folder here nor a dataset on the hub", "correct the name"),
        ("some/plain", {"revision": "v9"}, "there is no revision 'v9'", "a commit, branch or tag"),
        ("some/script", {}, "scripts are not run", "refs/convert/parquet"),
        ("some/text", {}, "files ending in '.txt' are not read", ".jsonl"),
        ("some/nothing", {}, "the dataset holds no files that are read", ".jsonl"),
        ("H4/ultra", {"config": "nope"}, "configuration 'nope' not found. Available: ['default', 'swapped']", "config"),
        ("lv/stack", {"data_dir": "data/nope"}, "the dataset holds no files that are read", ".jsonl"),
        ("not an id/x", {}, "Repo id must", "correct the dataset's id"),
    ],
)
def test_refusals(ask: Asker, name: str, entry: dict[str, str], what: str, advice: str) -> None:
    answer = ask(name, **entry)
    assert answer["kind"] == "UserError", answer
    assert what in answer["error"] and advice in answer["advice"]
    assert answer["where"] == name and "\n" not in answer["error"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_line_is_named(ask: Asker, streaming: bool) -> None:
    answer = ask("some/broken", **({"streaming": True, "max_rows": 1} if streaming else {}))
    assert (answer["kind"], answer["where"]) == ("UserError", "some/broken: train.jsonl, line 2")


# --- a hub that fails while reading -----------------------------------------------------------------------


@pytest.fixture
def remote() -> sources.Source:
    address = f"hf://datasets/a/b@{COMMIT}/data/train.jsonl"
    return sources.Source(DatasetEntry.model_validate({"id": "a/b"}), {"train": (address,)}, "hub", f"a/b@{COMMIT}")


@pytest.mark.parametrize("error", [ConnectionError("reset"), TimeoutError("late"), OSError("no space left")])
def test_a_download_that_fails_can_be_retried(
    remote: sources.Source, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, path: str, **kwargs: Any) -> str:
        assert (name, path, kwargs["revision"]) == ("a/b", "data/train.jsonl", COMMIT)
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(StepError, match=str(error)) as e:
        list(sources.read_rows(remote, "train"))
    assert e.value.where == "a/b: data/train.jsonl"


def test_a_stream_that_breaks_can_be_retried(remote: sources.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's failure is not taken for a broken file."""

    def broken(file: str, *_: Any) -> Iterator[Any]:
        yield "train.jsonl:1", rows(0)[0]
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(readers, "_rows", broken)
    with pytest.raises(StepError, match="reset by peer") as e:
        list(readers.file_rows(remote.splits["train"][0], "train.jsonl"))
    assert e.value.where == "train.jsonl, after line 1"


def test_a_look_at_a_stream_fetches_no_whole_file(remote: sources.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a seed."""
    entry = DatasetEntry.model_validate({"id": "a/b", "streaming": True, "max_rows": 1})
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    monkeypatch.setattr(readers, "_rows", lambda file, label, group: iter([(f"{label}:1", file)]))
    looked = list(sources.read_rows(replace(remote, entry=entry), "train"))
    assert looked == [("train.jsonl:1", remote.splits["train"][0])]


def test_offline_is_told_before_anything_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "True")
    with pytest.raises(UserError, match="the hub is switched off"):
        sources.find_source(DatasetEntry.model_validate({"id": "a/b"}), Workspace(tmp_path, tmp_path))


def test_unreachable() -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    assert all(hub.is_unreachable(e) for e in (ConnectionError(), TimeoutError(), OfflineModeIsEnabled()))
    assert not hub.is_unreachable(ValueError()) and not hub.is_unreachable(KeyError())


def test_prompts_and_answers_of_instruction_data(ask: Asker) -> None:
    """Also by the name under which guides mention it, which is not on the hub."""
    found = ask("HuggingFaceH4/CodeFeedback-Filtered-Instruction", as_prompts=True)
    assert found["digest"] == f"m-a-p/CodeFeedback-Filtered-Instruction@{COMMIT}"
    assert [row["answer"] for row in found["rows"]] == ["sorted(0)", "sorted(1)", "sorted(2)"]
    assert found["rows"][0]["prompt"] == [{"role": "user", "content": "Sort 0"}]
    assert found["rows"][0]["row"]["lang"] == "python"
    missing = ask("some/nowhere", as_prompts=True)
    assert (missing["kind"], missing["where"]) == ("UserError", "pairs.prompts: some/nowhere")
