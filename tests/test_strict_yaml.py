"""The YAML reader: strict, safe, and never anything but a UserError."""

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preftune.errors import UserError
from preftune.strict_yaml import load_yaml

# Pieces that YAML's grammar is made of: joined at random they reach further than random characters.
PIECES = [
    *("a", "b", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ", ", "'", '"', "''", "? ", "| ", "> ", "#", "=", "~"),
    *("&x ", "*x", "<<: ", "---\n", "...\n", "%YAML 1.2\n", "1e9", ".nan", "-.inf", "0x", "1:60", "2024-13-45"),
    *("!!int ", "!!float ", "!!bool ", "!!null ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!str ", "! "),
    *("!!python/name:os.system ", "!x ", "\t", "\x00", "\ufeff", "é", "\U0001f600"),
]
yaml_like = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def leaves(value: Any) -> list[Any]:
    """Every scalar of a nested value."""
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in (k, *leaves(v))]
    if isinstance(value, list | tuple | set):
        return [leaf for v in value for leaf in leaves(v)]
    return [value]


@settings(deadline=None, max_examples=400)
@given(st.one_of(st.text(max_size=40), yaml_like))
@example("!!int ''")
@example("!!float ''")
@example("!!bool x")
@example("!!timestamp x")
@example("[" * 5000)
@example("9" * 5000)
@example("'\ud800'")
def test_arbitrary_text_gives_a_value_or_a_user_error(text: str) -> None:
    """Nothing but a UserError is ever raised, and no float that is not finite comes out."""
    try:
        value = load_yaml(text, "x.yaml")
    except UserError as e:
        assert e.where.startswith("x.yaml") and e.error and e.advice
        return
    assert all(math.isfinite(v) for v in leaves(value) if isinstance(v, float))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-7", 5e-7),
        ("5E-7", 5e-7),
        ("-1e6", -1e6),
        ("+2.5e3", 2500.0),
        (".5e1", 5.0),
        ("5.e2", 500.0),
        ("0.1", 0.1),
        ("7", 7),
        ("true", True),
        ("null", None),
        ("", None),
        ("5e", "5e"),
        ("e5", "e5"),
        ("'5e-7'", "5e-7"),
        ("1e-7x", "1e-7x"),
        ("Grüße 😀", "Grüße 😀"),
        ("[1, [2, {a: b}]]", [1, [2, {"a": "b"}]]),
    ],
)
def test_values(text: str, value: Any) -> None:
    """Numbers are numbers (YAML 1.2's float too), text in quotes stays text."""
    found = load_yaml(text, "x.yaml")
    assert found == value and type(found) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_comes_back(x: float) -> None:
    """Python's own notation of any finite float is read as that float."""
    found = load_yaml(f"a: {x!r}", "x.yaml")["a"]
    assert isinstance(found, float) and found == x


@pytest.mark.parametrize("text", [".nan", ".NaN", ".inf", "-.INF", "1e999", "-1e999", "!!float nan", "!!float '.inf'"])
def test_not_finite_is_refused(text: str) -> None:
    """NaN and infinity, also by overflow."""
    with pytest.raises(UserError, match=r"finite|not a value") as e:
        load_yaml(f"ok: 1\nbeta: {text}", "x.yaml")
    assert "x.yaml" in e.value.where


@pytest.mark.parametrize(
    ("text", "lines"),
    [("a: 1\nb: 2\na: 3", "lines 1 and 3"), ("s:\n  x: 1\n  x: 1", "lines 2 and 3"), ("{a: 1, a: 2}", "lines 1 and 1")],
)
def test_a_key_given_twice(text: str, lines: str) -> None:
    """Both lines are named, at any depth."""
    with pytest.raises(UserError, match="stands twice") as e:
        load_yaml(text, "x.yaml")
    assert lines in e.value.error


def test_the_same_key_in_two_sections_is_fine() -> None:
    assert load_yaml("a: {x: 1}\nb: {x: 2}", "x.yaml") == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['true']", "a: !!python/name:os.system", "a: !unknown 1", "!!python/tuple [1]"],
)
def test_tags_that_build_objects_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="tags that build objects are refused") as e:
        load_yaml(text, "x.yaml")
    assert e.value.where == "x.yaml, line 1"


def test_merge_keys_merge() -> None:
    """`<<` copies an anchored mapping; the mapping's own keys win."""
    text = "base: &b {x: 1, y: 2}\nmine:\n  <<: *b\n  y: 3"
    assert load_yaml(text, "x.yaml")["mine"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("text", ["? [1, 2]\n: 3", "? {a: b}\n: 3", "2024-01-01: x"])
def test_keys_are_plain(text: str) -> None:
    with pytest.raises(UserError, match="a key must be plain text"):
        load_yaml(text, "x.yaml")


def test_the_line_is_named() -> None:
    with pytest.raises(UserError) as e:
        load_yaml("a: 1\nb: [1, 2\nc: 3", "recipe.yaml")
    assert e.value.where == "recipe.yaml, line 3"
    assert e.value.exit_code == 2


@pytest.mark.parametrize("text", ["&a [*a]", "&a {x: *a}", "x: &a [1, [*a]]", "- &a\n  - b: *a"])
def test_a_value_that_holds_itself_is_refused(text: str) -> None:
    """Whoever walks over it would never come to an end."""
    with pytest.raises(UserError):
        load_yaml(text, "x.yaml")


def test_two_documents_are_refused() -> None:
    with pytest.raises(UserError):
        load_yaml("--- a\n--- b", "x.yaml")
