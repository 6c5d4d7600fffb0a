"""Digests: the same on every machine, different for every difference that counts."""

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from preftune.digest import KEY_LENGTH, code_version, file_sha256, files_digest, json_digest, library_versions

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)


def test_json_digest_by_hand() -> None:
    """sha256 of the compact text with sorted keys, first 20 digits."""
    text = b'{"a":[1,2.5,null],"b":"\xc3\xa9"}'
    assert json_digest({"b": "é", "a": [1, 2.5, None]}) == hashlib.sha256(text).hexdigest()[:20]


@given(st.dictionaries(st.text(), values, max_size=5), st.randoms())
def test_the_order_of_keys_does_not_count(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    found = json_digest(dict(items))
    assert found == json_digest(value) and len(found) == KEY_LENGTH and set(found) <= set("0123456789abcdef")


@given(values, values)
def test_other_values_other_digests(a: Any, b: Any) -> None:
    assume(json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True))
    assert json_digest(a) != json_digest(b)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_nan_has_no_digest(value: Any) -> None:
    """NaN is not equal to itself: nothing may be cached by it."""
    with pytest.raises(ValueError):
        json_digest(value)


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_file_sha256(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "x").write_bytes(content)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_files_digest_counts_names_and_bytes_not_times(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    before = files_digest(tmp_path, ["a", "b"])
    os.utime(tmp_path / "a", (1, 1))
    assert files_digest(tmp_path, ["b", "a"]) == before
    (tmp_path / "a").write_text("2")
    (tmp_path / "b").write_text("1")
    assert files_digest(tmp_path, ["a", "b"]) != before
    assert files_digest(tmp_path, ["a"]) != before


def test_code_version_follows_the_modules() -> None:
    assert code_version("gate") != code_version("verdict")
    assert code_version("gate", "verdict") == code_version("verdict", "gate")
    with pytest.raises(FileNotFoundError):
        code_version("no_such_module")


def test_library_versions() -> None:
    assert library_versions("pytest", "pydantic") == {"pytest": version("pytest"), "pydantic": version("pydantic")}
