"""A sweep's section, space, ranks and page; what the real command does is in test_sweep_flow.py."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import EVIL, parse, section, words

from preftune.accelerate_configs import gpu_shares
from preftune.errors import UserError
from preftune.recipe import load_recipe, parse_overrides
from preftune.sweep_page import render_sweep, sweep_files
from preftune.sweep_plot import parallel_coordinates
from preftune.sweep_ranking import best_of, csv_text, markdown_text, ranked, text_of
from preftune.sweep_schema import Sweep
from preftune.sweep_space import check_space, required_sweep
from preftune.sweep_study import Trial

RECIPE = Path(__file__).parent.parent / "recipes/starter/config_starter.yaml"
BETAS = {"sweep.parameters.beta": [0.05, 0.1, 0.2]}


def trial(number: int, value: float, outcome: str = "promote", better: str = "higher", wide: float = 0.1) -> Trial:
    found = {"measure": "reward_accuracy", "better": better, "value": value, "low": value - wide, "high": value + wide}
    found |= {
        "outcome": outcome,
        "reasons": [f"reason {number}"],
        "run_id": f"{number}" * 32,
        "train": "t",
        "baseline": "b",
    }
    return Trial(number, {"beta": 0.05 * (number + 1)}, "done", found)


LEFT = [
    Trial(8, {"beta": 0.9}, "stopped", {}, "stopped early at step 10"),
    Trial(9, {"beta": 1.0}, "failed", {}, "NaN"),
]


# --- the section --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sweep.parameters.betta": [0.1]}, "unknown key 'betta': did you mean beta?"),
        ({"sweep.parmeters": {"beta": [0.1]}}, "did you mean sweep.parameters?"),
        ({"sweep.parameters.beta": 0.1}, "write a list of values or"),
        ({"sweep.parameters.beta": []}, "beta: the list is empty"),
        ({"sweep.parameters.beta": [0.1, 0.1]}, "beta: a value stands twice"),
        ({"sweep.parameters.beta": {"low": 0.1, "high": 1}}, "beta is a range: a grid needs a list"),
        ({"sweep.parameters.beta": {"low": 1, "hig": 2}}, "did you mean sweep.parameters.beta.high?"),
        ({"sweep.parameters.beta": {"low": "a", "high": 2}}, "a number is needed"),
        ({"sweep.parameters.beta": {"low": 2, "high": 1}, "sweep.search": "optuna"}, "low (2) must be below high (1)"),
        ({"sweep.parameters.beta": {"low": 0, "high": 1, "log": True}, "sweep.search": "optuna"}, "low is above 0"),
        ({"sweep.parameters.lora_r": {"low": 4, "high": 9, "step": 4}, "sweep.search": "optuna"}, "a number of steps"),
        ({"sweep.parameters.beta": [0.1], "sweep.search": "optuna"}, "search: optuna needs trials"),
        ({"sweep.parameters.gate": [{}]}, "gate cannot be swept: the trials of a sweep are measured on the same"),
        ({"sweep.parameters.output_dir": ["data/a"]}, "it changes nothing that is learned"),
        ({"sweep.parameters.beta": [0.1], "sweep.measure": "response_tokens"}, "no measure that has a better way"),
        ({"sweep.parameters": {"beta": list(range(1, 41)), "seed": list(range(40))}}, "1,600 combinations"),
    ],
)
def test_a_section_that_is_wrong(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as e:
        load_recipe(RECIPE, overrides)
    assert message in str(e.value)


def test_a_plain_run_ignores_it() -> None:
    given_sweep = load_recipe(RECIPE, BETAS)
    assert given_sweep.sweep is not None and given_sweep.sweep.planned == 3
    assert given_sweep.resolved() == load_recipe(RECIPE).resolved()


def test_values_from_the_command_line() -> None:
    options = ["--sweep.parameters.beta=[0.05, 0.1]", "--sweep.parameters.learning_rate", "[1e-6, 5e-6, 1e-5]"]
    sweep = required_sweep(load_recipe(RECIPE, parse_overrides(options)))
    assert sweep.parameters == {"beta": (0.05, 0.1), "learning_rate": (1e-6, 5e-6, 1e-5)} and sweep.planned == 6
    with pytest.raises(UserError, match="no section sweep"):
        required_sweep(load_recipe(RECIPE))


def test_every_value_is_tried_on_the_recipe_before_anything_runs() -> None:
    good = {"beta": [0.05, 0.1], "dataset_mixture.seed": [1, 2], "loss_type": [["sigmoid"], ["hinge"]]}
    check_space(RECIPE, {}, Sweep.model_validate({"parameters": good}))
    for wrong, message in (
        ({"beta": [0.1, -1]}, "sweep.parameters.beta (-1): -1 is out of range"),
        ({"loss_type": ["sigmoidd"]}, "'sigmoidd' is not known"),
        ({"validation.stric": [True]}, "unknown key 'validation.stric'"),
    ):
        with pytest.raises(UserError) as e:
            check_space(RECIPE, {}, Sweep.model_validate({"parameters": wrong}))
        assert message in str(e.value)
    ends = {"search": "optuna", "trials": 2, "parameters": {"label_smoothing": {"low": 0.0, "high": 2.0}}}
    with pytest.raises(UserError, match="2 is out of range"):
        check_space(RECIPE, {}, Sweep.model_validate(ends))


def test_devices_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from preftune.accelerate_configs import gpu_count

    for visible, workers, expected in (
        ("0,1", 2, ["0", "1"]),
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("5", 3, ["5", "5", "5"]),
        ("0,1", 3, ["0", "1", "0"]),
        ("", 2, [None, None]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        gpu_count.cache_clear()
        assert gpu_shares(workers) == expected
    monkeypatch.undo()
    gpu_count.cache_clear()


# --- the ranks ----------------------------------------------------------------------------------------------


def test_the_worse_end_decides_and_a_reject_never_wins() -> None:
    trials = [trial(0, 0.9, wide=0.3), trial(1, 0.8, wide=0.05), trial(2, 0.99, "reject", wide=0.0), *LEFT]
    rows = ranked(trials)
    assert [(r["rank"], r["trial"]) for r in rows] == [(1, 1), (2, 0), (3, 2), (None, 8), (None, 9)]
    assert best_of(rows) == rows[0] and best_of(ranked([trial(2, 0.99, "reject")])) is None and best_of([]) is None
    assert best_of(ranked(LEFT)) is None


def test_where_lower_is_better() -> None:
    rows = ranked(
        [trial(0, 0.5, better="lower"), trial(1, 0.4, better="lower", wide=0.3), trial(2, 0.3, better="lower")]
    )
    assert [r["trial"] for r in rows] == [2, 0, 1]


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 0.5), st.sampled_from(["promote", "inconclusive", "reject"])),
        min_size=1,
        max_size=12,
    )
)
def test_ranks_hold_for_any_trials(found: list[tuple[float, float, str]]) -> None:
    """Every trial once; no accepted one behind a rejected one; the lower ends fall; the order of the input is no
    matter."""
    trials = [trial(i, value, outcome, wide=wide) for i, (value, wide, outcome) in enumerate(found)]
    rows = ranked(trials)
    assert rows == ranked(trials[::-1]) and sorted(r["trial"] for r in rows) == list(range(len(found)))
    rejected = [r["outcome"] == "reject" for r in rows]
    assert rejected == sorted(rejected)
    for part in (False, True):
        lows = [r["low"] for r, bad in zip(rows, rejected, strict=True) if bad is part]
        assert lows == sorted(lows, reverse=True)
    best = best_of(rows)
    assert (best is None) == all(rejected)


# --- what is written ----------------------------------------------------------------------------------------


def test_the_best_recipe_is_a_recipe(tmp_path: Path) -> None:
    """Its values and the sweep's overrides in it, the section not."""
    recipe = load_recipe(RECIPE, {**BETAS, "max_steps": 7})
    rows = ranked([trial(0, 0.7), trial(1, 0.9), *LEFT])
    assert recipe.sweep is not None
    files = sweep_files(recipe, {**BETAS, "max_steps": 7}, recipe.sweep, "reward_accuracy", rows, [])
    assert set(files) == {"best.yaml", "sweep.csv", "sweep.html", "parallel-coordinates.svg"}
    path = tmp_path / "best.yaml"
    path.write_text(files["best.yaml"])
    again = load_recipe(path)
    assert again.training == {**recipe.training, "beta": 0.1} and again.sweep is None
    assert again.resolved() == load_recipe(RECIPE, {"beta": 0.1, "max_steps": 7}).resolved()
    assert files["best.yaml"].startswith("# Trial 1 of a sweep, the best of 2 that were measured: beta=0.1\n")
    none = sweep_files(recipe, {}, recipe.sweep, "reward_accuracy", ranked(LEFT), [])
    assert set(none) == {"sweep.csv", "sweep.html"}


