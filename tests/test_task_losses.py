"""lm-eval tasks in pairs: which loss counts as damage, what Holm's adjustment is for, groups, directions."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from preftune import task_losses
from preftune.comparison_inputs import Task
from preftune.decision import adjusted
from preftune.gate import Damage
from preftune.schema import Gate
from preftune.statistics import clustered_interval, mean_interval, paired_t, wilson
from preftune.task_losses import task_differences, task_measures, task_values, ungated

GATE = Gate.model_validate({})


def compare_tasks(tasks: dict[str, Task]) -> tuple[list[dict[str, Any]], list[Damage]]:
    """The tasks' table and damages as `decision.weigh` makes them: adjusted together."""
    rows, damages = task_losses.compare_tasks(tasks, GATE)
    assert all("p_holm" not in row for row in rows)
    return rows, adjusted(damages)


def task(name: str, sft: list[float], policy: list[float], metric: str = "acc", **about: Any) -> Task:
    """A task of one metric; `clusters` by document, `higher` and `binary` true unless said otherwise."""
    clusters = about.get("clusters", [None] * len(sft))

    def rows(values: list[float]) -> list[dict[str, Any]]:
        return [
            {"task": name, "doc_id": i, "id": str(i), "digest": "", "cluster": c, "metrics": {metric: v}}
            for i, (v, c) in enumerate(zip(values, clusters, strict=True))
        ]

    return Task(
        name,
        about.get("main", metric),
        {metric: about.get("higher", True)},
        {metric: about.get("binary", True)},
        about.get("totals", ({metric: 0.0}, {metric: 0.0})),
        list(zip(rows(sft), rows(policy), strict=True)),
    )


def lost(n: int, worse: int, better: int = 0) -> tuple[list[float], list[float]]:
    """n documents, half of them right for both; `worse` and `better` of them changed."""
    sft = [float(i % 2) for i in range(n)]
    policy = sft.copy()
    for i in [i for i in range(n) if sft[i]][:worse]:
        policy[i] = 0.0
    for i in [i for i in range(n) if not sft[i]][:better]:
        policy[i] = 1.0
    return sft, policy


def test_the_table_by_hand() -> None:
    """100 documents, 50 right; the policy loses 12 and wins 4: −8 points, exact McNemar on 12 against 4."""
    (row,), (damage,) = compare_tasks({"t": task("t", *lost(100, 12, 4))})
    assert (row["task"], row["metric"], row["n"], row["sft"], row["policy"]) == ("t", "acc", 100, 0.5, 0.42)
    changes = [-1.0] * 12 + [1.0] * 4 + [0.0] * 84
    assert row["difference"][0] == pytest.approx(-0.08)
    assert row["difference"][1:] == pytest.approx(mean_interval(changes), abs=0.01)
    assert row["p"] == pytest.approx(stats.binomtest(12, 16).pvalue) == damage.p
    assert row["test"] == "exact McNemar" and row["clusters"] is None
    assert damage.mean == pytest.approx(0.08) and damage.bar == 0.02 and damage.kind == "capability"
    assert not damage.applies  # p = 0.077


@pytest.mark.parametrize(
    ("worse", "better", "applies"),
    [
        (30, 0, True),
        (14, 2, True),  # p = 0.004, lower bound 0.06
        (5, 0, False),  # p = 0.06
        (0, 30, False),
    ],
)
def test_what_counts_as_damage(worse: int, better: int, applies: bool) -> None:
    _, (damage,) = compare_tasks({"t": task("t", *lost(100, worse, better))})
    assert damage.applies is applies


def test_a_sure_but_small_loss_is_none() -> None:
    """40 of 10,000 documents, all to the worse: certain (p = 2e-12), and far below the bar of 2 points."""
    (row,), (damage,) = compare_tasks({"t": task("t", *lost(4000, 40))})
    assert row["p"] < 1e-6 and damage.low > 0.005 and not damage.applies


def test_holm_is_over_all_tasks() -> None:
    """9 of 9 changed documents are lost: p = 0.0039. Alone that is damage; beside 19 tasks without any change it is
    not (0.078): of 20 tasks one looks like that by luck."""
    alone = {"t0": task("t0", *lost(40, 9))}
    _, (damage,) = compare_tasks(alone)
    assert damage.p == pytest.approx(2 / 2**9) and damage.applies
    many = alone | {f"t{i}": task(f"t{i}", *lost(40, 1, 1)) for i in range(1, 20)}
    rows, damages = compare_tasks(many)
    assert damages[0].low == damage.low > damage.bar and not damages[0].applies
    assert rows[0]["p"] == pytest.approx(2 / 2**9) and damages[0].p == pytest.approx(20 * 2 / 2**9)


