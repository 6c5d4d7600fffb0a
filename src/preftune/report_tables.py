"""The report's smaller tables: damage, win rates, the judge's health, MT-Bench, capability tasks, sources."""

from collections.abc import Sequence
from typing import Any

from preftune.display import cell, interval_text, is_number, judgement, number, track, value_text
from preftune.measure_table import lm_eval_measure

SUITES = {
    "held_out": "Held-out prompts",
    "prompts": "The recipe's own prompts",
    "alpaca_eval": "AlpacaEval",
    "mt_bench": "MT-Bench",
}
MOST_GROUPS = 40  # sources or topics in a table
KINDS = {"openai": "a language model behind an endpoint", "reward_model": "a reward model"}


def p_text(value: Any) -> str:
    """A p-value; empty where there was no test."""
    if not is_number(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def damage_row(found: dict[str, Any]) -> dict[str, str]:
    """A row of the damage table: a loss, its lower bound, its bar, and whether it counts.

    Args:
        found: One of the verdict's `damages`.
    """
    measured = is_number(found["low"]) and is_number(found["mean"])
    damage = ("yes" if found["applies"] else "no") if measured else "not measured"
    numbers = {k: value_text(found[k], "number", signed=k != "bar") for k in ("mean", "low", "bar")}
    return {"name": found["name"], "damage": damage, "p": p_text(found["p"]), **numbers}


def win_rate_row(suite: str, who: str, found: dict[str, Any]) -> dict[str, Any]:
    """Wins, ties and losses of one side against another, and its win rates.

    Args:
        suite: The suite's name, for people.
        who: Who is compared with whom.
        found: One of the verdict's `win_rates`.
    """
    total = max(found["n"], 1)
    parts = [
        {"kind": kind, "label": label, "count": found[kind], "width": f"{100 * found[kind] / total:.2f}"}
        for kind, label in (("wins", "won"), ("ties", "tied"), ("losses", "lost"))
    ]
    controlled = found["controlled"] if found["identified"] else None
    return {
        "suite": suite,
        "who": who,
        "n": found["n"],
        "parts": parts,
        "raw": cell(found["raw"], "share"),
        "controlled": cell(controlled, "share") if controlled else None,
        "why": found["why"] or "",
        "track": track(controlled or found["raw"]),
        "ratio": cell(found["length_ratio"], "score"),
    }


def win_rate_rows(win_rates: dict[str, Any], policy: str) -> list[dict[str, Any]]:
    """The table of win rates, a row for each comparison; see `win_rate_row`.

    Args:
        win_rates: The verdict's, by suite.
        policy: What the policy is called.
    """
    rows = []
    for suite, found in win_rates.items():
        label = SUITES.get(suite, suite)
        if "sft" not in found:
            rows.append(win_rate_row(label, f"{policy} against SFT", found))
            continue
        for who, name in (("sft", "SFT"), ("policy", policy)):
            rows.append(win_rate_row(label, f"{name} against the reference answers", found[who]))
    return rows


def judge_facts(judge: dict[str, Any], held_out: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What the judge was, how far it can be trusted and what it cost, as (label, text).

    Args:
        judge: The verdict's.
        held_out: The verdict's win rate on the held-out prompts.
    """
    facts = [
        ("Judge", f"{judge['model']} ({KINDS.get(judge['kind'], judge['kind'])})"),
        ("Comparisons", f"{judge['comparisons']:,}, each in both orders"),
        ("Verdicts that flip with the order", value_text(judge["flip_rate"], "share")),
        ("Verdicts for the answer shown first", f"{value_text(judge['position_bias'], 'share')} (50% is no bias)"),
        ("Comparisons without a verdict", value_text(judge["error_rate"], "share")),
        ("Requests", f"{judge['requests']:,} made, {judge['cached']:,} from the cache"),
    ]
    if held_out and is_number(held_out["longer_wins"]):
        facts.insert(4, ("Verdicts for the longer answer", value_text(held_out["longer_wins"], "share")))
    if judge["errors"]:
        reasons = "; ".join(f"{n:,} × {reason}" for reason, n in judge["errors"].items())
        facts.insert(-1, ("Errors", reasons))
    if is_number(judge["prompt_tokens"]) and is_number(judge["completion_tokens"]):
        facts.append(("Tokens", f"{judge['prompt_tokens']:,} read, {judge['completion_tokens']:,} written"))
    if judge["kind"] == "openai":
        facts.append(("Cost", number(judge["cost"]) if is_number(judge["cost"]) else "no prices in the recipe"))
    if judge["stopped"]:
        facts.append(("Stopped early", judge["stopped"]))
    return facts


def mt_bench_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """MT-Bench's mean grades: all, by turn, by category.

    Args:
        found: The verdict's `mt_bench`.
    """

    def row(label: str, sft: Any, policy: Any, difference: Sequence[Any] | None = None) -> dict[str, Any]:
        return {
            "label": label,
            "sft": cell(sft, "score"),
            "policy": cell(policy, "score"),
            "difference": cell(difference, "score", signed=True) if difference else None,
            "judgement": judgement(difference, "higher"),
        }

    sft, policy = found["sft"], found["policy"]
    rows = [row("All grades", sft["score"], policy["score"], found["difference"])]
    rows += [row(f"Turn {turn}", sft.get(f"turn_{turn}"), policy.get(f"turn_{turn}")) for turn in (1, 2)]
    for name, both in found["by_category"].items():
        rows.append(row(name, both["sft"], both["policy"], both.get("difference")))
    return rows


def task_rows(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table of capability tasks.

    Args:
        tasks: The verdict's.
    """
    rows = []
    for t in tasks:
        unit = lm_eval_measure(f"lm_eval/{t['task']}/{t['metric']}").unit
        rows.append(
            {
                "task": t["task"],
                "metric": t["metric"],
                "n": t["n"],
                "clusters": t["clusters"],
                "sft": value_text(t["sft"], unit),
                "policy": value_text(t["policy"], unit),
                "difference": cell(t["difference"], unit, signed=True),
                "judgement": judgement(t["difference"], "higher" if t["higher_is_better"] else "lower"),
                "test": t["test"] or "",
                "p": p_text(t["p"]),
                "p_holm": p_text(t["p_holm"]),
            }
        )
    return rows


def group_rows(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of each source or topic, those with the most pairs first.

    Args:
        groups: The verdict's `by_source` or `by_topic`.

    Returns:
        `rows`, and how many are `hidden`.
    """
    found = sorted(groups, key=lambda g: (-g["n"], str(g["name"])))
    rows = [
        {
            "name": g["name"],
            "n": g["n"],
            "reward": cell(g["reward_accuracy"], "share"),
            "track": track(g["reward_accuracy"]),
            "sft": value_text(g["ranking_accuracy"]["sft"], "share"),
            "policy": value_text(g["ranking_accuracy"]["policy"], "share"),
        }
        for g in found[:MOST_GROUPS]
    ]
    return {"rows": rows, "hidden": len(found) - len(rows)}


def gauge(primary: dict[str, Any]) -> dict[str, str] | None:
    """The measure that decides, its interval and its bar; None if it was not measured.

    Args:
        primary: The verdict's.
    """
    places = track((primary["value"], primary["low"], primary["high"]), primary["bar"])
    if places is None:
        return None
    texts = {f"{k}_text": value_text(primary[k], "share") for k in ("value", "low", "high", "bar")}
    return {**places, **texts, "interval": interval_text(primary["low"], primary["high"], "share")}
