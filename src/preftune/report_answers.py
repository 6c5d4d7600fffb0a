"""Which answers the report shows side by side: best wins, worst losses, random samples, the suites."""

import random
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from preftune.answer_view import (
    answer_text,
    joined,
    judged_words,
    mark_differences,
    messages,
    shown_text,
    start_of,
    within,
)
from preftune.data.pairs import Pair
from preftune.display import is_number, number
from preftune.report_input import ReportInput
from preftune.report_tables import SUITES

EACH, SAMPLES, SEED = 4, 6, 0
HELD_OUT_ROOM, SUITE_ROOM = 800_000, 500_000  # bytes of the page
LOW_MARGINS = 5
Row = dict[str, Any]
Id = tuple[str, str]


def _names(data: ReportInput) -> dict[str, str]:
    return {"sft": "SFT", "policy": data.column, "reference": "the reference"}


def _both(data: ReportInput, sft: Row, policy: Row, grades: dict[str, str] | None = None) -> list[Row]:
    said = grades or {}
    return [
        answer_text("SFT answer", "sft", sft, said.get("sft", "")),
        answer_text(f"{data.column} answer", "dpo", policy, said.get("policy", "")),
    ]


def _article(data: ReportInput, both: tuple[Row, Row], pair: Pair | None, margin: Any, judged: list[Row]) -> Row:
    """One held-out prompt with both answers and those of the dataset."""
    sft, policy = both
    texts = _both(data, sft, policy)
    note = mark_differences(*texts)
    texts.append(shown_text("Chosen in the dataset", "chosen", joined(pair.chosen) if pair else sft["chosen"]))
    if pair:
        texts.append(shown_text("Rejected in the dataset", "rejected", joined(pair.rejected)))
    words = [judged_words(j, _names(data)) for j in judged]
    why = [words[0]["result"]] if words else []
    if is_number(margin):
        why.append(f"margin {number(margin)}")
    stopped = [name for name, row in (("SFT", sft), (data.column, policy)) if not row["stopped"]]
    turn = {"prompt": messages(sft["prompt"]), "texts": texts, "note": note, "judged": words, "graded": []}
    return {
        "id": sft["row_id"],
        "why": "; ".join(why),
        "start": start_of(sft["prompt"]),
        "cut": " and ".join(stopped),
        "turns": [turn],
    }


def _picked(ids: list[Id], margins: dict[Id, float], outcomes: dict[Id, Any]) -> tuple[list[Id], list[Id]]:
    """(wins, losses): by the judge's outcome if there is one, else the two ends of the margins."""
    ranked = sorted((i for i in ids if i in margins), key=lambda i: -margins[i])
    if outcomes:
        by_margin = sorted(ids, key=lambda i: -margins.get(i, 0.0))
        wins = [i for i in by_margin if outcomes.get(i) == 1.0]
        losses = [i for i in reversed(by_margin) if outcomes.get(i) == 0.0]
        return wins[:EACH], losses[:EACH]
    half = (len(ranked) + 1) // 2
    return ranked[: min(EACH, half)], ranked[half:][::-1][:EACH]


def _headings(data: ReportInput, judged: bool) -> list[tuple[str, str]]:
    random_lead = f"Drawn from the other prompts with a fixed seed ({SEED}): what an answer usually looks like."
    if judged:
        return [
            ("Best wins", f"The judge preferred {data.called}'s answer in both orders; the largest margins first."),
            ("Worst losses", "The judge preferred the SFT model's answer in both orders; the lowest margins first."),
            ("Random samples", random_lead),
        ]
    return [
        ("Largest margins", "Here the training worked best. Is the answer better, too?"),
        ("Smallest margins", "Here it worked least, or the wrong way. Is the label right? Did the answer suffer?"),
        ("Random samples", random_lead),
    ]


def held_out_answers(data: ReportInput) -> Row:
    """The answers to held-out prompts: the ones picked, and as many others as fit.

    Args:
        data: What the report tells.

    Returns:
        `how` they were picked, `groups` of articles with `title` and `lead`, `rest`, and how many are `hidden`.
    """
    rows = {(sft["source"], sft["row_id"]): (sft, policy) for sft, policy in data.answers}
    pairs = {(p.source, p.row_id): p for p in data.pairs}
    margins = {(c["source"], c["row_id"]): c["margin"] for c in data.comparison if is_number(c["margin"])}
    judged = {j["id"]: j for j in data.judgements if j["suite"] == "held_out"}
    outcomes = {i: judged[i[1]]["outcome"] for i in rows if i[1] in judged}
    outcomes = {i: outcome for i, outcome in outcomes.items() if outcome is not None}

    def articles(ids: Sequence[Id]) -> Iterator[Row]:
        for i in ids:
            yield _article(data, rows[i], pairs.get(i), margins.get(i), [judged[i[1]]] if i[1] in judged else [])

    wins, losses = _picked(list(rows), margins, outcomes)
    others = [i for i in rows if i not in {*wins, *losses}]
    samples = random.Random(SEED).sample(others, min(SAMPLES, len(others)))
    titles = _headings(data, bool(outcomes))
    groups = [
        {"title": title, "lead": lead, "articles": list(articles(ids))}
        for (title, lead), ids in zip(titles, (wins, losses, samples), strict=True)
        if ids
    ]
    drawn = set(samples)
    left = [i for i in others if i not in drawn]
    rest = within(articles(left), HELD_OUT_ROOM)
    how = (
        "Picked by the judge's outcome."
        if outcomes
        else "No judge compared the answers, so nobody says which one is better: picked are the prompts at both ends "
        "of the reward margin, among those that were answered."
    )
    return {"how": how, "groups": groups, "rest": rest, "hidden": len(left) - len(rest), "total": len(rows)}


