"""What to do about what the audit found, in words."""

from typing import Any

from preftune.audit.tables import kind_of
from preftune.data.check_list import CHECKS

LENGTH_TELLS = 0.6  # guessing by length is told from here on, well before the check length_tells warns

ADVICE = {
    "not_an_object": 'Write one object a line, with named fields: {"prompt": …, "chosen": …, "rejected": …}.',
    "missing_answer": "If the answers stand in other columns, name them in the dataset's entry (columns: …). "
    "If a row really has one answer only, it is no preference data: use it for SFT.",
    "wrong_type": "Make prompt, chosen and rejected texts, or lists of messages with role and content.",
    "unknown_role": "Rename the roles to user, assistant and system. Tool calls cannot be trained on as pairs.",
    "empty_prompt": "Give each row its prompt. If it stands in another column, name it in the entry (columns: …).",
    "empty_answer": "An empty rejected answer teaches only to write something. Generate the answer again, "
    "or leave the row out.",
    "last_turn_not_assistant": "End both conversations with the assistant's turn: cut what the user says after it.",
    "unequal_turns": "Cut both conversations after the first answer that differs.",
    "prompts_differ": "Compare only answers to the same conversation: cut both where they first go apart.",
    "broken_text": "Cut texts by characters, not by bytes or UTF-16 units, when the data is made.",
    "not_an_answer": "Nothing: these messages stand in the prompts of the pairs.",
    "best_answer": "Nothing: these answers are chosen in another row's pair.",
    "no_rank": "Nothing, unless you have ranks for them from elsewhere.",
    "deleted": "Nothing: they were taken back, or failed their review.",
    "later_turn": "Nothing: only answers to the same conversation can be compared.",
    "other_language": "To keep more languages, name them in validation.languages. Check first that the starting "
    "model speaks them.",
    "tie": "Nothing: a tie says nothing about what is better. Many of them say that the raters, or the scale, "
    "are too coarse.",
    "identical": "Nothing is learned from them. If there are many, look for a time-out or a cache where the answers "
    "are generated.",
    "not_alternating": "Merge turns in a row by one speaker, and put a system turn first. Chat templates refuse or "
    "distort anything else.",
    "control_tokens": "Remove the chat template's markup from the texts: it ends a turn, or forges one. "
    "Often the answers were generated without stopping at the end of the turn.",
    "control_characters": "Remove the character NUL; it comes from a broken export.",
    "too_long": "A text this long is a file, or a loop. Cut it where the data is made.",
    "duplicate": "Nothing: one of each is kept. Many of them say that the data was joined twice.",
    "contradiction": "Two raters disagree, or two columns were swapped. Read some; if raters disagree often, "
    "ask several and keep the majority.",
    "prompt_mismatch": "The conversation in the answers is what is trained on. Check that the column prompt belongs "
    "to the same row; shifted columns look like this.",
    "score_inverted": "Read the smallest score margins below: the sides may be swapped, or the score means the "
    "opposite (1 is best).",
    "toxic": "Read some. If the model must not see them, write validation: {severity: {toxic: drop}}. For training "
    "a model to refuse, they are needed.",
    "in_gsm8k_train": "If you measure on GSM8K, write validation: {severity: {in_gsm8k_train: drop}}.",
    "prompt_held_out": "Nothing: what is held out is never trained on. Many of them say that train and test overlap "
    "at the source.",
    "near_held_out": "Nothing: paraphrases of held-out prompts would make the verdict too good. If they are no "
    "paraphrases but one template, raise validation.near_duplicates.",
    "near_duplicate": "Nothing: one of each is kept. Two sources that share much are one source: set their weights so.",
    "over_share": "Nothing: the other pairs of this dataset outnumber what weighting: share asks for.",
    "contaminated": "Nothing: evaluation sets stay out of training.",
    "prompt_fills_max_length": "Raise max_length, or leave long prompts out of the data.",
    "empty_after_cut": "Raise max_length: the prompt leaves no room for an answer.",
    "identical_after_cut": "Raise max_length: the answers differ only after the cut.",
    "length_tells": "The model can win by writing {which} answers, whatever they say. Balance the lengths (drop some "
    "of the pairs in which the {which} answer is chosen), and watch response_tokens in the verdict.",
    "test_split_trained": "Train on the dataset's own training split, or keep every result on this test set to "
    "yourself: it is not one any more.",
}


