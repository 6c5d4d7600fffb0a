"""Checkpoints: sealed last, trusted only whole, the newest by number."""

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.checkpoints import (
    FINGERPRINT,
    MANIFEST,
    is_whole,
    newest_sealed,
    newest_whole,
    remove_torn,
    seal,
    step_of,
    to_resume,
    write_whole,
)
from preftune.errors import UserError

MINE = {"the recipe": "a", "the data": "b", "the base model": "c"}


def checkpoint(folder: Path, step: int, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "global").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights of step %d" % step)
    (path / "optimizer.pt").write_bytes(bytes(range(256)))
    (path / "global" / "rng_state.pth").write_bytes(b"rng")
    if sealed:
        seal(path, MINE)
    return path


def test_a_sealed_checkpoint_is_whole(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 4)
    assert is_whole(path)
    files = json.loads((path / MANIFEST).read_text())
    assert set(files) == {"model.safetensors", "optimizer.pt", "global/rng_state.pth", FINGERPRINT}
    assert not list(path.glob("*.partial"))


def test_sealing_again_is_harmless(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 4)
    before = (path / MANIFEST).read_bytes()
    seal(path, MINE)
    assert is_whole(path) and (path / MANIFEST).read_bytes() == before


def test_without_a_manifest_it_is_torn(tmp_path: Path) -> None:
    """Killed before the seal, or while it was written."""
    path = checkpoint(tmp_path, 4, sealed=False)
    assert not is_whole(path)
    (path / (MANIFEST + ".partial")).write_text("{")
    assert not is_whole(path)
    assert not is_whole(tmp_path / "checkpoint-5")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "global/rng_state.pth", FINGERPRINT])
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


# --- of this very training --------------------------------------------------------------------------------


def test_one_s_own_checkpoint_is_resumed(tmp_path: Path) -> None:
    assert to_resume(tmp_path, MINE) is None
    path = checkpoint(tmp_path, 3)
    assert to_resume(tmp_path, dict(reversed(MINE.items()))) == path


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({**MINE, "the data": "x"}, "the data changed"),
        ({**MINE, "the recipe": "x", "the base model": "y"}, "the recipe and the base model changed"),
        ({**MINE, "the code": "x"}, "the code changed"),  # a part that the checkpoint knows nothing of
        ({}, "the recipe and the data and the base model changed"),
    ],
)
def test_another_s_checkpoint_is_refused(tmp_path: Path, now: dict[str, str], told: str) -> None:
    """Not set aside: it is whole, and somebody put it there."""
    path = checkpoint(tmp_path, 3)
    with pytest.raises(UserError, match=f"checkpoint-3 is of another training: {told} since") as e:
        to_resume(tmp_path, now)
    assert e.value.where == str(path) and "start from step 0" in e.value.advice
    assert path.is_dir()


def test_a_checkpoint_without_a_fingerprint_is_of_unknown_origin(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 3)
    (path / FINGERPRINT).unlink()
    files = json.loads((path / MANIFEST).read_text())
    del files[FINGERPRINT]
    (path / MANIFEST).write_text(json.dumps(files))
    assert is_whole(path)
    with pytest.raises(UserError, match="of another training"):
        to_resume(tmp_path, MINE)


# --- half-written ones, and small files -------------------------------------------------------------------


def test_torn_ones_are_removed_where_space_is_short(tmp_path: Path) -> None:
    checkpoint(tmp_path, 3)
    checkpoint(tmp_path, 6, sealed=False)
    (tmp_path / "runs").mkdir()
    remove_torn(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-3", "runs"]


def test_the_newest_sealed_before_a_step(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        checkpoint(tmp_path, step, sealed=step != 6)
    assert newest_sealed(tmp_path, before=10) == tmp_path / "checkpoint-9"
    assert newest_sealed(tmp_path, before=9) == tmp_path / "checkpoint-3", "6 has no seal"
    assert newest_sealed(tmp_path, before=3) is None
    assert [step_of(tmp_path / "checkpoint-12"), step_of(None)] == [12, 0]


def test_a_small_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half\udc80")
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