def test_holm_is_over_the_answers_too() -> None:
    """As `weigh` adjusts them: the stops' and the empties' tests count as tests."""
    damages = [
        Damage("stops", 1.0, 1.0, 0.1, "stop", 0.02),
        Damage("empties", 1.0, 1.0, 0.1, "empty", 0.001),
        Damage("nll", 1.0, 1.0, 0.1, "nll"),
        Damage("t", 1.0, 1.0, 0.1, "capability", 0.03),
        Damage("u", 1.0, 1.0, 0.1, "capability", math.nan),
    ]
    stops, empties, nll, task_, broken = adjusted(damages)
    assert (stops.p, empties.p, task_.p) == pytest.approx((0.04, 0.003, 0.04))
    assert nll.p is None and broken.p is not None and math.isnan(broken.p)


def test_documents_in_groups() -> None:
    """Ten groups of ten; the whole loss is in one of them: ten documents are one piece of evidence."""
    sft, policy = [1.0] * 100, [0.0] * 10 + [1.0] * 90
    groups = [f"g{i // 10}" for i in range(100)]
    (row,), (damage,) = compare_tasks({"t": task("t", sft, policy, clusters=groups)})
    changes = [-1.0] * 10 + [0.0] * 90
    assert row["clusters"] == 10 and row["test"] == "clustered t"
    assert row["difference"] == pytest.approx([-0.1, *clustered_interval(changes, groups)])
    assert row["p"] == pytest.approx(paired_t(changes, groups)) and row["p"] > 0.3
    assert not damage.applies
    _, (alone,) = compare_tasks({"t": task("t", sft, policy)})
    assert alone.applies  # without groups the same documents would be damage


def test_a_metric_that_is_better_when_lower() -> None:
    """Perplexity rises by 1 on average: a loss of 1, and a difference of +1."""
    rng = np.random.default_rng(0)
    sft = rng.normal(10, 1, 50)
    policy = sft + rng.normal(1, 0.5, 50)
    found = task("t", sft.tolist(), policy.tolist(), "perplexity", higher=False, binary=False)
    (row,), (damage,) = compare_tasks({"t": found})
    assert row["difference"][0] == pytest.approx((policy - sft).mean()) == damage.mean
    assert row["test"] == "paired t" and row["p"] == pytest.approx(stats.ttest_rel(policy, sft).pvalue)
    assert damage.applies and not row["higher_is_better"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_measured(bad: float) -> None:
    """And does not disturb the other tasks' adjustment."""
    sft, policy = lost(40, 9)
    broken = policy.copy()
    broken[3] = bad
    rows, damages = compare_tasks({"a": task("a", sft, broken), "b": task("b", sft, policy)})
    assert not damages[0].measured and not damages[0].applies
    assert damages[1].applies and damages[1].p == pytest.approx(2 / 2**9) == rows[1]["p"]


def test_measures_of_a_task() -> None:
    """Shares have Wilson's interval; a metric without a value for each document is lm-eval's total, without one."""
    found = task("t", *lost(40, 10), totals=({"acc": 9.0, "bleu": 30.0}, {"acc": 9.0, "bleu": 20.0}))
    assert task_measures(found, 0)["lm_eval/t/acc"] == pytest.approx((0.5, *wilson(20, 40)))
    assert task_measures(found, 1)["lm_eval/t/acc"][0] == 0.25
    bleu = task_measures(found, 1)["lm_eval/t/bleu"]
    assert bleu[0] == 20.0 and math.isnan(bleu[1])
    assert set(task_values(found, 1)) == set(task_differences(found)) == {"lm_eval/t/acc"}


def test_a_main_metric_without_documents_is_not_gated() -> None:
    found = task("t", *lost(40, 10), main="bleu")
    assert ungated({"t": found}) == ["t"] and compare_tasks({"t": found}) == ([], [])
    assert ungated({"t": task("t", *lost(40, 10))}) == []


def test_no_tasks() -> None:
    assert compare_tasks({}) == ([], [])
