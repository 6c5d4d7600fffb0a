"""The rules of the task instructions: texts that pass and texts that fail, and IFEval's own code on the same texts.

Two of the packages that IFEval's module imports are not ours: they are stood in for where they do not matter
(`immutabledict` holds a table; `langdetect` is told that all is English). NLTK's data is not needed either: words
are split by its Treebank tokenizer, sentences by IFEval's own regular expressions.
"""

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from preftune.lm_tasks.documents import read_documents
from preftune.lm_tasks.rules import RULES, follows, follows_loosely, loose_variants, sentences

# rule, texts that follow it, texts that do not
CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (
        {"name": "number_of_words", "at_most": 3},
        ["one two three", "One, two!"],
        ["one two three four", "it's two here"],
    ),
    ({"name": "number_of_words", "at_least": 2, "at_most": 3}, ["a b", "a b c"], ["a", "a b c d"]),
    (
        {"name": "number_of_sentences", "at_least": 2, "at_most": 2},
        ["One. Two!", "Dr. Who is here. Is he?", 'He said "no." Then he left.', "One\nTwo", "At 3.5 km. Stop there."],
        ["One.", "One. Two. Three.", "J. R. Smith came, e.g. today."],
    ),
    ({"name": "number_of_sentences", "at_most": 1}, ["1. Only this one."], ["1. This.\n2. And this."]),
    ({"name": "number_of_paragraphs", "count": 2}, ["a\n\nb", "a\nb\n \n\nc\n"], ["a", "a\nb", "a\n\nb\n\nc"]),
    (
        {"name": "paragraph_starts_with", "count": 2, "paragraph": 2, "word": "However"},
        ["a\n\nHowever, b", 'a\n\n"however" b'],
        ["However a\n\nb", "a\n\nHowevers b", "a\n\nHowever b\n\nc", "However"],
    ),
    (
        {"name": "number_of_bullets", "count": 2},
        ["* a\n* b", "Here:\n - a\n - b", "• a\n• b", "*a\n*b"],
        ["* a", "* a\n* b\n* c", "**a**\n**b**", "1. a\n2. b", "---\n---"],
    ),
    (
        {"name": "numbered_list", "count": 2},
        ["1. a\n2. b", "Here:\n 1) a\n 2) b\nDone"],
        ["1. a", "1. a\n2. b\n3. c", "1. a\n1. b", "2. a\n1. b", "1.a\n2.b"],
    ),
    (
        {"name": "number_of_sections", "marker": "Part", "count": 2},
        ["Part 1\na\nPart 2\nb", "**Part 1:** a **Part 2:** b"],
        ["Part 1\na", "Part one\nPart two", "Part 1 Part 2 Part 3", "Apart 1 Apart 2"],
    ),
    ({"name": "number_of_highlights", "at_least": 2}, ["*a* and **b**"], ["*a*", "**b**", "* *, * * a", "*a\nb*"]),
    ({"name": "number_of_placeholders", "at_least": 2}, ["[a] [b c]"], ["[a]", "(a) (b)", "[] []", "[" * 100_000]),
    ({"name": "upper_case"}, ["ALL OF IT, 3 TIMES!"], ["ALL but one", "123"]),
    ({"name": "lower_case"}, ["all of it, 3 times!"], ["All of it", "123"]),
    ({"name": "capital_words", "at_least": 2}, ["THIS is GREAT"], ["THIS is it", "I am A man", "This Is It"]),
    (
        {"name": "has_words", "words": ["bee", "sun"]},
        ["A Bee in the SUN."],
        ["a bee", "a beetle in the sun", "bees, sun"],
    ),
    ({"name": "word_frequency", "word": "moon", "at_least": 2}, ["Moon, moon"], ["moon", "moonlight moons moon"]),
    ({"name": "word_frequency", "word": "moon", "at_least": 1, "at_most": 1}, ["a moon"], ["sun", "moon moon"]),
    ({"name": "lacks_words", "words": ["red", "fruit"]}, ["It is tired."], ["Red!", "a fruit"]),
    ({"name": "letter_frequency", "letter": "b", "at_least": 3}, ["Bob b", "bbb"], ["Bob", "dad"]),
    ({"name": "letter_frequency", "letter": "e", "at_most": 0}, ["A dog"], ["The dog", "E"]),
    ({"name": "no_commas"}, ["no comma; here."], ["one, two"]),
    (
        {"name": "starts_with", "phrase": "I would"},
        ["I would go.", '"i would" is', " I would"],
        ["I wouldn", "Well, I would"],
    ),
    (
        {"name": "ends_with", "phrase": "The end."},
        ["So. The end.", "so. THE END. ", '"The end."'],
        ["The end. Bye", "The end"],
    ),
    ({"name": "in_quotes"}, ['"Yes"', ' "a" and "b" ', "“Yes”"], ['"Yes', 'Yes"', "'Yes'", '""', 'He said "yes"']),
    (
        {"name": "postscript", "marker": "P.S."},
        ["Dear A\nP.S. Call me", "P. S. call", "p.s.: call"],
        ["P.S.", "PS call", "He wrote a P.S. to me", "Dear A\nP.S.\n"],
    ),
    ({"name": "title"}, ["<<My title>>\ntext"], ["<My title>", "<<>> text", "<< >> text", "<<a\nb>>"]),
    (
        {"name": "json_only", "keys": ["a", "b"]},
        ['{"a": 1, "b": 2}', '```json\n{"b": 1, "a": null}\n```', '```\n{"a": {}, "b": []}```'],
        ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}', '[{"a": 1, "b": 2}]', 'Here: {"a": 1, "b": 2}', "{'a': 1, 'b': 2}"],
    ),
    ({"name": "json_only"}, ["[1]", '{"a": 1}'], ["1", '"a"', "[1", "[1] done", "[" * 100_000 + "1"]),
    ({"name": "one_of", "options": ["yes", "no"]}, ["Yes.", '"no"', "**NO**"], ["yes, it is", "maybe", "yes no"]),
    (
        {"name": "repeats_prompt", "prompt": "What is it?"},
        ["What is it? A.", "what is it?\nb"],
        ["What is it?", "It is. What is it?"],
    ),
    (
        {"name": "two_answers"},
        ["a\n******\nb", "a******b******"],
        ["a", "a******a", "a******b******c", "a***b", "a************b"],
    ),
    ({"name": "in_script", "script": "GREEK"}, ["Καλημέρα, 3!"], ["Kalimera", "Καλη kalimera", "123"]),
    (
        {"name": "in_script", "script": "HIRAGANA|KATAKANA|CJK"},
        ["ありがとう", "日本、テレビ。"],
        ["arigatou", "Спасибо"],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0]["name"])
