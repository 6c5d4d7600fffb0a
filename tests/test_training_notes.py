"""What the curves say: hand-made curves with known answers, and the starter recipe's own."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from preftune.training_notes import Note, level, overfitting, series, training_notes, trend

LN2 = math.log(2)
STARTER = [json.loads(line) for line in (Path(__file__).parent / "curves/starter.jsonl").read_text().splitlines()]


def rows(steps: int = 40, noise: float = 0.02, **curves: Any) -> list[dict[str, Any]]:
    """A row a step; each curve is a function of the run's share that is done, with noise on top."""
    rng = random.Random(0)
    made = []
    for step in range(1, steps + 1):
        metrics = {"train/loss": 0.5}
        for name, curve in curves.items():
            metrics["train/" + name.replace("__", "/")] = curve(step / steps) + rng.gauss(0, noise)
        made.append({"step": step, "metrics": metrics})
    return made


def read(found: list[dict[str, Any]], **values: Any) -> dict[str, Note]:
    """The notes by name."""
    settings = {"learning_rate": 1e-6, "max_grad_norm": 1.0, "beta": 0.1, "loss_types": ["sigmoid"]}
    return {note.name: note for note in training_notes(found, **(settings | values))}


def held_out(*losses: float) -> list[dict[str, Any]]:
    return [{"step": 10 * (i + 1), "metrics": {"eval/loss": loss}} for i, loss in enumerate(losses)]


# --- the two estimates ------------------------------------------------------------------------------------


def test_trend_is_the_median_slope_over_the_run() -> None:
    """Slopes of (0,0) (1,1) (2,2) … are 1; one wild batch among them moves the mean, not the median."""
    points = [(float(i), float(i)) for i in range(9)]
    assert trend(points) == (8.0, 8.0, 8.0)
    points[4] = (4.0, 100.0)
    assert trend(points).value == pytest.approx(8.0)


def test_trend_s_interval_is_scipy_s_for_sen() -> None:
    from scipy import stats

    rng = random.Random(1)
    points = [(float(i), 0.1 * i + rng.gauss(0, 1)) for i in range(30)]
    slope, _, low, high = stats.theilslopes([y for _, y in points], [x for x, _ in points], 0.95)
    assert trend(points) == pytest.approx((29 * slope, 29 * low, 29 * high))


def test_trend_of_many_points_takes_them_in_groups() -> None:
    rng = random.Random(2)
    points = [(float(i), i / 5000 + rng.gauss(0, 0.5)) for i in range(5000)]
    found = trend(points)
    assert 0.9 < found.low < found.value < found.high < 1.1


def test_level_is_the_last_quarter_s_mean() -> None:
    """12, 14, 16, 18: mean 15, standard deviation 2.58, t(0.975, 3) = 3.182: 15 ± 4.108."""
    points = [(float(i), 99.0) for i in range(4)] + [(4.0 + i, 12.0 + 2 * i) for i in range(4)]
    assert level(points) == pytest.approx((15, 10.892, 19.108), abs=1e-3)


def test_series_leaves_out_what_is_not_finite_and_takes_a_step_once() -> None:
    again = [{"step": s, "metrics": {"train/loss": v}} for s, v in ((1, 0.5), (2, math.nan), (2, 0.4), (3, math.inf))]
    assert series(again, "train/loss") == [(1.0, 0.5), (2.0, 0.4)]


# --- margin and chosen answers ----------------------------------------------------------------------------


def test_a_growing_margin_is_told_and_no_alarm() -> None:
    found = read(rows(rewards__margins=lambda t: t, rewards__chosen=lambda t: 0.4 * t))
    assert set(found) == {"margin-grew"}
    assert found["margin-grew"].severity == "note"


def test_a_margin_that_grew_early_and_stayed_has_grown() -> None:
    """No trend over most of the run: that it ends far above 0, where it starts by definition, counts."""
    assert "margin-grew" in read(rows(rewards__margins=lambda t: 2.0 if t > 0.05 else 0.0))


@pytest.mark.parametrize(("curve", "name"), [(lambda t: 0.0, "margin-flat"), (lambda t: 0.3 - t, "margin-fell")])
def test_a_margin_that_does_not_grow_is_a_warning(curve: Any, name: str) -> None:
    found = read(rows(rewards__margins=curve))
    assert found[name].severity == "warning"
    assert "margin-grew" not in found


def test_falling_chosen_rewards_alone_are_no_alarm() -> None:
    """They fall from a height and stay above the reference's."""
    found = read(rows(rewards__margins=lambda t: t, rewards__chosen=lambda t: 1.0 - 0.5 * t))
    assert set(found) == {"margin-grew"}


def test_likelihood_displacement_is_reported_with_its_size() -> None:
    """Steps 31 to 40 of 40: the mean of −2t is −1.775; by β = 0.1 that is 17.75 nats an answer."""
    found = read(rows(noise=0.0, rewards__margins=lambda t: t, rewards__chosen=lambda t: -2 * t))
    note = found["likelihood-displacement"]
    assert note.severity == "note", "a fact to know, no alarm"
    assert "lost 17.7 nats per answer" in note.text


def test_lost_likelihood_without_a_margin_is_a_warning() -> None:
    found = read(rows(rewards__margins=lambda t: 0.0, rewards__chosen=lambda t: -t))
    assert {"margin-flat", "likelihood-lost"} <= set(found)
    assert found["likelihood-lost"].severity == "warning"