def low_margin_pairs(data: ReportInput) -> list[Row]:
    """The held-out pairs whose margin is furthest below 0: their labels are worth reading.

    Args:
        data: What the report tells.
    """
    pairs = {(p.source, p.row_id): p for p in data.pairs}
    rows = [(c["margin"], pairs.get((c["source"], c["row_id"]))) for c in data.comparison if is_number(c["margin"])]
    below = sorted(((m, p) for m, p in rows if m < 0 and p is not None), key=lambda both: both[0])
    found = []
    for margin, pair in below[:LOW_MARGINS]:
        texts = [
            shown_text("Chosen", "chosen", joined(pair.chosen)),
            shown_text("Rejected", "rejected", joined(pair.rejected)),
        ]
        note = mark_differences(*texts)
        turn = {"prompt": messages(pair.prompt), "texts": texts, "note": note, "judged": [], "graded": []}
        why = f"margin {number(margin)}"
        found.append({"id": pair.row_id, "why": why, "start": start_of(pair.prompt), "cut": "", "turns": [turn]})
    return found


def _suite_article(data: ReportInput, both: tuple[Row, Row], judged: list[Row], grades: list[Row]) -> Row:
    """One question of a suite, with all its turns."""
    sft, policy = both
    names = _names(data)
    turns, results = [], []
    for n, (before, after) in enumerate(zip(sft["turns"], policy["turns"], strict=True), 1):
        given = [g for g in grades if g["turn"] == n]
        said = {g["who"]: f"grade {g['score']:g}" if is_number(g["score"]) else "no grade" for g in given}
        texts = _both(data, before, after, said)
        note = mark_differences(*texts)
        references = sft["reference"] or []
        if n <= len(references):
            who = f"Reference ({sft['generator']})" if sft["generator"] else "Reference"
            texts.append(shown_text(who, "reference", references[n - 1]))
        words = [judged_words(j, names) for j in judged if j["turn"] == n]
        when = f"turn {n}: " if len(sft["turns"]) > 1 else ""
        results += [when + (f"{w['versus']}: {w['result']}" if len(words) > 1 else w["result"]) for w in words]
        turns.append(
            {
                "prompt": messages(before["prompt"] if n == 1 else before["prompt"][-1:]),
                "texts": texts,
                "note": note,
                "judged": words,
                "graded": [{"label": f"{names[g['who']]}: {said[g['who']]}", "text": g["text"] or ""} for g in given],
            }
        )
    start = start_of(sft["turns"][0]["prompt"])
    title = f"{sft['category']}: {start}" if sft["category"] else start
    return {"id": sft["id"], "why": "; ".join(results), "start": title, "cut": "", "turns": turns}


def suite_sections(data: ReportInput) -> list[Row]:
    """The answers to each suite's questions, as many as fit.

    Args:
        data: What the report tells.

    Returns:
        For each suite `title`, `articles`, `total`, and how many are `hidden`.
    """
    by_suite = {
        suite: list(found)
        for suite, found in groupby(sorted(data.suite_answers, key=lambda b: b[0]["suite"]), lambda b: b[0]["suite"])
    }
    sections = []
    for suite, found in by_suite.items():
        judged: dict[str, list[Row]] = {}
        for j in data.judgements:
            if j["suite"] == suite:
                judged.setdefault(j["id"], []).append(j)
        grades: dict[str, list[Row]] = {}
        for g in data.grades if suite == "mt_bench" else []:
            grades.setdefault(g["id"], []).append(g)
        articles = (_suite_article(data, b, judged.get(b[0]["id"], []), grades.get(b[0]["id"], [])) for b in found)
        kept = within(articles, SUITE_ROOM // len(by_suite))
        sections.append(
            {"title": SUITES.get(suite, suite), "articles": kept, "total": len(found), "hidden": len(found) - len(kept)}
        )
    return sections
