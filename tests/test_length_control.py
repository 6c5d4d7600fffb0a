"""The win rate at equal length: alpaca-eval's formula with scikit-learn, simulated judges, and the cases in which it
cannot be known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from preftune.length_control import length_controlled
from preftune.statistics import wilson

Array = np.ndarray


def lengths(n: int, ratio: float, rng: np.random.Generator, spread: float = 0.5) -> Array:
    """Differences in characters: SFT's answers are log-normal, the policy's `ratio` times as long, with noise."""
    sft = np.exp(rng.normal(5.5, 0.5, n))
    return np.round(sft * ratio * np.exp(rng.normal(0, spread, n)) - sft)


def judged(delta: Array, quality: float, by_length: float, rng: np.random.Generator, ties: float = 0.0) -> Array:
    """A judge whose log-odds are the policy's at equal length plus `by_length`·tanh(Δ/std Δ)."""
    p = expit(np.log(quality / (1 - quality)) + by_length * np.tanh(delta / delta.std(ddof=1)))
    return np.where(rng.random(len(delta)) < ties, 0.5, (rng.random(len(delta)) < p).astype(float))


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_is_scikit_learn_s(seed: int) -> None:
    """As alpaca-eval fits soft labels: every row twice, as a win with weight y and as a loss with weight 1 − y; the
    feature is tanh of the difference in characters over its standard deviation (ddof 1); no penalty."""
    rng = np.random.default_rng(seed)
    delta = lengths(150, 1.3, rng)
    y = judged(delta, 0.6, 1.0, rng, ties=0.3)
    x = np.tanh(delta / delta.std(ddof=1))[:, None]
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(np.vstack([x, x]), np.repeat([1, 0], 150), sample_weight=np.concatenate([y, 1 - y]))
    assert length_controlled(y, delta).value == pytest.approx(expit(model.intercept_[0]), abs=1e-5)


@pytest.mark.parametrize(("quality", "raw"), [(0.5, 0.658), (0.384, 0.558)])
def test_longer_answers_and_a_judge_that_likes_them(quality: float, raw: float) -> None:
    """60 % longer answers and by_length = 1.8: a raw win rate of 65.8 % is equal quality (51.0 % at equal length in a
    first simulation), and one of 55.8 % hides a worse model (38.4 %). 3,000 prompts: ±2.5 points."""
    rng = np.random.default_rng(1)
    delta = lengths(3000, 1.6, rng)
    y = judged(delta, quality, 1.8, rng)
    found = length_controlled(y, delta)
    assert y.mean() == pytest.approx(raw, abs=0.02)
    assert found.value == pytest.approx(quality, abs=0.025) and found.identified
    assert found.low < quality < found.high and found.low <= found.value <= found.high
    if quality < 0.5:
        assert found.high < 0.5 < y.mean()  # rejected, where the raw rate would have promoted it


def test_the_interval_covers_the_truth() -> None:
    """200 comparisons of 60 prompts: the interval misses the truth in at most 5 % a side."""
    rng, above, below = np.random.default_rng(2), 0, 0
    for _ in range(200):
        delta = lengths(60, 1.1, rng)
        found = length_controlled(judged(delta, 0.6, 1.0, rng, ties=0.0), delta)
        above, below = above + (found.low > 0.6), below + (found.high < 0.6)
    assert above <= 10 and below <= 10


def test_without_length_it_is_the_raw_win_rate() -> None:
    """Equal lengths throughout, or lengths that have nothing to do with the verdicts."""
    y = np.array([1.0] * 30 + [0.0] * 20 + [0.5] * 10)
    found = length_controlled(y, np.zeros(60))
    assert found.value == pytest.approx(35 / 60) and found.balanced[0] == pytest.approx(35 / 60)
    assert found.low == pytest.approx(wilson(35, 60)[0], abs=0.03)
    mirrored = np.concatenate([np.full(60, 5.0), np.full(60, -5.0)])
    assert length_controlled(np.tile(y, 2), mirrored).value == pytest.approx(35 / 60)


def test_it_is_symmetric() -> None:
    """Exchanging the sides turns a rate into its rest."""
    rng = np.random.default_rng(3)
    delta = lengths(80, 1.2, rng)
    y = judged(delta, 0.6, 1.0, rng, ties=0.2)
    found, mirrored = length_controlled(y, delta), length_controlled(1 - y, -delta)
    assert (1 - mirrored.value, 1 - mirrored.high, 1 - mirrored.low) == pytest.approx(
        (found.value, found.low, found.high), abs=1e-6
    )


# --- judges that look at nothing but the length -----------------------------------------------------------


def test_the_longest_wins_and_the_policy_is_always_longer() -> None:
    found = length_controlled([1.0] * 80, range(1, 81))
    assert not found.identified and math.isnan(found.value) and (found.low, found.high) == (0.0, 1.0)
    assert found.problem is not None and "never shorter" in found.problem


def test_the_longest_wins() -> None:
    """Lengths in both directions: the verdicts follow the length alone, and nothing else can be read from them."""
    delta = [*range(1, 61), *range(-20, 0)]
    found = length_controlled([float(d > 0) for d in delta], delta)
    assert found.problem == "the verdicts follow the length alone" and (found.low, found.high) == (0.0, 1.0)


def test_the_longest_wins_but_for_equal_lengths() -> None:
    """Where they are equally long, it says "tie": that is what there is to know."""
    delta = [*range(1, 41), *([0] * 20), *range(-20, 0)]
    found = length_controlled([float(np.sign(d)) / 2 + 0.5 for d in delta], delta)
    assert found.identified and found.value == pytest.approx(0.5)
    assert found.low < 0.5 < found.high