def test_tables() -> None:
    rows = ranked([trial(0, 0.7), trial(1, 0.9), *LEFT])
    table = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert [(r["rank"], r["trial"], r["beta"], r["state"]) for r in table][:3] == [
        ("1", "1", "0.1", "done"),
        ("2", "0", "0.05", "done"),
        ("", "8", "0.9", "stopped"),
    ]
    assert text_of(rows[0]) == "reward accuracy 90.0% [80.0% to 100.0%]"
    lines = markdown_text(rows, "reward_accuracy").splitlines()
    assert lines[2].startswith("| 1 | 0.1 | 90.0% |") and lines[4].endswith(
        "stopped early | stopped early at step 10 |"
    )
    assert json.loads(json.dumps(rows)) == rows and "train" not in rows[0]


def page(rows: list[dict[str, Any]], **sweep: Any) -> str:
    settings = Sweep.model_validate({"parameters": {"beta": [0.05, 0.1, 0.9, 1.0]}, **sweep})
    return render_sweep(load_recipe(RECIPE), settings, "reward_accuracy", rows, ["a notice"])


def test_the_page() -> None:
    rows = ranked([trial(0, 0.7), trial(1, 0.9), trial(2, 0.95, "reject"), *LEFT])
    rows[0]["reasons"] = rows[0]["reasons"] + [EVIL]
    html = page(rows, parameters={"beta": [0.05, 0.1, 0.15, 0.9, 1.0]})
    assert parse(html) is not None and EVIL not in html
    best = words(section(html, "best"))
    assert "Trial 1: beta 0.1" in best and "best of 3 trials on the same held-out pairs" in best and "a notice" in best
    trials = words(section(html, "trials"))
    assert "stopped early" in trials and "NaN" in trials and "reason 0" in trials
    assert "<svg" in section(html, "chart")
    empty = page(ranked([trial(2, 0.95, "reject")]), parameters={"beta": [0.15]})
    assert "None: every measured trial" in words(section(empty, "best")) and 'id="chart"' not in empty
    assert "no trial was measured" in words(section(page(ranked(LEFT)), "best"))


def test_the_chart_has_an_axis_for_each_key() -> None:
    settings: dict[str, Any] = {
        "search": "optuna",
        "trials": 3,
        "parameters": {"learning_rate": {"low": 1e-6, "high": 1e-4, "log": True}, "loss_type": ["sigmoid", "hinge"]},
    }
    trials = [trial(i, 0.6 + 0.1 * i, "reject" if i == 2 else "promote") for i in range(3)]
    values = [{"learning_rate": 10**-e, "loss_type": kind} for e, kind in ((6, "hinge"), (5, "sigmoid"), (4, "hinge"))]
    rows = ranked([Trial(t.number, v, t.state, t.found) for t, v in zip(trials, values, strict=True)])
    chart = parallel_coordinates(Sweep.model_validate(settings), rows)
    assert chart is not None and "A line for each of 3 measured trials" in chart.caption
    for text in ("learning_rate", "loss_type", "hinge", "Reward accuracy", "1e-05"):
        assert f">{text}<" in chart.svg, text
    assert parallel_coordinates(Sweep.model_validate(settings), rows[:1]) is None
