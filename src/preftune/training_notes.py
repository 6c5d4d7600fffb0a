"""What a training's curves show, as sentences with numbers: the guide's "metrics to watch", read the way the
literature reads them.

A falling `rewards/chosen` is no alarm: DPO's loss sees the margin alone, and DPO's authors say that negative and
falling chosen rewards are to be expected (github.com/eric-mitchell/direct-preference-optimization, issues 8 and 32).
What deserves a word is likelihood displacement: the chosen answers lose log-probability while the margin grows
(Razin et al., arXiv 2410.08847; Pal et al., arXiv 2402.13228).

Intervals are 95 % and take the logged values as independent, which batches of different pairs nearly are. They are
there to keep noise from being read as a trend, not to prove one.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

from scipy import stats

from preftune.plan import training_value
from preftune.schema import Recipe

MIN_POINTS = 8  # of fewer logged values no trend is told
MAX_POINTS = 300  # the slopes of all pairs of points are taken: more points are averaged in groups first
START_LOSS: dict[str, float] = dict.fromkeys(("sigmoid", "robust", "sigmoid_norm"), math.log(2))  # policy = reference
Point = tuple[float, float]
Rows = Sequence[dict[str, Any]]


class Note(NamedTuple):
    """One thing that the curves show.

    Args:
        severity: `warning`: look into it; `note`: know it.
        name: Stable, for programs.
        text: What was seen, with its numbers.
        advice: What to do; may be empty.
    """

    severity: str
    name: str
    text: str
    advice: str


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3g} (95 % interval {self.low:+.3g} to {self.high:+.3g})"


class Overfitting(NamedTuple):
    """A held-out loss that has risen: its lowest value at `step`, its last one, and how many evaluations later."""

    step: int
    lowest: float
    last: float
    later: int


def series(rows: Rows, name: str) -> list[Point]:
    """The finite values of one metric as (step, value), a step once.

    Args:
        rows: Rows of metrics.jsonl.
        name: As logged, for example `train/loss`.
    """
    found = {row["step"]: row["metrics"].get(name) for row in rows if row["metrics"].get(name) is not None}
    return [(float(step), float(v)) for step, v in sorted(found.items()) if math.isfinite(v)]


def _thinned(points: list[Point]) -> list[Point]:
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def trend(points: list[Point]) -> Estimate:
    """How much a metric changed over the run: the Theil–Sen slope times the run's length.

    The median of the slopes of all pairs of points, with Sen's interval (Sen 1968, JASA 63:1379): a few wild batches
    do not move it.

    Args:
        points: (step, value), at least `MIN_POINTS`.
    """
    xs, ys = zip(*_thinned(points), strict=True)
    slope, _, low, high = (float(x) for x in tuple(stats.theilslopes(ys, xs, alpha=0.95)))
    length = xs[-1] - xs[0]
    return Estimate(slope * length, low * length, high * length)


def level(points: list[Point]) -> Estimate:
    """Where a metric ended: the mean of the last quarter of its values (at least four), with a t-interval.

    Args:
        points: (step, value), at least four.
    """
    last = [y for _, y in points[-max(4, len(points) // 4) :]]
    mean = sum(last) / len(last)
    half = float(stats.t.ppf(0.975, len(last) - 1) * stats.sem(last))
    return Estimate(mean, mean - half, mean + half)


def overfitting(rows: Rows) -> Overfitting | None:
    """Whether the held-out loss has risen from its lowest value by more than 2 % (at least 0.01) at the last look.

    Args:
        rows: Rows of metrics.jsonl.
    """
    points = series(rows, "eval/loss")
    if not points:
        return None
    step, lowest = min(points, key=lambda p: p[1])
    later = sum(s > step for s, _ in points)
    if points[-1][1] - lowest <= max(0.01, 0.02 * abs(lowest)):
        return None
    return Overfitting(int(step), lowest, points[-1][1], later)


def training_notes(
    rows: Rows, *, learning_rate: float, max_grad_norm: float, beta: float, loss_types: Sequence[str]
) -> list[Note]:
    """Reads the curves.

    Args:
        rows: Rows of metrics.jsonl: `step` and `metrics` by name.
        learning_rate: The recipe's: the schedule's peak.
        max_grad_norm: Where gradients are cut; 0 if they are not.
        beta: β of the rewards.
        loss_types: TRL's names.

    Returns:
        Warnings first.
    """
    orpo = bool(series(rows, "train/log_odds_ratio"))  # no reference: rewards do not start at 0
    found = [*_not_finite(rows), *_overfits(rows), *_learning_rate(rows, learning_rate)]
    logged = series(rows, "train/loss")
    if len(logged) < MIN_POINTS:
        text = f"the training loss was logged {len(logged)} times: too few values to tell a trend"
        found.append(Note("note", "few-points", text, f"lower logging_steps: {MIN_POINTS} values and more are read"))
    else:
        start = START_LOSS.get(loss_types[0]) if len(loss_types) == 1 and not orpo else None
        found += [*_margin_and_chosen(rows, beta, orpo), *_accuracy(rows), *_loss(logged, start)]
        found += _gradients(rows, max_grad_norm)
    return sorted(found, key=lambda note: note.severity != "warning")


def notes_of(rows: Rows, recipe: Recipe) -> list[dict[str, str]]:
    """The notes on a recipe's training, as plain dicts for verdict.json."""
    loss_types = training_value(recipe, "loss_type")
    found = training_notes(
        rows,
        learning_rate=float(training_value(recipe, "learning_rate")),
        max_grad_norm=float(training_value(recipe, "max_grad_norm") or 0),
        beta=float(training_value(recipe, "beta")),
        loss_types=[loss_types] if isinstance(loss_types, str) else list(loss_types),
    )
    return [note._asdict() for note in found]


