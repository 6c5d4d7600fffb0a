"""The tasks that come with preftune: their documents are sound, every prompt can be answered, hooks say their part."""

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from preftune.lm_tasks import facts, instructions
from preftune.lm_tasks.documents import FOLDER, read_documents
from preftune.lm_tasks.rules import RULES, follows

ROOT = Path(__file__).parent.parent
FACTS = read_documents("facts")
INSTRUCTIONS = read_documents("instructions")


def test_enough_of_everything() -> None:
    """As many documents and kinds of rules as docs/tasks.md says; ids and texts are there once."""
    assert len(FACTS) >= 120 and len(INSTRUCTIONS) >= 70
    assert {r["name"] for d in INSTRUCTIONS for r in d["rules"]} == set(RULES) and len(RULES) >= 14
    assert sum(len(d["rules"]) > 1 for d in INSTRUCTIONS) >= 10
    for documents, text in ((FACTS, "question"), (INSTRUCTIONS, "prompt")):
        assert {n for field in ("id", text) for n in Counter(d[field] for d in documents).values()} == {1}
        assert all(d["cluster"] for d in documents)


def test_the_first_documents_are_a_fair_part() -> None:
    """A task_limit takes the first ones: they must not all be of one kind."""
    assert len({d["topic"] for d in FACTS[:40]}) == len({d["topic"] for d in FACTS})
    assert len({d["cluster"] for d in FACTS[:40]}) >= 20
    assert len({d["cluster"] for d in INSTRUCTIONS[:40]}) >= 15


def test_a_fact_is_not_told_by_its_question() -> None:
    """Repeating the question is wrong, each accepted answer is right, alone and in a sentence."""
    for document in FACTS:
        accepted = document["answers"]
        assert not facts.is_correct(f"{document['question']} Answer in a few words.", accepted), document
        for answer in accepted:
            assert facts.is_correct(answer, accepted) and facts.is_correct(f"Sure! It is **{answer}**.", accepted)


def test_an_instruction_can_be_followed() -> None:
    """The hand-made answer passes strictly; an empty one does not pass at all."""
    for document in INSTRUCTIONS:
        row = {**document, "rules": json.dumps(document["rules"])}
        found = instructions.process_results(row, [document["example"]])
        assert found["prompt_level_strict_acc"] == found["prompt_level_loose_acc"] == 1.0, document
        assert found["inst_level_strict_acc"] == found["inst_level_loose_acc"] == [True] * len(document["rules"])
        assert instructions.process_results(row, [""])["prompt_level_loose_acc"] == 0.0


def test_every_rule_of_a_prompt_can_be_broken() -> None:
    """A rule that any answer follows would measure nothing: a few plain answers, or a forbidden word, break each."""
    plain = ["I do not know, sorry.", "Well", "The apple fell, and it was red.\n\n" * 9, "e" * 99]
    for document in INSTRUCTIONS:
        for rule in document["rules"]:
            answers = [*plain, f"Not a {rule['words'][0]}!"] if rule["name"] == "lacks_words" else plain
            assert not all(follows(text, rule) for text in answers), (document["prompt"], rule)


def test_normalise() -> None:
    """By hand."""
    assert facts.normalise('The  Château, of Brasília\'s "U.S." 7+5=12; 1,000 an H₂O!') == (
        "chateau of brasilia u s 7 5 12 1000 h2o"
    )
    assert facts.normalise("a An THE") == ""


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("Paris", True),
        ("It's PARIS.", True),
        ("Paris's", True),
        ("The answer: **Paris**", True),
        ("Parisian", False),
        ("comparison", False),
        ("", False),
        ("...", False),
        ("London\nParis", True),
    ],
)
def test_is_correct(text: str, correct: bool) -> None:
    """Whole words count, in any dress."""
    assert facts.is_correct(text, ["Paris"]) is correct


def test_numbers_are_whole() -> None:
    """12 is neither in 312 nor in 1.2."""
    assert facts.is_correct("7 + 5 = 12.", ["12", "twelve"])
    assert not facts.is_correct("7 + 5 = 312 or 1.2", ["12", "twelve"])
    assert facts.is_correct("There are 1,000 grams.", ["1000"])


def test_instruction_metrics_by_hand() -> None:
    """Two rules, of which one is followed strictly and both loosely."""
    rules = [{"name": "lower_case"}, {"name": "no_commas"}]
    found = instructions.process_results({"rules": json.dumps(rules)}, ["Sure thing!\nall is small"])
    assert found == {
        "prompt_level_strict_acc": 0.0,
        "inst_level_strict_acc": [False, True],
        "prompt_level_loose_acc": 1.0,
        "inst_level_loose_acc": [True, True],
    }
    assert instructions.share_of_rules([[True, False], [True], [False, False, True]]) == 0.5


def test_the_data_is_packaged() -> None:
    """Hatchling takes all files of the package that git does not ignore: the task files and their documents too."""
    files = [str(FOLDER / name) for name in ("facts.jsonl", "facts.yaml", "instructions.jsonl", "instructions.yaml")]
    assert all(Path(f).is_file() for f in files)
    assert subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True).returncode == 1
