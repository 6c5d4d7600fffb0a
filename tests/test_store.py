"""The store: finished is whole and immutable, unfinished is not there; killed, tampered with, contended for."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from preftune.digest import file_sha256
from preftune.store import MANIFEST, StepResult, find, make
from preftune.workspace import Workspace

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, tmp_path / "home")


def build(folder: Path) -> dict[str, Any]:
    """Two files, one in a subfolder."""
    (folder / "a.txt").write_text("alpha")
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "b.txt").write_text("beta")
    return {"count": 2}


def never(_: Path) -> dict[str, Any]:
    raise AssertionError("built although it was there")


def made(workspace: Workspace, **options: Any) -> StepResult:
    return make(workspace, "train", "key", build, **options)


def test_make_builds_once(workspace: Workspace) -> None:
    first = made(workspace)
    assert first.info == {"count": 2} and (first.step, first.key) == ("train", "key")
    assert first.folder(workspace) == workspace.store / "train" / "key"
    assert (first.folder(workspace) / "sub" / "b.txt").read_text() == "beta"
    assert not (workspace.partial / "train" / "key").exists()
    assert make(workspace, "train", "key", never) == first == find(workspace, "train", "key")


def test_the_manifest_lists_every_file(workspace: Workspace) -> None:
    folder = made(workspace).folder(workspace)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(files) == {"a.txt", "sub/b.txt"}
    assert files["a.txt"]["size"] == 5 and files["a.txt"]["sha256"] == file_sha256(folder / "a.txt")


def test_other_keys_and_steps_are_apart(workspace: Workspace) -> None:
    made(workspace)
    assert find(workspace, "train", "other") is None
    assert find(workspace, "policy", "key") is None


def test_the_digest_is_of_the_bytes(workspace: Workspace) -> None:
    """The same files are the same result under another key; a changed byte or name is another result."""

    def other(folder: Path) -> dict[str, Any]:
        build(folder)
        (folder / "a.txt").write_text("Alpha")
        return {}

    digest = made(workspace).digest
    assert make(workspace, "train", "key2", build).digest == digest
    assert make(workspace, "train", "key3", other).digest != digest


def test_volatile_files_do_not_count(workspace: Workspace) -> None:
    """Timings differ from run to run; they are kept, but not part of the digest."""
    digests = set()
    for key in ("1", "2"):

        def timed(folder: Path, key: str = key) -> dict[str, Any]:
            build(folder)
            (folder / "timing.json").write_text(key)
            (folder / "runs").mkdir()
            (folder / "runs" / f"events.{key}").write_text(key)
            return {}

        result = make(workspace, "train", key, timed, volatile=("timing.json", "runs/*"))
        assert (result.folder(workspace) / "timing.json").read_text() == key
        digests.add(result.digest)
    assert len(digests) == 1
    assert make(workspace, "train", "3", build).digest in digests


# --- damage -----------------------------------------------------------------------------------------------


def tamper(path: Path) -> None:
    """One letter changed, the size kept."""
    text = path.read_text()
    path.write_text("X" + text[1:])


def truncate(path: Path) -> None:
    path.write_text(path.read_text()[:-1])


def empty(path: Path) -> None:
    path.write_text("")


def append(path: Path) -> None:
    path.write_text(path.read_text() + "x")


def flip(path: Path) -> None:
    """A byte that is no UTF-8."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [tamper, truncate, empty, append, flip, Path.unlink])
@pytest.mark.parametrize("name", ["a.txt", "sub/b.txt"])
def test_a_damaged_file_is_no_result(workspace: Workspace, name: str, damage: Any) -> None:
    """It is not found, and made again as a whole."""
    before = made(workspace)
    damage(before.folder(workspace) / name)
    assert find(workspace, "train", "key") is None
    assert made(workspace) == before
    assert (before.folder(workspace) / "a.txt").read_text() == "alpha"
    assert find(workspace, "train", "key") == before


@pytest.mark.parametrize("damage", [tamper, truncate, empty, append, flip, Path.unlink])
def test_a_damaged_manifest_is_no_result(workspace: Workspace, damage: Any) -> None:
    before = made(workspace)
    damage(before.folder(workspace) / MANIFEST)
    assert find(workspace, "train", "key") is None
    assert made(workspace) == before


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", '{"files": {}}', '{"files": {"a.txt": {}}, "digest": "", "info": {}}']
)
def test_a_manifest_that_says_too_little(workspace: Workspace, text: str) -> None:
    """JSON, but not ours."""
    (made(workspace).folder(workspace) / MANIFEST).write_text(text)
    assert find(workspace, "train", "key") is None


