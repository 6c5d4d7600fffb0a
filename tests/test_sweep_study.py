"""A sweep's study: the space is drawn from as the recipe says, also when the sweep was killed; who is far behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune.errors import Hopeless, UserError
from preftune.sweep_schema import Sweep
from preftune.sweep_space import as_choice, from_choices, label, watched
from preftune.sweep_study import Study, Watch, measured

GRID = {"parameters": {"beta": [0.05, 0.1], "loss_type": [["sigmoid"], ["hinge"]]}}
SEARCH = {
    "search": "optuna",
    "trials": 6,
    "parameters": {
        "learning_rate": {"low": 1e-6, "high": 1e-4, "log": True},
        "lora_r": {"low": 4, "high": 12, "step": 4},
    },
}


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Study]:
    return lambda settings: Study(tmp_path / "sweep.db", Sweep.model_validate(settings))


def verdict(value: float, outcome: str = "promote") -> dict[str, Any]:
    ends = {"low": value - 0.1, "high": value + 0.1}
    return {"measure": "reward_accuracy", "better": "higher", "value": value, **ends, "outcome": outcome}


def curve(*values: float, metric: str = "eval/loss", steps: int = 40) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, every tenth step."""
    return [{"step": 10 * i, "max_steps": steps, "metrics": {metric: v}} for i, v in enumerate(values, 1)]


def run_all(
    study: Study, value: Callable[[dict[str, Any]], float], stop_after: int | None = None
) -> list[dict[str, Any]]:
    """Runs what is left; every value that was handed out, in order."""
    seen: list[dict[str, Any]] = []
    started: set[int] = set()
    while (found := study.next(started)) is not None:
        number, values = found
        started.add(number)
        seen.append(values)
        if stop_after == len(seen):
            return seen  # killed: the trial is left open
        study.finish(number, verdict(value(values)), [])
    return seen


def test_a_grid_has_every_combination_once(study: Callable[..., Study]) -> None:
    grid = study(GRID)
    seen = run_all(grid, lambda v: v["beta"])
    assert len(seen) == 4 and all(list(v) == ["beta", "loss_type"] for v in seen)
    assert {(v["beta"], *v["loss_type"]) for v in seen} == {(b, t) for b in (0.05, 0.1) for t in ("sigmoid", "hinge")}
    assert [t.state for t in grid.trials()] == ["done"] * 4 and grid.next(set()) is None


def test_a_part_of_a_grid_and_then_more_of_it(study: Callable[..., Study]) -> None:
    first = run_all(study(GRID | {"trials": 2}), lambda v: 0.5)
    more = run_all(study(GRID | {"trials": 9}), lambda v: 0.5)
    assert len(first) == 2 and len(more) == 2 and not [v for v in more if v in first]


def test_a_killed_search_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    """The trial that was running is handed out again with its values; the later ones are those of a sweep that was
    never killed."""

    def value(values: dict[str, Any]) -> float:
        return 0.5 + 0.01 * values["lora_r"]

    whole = Study(tmp_path / "whole.db", Sweep.model_validate(SEARCH))
    killed = Study(tmp_path / "killed.db", Sweep.model_validate(SEARCH))
    expected = run_all(whole, value)
    before = run_all(killed, value, stop_after=3)
    assert [t.state for t in killed.trials()] == ["done", "done", "open"]
    after = run_all(killed, value)
    assert before[:2] + after == expected and after[0] == before[2]
    assert all(1e-6 <= v["learning_rate"] <= 1e-4 and v["lora_r"] in (4, 8, 12) for v in expected)
    assert len({v["learning_rate"] for v in expected}) == 6, "nothing is drawn twice"


def test_another_process_takes_it_up(study: Callable[..., Study]) -> None:
    """Several at once: no two get the same trial; each is told by a Study of its own."""
    grid, started = study(GRID), set()
    for _ in range(2):
        found = grid.next(started)
        assert found is not None and found[0] not in started
        started.add(found[0])
    study(GRID).finish(0, verdict(0.9), [])
    study(GRID).fail(1, "the gradient is not finite", again=False)
    assert [(t.state, t.why) for t in grid.trials()] == [("done", ""), ("failed", "the gradient is not finite")]
    assert grid.trials()[0].found == verdict(0.9)


