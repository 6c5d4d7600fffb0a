"""Numbers as people read them."""

import math
from typing import Any

import pytest

from preftune.display import cell, interval_text, judgement, number, track, triple, value_text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.61, "0.610"), (-2.5, "−2.500"), (1234.5, "1,234"), (7.2e-5, "7.2e−05"), (-3e7, "−3e+07")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "signed", "text"),
    [
        (0.8254, "share", False, "82.5%"),
        (-0.25, "share", True, "−25.0"),
        (0.0004, "share", True, "0.0"),
        (-0.0004, "share", True, "0.0"),
        (1234.56, "tokens", False, "1,234.6"),
        (-0.04, "tokens", True, "0.0"),
        (6.5, "score", False, "6.50"),
        (0.5, "nats", True, "+0.500"),
        (-7.2e-5, "nats", True, "−7.2e−05"),
        (None, "share", False, "not measured"),
        (math.nan, "nats", False, "not measured"),
        ("0.5", "share", False, "not measured"),
    ],
)
def test_values_in_their_unit(value: Any, unit: str, signed: bool, text: str) -> None:
    assert value_text(value, unit, signed) == text


def test_differences_of_shares_are_points() -> None:
    found = cell((-0.25, -0.4, -0.1), "share", signed=True)
    assert found == {"value": "−25.0 points", "interval": "−40.0 to\u00a0−10.0"}
    assert cell((0.5, 0.5, 0.5), "share") == {"value": "50.0%", "interval": ""}
    assert cell(None, "share", signed=True) == {"value": "not measured", "interval": ""}
    assert interval_text(0.1, None, "share") == ""
    assert triple({"a": 1, "a_lo": 0}, "a") == (1, 0, None)


@pytest.mark.parametrize(
    ("interval", "better", "word"),
    [
        ((-0.4, -0.1), "higher", "worse"),
        ((-0.4, -0.1), "lower", "better"),
        ((0.1, 0.4), "higher", "better"),
        ((0.1, 0.4), "", "higher"),
        ((-0.1, 0.1), "higher", "no clear change"),
        ((0.0, 0.1), "higher", "no clear change"),
        ((None, 0.1), "higher", ""),
        ((math.nan, math.nan), "higher", ""),
    ],
)
def test_what_an_interval_says(interval: tuple[Any, Any], better: str, word: str) -> None:
    assert judgement((0.0, *interval), better) == word
    assert judgement(None, better) == ""


def test_places_on_a_scale() -> None:
    assert track((0.6, 0.5, 0.75), 0.5) == {"value": "60.00", "low": "50.00", "width": "25.00", "mark": "50.00"}
    assert track((1.0, 0.9, 1.06)) == {"value": "100.00", "low": "90.00", "width": "10.00", "mark": "50.00"}
    assert track((-0.01, -0.1, 0.2)) == {"value": "0.00", "low": "0.00", "width": "20.00", "mark": "50.00"}
    assert track((None, 0.0, 1.0)) is None and track(None) is None
