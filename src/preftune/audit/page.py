"""The audit's page: a single HTML file that needs nothing else, to read before training."""

import textwrap
from typing import Any

from preftune.audit.advice import advice
from preftune.audit.charts import figure_charts
from preftune.audit.tables import (
    KINDS,
    SIDES,
    count,
    counts_table,
    figure_table,
    kind_of,
    mixture_table,
    share,
    truncation_table,
)
from preftune.pages import render

LONG_TEXT = 600  # characters: from here on a text scrolls in its own box
OPEN_PAIRS = 2
WORST = {
    "length_ratio": ("Largest length ratios", "One answer is many times as long as the other: was the short one cut?"),
    "alike": ("Most similar answers", "What differs is marked. From a comma little is learned."),
    "margin_low": ("Smallest score margins", "The chosen answer is hardly better, or worse: are the sides swapped?"),
    "margin_high": ("Largest score margins", "The clearest pairs by the source's own scores: do you agree with them?"),
    "longest_prompt": ("Longest prompts", "With a small max_length these lose their answers first."),
}
VALUES = {
    "length_ratio": "{:,.1f} times as long",
    "alike": "{:.1%} the same",
    "longest_prompt": "{:,.0f} characters",
}


def _summary(data: dict[str, Any], total: dict[str, int]) -> str:
    mixture, many = data["mixture"], len(data["sources"])
    left_out = f"{total['defective']:,} are defective"
    if total["by_choice"]:
        left_out += f" and {total['by_choice']:,} are left out by choice"
    return (
        f"Of {total['read']:,} rows of {many} dataset{'s' if many > 1 else ''}, {total['kept']:,} became preference "
        f"pairs; {left_out}. The mixture has {trainable(data):,} pairs to train on and holds out {mixture['test']:,}."
    )


def trainable(data: dict[str, Any]) -> int:
    """The mixture's training pairs of which something is left at max_length."""
    return data["mixture"]["train"] - sum((data["truncation"] or {}).get("counts", {}).values())


def _tiles(data: dict[str, Any], total: dict[str, int]) -> list[tuple[str, str, str]]:
    mixture = data["mixture"]
    accuracy = mixture["figures"]["train"]["length_accuracy"]
    return [
        ("Rows read", count(total["read"]), ""),
        ("Became pairs", count(total["kept"]), share(total["kept"], total["read"])),
        ("To train on", count(trainable(data)), "at the recipe's max_length" if data["truncation"] else ""),
        ("Held out", count(mixture["test"]), ""),
        ("Right guesses by length", f"{accuracy['value']:.1%}", f"“the {accuracy['which']} is chosen”; 50% is chance"),
    ]


def _pair(pair: dict[str, Any], kind: str = "") -> dict[str, Any]:
    """A pair with what its summary line says."""
    if kind.startswith("margin"):
        value = f"margin {pair['value']:g}".replace("-", "−")
    else:
        value = VALUES[kind].format(pair["value"]) if kind else ""
    answers = []
    for side in ("chosen", "rejected"):
        found = pair[side]
        score = "" if found["score"] is None else f", score {found['score']:g}"
        answers.append({**found, "side": side, "facts": f"{found['chars']:,} characters{score}"})
    return {**pair, "answers": answers, "start": _start(pair["prompt"]), "value": value}


def _start(prompt: list[dict[str, str]]) -> str:
    return textwrap.shorten(prompt[-1]["content"][:400], 100, placeholder=" …") or "(empty)"


def _reasons(found: list[dict[str, Any]], split: str, total: int) -> list[dict[str, Any]]:
    return [{**r, "kind": kind_of(r), "split": split, "share": share(r["count"], total)} for r in found]


def _left_out(rows: list[dict[str, Any]], reasons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are shown, under their reasons."""
    groups = [
        r | {"rows": [row for row in rows if (row["split"], row["reason"]) == (r["split"], r["reason"])]}
        for r in reasons
        if r["dropped"]
    ]
    return [group for group in groups if group["rows"]]


def _source(source: dict[str, Any], name: str) -> dict[str, Any]:
    """A dataset's section."""
    columns = [(f"{s['split']}, {SIDES[s['side']]}", s["figures"]) for s in source["splits"] if s["figures"]]
    reasons = [r for s in source["splits"] for r in _reasons(s["reasons"], s["split"], s["read"])]
    worst = [
        {"title": title, "why": why, "pairs": [_pair(p, kind) for p in source["worst"][kind]]}
        for kind, (title, why) in WORST.items()
        if kind in source["worst"]
    ]
    return {
        **source,
        "name": name,
        "reasons": reasons,
        "repeated": [{**r, "start": _start(r["prompt"])} for r in source["repeated"]],
        "figures": figure_table(columns),
        "charts": figure_charts(columns[0][1], name) if columns else [],
        "charted": columns[0][0] if columns else "",
        "left_out": _left_out(source["rows"], reasons),
        "random": [_pair(p) for p in source["random"]],
        "worst": worst,
    }


def _mixture(mixture: dict[str, Any]) -> dict[str, Any]:
    """The mixture's section."""
    columns = [(text, mixture["figures"][side]) for side, text in SIDES.items()]
    reasons = _reasons(mixture["reasons"], "train", mixture["drawn"])
    return {
        **mixture,
        "reasons": reasons,
        "figures": figure_table(columns),
        "charts": figure_charts(columns[0][1], "mixture"),
        "left_out": _left_out(mixture["rows"], reasons),
    }


def render_audit(data: dict[str, Any]) -> str:
    """Renders the audit's page.

    Args:
        data: From `audit.collect`.

    Returns:
        One HTML document without any external reference; the same for the same data.
    """
    counts = counts_table(data)
    return render(
        "audit.html.j2",
        data=data,
        summary=_summary(data, counts["total"]),
        tiles=_tiles(data, counts["total"]),
        counts=counts,
        ledger=mixture_table(data),
        cards=advice(data),
        kinds=KINDS,
        truncation=truncation_table(data["truncation"]),
        sources=[_source(source, f"s{i}") for i, source in enumerate(data["sources"], 1)],
        mixture=_mixture(data["mixture"]),
        open_pairs=OPEN_PAIRS,
        long=LONG_TEXT,
    )