def test_a_failure_that_may_pass_is_tried_again(study: Callable[..., Study]) -> None:
    grid = study(GRID)
    number, values = grid.next(set()) or (-1, {})
    grid.fail(number, "MLflow is away", again=True)
    assert grid.trials()[0].why == "MLflow is away" and grid.next({number}) != (number, values)
    assert study(GRID).next(set()) == (number, values)
    grid.finish(number, verdict(0.6), [])
    assert (grid.trials()[0].state, grid.trials()[0].why) == ("done", "")


def test_a_trial_far_behind_is_stopped(study: Callable[..., Study], tmp_path: Path) -> None:
    """Not before four have finished, nor in the first quarter; then where three of four were better at that step."""
    search = SEARCH | {"trials": 12}
    four = study(search)
    metrics, started = tmp_path / "metrics.jsonl", set()

    def watch(rows: list[dict[str, Any]]) -> tuple[int, Hopeless | None]:
        number, _ = four.next(started) or (-1, {})
        started.add(number)
        held = Watch(four, number)
        for end in range(1, len(rows) + 1):  # it is called at each line of the child
            metrics.write_text("".join(json.dumps(row) + "\n" for row in rows[:end]))
            try:
                held(metrics)
                held(metrics)
            except Hopeless as e:
                return number, e
        return number, None

    for end in (0.5, 0.4, 0.45, 0.3):
        rows = curve(0.69, 0.65, 0.6, end)
        number, stopped = watch(rows)
        assert stopped is None
        four.finish(number, verdict(0.8), rows)
    early = [{**row, "max_steps": 400} for row in curve(5.0, 5.0)]
    assert watch(early)[1] is None, "in the first quarter nobody knows yet"
    assert watch(curve(0.69, 0.65, 0.6))[1] is None, "as good as the others"
    assert watch(curve(0.6, 0.9))[1] is None, "at its best it was as good as the others are here"
    number, stopped = watch(curve(0.8, 0.9))
    assert stopped is not None and "step 10 of 40: eval/loss is 0.8" in stopped.error
    four.stop(number, stopped.error)
    assert four.trials()[-1].state == "stopped" and four.trials()[-1].why == stopped.error
    off = Study(four.path, Sweep.model_validate(search | {"stop_hopeless": False}))
    assert off.report(number - 1, curve(9.0, 9.0, 9.0, 9.0)) is None


def test_what_is_watched() -> None:
    """The loss only between trials on whose scale it is the same."""
    assert watched(Sweep.model_validate(SEARCH)) == ("eval/loss", -1)
    assert watched(Sweep.model_validate(GRID)) == ("eval/rewards/accuracies", 1)


def test_values_keep_their_types() -> None:
    sweep = Sweep.model_validate(
        {"parameters": {"loss_type": [["sigmoid"], ["sft", "sigmoid"]], "use_peft": [True, False]}}
    )
    chosen = {"loss_type": as_choice(["sft", "sigmoid"]), "use_peft": False}
    assert from_choices(sweep, chosen) == {"loss_type": ["sft", "sigmoid"], "use_peft": False}
    assert label(from_choices(sweep, chosen)) == 'loss_type=["sft", "sigmoid"] use_peft=false'


def test_a_measure_that_is_not_there() -> None:
    metrics = {"reward_accuracy": 0.9, "reward_accuracy_lo": 0.8, "reward_accuracy_hi": 0.95, "nll_under_sft": None}
    assert measured(metrics, "reward_accuracy")["low"] == 0.8
    with pytest.raises(UserError, match="no measure 'win_rate'") as e:
        measured(metrics, "win_rate")
    assert "it has: reward_accuracy, nll_under_sft" in e.value.advice
    with pytest.raises(UserError, match="nll_under_sft could not be measured"):
        measured(metrics, "nll_under_sft")
