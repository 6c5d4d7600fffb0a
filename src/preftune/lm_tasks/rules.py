"""Rules about an answer's form that a program can check, in the style of IFEval (arXiv 2311.07911).

Every rule is a pure function of the answer and of its parameters. Where IFEval has the same rule, ours says the
same about the same answer, with the differences that docs/tasks.md lists. An empty answer follows no rule: `follows`
sees to that, so the rules need not.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_BULLET = re.compile(r"^\s*(?:\*[^*]|-(?!--)|•).*$", re.MULTILINE)
_NUMBERED = re.compile(r"^\s*(\d+)[.)]\s+\S", re.MULTILINE)
_LIST_MARK = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+", re.MULTILINE)
# A full stop that ends no sentence: after an abbreviation, after an initial.
_NO_END = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|U\.S|U\.K|[A-Z](?=\. +[A-Z]))\.")
_END = re.compile(r"(?<=[.!?])[\"'”’)\]*]*\s+(?=[^a-z\s])|\n+")


def _within(count: int, at_least: int | None, at_most: int | None) -> bool:
    return (at_least is None or count >= at_least) and (at_most is None or count <= at_most)


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, as IFEval counts them (so that "don't" is two)."""
    return re.findall(r"\w+", text)


def sentences(text: str) -> list[str]:
    """Sentences: they end at . ! ? before a space and something that is no small letter, and at line ends.

    The marks of lists, and the full stops of common abbreviations and of initials, are taken away first.
    """
    text = _NO_END.sub(r"\1", _LIST_MARK.sub("", text))
    return [s.strip() for s in _END.split(text) if re.search(r"\w", s)]


def paragraphs(text: str) -> list[str]:
    """What blank lines separate."""
    return [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]


def _occurrences(text: str, word: str) -> int:
    """How often a whole word (or phrase) stands in the text, in any case of letters."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def number_of_words(text: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """IFEval length_constraints:number_words."""
    return _within(len(words(text)), at_least, at_most)


def number_of_sentences(text: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """IFEval length_constraints:number_sentences."""
    return _within(len(sentences(text)), at_least, at_most)


def number_of_paragraphs(text: str, count: int) -> bool:
    """Exactly so many paragraphs, separated by blank lines."""
    return len(paragraphs(text)) == count


def paragraph_starts_with(text: str, count: int, paragraph: int, word: str) -> bool:
    """IFEval length_constraints:nth_paragraph_first_word; paragraphs are counted from 1."""
    found = paragraphs(text)
    return len(found) == count and words(found[paragraph - 1].lower())[:1] == [word.lower()]


def number_of_bullets(text: str, count: int) -> bool:
    """IFEval detectable_format:number_bullet_lists: lines that start with * or - (we allow • as well)."""
    return len(_BULLET.findall(text)) == count


def numbered_list(text: str, count: int) -> bool:
    """Lines that start with 1. 2. 3. … in this order, and none more."""
    return [int(n) for n in _NUMBERED.findall(text)] == list(range(1, count + 1))


def number_of_sections(text: str, marker: str, count: int) -> bool:
    """IFEval detectable_format:multiple_sections, but exactly so many: `Section 1`, `Section 2`, …"""
    return len(re.findall(rf"(?<!\w){re.escape(marker)}\s?\d+", text)) == count


def number_of_highlights(text: str, at_least: int) -> bool:
    """IFEval detectable_format:number_highlighted_sections: *so* or **so**, each counted once."""
    spans = re.findall(r"\*\*[^\n*]+\*\*|\*[^\n*]+\*", text)
    return sum(bool(s.strip("*").strip()) for s in spans) >= at_least


def number_of_placeholders(text: str, at_least: int) -> bool:
    """IFEval detectable_content:number_placeholders: [so]; empty brackets are none."""
    return len(re.findall(r"\[[^\[\]\n]+\]", text)) >= at_least


def upper_case(text: str) -> bool:
    """IFEval change_case:english_capital, without the language."""
    return text.isupper()


def lower_case(text: str) -> bool:
    """IFEval change_case:english_lowercase, without the language."""
    return text.islower()


def capital_words(text: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """IFEval change_case:capital_word_frequency: words in capitals only; a single letter ("I", "A") is none."""
    return _within(sum(w.isupper() and len(w) > 1 for w in words(text)), at_least, at_most)


def has_words(text: str, words: Sequence[str]) -> bool:
    """IFEval keywords:existence, but as whole words."""
    return all(_occurrences(text, w) for w in words)


def word_frequency(text: str, word: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """IFEval keywords:frequency, but as whole words."""
    return _within(_occurrences(text, word), at_least, at_most)


def lacks_words(text: str, words: Sequence[str]) -> bool:
    """IFEval keywords:forbidden_words."""
    return not any(_occurrences(text, w) for w in words)


def letter_frequency(text: str, letter: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """IFEval keywords:letter_frequency, in any case."""
    return _within(text.lower().count(letter.lower()), at_least, at_most)


def no_commas(text: str) -> bool:
    """IFEval punctuation:no_comma."""
    return "," not in text


def starts_with(text: str, phrase: str) -> bool:
    """The answer's first words, in any case of letters."""
    return bool(re.match(rf"\s*[\"“]?{re.escape(phrase)}(?!\w)", text, re.IGNORECASE))


