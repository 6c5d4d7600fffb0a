"""Checkpoints: sealed last, trusted only whole, the newest by number."""

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.checkpoints import MANIFEST, is_whole, newest_whole, seal


def checkpoint(folder: Path, step: int, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "global").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights of step %d" % step)
    (path / "optimizer.pt").write_bytes(bytes(range(256)))
    (path / "global" / "rng_state.pth").write_bytes(b"rng")
    if sealed:
        seal(path)
    return path


def test_a_sealed_checkpoint_is_whole(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 4)
    assert is_whole(path)
    files = json.loads((path / MANIFEST).read_text())
    assert set(files) == {"model.safetensors", "optimizer.pt", "global/rng_state.pth"}
    assert not list(path.glob("*.partial"))


def test_sealing_again_is_harmless(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 4)
    before = (path / MANIFEST).read_bytes()
    seal(path)
    assert is_whole(path) and (path / MANIFEST).read_bytes() == before


def test_without_a_manifest_it_is_torn(tmp_path: Path) -> None:
    """Killed before the seal, or while it was written."""
    path = checkpoint(tmp_path, 4, sealed=False)
    assert not is_whole(path)
    (path / (MANIFEST + ".partial")).write_text("{")
    assert not is_whole(path)
    assert not is_whole(tmp_path / "checkpoint-5")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "global/rng_state.pth"])
@pytest.mark.parametrize("damage", ["delete", "flip", "truncate", "empty", "folder"])
def test_a_damaged_file_is_seen(tmp_path: Path, name: str, damage: str) -> None:
    path = checkpoint(tmp_path, 4)
    file = path / name
    data = file.read_bytes()
    if damage in ("delete", "folder"):
        file.unlink()
        if damage == "folder":
            file.mkdir()
    else:
        changed = {"flip": data[:-1] + bytes([data[-1] ^ 1]), "truncate": data[:-1], "empty": b""}
        file.write_bytes(changed[damage])
    assert not is_whole(path)


def test_any_flipped_byte_of_the_manifest_is_seen(tmp_path: Path) -> None:
    """Whether it makes the JSON invalid, the text no UTF-8, or a name or digest another one."""
    path = checkpoint(tmp_path, 4)
    manifest = path / MANIFEST
    data = manifest.read_bytes()
    for i in range(len(data)):
        for mask in (0xFF, 0x01):
            manifest.write_bytes(data[:i] + bytes([data[i] ^ mask]) + data[i + 1 :])
            assert not is_whole(path), (i, mask)
    for i in range(len(data)):
        manifest.write_bytes(data[:i])
        assert not is_whole(path), i


@pytest.mark.parametrize("text", ["{}", "[]", "null", "3", '"text"', '{"model.safetensors": null}'])
def test_json_that_is_no_manifest(tmp_path: Path, text: str) -> None:
    path = checkpoint(tmp_path, 4)
    (path / MANIFEST).write_text(text)
    assert not is_whole(path)


# --- the newest -------------------------------------------------------------------------------------------


def test_no_checkpoints(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) is None
    assert newest_whole(tmp_path / "not there") is None


def test_the_newest_is_by_number(tmp_path: Path) -> None:
    """10 comes after 9, whatever the alphabet says."""
    for step in (2, 9, 10):
        checkpoint(tmp_path, step)
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-10"


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3)
    for name in ("checkpoint-x", "checkpoint-99-backup", "checkpoint-", "mycheckpoint-99", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-100").write_text("a file")
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-3"
    assert (tmp_path / "checkpoint-x").is_dir()


def flip(path: Path) -> None:
    (path / "optimizer.pt").write_bytes(bytes(range(255)) + b"\x00")


def delete(path: Path) -> None:
    (path / "optimizer.pt").unlink()


def unseal(path: Path) -> None:
    (path / MANIFEST).unlink()


def garble(path: Path) -> None:
    (path / MANIFEST).write_bytes(b"\xff\x00")


@pytest.mark.parametrize("damage", [flip, delete, unseal, garble])
def test_broken_ones_are_set_aside(tmp_path: Path, damage: Any) -> None:
    """transformers takes the highest number, so it must not find them; the newest whole one is taken."""
    for step in (4, 8, 12):
        checkpoint(tmp_path, step)
    damage(tmp_path / "checkpoint-12")
    damage(tmp_path / "checkpoint-8")
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-4"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "broken-checkpoint-12",
        "broken-checkpoint-8",
        "checkpoint-4",
    ]
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-4"


def test_older_ones_are_not_even_read(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4, sealed=False)
    checkpoint(tmp_path, 8)
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-8"
    assert (tmp_path / "checkpoint-4").is_dir()


def test_the_same_step_may_break_twice(tmp_path: Path) -> None:
    """The second broken one takes the first one's place."""
    for _ in range(2):
        checkpoint(tmp_path, 8, sealed=False)
        assert newest_whole(tmp_path) is None
    assert [p.name for p in tmp_path.iterdir()] == ["broken-checkpoint-8"]