def test_rule(case: tuple[dict[str, Any], list[str], list[str]]) -> None:
    """Each text is judged as it says."""
    rule, good, bad = case
    assert [t for t in good if not follows(t, rule)] == []
    assert [t for t in bad if follows(t, rule)] == []


def test_every_rule_has_cases() -> None:
    """At least one text each way for every rule there is."""
    assert {rule["name"] for rule, good, bad in CASES if good and bad} == set(RULES)


def test_an_empty_answer_follows_nothing() -> None:
    """Not even a rule that forbids something, and not under the loose reading."""
    rules = [rule for rule, _, _ in CASES]
    for text in ("", " \n", "...", "***", '""', "?!"):
        assert not any(follows(text, rule) or follows_loosely(text, rule) for rule in rules)


def test_sentences() -> None:
    """List marks, abbreviations, initials and numbers end none."""
    text = "1. Mr. A met J. R. Tolkien, e.g. in May. It cost 3.50 euros!\n- Did it? Yes (really.) Fine"
    assert sentences(text) == [
        "Mr A met J R Tolkien, e.g in May.",
        "It cost 3.50 euros!",
        "Did it?",
        "Yes (really.",
        "Fine",
    ]


def test_loose_variants_are_those_of_the_paper() -> None:
    """First line, last line, both gone; each without asterisks (arXiv 2311.07911, section 2.2)."""
    assert loose_variants("Sure!\n*a* b\nBye") == [
        *("Sure!\n*a* b\nBye", "*a* b\nBye", "Sure!\n*a* b", "*a* b"),
        *("Sure!\na b\nBye", "a b\nBye", "Sure!\na b", "a b"),
    ]
    assert follows_loosely("Sure, here it is:\n**all in small letters**", {"name": "lower_case"})
    assert not follows("Sure, here it is:\n**all in small letters**", {"name": "lower_case"})


# --- IFEval's own code on the same texts ---

TEXTS = [t for _, good, bad in CASES for t in (*good, *bad) if len(t) < 1000]
TEXTS += [d["example"] for d in read_documents("instructions")]


@pytest.fixture(scope="module")
def ifeval() -> Any:
    """IFEval's instructions as lm-eval has them."""
    nltk = pytest.importorskip("nltk")
    patch = pytest.MonkeyPatch()
    stand_ins: dict[str, dict[str, Any]] = {
        "immutabledict": {"immutabledict": dict},
        "langdetect": {"detect": lambda text: "en", "LangDetectException": Exception},
    }
    for name, content in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        patch.setitem(sys.modules, name, module)
    patch.setattr(nltk.data, "find", lambda name: name)  # else it is downloaded
    from lm_eval.tasks.ifeval import instructions, instructions_util

    patch.setattr(instructions_util, "count_sentences", lambda t: len(instructions_util.split_into_sentences(t)))
    patch.setattr(nltk, "word_tokenize", nltk.tokenize.TreebankWordTokenizer().tokenize)
    yield instructions
    patch.undo()
    for name in [n for n in sys.modules if n.startswith("lm_eval.tasks.ifeval")]:
        del sys.modules[name]


def _theirs(ifeval: Any, checker: str, **arguments: Any) -> Callable[[str], bool]:
    instruction = getattr(ifeval, checker)("id")
    instruction.build_description(**arguments)
    return lambda text: bool(text.strip()) and bool(instruction.check_following(text))