def test_a_folder_in_the_place_of_a_file(workspace: Workspace) -> None:
    folder = made(workspace).folder(workspace)
    shutil.rmtree(folder / "sub")
    (folder / "sub").write_text("a file where a folder was")
    assert find(workspace, "train", "key") is None
    assert made(workspace).info == {"count": 2}


def test_a_touched_file_is_still_intact(workspace: Workspace) -> None:
    """Another time, the same bytes: a copied workspace stays valid."""
    result = made(workspace)
    os.utime(result.folder(workspace) / "a.txt", (1, 1))
    assert find(workspace, "train", "key") == result


# --- builds that fail -------------------------------------------------------------------------------------


def test_a_build_that_fails_leaves_nothing_finished(workspace: Workspace) -> None:
    """What it left under partial/ is handed to the next try."""

    def fails(folder: Path) -> dict[str, Any]:
        (folder / "checkpoint").write_text("step 4")
        raise RuntimeError("broken")

    def resumes(folder: Path) -> dict[str, Any]:
        assert (folder / "checkpoint").read_text() == "step 4"
        (folder / "checkpoint").unlink()
        return build(folder)

    with pytest.raises(RuntimeError):
        make(workspace, "train", "key", fails)
    assert find(workspace, "train", "key") is None
    assert not (workspace.store / "train" / "key").exists()
    assert make(workspace, "train", "key", resumes).digest == make(workspace, "train", "fresh", build).digest


def test_a_kill_between_manifest_and_rename(workspace: Workspace) -> None:
    """The next try finds a manifest in partial/: its result must be found afterwards, not made a third time."""
    expected = make(workspace, "train", "other", build)
    partial = workspace.partial / "train" / "key"
    shutil.copytree(expected.folder(workspace), partial)
    result = made(workspace)
    assert find(workspace, "train", "key") == result
    assert result.digest == expected.digest


SLOW = """
import os, sys, time
from pathlib import Path
from preftune.store import make
from preftune.workspace import Workspace

def build(folder):
    (folder / "a.txt").write_text("half")
    print("building", flush=True)
    time.sleep(60)
    return {}

home = Path(sys.argv[1])
make(Workspace(home, home / "home"), "train", "key", build)
"""


def test_a_sigkilled_builder_leaves_nothing_and_frees_its_lock(workspace: Workspace) -> None:
    """The kernel releases the lock: the next one builds at once."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(workspace.project)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        assert process.stdout.readline() == "building\n"
        assert find(workspace, "train", "key") is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert find(workspace, "train", "key") is None
    assert (workspace.partial / "train" / "key" / "a.txt").read_text() == "half"
    waited: list[bool] = []
    began = time.monotonic()
    result = made(workspace, on_wait=lambda: waited.append(True))
    assert time.monotonic() - began < 2 and not waited
    assert (result.folder(workspace) / "a.txt").read_text() == "alpha"


# --- two processes ----------------------------------------------------------------------------------------


def contender(home: str, gate: Any, results: Any) -> None:
    """Makes the same key as its twin; every build leaves a line."""

    def counted(folder: Path) -> dict[str, Any]:
        with (Path(home) / "builds").open("a") as f:
            f.write(f"{os.getpid()}\n")
        time.sleep(0.7)
        return build(folder)

    gate.wait()
    waited: list[bool] = []
    result = make(
        Workspace(Path(home), Path(home) / "home"), "train", "key", counted, on_wait=lambda: waited.append(True)
    )
    results.put((result.digest, result.info, len(waited)))


def test_two_processes_build_once(workspace: Workspace) -> None:
    """One builds, the other is told once that it waits, and finds the same result."""
    gate, results = SPAWN.Barrier(2), SPAWN.Queue()
    twins = [SPAWN.Process(target=contender, args=(str(workspace.project), gate, results)) for _ in range(2)]
    for twin in twins:
        twin.start()
    found = [results.get(timeout=30) for _ in twins]
    for twin in twins:
        twin.join(10)
        assert twin.exitcode == 0
    results.close()
    results.join_thread()
    assert len((workspace.project / "builds").read_text().splitlines()) == 1
    assert found[0][:2] == found[1][:2]
    assert sorted(f[2] for f in found) == [0, 1]


def test_another_key_does_not_wait(workspace: Workspace) -> None:
    """A build may make another step."""

    def outer(folder: Path) -> dict[str, Any]:
        make(workspace, "train", "inner", build, on_wait=lambda: pytest.fail("waits for itself"))
        return build(folder)

    make(workspace, "train", "outer", outer)
    assert find(workspace, "train", "inner") and find(workspace, "train", "outer")


def test_results_are_small_and_frozen(workspace: Workspace) -> None:
    result = made(workspace)
    with pytest.raises(ValueError, match="frozen"):
        result.digest = "other"
    assert StepResult.model_validate_json(result.model_dump_json()) == result
