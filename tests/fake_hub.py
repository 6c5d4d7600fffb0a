"""A small server that answers as the hub does where a model is pushed, and keeps what it is given."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

WRITER, READER = "hf_the-writer", "hf_the-reader"  # not of a real token's form
LFS_FROM = 10_000  # bytes


@dataclass
class Repo:
    """What stands on a branch; the payload of each commit as it came."""

    private: bool | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[dict[str, Any]]] = field(default_factory=list)
    branches: set[str] = field(default_factory=lambda: {"main"})


class FakeHub(ThreadingHTTPServer):
    """Its repositories, the large files that were uploaded, what it was asked, and what it refuses."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuse: dict[str, int] = {}  # part of a path → status

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running server."""
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if len(content) >= LFS_FROM else _git_sha1(content)


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *_: Any) -> None:
        pass

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path)
        hub = self.server
        hub.asked.append(f"{self.command} {path}")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if status := next((s for part, s in hub.refuse.items() if part in path), None):
            return self.answer({"error": "refused by the test"}, status)
        if path.startswith("/lfs/"):  # storage: the address is the permission
            hub.large[path.removeprefix("/lfs/")] = body
            return self.answer({})
        if token not in (WRITER, READER):
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/whoami-v2":
            role = {"accessToken": {"displayName": "t", "role": "write" if token == WRITER else "read"}}
            return self.answer({"type": "user", "name": "me", "orgs": [], "auth": role})
        if path == "/api/validate-yaml":
            return self.answer({})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            ways = [{"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}} for o in objects]
            known = [o["oid"] in hub.large for o in objects]
            answers = [o if k else {**o, "actions": w} for o, w, k in zip(objects, ways, known, strict=True)]
            return self.answer({"transfer": "basic", "objects": answers})
        name, _, what = path.removeprefix("/api/models/").partition("/")
        owner, (name, _, what) = name, what.partition("/")
        repo = hub.repos.get(f"{owner}/{name}")
        if repo is None:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return self.model(repo, f"{owner}/{name}", what, body)

    do_GET = do_POST = do_PUT = handle_request

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if name in self.server.repos:
            return self.answer(
                {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409
            )
        visibility = asked.get("visibility")
        self.server.repos[name] = Repo(None if visibility is None else visibility == "private")
        return self.answer({"url": f"{self.server.url}/{name}"})

    def model(self, repo: Repo, name: str, what: str, body: bytes) -> None:
        action, _, revision = what.partition("/")
        if action == "branch":
            there = revision in repo.branches
            repo.branches.add(revision)
            return self.answer({}, 409 if there else 200)
        if action == "tree":
            entries = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in repo.files.items()]
            return self.answer(entries)
        if action == "preupload":
            asked = json.loads(body)["files"]
            return self.answer({"files": [self.mode(repo, f) for f in asked]})
        if action == "commit":
            self.commit(repo, [json.loads(line) for line in body.splitlines()])
            return self.answer({"commitUrl": f"{self.server.url}/{name}/commit/c", "commitOid": "c" * 40})
        return self.answer({"id": name, "sha": "c" * 40, "private": bool(repo.private), "siblings": [], "tags": []})

    def mode(self, repo: Repo, asked: dict[str, Any]) -> dict[str, Any]:
        there = repo.files.get(asked["path"])
        found = {"path": asked["path"], "uploadMode": "lfs" if asked["size"] >= LFS_FROM else "regular"}
        return {**found, "shouldIgnore": False, "oid": None if there is None else _oid(there)}

    def commit(self, repo: Repo, lines: list[dict[str, Any]]) -> None:
        repo.commits.append(lines)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del repo.files[value["path"]]
