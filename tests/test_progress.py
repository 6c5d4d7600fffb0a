"""A training's progress: its words, the terminal's line among log lines, Prefect's artifact now and then."""

import io
import logging
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.logging.handlers import PrefectConsoleHandler

from preftune.progress import clock, values
from tasks import progress
from tasks.progress import TrainingProgress


def row(step: int, **metrics: float) -> dict[str, Any]:
    named = {f"train/{name.replace('__', '/')}": value for name, value in metrics.items()}
    return {"step": step, "max_steps": 200, "metrics": named}


FULL = {"rewards__chosen": 0.021, "rewards__rejected": -0.054, "rewards__margins": 0.075, "rewards__accuracies": 0.625}


def test_values_are_told_in_words() -> None:
    expected = "loss 0.6123  accuracy 0.62  margin +0.075  chosen +0.021  rejected -0.054"
    assert values(row(3, loss=0.61234, **FULL)) == expected
    assert values({"metrics": {"eval/loss": 0.5, "eval/rewards/margins": 1.0}}) == "held-out loss 0.5000  margin +1.000"
    assert values(row(3, loss=0.5)) == "loss 0.5000", "what was not logged is not made up"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (42.9, "0:42"), (725, "12:05"), (3723, "1:02:03"), (90000, "25:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def lines(self) -> list[str]:
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())
        return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """What would be sent to Prefect; the real server is in the flow's test."""
    sent: list[tuple[float, str]] = []
    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_, **__: uuid4())
    monkeypatch.setattr(
        progress, "update_progress_artifact", lambda _, percent, description: sent.append((percent, description))
    )
    return sent


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    """Where Prefect's console handler writes."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    found = Screen(request.param)
    handler = PrefectConsoleHandler(stream=found)
    logger = logging.getLogger("prefect")
    before, level = list(logger.handlers), logger.level
    logger.handlers[:], logger.level = [handler], logging.INFO
    yield found
    logger.handlers[:], logger.level = before, level


def train(logger: logging.Logger) -> None:
    """What a training tells and shows."""
    with TrainingProgress(logger) as shown:
        for step in (1, 2):
            logger.info("step %s/200  loss 0.5000  0:42 left", step)
            shown.show([row(step, loss=0.5, **FULL)])
        logger.info("step 2/200  held-out loss 0.4000")


def test_a_terminal_has_one_line_below_the_log(screen: Screen, updates: list[Any]) -> None:
    train(logging.getLogger("prefect"))
    logging.getLogger("prefect").info("step 3/200  loss 0.3  later")
    told = [line for line in screen.lines() if not line.startswith("training ")]
    if screen.isatty():
        last = [line for line in screen.lines() if line.startswith("training ")][-1]
        assert "2/200" in last and "loss 0.5000  accuracy 0.62" in last and "left" in last
        assert told == ["step 2/200  held-out loss 0.4000", "step 3/200  loss 0.3  later"]
    else:
        assert len(told) == len(screen.lines()) == 4, "plain log lines, nothing else"


def test_the_artifact_is_updated_now_and_then_and_at_the_end(updates: list[Any]) -> None:
    with TrainingProgress(logging.getLogger("x")) as shown:
        for step in range(1, 101):
            shown.show([row(step, loss=0.5)])
    assert updates == [(0.5, "step 1 of 200  loss 0.5000"), (100.0, "step 100 of 200  loss 0.5000")]


def test_a_failed_training_is_not_shown_as_done(updates: list[Any]) -> None:
    with pytest.raises(ValueError), TrainingProgress(logging.getLogger("x")) as shown:
        shown.show([row(1, loss=0.5)])
        raise ValueError
    assert [percent for percent, _ in updates] == [0.5]


@pytest.mark.parametrize("broken", ["create_progress_artifact", "update_progress_artifact"])
def test_prefect_away_is_told_once_and_stops_nothing(
    broken: str, updates: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> UUID:
        raise ConnectionError("All connection attempts failed")

    monkeypatch.setattr(progress, broken, away)
    monkeypatch.setattr(progress, "ARTIFACT_SECONDS", 0.0)
    with caplog.at_level("WARNING"), TrainingProgress(logging.getLogger("x")) as shown:
        for step in (1, 2, 3):
            shown.show([row(step, loss=0.5)])
    assert [r.levelname for r in caplog.records] == ["WARNING"] and not updates


def test_the_artifact_moves_again_when_prefect_is_back(
    updates: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def update(_: UUID, percent: float, description: str) -> None:
        if "step 2 " in description or "step 3 " in description:
            raise ConnectionError("All connection attempts failed")
        updates.append((percent, description))

    monkeypatch.setattr(progress, "update_progress_artifact", update)
    monkeypatch.setattr(progress, "ARTIFACT_SECONDS", 0.0)
    with caplog.at_level("WARNING"), TrainingProgress(logging.getLogger("x")) as shown:
        for step in (1, 2, 3, 4):
            shown.show([row(step, loss=0.5)])
    assert [percent for percent, _ in updates] == [0.5, 2.0, 100.0] and len(caplog.records) == 1


def test_the_time_left_is_that_of_this_try(updates: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 1 to 50 of an earlier try come at once; then two seconds a step: 148 steps to go are 4:56."""
    now = iter([0.0, 4.0, 5.0, 7.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    shown = TrainingProgress(logging.getLogger("x"))
    lefts: list[str] = []
    monkeypatch.setattr(shown, "_line", type("Line", (), {"show": lambda _, __, left: lefts.append(left)})())
    shown.show([row(s, loss=0.5) for s in range(1, 51)])
    shown.show([row(52, loss=0.5)])
    shown.show([row(40, loss=0.5)])  # a retry that goes on from an earlier checkpoint
    shown.show([row(41, loss=0.5)])
    assert lefts == ["", "4:56 left", "", "5:18 left"]