def ends_with(text: str, phrase: str) -> bool:
    """IFEval startend:end_checker."""
    return text.strip().strip('"').lower().endswith(phrase.strip().lower())


def in_quotes(text: str) -> bool:
    """IFEval startend:quotation: wrapped in double quotation marks (straight ones, or “ and ”)."""
    text = text.strip()
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”'


def postscript(text: str, marker: str) -> bool:
    """IFEval detectable_content:postscript: a line starts with the marker, and something follows it."""
    spaced = r"\s?".join(re.escape(c) for c in marker)
    return bool(re.search(rf"^\s*{spaced}\W*\w", text, re.IGNORECASE | re.MULTILINE))


def title(text: str) -> bool:
    """IFEval detectable_format:title: <<so>>."""
    return any(t.strip("<> ") for t in re.findall(r"<<[^\n]+>>", text))


def json_only(text: str, keys: Sequence[str] | None = None) -> bool:
    """IFEval detectable_format:json_format, but an object (or a list, if no keys are asked for); fences are allowed.

    Args:
        text: The answer.
        keys: The object's keys, neither more nor fewer.
    """
    inner = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        value = json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list) if keys is None else isinstance(value, dict) and set(value) == set(keys)


def one_of(text: str, options: Sequence[str]) -> bool:
    """IFEval detectable_format:constrained_response, but nothing else may be said; quotes and full stop may differ."""
    said = text.strip().strip("\"'“”*.").strip().lower()
    return said in {o.strip().rstrip(".").lower() for o in options}


def repeats_prompt(text: str, prompt: str) -> bool:
    """IFEval combination:repeat_prompt: the answer starts with the request, word for word, and goes on."""
    text, prompt = text.strip().strip('"“”').lower(), prompt.strip().lower()
    return text.startswith(prompt) and bool(words(text[len(prompt) :]))


def two_answers(text: str) -> bool:
    """IFEval combination:two_responses: two different answers, separated by six asterisks."""
    parts = [p.strip() for p in text.split("******")]
    inner = [p for p in parts if p]
    return "" not in parts[1:-1] and len(inner) == 2 and inner[0] != inner[1]


def in_script(text: str, script: str) -> bool:
    """The letters are of a script (by their Unicode name: CYRILLIC, GREEK, HANGUL …), at least nine in ten."""
    letters = [c for c in text if c.isalpha()]
    names = tuple(script.upper().split("|"))
    own = sum(unicodedata.name(c, "").startswith(names) for c in letters)
    return bool(letters) and own >= 0.9 * len(letters)


RULES: dict[str, Callable[..., bool]] = {
    f.__name__: f
    for f in (
        *(number_of_words, number_of_sentences, number_of_paragraphs, paragraph_starts_with, number_of_bullets),
        *(numbered_list, number_of_sections, number_of_highlights, number_of_placeholders, upper_case, lower_case),
        *(capital_words, has_words, word_frequency, lacks_words, letter_frequency, no_commas, starts_with, ends_with),
        *(in_quotes, postscript, title, json_only, one_of, repeats_prompt, two_answers, in_script),
    )
}


def follows(text: str, rule: Mapping[str, Any]) -> bool:
    """Whether an answer follows a rule.

    Args:
        text: The answer.
        rule: `name`, and the rule's parameters.

    Returns:
        False for an answer without any letter or digit, whatever the rule.
    """
    parameters = {k: v for k, v in rule.items() if k != "name" and v is not None}
    return bool(re.search(r"\w", text)) and RULES[rule["name"]](text, **parameters)


def loose_variants(text: str) -> list[str]:
    """The texts of which one must pass under IFEval's loose accuracy (section 2.2).

    The answer without its first line, its last line, both; and each of these without asterisks.
    """
    lines = text.split("\n")
    cut = [text, "\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip(), "\n".join(lines[1:-1]).strip()]
    return cut + [c.replace("*", "") for c in cut]


def follows_loosely(text: str, rule: Mapping[str, Any]) -> bool:
    """Whether one of the variants follows a rule."""
    return any(follows(t, rule) for t in loose_variants(text))
