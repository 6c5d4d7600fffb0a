"""The audit's page: everything told, everything escaped, nothing loaded from elsewhere."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_audit import TRAIN, TRUNCATION, make_mixture, make_source, pair, quarantined, say, split
from test_report import parse

from preftune.audit.collect import collect
from preftune.audit.page import render_audit, trainable
from preftune.data.check_list import CHECKS

EVIL = "<script>alert('x')</script>"
ESCAPED = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"


def make(folder: Path, evil: str = "") -> dict[str, Any]:
    """Two datasets with all that a page can show; `evil` is put into every text that comes from outside."""
    talk = [*say("system", f"system{evil}"), *say("user", f"asked{evil}")]
    train = [
        *TRAIN,
        pair(talk, f"this is chosen{evil}", f"this is rejected{evil}", f"row-id{evil}", (4, 2)),
        pair(f"hardly different{evil}", "the same but for LETTERS", "the same but for letters", "t:5"),
        pair(f"again{evil}", f"one{evil}", "1", "t:6"),
        pair(f"again{evil}", f"two{evil}", "2", "t:7"),
        *(pair(f"question {i}", "a long answer " * i, "short", f"t:{i}") for i in range(8, 40)),
    ]
    rows = [
        quarantined("duplicate", {f"column{evil}": f"value{evil}"}, f"left-out{evil}"),
        quarantined("other_language", {"language": f"tongue{evil}"}),
        quarantined(f"reason-of-old{evil}", f"just text{evil}"),
    ]
    dropped = {"duplicate": 1, "other_language": 1, f"reason-of-old{evil}": 1}
    examples = {"duplicate": [f"example{evil}"], "toxic": [f"warned{evil}"]}
    report = {
        "id": f"data/one.jsonl{evil}",
        "source_digest": f"digest{evil}",
        "notices": [f"notice{evil}"],
        "train": split("train", len(train), dropped, warned={"toxic": 2}, examples=examples),
    }
    one = make_source(folder / "one", report, train, None, rows)
    test_name = f"split{evil}"
    two = {"id": "two", "train": split("train", 90, drawn=2), "test": split(test_name, 1, {"tie": 3}, examples={})}
    both = [pair(f"again{evil}", "x", "y", "u:1"), pair("z", "y", "x", "u:2")]
    tie = quarantined("tie", {"prompt": "z"}, name=test_name)
    second = make_source(folder / "two", two, both, [pair("Z", "w", "v", "u:3")], [tie] * 3)
    held = quarantined("prompt_held_out", both[1].model_dump(), f"held{evil}")
    ids = (report["id"], "two")
    info = {
        "by_source": dict(zip(ids, (len(train), 1), strict=True)),
        "shares": dict(zip(ids, (0.975, 0.025), strict=True)),
        "notices": [f"mixture notice{evil}"],
        "drawn": len(train) + 2,
    }
    mixture = make_mixture(folder / "mixture", [*train, both[0]], [pair("Z", "w", "v")], [held], **info)
    return collect([one, second], mixture, TRUNCATION, 42)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def page(data: dict[str, Any]) -> str:
    return render_audit(data)


def test_tells_everything(page: str) -> None:
    # rows: 40 pairs and 3 of one, 91 pairs and 3 of two
    assert (
        "Of 137 rows of 2 datasets, 131 became preference pairs; 2 are defective and 4 are left out by choice" in page
    )
    assert "pairs to train on and holds out 1." in page
    assert "at max_length 512, 121 pairs are too long" in page
    assert "At max_length 512, 31 of 1,000 pairs cannot be trained on and 121 lose tokens" in page
    for reason in ("duplicate", "other_language", "toxic", "tie", "prompt_held_out"):
        assert f"{CHECKS[reason].meaning}<code>{reason}</code>" in page
    for title in ("Largest length ratios", "Most similar answers", "Smallest score margins", "Longest prompts"):
        assert page.count(f"<h3>{title}</h3>") >= 1
    assert '<strong>2 pairs</strong>: <span dir="auto">again</span>' in page
    assert "Rows left out for their language: tongue 1." in page
    assert "the longer answer is the chosen one is often right" in page
    assert page.count('<figure class="chart">') == 4 + 3 + 4  # two has no scores


def test_counts_come_first_and_add_up(page: str) -> None:
    order = [page.index(f'<section id="{name}"') for name in ("counts", "todo", "s1", "s2", "overlap", "mixture")]
    assert order == sorted(order)
    table = re.search(r"<caption>Rows read and pairs kept</caption>.*?</table>", page, re.S)
    assert table
    rows = [re.findall(r'<td class="n">([\d,]*)</td>', row) for row in table[0].split("<tr>")[2:]]
    numbers = [[int(cell) for cell in row] for row in rows]
    assert numbers == [[43, 2, 1, 40, 0, 40], [90, 0, 0, 90, 88, 2], [4, 0, 3, 1, 0, 1], [137, 2, 4, 131, 88, 43]]
    assert all(read - bad - choice == kept and kept - more == drawn for read, bad, choice, kept, more, drawn in numbers)


def test_columns_of_max_rows_only_where_it_was_used(data: dict[str, Any], page: str) -> None:
    plain = {**data, "sources": data["sources"][:1]}
    assert "= Pairs" in page
    assert "= Pairs" not in render_audit(plain)


def test_is_well_formed(page: str) -> None:
    found = parse(page)
    assert len(found.ids) == len(set(found.ids))
    assert found.refers <= set(found.ids)
    assert found.levels[0] == 1
    assert found.levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(found.levels))


def test_can_be_read_without_eyes(page: str) -> None:
    tables = re.findall(r"<table.*?</table>", page, re.S)
    assert len(tables) >= 9
    for table in tables:
        assert "<caption>" in table
        assert 'scope="col"' in table
        assert table.count('<th scope="row">') >= 1
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        assert 'role="img"' in svg
        assert re.search(r"<title [^>]*>[^<]+</title><desc [^>]*>[^<]+</desc>", svg)
    assert '<html lang="en">' in page


def test_chosen_stands_left_of_rejected(page: str) -> None:
    sides = re.findall(r'<div class="one (\w+)">\s*<h4>(\w+)</h4>', page)
    assert len(sides) >= 20
    assert sides == [("chosen", "Chosen"), ("rejected", "Rejected")] * (len(sides) // 2)


def test_what_differs_is_marked(page: str) -> None:
    similar = page[page.index("<h3>Most similar answers") : page.index("<h3>Smallest")]
    assert "the same but for <mark>LETTERS</mark></div>" in similar
    assert "the same but for <mark>letters</mark></div>" in similar
    assert page.count("<mark>") == similar.count("<mark>")


def test_loads_nothing(page: str) -> None:
    assert not re.search(r"""(?:src|href|action|srcset)\s*=\s*["']?\s*(?!#|data:,)[^"'>]""", page)
    assert not re.search(r"@import|url\(\s*(?!#)", page)
    assert "<script" not in page
    assert "http://" not in page


def test_same_twice(data: dict[str, Any], page: str) -> None:
    assert render_audit(json.loads(json.dumps(data))) == page  # also as the step keeps it


def test_all_text_is_escaped(tmp_path: Path) -> None:
    text = render_audit(make(tmp_path, EVIL))
    parse(text)
    assert "<script" not in text
    for before in (
        "data/one.jsonl",
        "digest",
        "notice",
        "mixture notice",
        "reason-of-old",
        "example",
        "warned",
        "left-out",
        "held",
        "column",
        "value",
        "just text",
        "tongue",
        "split",
        "system",
        "asked",
        "chosen",
        "rejected",
        "row-id",
        "again",
    ):
        assert f"{before}{ESCAPED}" in text, before


def test_nothing_found(tmp_path: Path) -> None:
    train = [pair(f"question {i}", "ab", "cd", f"t:{i}") for i in range(20)]
    source = make_source(tmp_path / "s", {"id": "s", "train": split("train", 20)}, train, None, [])
    mixture = make_mixture(tmp_path / "m", train[:18], train[18:], [], by_source={"s": 18}, shares={"s": 1.0})
    text = render_audit(collect([source], mixture, None, 0))
    parse(text)
    assert "Of 20 rows of 1 dataset, 20 became preference pairs; 0 are defective." in text
    assert "No check found anything." in text
    assert "No two splits have a prompt in common" in text
    assert "Rows that became no pair" not in text
    assert "Most repeated prompts" not in text


def test_huge_rows_stay_out(tmp_path: Path) -> None:
    huge = "word " * 200_000
    train = [*TRAIN, pair(huge, huge, huge + "x", "t:9")]
    rows = [quarantined("too_long", {"chosen": huge * 3})]
    report = {"id": "s", "train": split("train", 5, {"too_long": 1})}
    source = make_source(tmp_path / "s", report, train, None, rows)
    mixture = make_mixture(tmp_path / "m", train, TRAIN[:1], [], by_source={"s": 5}, shares={"s": 1.0})
    text = render_audit(collect([source], mixture, None, 0))
    assert len(text) < 300_000
    assert "… (1,000,000 characters in all)" in text
    assert "… (3,000,000 characters in all)" in text
    assert "<mark>x</mark>" in text


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    rows = [quarantined("broken_text", {"a\ud800": "b\ud800"}, "c\ud800")]
    report = {"id": "s\ud800", "train": split("t\ud800", 4, {"broken_text": 1})}
    source = make_source(tmp_path / "s", report, TRAIN, None, rows)
    mixture = make_mixture(tmp_path / "m", TRAIN, TRAIN[:1], [])
    (tmp_path / "audit.html").write_text(render_audit(collect([source], mixture, None, 0)))


def test_pairs_of_which_nothing_is_left_are_not_promised() -> None:
    """Of 265 pairs 36 are lost at max_length: 229 can be trained on; where nothing could be counted, all."""
    mixture = {"mixture": {"train": 265}}
    assert (
        trainable({**mixture, "truncation": {"counts": {"prompt_fills_max_length": 30, "empty_after_cut": 6}}}) == 229
    )
    assert trainable({**mixture, "truncation": {"not_counted": "no tokenizer.json"}}) == 265
    assert trainable({**mixture, "truncation": None}) == 265