def test_orpo_rewards_do_not_start_at_zero() -> None:
    """They are log-probabilities, always negative: what counts is where they go."""
    orpo = {"log_odds_ratio": lambda t: -0.5, "rewards__chosen": lambda t: -0.3 + 0.1 * t}
    assert set(read(rows(noise=0.001, rewards__margins=lambda t: 0.05 * t, **orpo))) == {"margin-grew"}
    assert "margin-flat" in read(rows(noise=0.001, rewards__margins=lambda t: 0.05, **orpo))
    falling = orpo | {"rewards__chosen": lambda t: -0.3 - 0.1 * t}
    found = read(rows(noise=0.001, rewards__margins=lambda t: 0.05 * t, **falling))
    assert "nats per token" in found["likelihood-displacement"].text


# --- loss, accuracy, held-out loss ------------------------------------------------------------------------


def test_a_loss_that_stays_at_ln_2() -> None:
    stays = rows()
    for row in stays:
        row["metrics"]["train/loss"] = LN2 + (0.002 if row["step"] % 2 else -0.002)
    assert read(stays)["loss-at-start"].severity == "warning"
    assert "loss-at-start" not in read(stays, loss_types=["ipo"]), "other losses start elsewhere"
    assert "loss-at-start" not in read(stays, loss_types=["sigmoid", "sft"])
    assert "loss-at-start" not in read(STARTER)


def test_a_loss_above_its_start() -> None:
    above = rows()
    for row in above:
        row["metrics"]["train/loss"] = LN2 + row["step"] / 40
    assert read(above)["loss-above-start"].severity == "warning"


@pytest.mark.parametrize(
    ("end", "name"), [(0.5, "accuracy-at-chance"), (0.3, "accuracy-below-chance"), (0.75, None), (0.55, None)]
)
def test_accuracy_against_chance(end: float, name: str | None) -> None:
    found = read(rows(rewards__accuracies=lambda t: end))
    assert {n for n in found if n.startswith("accuracy")} == ({name} if name else set())


def test_few_good_batches_are_not_called_chance() -> None:
    """Four values of 0.5 to 1: the interval reaches below a half, the mean is far above."""
    few = rows(8, 0.0, rewards__accuracies=lambda t: 0.5 if t > 0.9 else 1.0)
    assert level(series(few, "train/rewards/accuracies")).low < 0.5
    assert "accuracy-at-chance" not in read(few)


@pytest.mark.parametrize(
    ("losses", "severity", "step"),
    [
        ((0.69, 0.60, 0.55, 0.60, 0.70), "warning", 30),
        ((0.69, 0.55, 0.60), "note", 20),  # one evaluation is no trend
        ((0.69, 0.60, 0.55, 0.555), None, None),  # within a hundredth
        ((0.69, 0.60, 0.65, 0.55), None, None),  # it came down again
        ((0.69,), None, None),
        ((), None, None),
    ],
)
def test_overfitting(losses: tuple[float, ...], severity: str | None, step: int | None) -> None:
    found = overfitting(held_out(*losses))
    note = read([*rows(), *held_out(*losses)]).get("overfitting")
    assert (found.step if found else None) == step
    assert (note.severity if note else None) == severity
    if severity == "warning":
        assert note and "over-fitting from step 30 on" in note.text and "max_steps=30" in note.advice


# --- gradients, learning rate, odd rows -------------------------------------------------------------------


def test_clipped_gradients_are_counted() -> None:
    """Three of four are longer than 1."""
    found = read(rows(noise=0.0, grad_norm=lambda t: 0.5 if round(t * 40) % 4 == 0 else 3.0))
    assert "75%" in found["clipping"].text
    assert "clipping" not in read(rows(grad_norm=lambda t: 0.5))
    assert "clipping" not in read(rows(grad_norm=lambda t: 3.0), max_grad_norm=0.0), "0: nothing is cut"


def test_gradient_spikes_are_named_by_step() -> None:
    found = read(rows(noise=0.0, grad_norm=lambda t: 30.0 if round(t * 40) in (7, 21) else 0.5))
    assert found["gradient-spikes"].text.endswith("at step 7, 21")
    assert "gradient-spikes" not in read(rows(noise=0.0, grad_norm=lambda t: 3.0 * math.exp(-6 * t))), (
        "its start is no spike"
    )


def test_a_warm_up_longer_than_the_run() -> None:
    assert "warm-up-unfinished" in read(rows(noise=0.0, learning_rate=lambda t: 5e-7 * t))
    reached = rows(noise=0.0, learning_rate=lambda t: 1e-6 * min(2 * t, 2 - 2 * t))
    assert "warm-up-unfinished" not in read(reached)
    assert "warm-up-unfinished" not in read(rows(noise=0.0, learning_rate=lambda t: 1e-6))


def test_few_values_tell_no_trend() -> None:
    found = read(rows(7, rewards__margins=lambda t: -t))
    assert set(found) == {"few-points"}
    assert read([])["few-points"].text.startswith("the training loss was logged 0 times")


def test_not_finite_values_are_named() -> None:
    bad = rows()
    bad[4]["metrics"]["train/loss"] = bad[9]["metrics"]["train/loss"] = math.nan
    assert "train/loss (first at step 5)" in read(bad)["not-finite"].text


def test_warnings_stand_first() -> None:
    found = training_notes(
        [*rows(rewards__margins=lambda t: t), *held_out(0.5, 0.6, 0.7)],
        learning_rate=1e-6,
        max_grad_norm=1.0,
        beta=0.1,
        loss_types=["sigmoid"],
    )
    assert [n.severity for n in found] == ["warning", "note"]


def test_the_starter_recipe_s_own_curves() -> None:
    """16 steps of SmolLM2-135M with LoRA on two CPU cores: it learned, nothing is wrong, every gradient was cut."""
    found = read(STARTER, learning_rate=2e-4)
    assert {name: note.severity for name, note in found.items()} == {"margin-grew": "note", "clipping": "note"}
    assert "100%" in found["clipping"].text
