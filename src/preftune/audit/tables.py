"""The audit's tables: what became of the rows, the figures of the pairs; for the page and for the terminal."""

from typing import Any

from preftune.data.check_list import CHECKS
from preftune.display import number

TURNS_SHOWN = 4
SIDES = {"train": "for training", "test": "held out"}
KINDS = {  # what happens to a row: (tone, words)
    "defect": ("bad", "left out"),
    "warning": ("mid", "kept, with a warning"),
    "note": ("", "kept"),
    "choice": ("", "left out by choice"),
}


def count(value: float) -> str:
    """A number of things or characters."""
    return f"{value:,.0f}".replace("-", "−")


def share(part: int, total: int) -> str:
    """A part of a total in per cent."""
    return f"{part / total:.1%}" if total else ""


def counts_table(data: dict[str, Any]) -> dict[str, Any]:
    """Rows read to pairs kept, a row a split, and their sum; every row adds up.

    Args:
        data: From `audit.collect`.

    Returns:
        `rows` and `total`, each with `read`, `defective`, `by_choice`, `kept`, `beyond` (max_rows) and `drawn`;
        `max_rows`: whether any pairs lie beyond it.
    """
    keys = ("read", "defective", "by_choice", "kept", "beyond", "drawn")
    rows = [
        {**split, "beyond": split["kept"] - split["drawn"], "label": source["label"], "held": SIDES[split["side"]]}
        for source in data["sources"]
        for split in source["splits"]
    ]
    total = {key: sum(row[key] for row in rows) for key in keys}
    return {"rows": rows, "total": total, "max_rows": total["beyond"] > 0}


def mixture_table(data: dict[str, Any]) -> list[tuple[str, str, int]]:
    """From the sources' pairs to what is trained on and what is held out: (sign, what, pairs).

    Args:
        data: From `audit.collect`.
    """
    mixture = data["mixture"]
    pairs = {
        side: sum(s["drawn"] for source in data["sources"] for s in source["splits"] if s["side"] == side)
        for side in SIDES
    }
    split_off = mixture["test"] + mixture["test_dropped"] - pairs["test"]
    lost = sum((data["truncation"] or {}).get("counts", {}).values())
    dropped = [r for r in mixture["reasons"] if r["dropped"]]
    rows = [
        ("", "pairs of the training splits", pairs["train"]),
        ("−", "not drawn, by the weights", pairs["train"] - mixture["drawn"] - split_off),
        ("−", "held out by test_split_size, or by default", split_off),
        *(("−", f"{r['meaning']} ({r['reason']})", r["count"]) for r in dropped),
        *([("=", "pairs of the mixture", mixture["train"])] if lost else []),
        ("−", "nothing of them is left at max_length", lost),
        ("=", "pairs to train on", mixture["train"] - lost),
        ("", "pairs of the test splits", pairs["test"]),
        ("+", "held out by test_split_size, or by default", split_off),
        ("−", "stand there twice, or the other way round", mixture["test_dropped"]),
        ("=", "pairs held out", mixture["test"]),
    ]
    return [row for row in rows if row[2] or row[0] == "="]


def _turns(figures: dict[str, Any]) -> str:
    shown = figures["turns"][:TURNS_SHOWN]
    more = figures["pairs"] - sum(n for _, n in shown)
    texts = [f"{turns}: {share(n, figures['pairs'])}" for turns, n in shown]
    return ", ".join(texts + ([f"more: {share(more, figures['pairs'])}"] if more else []))


def _lengths(figures: dict[str, Any], part: str) -> str:
    return " / ".join(count(figures["lengths"][part][key]) for key in ("median", "p95", "most"))


def _guess(figures: dict[str, Any]) -> str:
    found = figures["length_accuracy"]
    return f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%}), by the {found['which']}"


def _scores(figures: dict[str, Any]) -> str:
    found = figures["margin"]
    if not found:
        return "no scores"
    return f"{number(found['mean'])}; below 0: {found['below_zero']:,} of {found['pairs']:,}"


def figure_table(columns: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The figures of several files of pairs side by side.

    Args:
        columns: (heading, figures).

    Returns:
        `heads`, and `rows` of (label, cells).
    """
    rows = [
        ("Pairs", lambda f: count(f["pairs"])),
        ("Different prompts", lambda f: count(f["prompts"])),
        ("The user's turns", _turns),
        ("With a system turn", lambda f: share(f["with_system"], f["pairs"])),
        ("Prompt, characters: median / 95% / longest", lambda f: _lengths(f, "prompt")),
        ("Chosen, likewise", lambda f: _lengths(f, "chosen")),
        ("Rejected, likewise", lambda f: _lengths(f, "rejected")),
        ("Right guesses by length alone (95% interval)", _guess),
        ("Answers at least 90% the same", lambda f: share(f["alike"], f["pairs"])),
        ("Score margin, chosen − rejected: mean", _scores),
    ]
    cells = [(text, [cell(found) for _, found in columns]) for text, cell in rows]
    return {"heads": [head for head, _ in columns], "rows": cells}


def kind_of(reason: dict[str, Any]) -> str:
    """A key of `KINDS`, for one of a split's or the mixture's `reasons`."""
    return "warning" if not reason["dropped"] else "choice" if reason["choice"] else "defect"


def truncation_table(found: dict[str, Any] | None) -> dict[str, Any]:
    """What the recipe's max_length does to the training pairs.

    Args:
        found: The audit's `truncation`.

    Returns:
        `summary`, and `rows` of (label, value).
    """
    if found is None or "not_counted" in found:
        why = found["not_counted"] if found else "the starting model's tokenizer is not at hand"
        return {"summary": f"Not counted: {why}.", "rows": []}
    lost, limit = sum(found["counts"].values()), found["max_length"]
    fits = (
        f"95% of the pairs stay whole at {count(found['max_length_95'])} tokens, 99% at {count(found['max_length_99'])}"
    )
    summary = f"No max_length is set, so nothing is cut; {fits}."
    if limit is not None:
        summary = (
            f"At max_length {count(limit)}, {lost:,} of {found['pairs']:,} pairs cannot be trained on and "
            f"{found['cut']:,} lose tokens; {fits}."
        )
    rows = [
        ("Pairs to train on, as counted", count(found["pairs"])),
        *((f"{CHECKS[name].meaning} ({name})", count(n)) for name, n in found["counts"].items()),
        ("Pairs that lose tokens, these included", count(found["cut"])),
        ("Tokens of the longest pair, prompt and answer", count(found["longest"])),
    ]
    for part, of in found["percentiles"].items():
        text = " / ".join(count(of[p]) for p in ("50", "95", "max"))
        rows.append((f"Tokens, {part}: median / 95% / longest", text))
    return {"summary": summary, "rows": rows}