def _card(kind: str, reason: str, title: str, advice: str, where: list[str]) -> dict[str, Any]:
    return {"kind": kind, "reason": reason, "title": title, "advice": advice, "where": where}


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({count / total:.1%})" if total else f"{count:,}"


def _from_checks(data: dict[str, Any]) -> list[dict[str, Any]]:
    """A card for each check that found something, with all places where it did."""
    cards: dict[tuple[str, str], dict[str, Any]] = {}
    weight: dict[tuple[str, str], float] = {}
    places = [
        (f"{source['label']}, {split['split']}", split["read"], split["reasons"])
        for source in data["sources"]
        for split in source["splits"]
    ]
    places.append(("mixture", data["mixture"]["drawn"], data["mixture"]["reasons"]))
    for label, total, reasons in places:
        for found in reasons:
            kind = kind_of(found)
            key = kind, found["reason"]
            advice = ADVICE.get(found["reason"], "")
            card = cards.setdefault(key, _card(kind, found["reason"], found["meaning"], advice, []))
            card["where"].append(f"{label}: {_share(found['count'], total)}")
            weight[key] = max(weight.get(key, 0.0), found["count"] / max(total, 1))
    return [cards[key] for key in sorted(cards, key=lambda key: -weight[key])]


def _from_figures(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Cards about what is no defect of a row: lengths, answers that hardly differ, trained test splits."""
    tells: dict[str, list[str]] = {}
    alike, tests = [], []
    for source in data["sources"]:
        for split in source["splits"]:
            label = f"{source['label']}, {split['split']}"
            if split["side"] == "train" and split["split"].startswith("test"):
                tests.append(label)
            if not (figures := split["figures"]):
                continue
            found = figures["length_accuracy"]
            if found["low"] > LENGTH_TELLS:
                text = (
                    f"{label}: right in {found['value']:.1%} (95% interval {found['low']:.1%} to {found['high']:.1%})"
                )
                tells.setdefault(found["which"], []).append(text)
            if figures["alike"]:
                alike.append(f"{label}: {_share(figures['alike'], figures['pairs'])}")
    cards = [
        _card(
            "warning",
            "length_tells",
            f"guessing that the {which} answer is the chosen one is often right",
            ADVICE["length_tells"].format(which=which),
            where,
        )
        for which, where in tells.items()
    ]
    if tests:
        cards.append(
            _card(
                "warning",
                "test_split_trained",
                CHECKS["test_split_trained"].meaning,
                ADVICE["test_split_trained"],
                tests,
            )
        )
    if alike:
        text = "Little is learned from them, and much of it about form. Read some below; if the difference is one "
        text += "letter, leave them out."
        cards.append(_card("note", "", "the two answers are at least 90% the same", text, alike))
    return cards


def _from_truncation(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    if found is None or "not_counted" in found or not found["cut"]:
        return []
    lost = {name: n for name, n in found["counts"].items() if n}
    where = [f"{CHECKS[name].meaning} ({name}): {_share(n, found['pairs'])}" for name, n in lost.items()]
    where.append(f"tokens are cut off: {_share(found['cut'], found['pairs'])}")
    text = f"95% of the pairs stay whole at max_length {found['max_length_95']:,}, 99% at {found['max_length_99']:,}: "
    text += "raise it if the memory allows, or leave the longest pairs out of the data."
    title = f"at max_length {found['max_length']:,}, {found['cut']:,} pairs are too long"
    return [_card("warning", "", title, text, where)]


def advice(data: dict[str, Any]) -> list[dict[str, Any]]:
    """What was found and what to do about it; what is still in the training data first.

    Args:
        data: From `audit.collect`.

    Returns:
        Cards: `kind` (`defect`, `warning`, `note`, `choice`), `reason` (a check's name or empty), `title`,
        `advice`, and `where` (a line a place).
    """
    cards = [*_from_figures(data), *_from_checks(data)]
    order = ("warning", "note", "defect", "choice")
    cards.sort(key=lambda card: order.index(card["kind"]))
    return [*_from_truncation(data["truncation"]), *cards]
