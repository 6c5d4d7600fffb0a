"""A prompt and the answers to it as a page shows them: cut to a length, differences marked, judged or not."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import escape

from preftune.display import value_text
from preftune.side_by_side import differences

LONGEST = 4000  # characters of a text that are shown
SCROLLED = 1200  # characters: from here on a text scrolls in its own box
OVERHEAD = 900  # bytes that the page spends on one prompt beside its texts
Row = dict[str, Any]


def shown_text(who: str, kind: str, text: str, facts: str = "", stopped: bool = True) -> Row:
    """One text under its heading.

    Args:
        who: The heading.
        kind: sft, dpo, chosen, rejected or reference: its colour.
        text: As it was written, of any length.
        facts: Said below it.
        stopped: Whether it ended by itself.
    """
    return {
        "who": who,
        "kind": kind,
        "parts": [(False, text[:LONGEST])],
        "hidden": max(len(text) - LONGEST, 0),
        "empty": not text.strip(),
        "facts": facts,
        "stopped": stopped,
    }


def answer_text(who: str, kind: str, row: Row, more: str = "") -> Row:
    """A model's answer with its length.

    Args:
        who: The heading.
        kind: sft or dpo.
        row: A row of answers.jsonl, or a turn of suite_answers.jsonl.
        more: Said beside the length.
    """
    facts = [f"{row['tokens']:,} tokens"]
    if "seq_rep_4" in row:
        facts.append(f"{value_text(row['seq_rep_4'], 'share')} repeated")
    return shown_text(who, kind, row["text"], ", ".join([*facts, *([more] if more else [])]), row["stopped"])


def mark_differences(first: Row, second: Row) -> str:
    """Marks, in both of two texts, the words that only one of them has.

    Args:
        first: From `shown_text`; its parts are replaced.
        second: Likewise.

    Returns:
        What is to be said where nothing is marked; empty else.
    """
    if first["empty"] or second["empty"]:
        return ""
    found = differences(first["parts"][0][1], second["parts"][0][1])
    first["parts"], second["parts"] = found.first, found.second
    if found.marked:
        return ""
    return "The two answers are the same." if found.share == 0 else "The two answers have too little in common to mark."


def messages(prompt: Iterable[dict[str, str]]) -> list[Row]:
    """A prompt's turns, each cut to the length that is shown."""
    return [
        {"role": m["role"], "content": m["content"][:LONGEST], "hidden": max(len(m["content"]) - LONGEST, 0)}
        for m in prompt
    ]


def joined(answer: Sequence[dict[str, str]]) -> str:
    """The turns of a dataset's answer as one text; most have a single one."""
    if len(answer) == 1:
        return answer[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in answer)


def start_of(prompt: Sequence[dict[str, str]]) -> str:
    """The beginning of a prompt's last turn, for the line under which the rest is folded away."""
    return textwrap.shorten(prompt[-1]["content"][:400] if prompt else "", 100, placeholder=" …") or "(empty)"


def judged_words(judgement: Row, names: dict[str, str]) -> Row:
    """What the judge decided on one comparison, and its words.

    Args:
        judgement: A row of judgements.jsonl.
        names: Side → what it is called here.
    """
    first, second = judgement["pair"]
    outcome = {1.0: f"{names[second]} won", 0.0: f"{names[first]} won", 0.5: "tie", None: "no verdict"}
    result = outcome[judgement["outcome"]]
    if judgement["flipped"]:
        result += " (the verdict flips with the order)"
    orders = judgement["orders"]
    same = orders[0] == orders[1]  # a reward model's are
    words = []
    for order, shown_first in zip(orders[:1] if same else orders, (first, second), strict=False):
        winner = order["winner"]
        said = names.get(winner, winner) if winner else f"none ({order['error']})"
        label = "In both orders" if same else f"Shown first: {names[shown_first]}"
        words.append({"label": f"{label}. Verdict: {said}", "text": order["text"] or ""})
    return {"versus": f"{names[second]} against {names[first]}", "result": result, "words": words}


def size(article: Row) -> int:
    """About how many bytes of the page a prompt with its answers takes."""
    texts = []
    marks = 0
    for turn in article["turns"]:
        texts += [m["content"] for m in turn["prompt"]]
        texts += [text for shown in turn["texts"] for _, text in shown["parts"]]
        texts += [word["text"] for found in turn["judged"] for word in found["words"]]
        texts += [word["text"] for word in turn["graded"]]
        marks += sum(only_here for shown in turn["texts"] for only_here, _ in shown["parts"])
    return OVERHEAD * len(article["turns"]) + 11 * marks + sum(len(escape(t).encode("utf-8", "replace")) for t in texts)


def within(articles: Iterable[Row], room: int) -> list[Row]:
    """The first articles, as many as fit into so many bytes of the page."""
    kept = []
    for article in articles:
        room -= size(article)
        if room < 0:
            break
        kept.append(article)
    return kept