def _not_finite(rows: Rows) -> Iterable[Note]:
    bad = {
        name: row["step"]
        for row in reversed(rows)
        for name, value in row["metrics"].items()
        if value is not None and not math.isfinite(value)
    }
    if bad:
        where = ", ".join(f"{name} (first at step {step})" for name, step in sorted(bad.items()))
        yield Note(
            "warning", "not-finite", f"not a finite number: {where}", "lower learning_rate; look at the pairs there"
        )


def _margin_and_chosen(rows: Rows, beta: float, orpo: bool) -> Iterable[Note]:
    margins, chosen = series(rows, "train/rewards/margins"), series(rows, "train/rewards/chosen")
    if len(margins) < MIN_POINTS:
        return
    change, end = trend(margins), level(margins)
    grew = change.low > 0 or (change.high >= 0 and end.low > 0 and not orpo)
    text = f"rewards/margins changed by {change} over the run and ended at {end.value:+.3g}"
    if grew:
        yield Note("note", "margin-grew", f"the margin grew: {text}", "")
    elif change.high < 0:
        advice = "lower learning_rate, or stop earlier; look at what the last pairs have in common"
        yield Note("warning", "margin-fell", f"the margin fell: {text}", advice)
    else:
        advice = (
            "read some pairs (preftune audit): is the chosen answer better? Else a higher learning_rate, more steps"
        )
        yield Note("warning", "margin-flat", f"the margin did not grow: {text}", advice)
    if len(chosen) < MIN_POINTS:
        return
    # DPO's reward is β·(log π − log π_ref) of the whole answer, ORPO's is β·log π of a token of it.
    fall = trend(chosen) if orpo else level(chosen)
    if fall.high >= 0:
        return
    lost = f"{-fall.value / beta:.3g} nats {'per token' if orpo else 'per answer'}"
    if grew:
        yield Note(
            "note",
            "likelihood-displacement",
            f"likelihood displacement: the chosen answers lost {lost} of log-probability while the margin grew; the "
            f"rejected ones lost more (rewards/chosen {fall})",
            "no alarm by itself: the margin is what is trained. Read the answers and the damage measures; if they "
            "suffer: lower learning_rate, raise beta, or train the chosen answers' likelihood too (loss_type: "
            "[sigmoid, sft])",
        )
    elif not orpo:
        advice = "lower learning_rate or raise beta; look for pairs whose answers are almost the same"
        text = f"the chosen answers lost {lost} of log-probability and the margin did not grow (rewards/chosen {fall})"
        yield Note("warning", "likelihood-lost", text, advice)