def promoted_by_a_noisy_longest_wins_judge(longer: float, noise: float, times: int) -> tuple[int, int]:
    """Equal quality; the longer answer wins but for some noise, on 200 prompts: how often the lower end lies above one
    half, (both ways together, the fit alone)."""
    rng, promoted, fitted = np.random.default_rng(4), 0, 0
    for _ in range(times):
        size, sign = np.exp(rng.normal(4.5, 1, 200)), np.where(rng.random(200) < longer, 1, -1)
        y = rng.random(200) < np.where(sign > 0, 1 - noise, noise)
        found = length_controlled(y.astype(float), size * sign)
        promoted, fitted = promoted + (found.low > 0.5), fitted + (found.fitted[1] > 0.5)
    return promoted, fitted


@pytest.mark.parametrize(("longer", "noise"), [(0.8, 0.3), (0.95, 0.1), (1.0, 0.1)])
def test_a_noisy_longest_wins_judge_promotes_nobody(longer: float, noise: float) -> None:
    """Where the fit alone would promote nearly every such policy (0.95, 0.1), both ways together do not."""
    promoted, fitted = promoted_by_a_noisy_longest_wins_judge(longer, noise, 20)
    assert promoted <= 3  # P(4 or more of 20) is 0.2 % at 2.5 % each
    if noise == 0.1:
        assert fitted >= 15


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.02, 0.3])
@pytest.mark.parametrize("longer", [0.5, 0.9])
def test_a_noisy_longest_wins_judge_promotes_nobody_at_length(longer: float, noise: float) -> None:
    promoted, _ = promoted_by_a_noisy_longest_wins_judge(longer, noise, 200)
    assert promoted <= 0.05 * 200


# --- a truly better policy --------------------------------------------------------------------------------


def test_all_verdicts_are_wins() -> None:
    """Longer and shorter: the policy is better, and the interval says by how much at least (Wilson's)."""
    found = length_controlled([1.0] * 40, [5, -5] * 20)
    assert found.value == 1.0 and found.identified
    assert (found.low, found.high) == pytest.approx(wilson(40, 40))


def test_nearly_all_verdicts_are_wins() -> None:
    """A resample without any loss is certain of itself, and no gap in knowledge."""
    found = length_controlled([1.0] * 38 + [0.0, 0.0], [7, -9] * 20)
    assert found.value == pytest.approx(0.95, abs=0.01) and found.low > 0.8


def test_losses_only_where_it_is_much_shorter() -> None:
    """Wins above −30 characters, losses below: at equal length it wins."""
    delta = [*range(-80, -40, 10), *range(-20, 40)]
    found = length_controlled([float(d > -30) for d in delta], delta)
    assert found.value == 1.0 and found.identified and 0.5 < found.low < 0.95


# --- what cannot be known ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "delta"),
    [([1.0], [3]), ([0.0], [3]), ([0.5], [-3]), ([1.0, 0.0], [3, 3]), ([1.0, 1.0, 0.0] * 10, [4] * 30)],
)
def test_one_length_difference_tells_nothing_of_another(outcomes: list[float], delta: list[int]) -> None:
    found = length_controlled(outcomes, delta)
    assert not found.identified and (found.low, found.high) == (0.0, 1.0)


def test_a_single_comparison_at_equal_length() -> None:
    found = length_controlled([1.0], [0])
    assert found.value == 1.0 and (found.low, found.high) == pytest.approx(wilson(1, 1)) and found.low < 0.5


def test_all_ties() -> None:
    """An always-"A" judge: one half, with the width of so many verdicts."""
    found = length_controlled([0.5] * 80, np.arange(-40, 40))
    assert found.value == pytest.approx(0.5) and (found.low, found.high) == pytest.approx(wilson(40, 80))


def test_too_few_answers_in_the_other_direction() -> None:
    """One shorter answer of 40: every third resample has none."""
    found = length_controlled([1.0, 0.0] * 20, [*range(1, 40), -5])
    assert not found.identified and (found.low, found.high) == (0.0, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_a_number(bad: float) -> None:
    for found in (length_controlled([1.0, bad, 0.0], [1, 2, 3]), length_controlled([1.0, 0.5, 0.0], [1, bad, 3])):
        assert not found.identified and all(math.isnan(v) for v in (found.value, found.low, found.high))
    assert not length_controlled([], []).identified


def test_turns_of_one_question_are_drawn_together() -> None:
    """Twice the same verdicts are no more than once."""
    rng = np.random.default_rng(5)
    delta = lengths(50, 1.2, rng)
    y = judged(delta, 0.6, 0.5, rng)
    once = length_controlled(y, delta)
    twice = length_controlled(np.tile(y, 2), np.tile(delta, 2), clusters=[*range(50), *range(50)])
    more = length_controlled(np.tile(y, 2), np.tile(delta, 2))
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=0.02)
    assert more.high - more.low < 0.8 * (once.high - once.low)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(-500, 500)), min_size=1, max_size=12))
def test_whatever_comes(rows: list[tuple[float, int]]) -> None:
    """No warning, no exception; the interval holds the value; where there is none it is everything."""
    found = length_controlled([y for y, _ in rows], [d for _, d in rows])
    assert 0 <= found.low <= found.high <= 1
    if found.identified:
        assert found.low - 1e-9 <= found.value <= found.high + 1e-9
    else:
        assert math.isnan(found.value) and (found.low, found.high) == (0.0, 1.0)