# ours, theirs, its arguments, texts on which they differ by intention
SAME: list[tuple[dict[str, Any], str, dict[str, Any], Callable[[str], bool]]] = [
    ({"name": "number_of_words", "at_least": 5}, "NumberOfWords", {"num_words": 5, "relation": "at least"}, bool),
    ({"name": "number_of_words", "at_most": 9}, "NumberOfWords", {"num_words": 10, "relation": "less than"}, bool),
    (
        {"name": "number_of_placeholders", "at_least": 2},
        "PlaceholderChecker",
        {"num_placeholders": 2},
        lambda t: "[]" not in t,
    ),
    (
        {"name": "number_of_bullets", "count": 2},
        *("BulletListChecker", {"num_bullets": 2}),
        lambda t: "•" not in t and "---" not in t,
    ),
    ({"name": "upper_case"}, "CapitalLettersEnglishChecker", {}, bool),
    ({"name": "lower_case"}, "LowercaseLettersEnglishChecker", {}, bool),
    ({"name": "no_commas"}, "CommaChecker", {}, bool),
    ({"name": "title"}, "TitleChecker", {}, bool),
    ({"name": "two_answers"}, "TwoResponsesChecker", {}, bool),
    ({"name": "ends_with", "phrase": "The end."}, "EndChecker", {"end_phrase": "The end."}, bool),
    ({"name": "in_quotes"}, "QuotationChecker", {}, lambda t: "“" not in t),
    ({"name": "lacks_words", "words": ["red", "sun"]}, "ForbiddenWords", {"forbidden_words": ["red", "sun"]}, bool),
    (
        {"name": "letter_frequency", "letter": "b", "at_least": 2},
        *("LetterFrequencyChecker", {"letter": "b", "let_frequency": 2, "let_relation": "at least"}, bool),
    ),
    (
        {"name": "letter_frequency", "letter": "e", "at_most": 0},
        *("LetterFrequencyChecker", {"letter": "e", "let_frequency": 1, "let_relation": "less than"}, bool),
    ),
    (
        {"name": "capital_words", "at_least": 2},
        *("CapitalWordFrequencyChecker", {"capital_frequency": 2, "capital_relation": "at least"}),
        lambda t: all(len(w) > 1 or not w.isupper() for w in t.split()) and "*" not in t and "." not in t,
    ),
    (
        {"name": "paragraph_starts_with", "count": 2, "paragraph": 2, "word": "However"},
        *("ParagraphFirstWordCheck", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "However"}, bool),
    ),
    (
        {"name": "number_of_sentences", "at_least": 3},
        *("NumberOfSentences", {"num_sentences": 3, "relation": "at least"}),
        # theirs, without NLTK's data, knows neither lines nor lists nor our abbreviations, and drops a last part
        lambda t: "\n" not in t and "e.g." not in t and "J. R." not in t and not t.startswith("1."),
    ),
]


@pytest.mark.parametrize("case", SAME, ids=lambda c: f"{c[0]['name']}-{c[1]}")
def test_same_as_ifeval(case: Any, ifeval: Any) -> None:
    """Our rule and IFEval's say the same about every text, where no difference is meant."""
    rule, checker, arguments, comparable = case
    theirs = _theirs(ifeval, checker, **arguments)
    texts = [t for t in TEXTS if any(c.isalnum() for c in t) and comparable(t)]
    assert [t for t in texts if follows(t, rule) != theirs(t)] == []
    assert {follows(t, rule) for t in texts} == {True, False}  # else the comparison shows nothing


# ours asks for more: whole words, so many and no more, nothing said beside it
STRICTER: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"name": "has_words", "words": ["bee", "sun"]}, "KeywordChecker", {"keywords": ["bee", "sun"]}),
    (
        {"name": "word_frequency", "word": "moon", "at_least": 2},
        *("KeywordFrequencyChecker", {"keyword": "moon", "frequency": 2, "relation": "at least"}),
    ),
    (
        {"name": "number_of_sections", "marker": "Part", "count": 2},
        *("SectionChecker", {"section_spliter": "Part", "num_sections": 2}),
    ),
    ({"name": "number_of_highlights", "at_least": 2}, "HighlightSectionChecker", {"num_highlights": 2}),
    ({"name": "postscript", "marker": "P.S."}, "PostscriptChecker", {"postscript_marker": "P.S."}),
    ({"name": "json_only"}, "JsonFormat", {}),
    (
        {"name": "one_of", "options": ["My answer is yes.", "My answer is no."]},
        *("ConstrainedResponseChecker", {}),
    ),
    (
        {"name": "repeats_prompt", "prompt": "What is it?"},
        *("RepeatPromptThenAnswer", {"prompt_to_repeat": "What is it?"}),
    ),
]


@pytest.mark.parametrize("case", STRICTER, ids=lambda c: f"{c[0]['name']}-{c[1]}")
def test_stricter_than_ifeval(case: Any, ifeval: Any) -> None:
    """What follows our rule follows IFEval's."""
    rule, checker, arguments = case
    theirs = _theirs(ifeval, checker, **arguments)
    ours = [t for t in TEXTS if follows(t, rule)]
    assert ours and [t for t in ours if not theirs(t)] == []