def _accuracy(rows: Rows) -> Iterable[Note]:
    points = series(rows, "train/rewards/accuracies")
    if len(points) < MIN_POINTS:
        return
    end = level(points)
    text = f"rewards/accuracies ended at {end.value:.2f} (95 % interval {end.low:.2f} to {end.high:.2f})"
    if end.high < 0.5:
        advice = "are chosen and rejected swapped? preftune audit shows pairs"
        yield Note("warning", "accuracy-below-chance", f"{text}: below chance", advice)
    elif end.low <= 0.5 and end.value < 0.6:
        advice = (
            "raise learning_rate or train longer; if it stays, the pairs may hold no preference that can be learned"
        )
        yield Note("warning", "accuracy-at-chance", f"{text}: chance is 0.5", advice)


def _loss(points: list[Point], start: float | None) -> Iterable[Note]:
    end = level(points)
    if start is None:
        return
    if end.low > start + 0.02:
        advice = "lower learning_rate (and beta, if it is above 0.5)"
        yield Note(
            "warning", "loss-above-start", f"the loss ended at {end.value:.3f}, above its start {start:.3f}", advice
        )
    elif abs(end.value - start) < 0.01:
        text = (
            f"the loss ended at {end.value:.3f}, where it began: ln 2 = {start:.3f} is a policy equal to its reference"
        )
        advice = "raise learning_rate (LoRA takes about ten times a full fine-tune's), or train longer"
        yield Note("warning", "loss-at-start", text, advice)


def _overfits(rows: Rows) -> Iterable[Note]:
    found = overfitting(rows)
    if found is None:
        return
    training = dict(series(rows, "train/loss"))
    text = f"the held-out loss rose from {found.lowest:.3f} at step {found.step} to {found.last:.3f}"
    accuracy = dict(series(rows, "eval/rewards/accuracies"))
    if len(training) >= MIN_POINTS and trend(list(training.items())).high < 0:
        text += ", while the training loss fell"
    if found.step in accuracy:
        text += f" (held-out accuracy {accuracy[found.step]:.2f} there, {list(accuracy.values())[-1]:.2f} at the end)"
    if found.later == 1:
        yield Note("note", "overfitting", f"{text}: one evaluation, no trend yet", "evaluate more often: eval_steps")
    else:
        advice = f"stop there (max_steps={found.step}), train fewer epochs, lower learning_rate, or take more pairs"
        yield Note("warning", "overfitting", f"over-fitting from step {found.step} on: {text}", advice)


def _learning_rate(rows: Rows, peak: float) -> Iterable[Note]:
    points = series(rows, "train/learning_rate")
    rates = [rate for _, rate in points]
    if len(points) >= 3 and rates == sorted(rates) and rates[0] < rates[-1] < 0.99 * peak:
        text = (
            f"the learning rate never reached {peak:g}: at the last step ({points[-1][0]:.0f}) it was {rates[-1]:.3g}"
        )
        yield Note("warning", "warm-up-unfinished", f"{text}; the warm-up is longer than the run", "lower warmup_steps")


def _gradients(rows: Rows, limit: float) -> Iterable[Note]:
    points = series(rows, "train/grad_norm")
    if len(points) < MIN_POINTS:
        return
    norms = [norm for _, norm in points]
    # Against what was usual just before: norms fall over many a run, and their start is no spike.
    spikes = [(s, n) for i, (s, n) in enumerate(points) if i >= 5 and n > 10 * median(norms[max(0, i - 20) : i]) > 0]
    middle = median(norms)
    if spikes:
        where = ", ".join(f"{step:.0f}" for step, _ in spikes[:5]) + (", …" if len(spikes) > 5 else "")
        text = f"the gradient's norm rose to {max(n for _, n in spikes):.3g} (median {middle:.3g}), at step {where}"
        yield Note(
            "note", "gradient-spikes", text, "if the loss jumps there too: a lower learning_rate, a longer warm-up"
        )
    clipped = sum(norm > limit for _, norm in points) / len(points) if limit > 0 else 0.0
    if clipped > 0.5:
        text = f"{clipped:.0%} of the logged gradients were cut to max_grad_norm={limit:g} (median norm {middle:.3g})"
        advice = "harmless with Adam, whose steps do not depend on the gradient's scale"
        yield Note("note", "clipping", text, advice)
