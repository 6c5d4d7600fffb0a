"""The audit's data: counts that add up, figures by hand, samples that do not depend on order."""

import io
import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from preftune.audit.advice import ADVICE, advice
from preftune.audit.collect import audit_json, collect, reason_rows
from preftune.audit.console import show_audit
from preftune.audit.measures import Figures, edges_of, histogram, measure, quantile
from preftune.audit.samples import (
    LONGEST_ROW,
    WORST,
    Gallery,
    Reservoir,
    Top,
    cut,
    shared_ends,
    shown_messages,
    shown_pair,
    shown_row,
)
from preftune.audit.tables import counts_table, figure_table, mixture_table, truncation_table
from preftune.data.check_list import CHECKS
from preftune.data.lengths import truncation
from preftune.data.pairs import Pair, group_of


def say(role: str, *texts: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for text in texts]


def pair(
    asked: str | list[dict[str, str]], chosen: str, rejected: str, row_id: str = "r", scores: tuple[float, ...] = ()
) -> Pair:
    prompt = say("user", asked) if isinstance(asked, str) else asked
    values = dict(zip(("score_chosen", "score_rejected"), scores, strict=bool(scores)))
    texts = {"chosen": say("assistant", chosen), "rejected": say("assistant", rejected)}
    return Pair(prompt=prompt, **texts, source="s", row_id=row_id, group_id=group_of(prompt), **values)


TALK = [*say("system", "Be brief."), *say("user", "b"), *say("assistant", "c"), *say("user", "d")]
TRAIN = [  # characters of chosen and rejected: 4 and 2, 3 and 3, 10 and 4, 1 and 5
    pair("a", "aaaa", "bb", "t:1", (5, 1)),
    pair("A ", "ccc", "ddd", "t:2", (1, 2)),  # the first prompt, but for case and white space
    pair(TALK, "eeeeeeeeee", "ffff", "t:3"),
    pair("g", "h", "iiiii", "t:4"),
]


def split(name: str, kept: int, dropped: dict[str, int] | None = None, **more: Any) -> dict[str, Any]:
    """As checks.py reports a split."""
    dropped = dropped or {}
    found = {"split": name, "read": kept + sum(dropped.values()), "kept": kept, "drawn": kept, "dropped": dropped}
    found |= {"warned": {}, "examples": {r: [f"{name}:{i}" for i in range(min(n, 5))] for r, n in dropped.items()}}
    found |= {"mean_chars": {"chosen": 10.0, "rejected": 9.5}, "chosen_longer": 0.5, "length_accuracy": 0.625}
    return found | more


def quarantined(reason: str, row: Any, row_id: str = "t:9", name: str = "train") -> dict[str, Any]:
    meaning = CHECKS[reason].meaning if reason in CHECKS else reason
    return {"source": "s", "split": name, "row_id": row_id, "reason": reason, "meaning": meaning, "row": row}


def lines(path: Path, rows: list[Any]) -> None:
    texts = [row.model_dump_json() if isinstance(row, Pair) else json.dumps(row) for row in rows]
    path.write_text("".join(text + "\n" for text in texts))


def make_source(
    folder: Path, report: dict[str, Any], train: list[Pair], test: list[Pair] | None, rows: list[Any]
) -> Path:
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"source_digest": "9f2c" * 16, "notices": []} | report))
    lines(folder / "train.jsonl", train)
    if test is not None:
        lines(folder / "test.jsonl", test)
    lines(folder / "quarantine.jsonl", rows)
    return folder


def make_mixture(folder: Path, train: list[Pair], test: list[Pair], rows: list[Any], **info: Any) -> Path:
    folder.mkdir()
    found = {"drawn": len(train) + len(rows), "train": len(train), "test": len(test), "warned": {}, "notices": []}
    found |= {"dropped": dict(Counter(row["reason"] for row in rows)), "by_source": {"one": len(train)}}
    found |= {"shares": {"one": 1.0}, "overlaps": [], "test_dropped": {}}
    (folder / "mixture.json").write_text(json.dumps(found | info))
    for name, content in (("train", train), ("test", test), ("quarantine", rows)):
        lines(folder / f"{name}.jsonl", content)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[list[Path], Path]:
    """Two sources: `one` (6 rows: 4 pairs, a duplicate, a tie) and `two` (max_rows 2 of 3; a test split of 1)."""
    rows = [quarantined("duplicate", {"prompt": "a", "chosen": "aaaa"}), quarantined("tie", {"prompt": "x"})]
    one = make_source(
        tmp_path / "one", {"id": "one", "train": split("train", 4, {"duplicate": 1, "tie": 1})}, TRAIN, None, rows
    )
    other = [pair("a", "other", "answer", "u:1"), pair("z", "y", "x", "u:2")]
    report = {"id": "two", "train": split("train_prefs", 3, drawn=2), "test": split("test_prefs", 1, {"tie": 2})}
    two = make_source(tmp_path / "two", report, other, [pair("Z", "w", "v", "u:3")], [])
    held = quarantined("prompt_held_out", other[1].model_dump(), "u:2")
    mixture = make_mixture(tmp_path / "mixture", TRAIN, [pair("Z", "w", "v"), pair("q", "w", "v")], [held], drawn=5)
    return [one, two], mixture


def test_figures_by_hand() -> None:
    figures = Figures()
    for p in TRAIN:
        measure(p, "train", figures)
    found = figures.result()
    assert found is not None
    assert (found["pairs"], found["prompts"], found["with_system"], found["alike"]) == (4, 3, 1, 0)
    assert found["turns"] == [(1, 3), (2, 1)]
    accuracy = found["length_accuracy"]
    assert (accuracy["which"], accuracy["longer"], accuracy["equal"], accuracy["value"]) == ("longer", 2, 1, 0.625)
    # Wilson by hand: n = 4, p = 0.625, z = 1.959964, z² = 3.841459
    centre, spread = (0.625 + 3.841459 / 8) / (1 + 3.841459 / 4), 1.959964 / (1 + 3.841459 / 4)
    half = spread * math.sqrt(0.625 * 0.375 / 4 + 3.841459 / 64)
    assert accuracy["low"] == pytest.approx(centre - half, abs=1e-6)
    assert accuracy["high"] == pytest.approx(centre + half, abs=1e-6)
    chosen = found["lengths"]["chosen"]
    assert (chosen["mean"], chosen["median"], chosen["p95"], chosen["least"], chosen["most"]) == (4.5, 3, 10, 1, 10)
    assert found["lengths"]["prompt"]["most"] == len("Be brief.bcd")
    assert found["difference"]["mean"] == pytest.approx((2 + 0 + 6 - 4) / 4)
    margin = found["margin"]
    assert (margin["pairs"], margin["below_zero"], margin["mean"]) == (2, 1, 1.5)


def test_figures_without_pairs_or_scores() -> None:
    assert Figures().result() is None
    figures = Figures()
    measure(TRAIN[3], "train", figures)
    found = figures.result()
    assert found is not None
    assert found["margin"] is None
    assert found["length_accuracy"]["which"] == "shorter"


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 2), (0.76, 9), (1.0, 9)]
)
def test_quantile(share: float, expected: int) -> None:
    assert quantile(Counter({1: 1, 2: 2, 9: 1}), share) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 3], [0, 1, 2, 3, 4]),  # whole values: a bar each
        ([5, 5], [5, 6]),
        ([-20, 30], [-20, -18, 30, 32]),
        ([100, 1600], [0, 100, 1600, 1700]),  # 1600 / 30 = 53.3: the next round width is 100
        ([900, 1000], [900, 905, 1000, 1005]),  # far from 0, the axis begins where the values do
        ([0.25, 0.75], [0, 0.05, 0.75, 0.8]),
    ],
)
def test_edges(values: list[float], expected: list[float]) -> None:
    found = edges_of(Counter(values))
    shown = found if len(found) <= 5 else [*found[:2], *found[-2:]]
    assert shown == pytest.approx(expected)


def test_histogram_by_hand() -> None:
    found = histogram(Counter({-5: 2, 0: 1, 9: 1, 10: 3, 30: 4}), [0, 10, 20])
    assert found == {"edges": [0, 10, 20], "counts": [4, 7], "beyond": 6}


numbers = st.one_of(st.integers(-(10**7), 10**7), st.floats(-1e300, 1e300))


@given(st.lists(numbers, min_size=1, max_size=80))
@example([1e300, 1e300 * (1 + 1e-15)])
@example([0.0])
@example([1.0, 1.0])
@example([0.3, 0.3, 0.3])
@example([-0.0, 5e-324])
def test_histograms_lose_nothing(values: list[float]) -> None:
    counter = Counter(values)
    edges = edges_of(counter)
    found = histogram(counter, edges)
    assert sum(found["counts"]) == len(values)
    assert 2 <= len(edges) <= 70
    assert all(a < b for a, b in itertools.pairwise(edges))
    assert found["beyond"] <= 0.02 * len(values) + 1


@given(st.text("ab", max_size=8), st.text("ab", max_size=8))
def test_shared_ends(a: str, b: str) -> None:
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest, other = a[start:][::-1], b[start:][::-1]
    end = next((i for i, (x, y) in enumerate(zip(rest, other, strict=False)) if x != y), min(len(rest), len(other)))
    assert shared_ends(a, b) == (start, end)


def test_cut() -> None:
    assert cut("x" * 10, 10) == "x" * 10
    assert cut("x" * 1234, 3) == "xxx… (1,234 characters in all)"


def test_a_huge_row_is_shown_in_little() -> None:
    shown = shown_row({"prompt": "p" * 5_000_000, "chosen": [{"role": "user", "content": "c" * 5000}], "n": 3})
    assert [name for name, _ in shown] == ["prompt", "chosen", "n"]
    assert shown[0][1].startswith("ppp")
    assert shown[0][1].endswith("… (5,000,000 characters in all)")
    assert shown[2] == ("n", "3")
    assert sum(len(name) + len(text) for name, text in shown) < LONGEST_ROW + 100


def test_a_row_of_many_columns_and_a_row_that_is_no_object() -> None:
    shown = shown_row({f"column {i}": "x" * 50 for i in range(1000)})
    assert shown[-1] == ("…", f"and {1000 - len(shown) + 1:,} more columns")
    assert sum(len(name) + len(text) for name, text in shown) < LONGEST_ROW + 100
    assert shown_row("just text") == [("", "just text")]
    assert shown_row([1, None]) == [("", "[1, null]")]


def test_long_conversations_are_shown_in_part() -> None:
    talk = say("user", *(str(i) for i in range(9)))
    assert [m["content"] for m in shown_messages(talk)] == ["0", "1", "… 3 messages are not shown …", *"5678"]
    assert [m["content"] for m in shown_messages(talk[:7])] == list("0123456")


def test_what_differs_is_marked_and_in_sight() -> None:
    start, end = "s" * 5000, "e" * 5000
    shown = shown_pair(pair("q", f"{start}LEFT{end}", f"{start}no{end}"), "train", mark=True)
    assert shown["chosen"]["text"] == ["… " + "s" * 200, "LEFT", "e" * 200 + " …"]
    assert shown["rejected"]["text"][1] == "no"
    assert shown["rejected"]["chars"] == 10_002
    assert shown_pair(TRAIN[0], "train")["chosen"] == {"text": ["", "aaaa", ""], "chars": 4, "score": 5.0}


def test_reservoir_is_uniform_and_repeatable() -> None:
    def draw(seed: str) -> list[int]:
        reservoir = Reservoir(3, seed)
        for i in range(10):
            reservoir.offer(lambda i=i: i)
        return reservoir.items

    assert draw("1") == draw("1")
    counts = Counter(i for seed in range(2000) for i in draw(str(seed)))
    assert set(counts) == set(range(10))
    assert all(abs(n / 2000 - 0.3) < 0.05 for n in counts.values())  # 5 standard deviations


def test_top_keeps_the_earlier_of_equals_and_makes_only_what_it_takes() -> None:
    top, made = Top(2), []

    def make(name: str) -> str:
        made.append(name)
        return name

    for key, name in ((1, "a"), (3, "b"), (3, "c"), (3, "d"), (2, "e")):
        top.offer(key, lambda name=name: make(name))
    assert top.items == ["b", "c"]
    assert made == ["a", "b", "c"]


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60))
def test_most_repeated_prompts(asked: list[str]) -> None:
    gallery = Gallery(1, "")
    for name in asked:
        measure(pair(name, "x", "y"), "train", Figures(), gallery)
    expected = sorted((n for n in Counter(asked).values() if n > 1), reverse=True)[:WORST]
    found = gallery.result()["repeated"]
    assert [r["count"] for r in found] == expected
    assert all(Counter(asked)[r["prompt"][0]["content"]] == r["count"] for r in found)


def test_what_stands_out() -> None:
    gallery, figures = Gallery(6, "1"), Figures()
    alike = pair("long " * 99, "the same but for one LETTER", "the same but for one letter", "alike", (9, 1))
    for p in [*TRAIN, alike]:
        measure(p, "train", figures, gallery)
    found = {name: [p["row_id"] for p in pairs] for name, pairs in gallery.result()["worst"].items()}
    assert found["length_ratio"] == ["t:4", "t:3", "t:1"]  # 5, 2.5 and 2 times
    assert found["alike"] == ["alike"]  # 21 of 27 characters; the others have nothing in common
    assert found["margin_low"] == ["t:2", "t:1", "alike"]
    assert found["margin_high"] == ["alike", "t:1", "t:2"]
    assert found["longest_prompt"][0] == "alike"
    assert sorted(p["row_id"] for p in gallery.result()["random"]) == ["alike", "t:1", "t:2", "t:3", "t:4"]


def test_collect(folders: tuple[list[Path], Path]) -> None:
    sources, mixture = folders
    data = collect(sources, mixture, None, 42)
    assert json.loads(json.dumps(data)) == json.loads(json.dumps(collect(sources, mixture, None, 42)))
    one, two = data["sources"]
    train = one["splits"][0]
    counts = {key: train[key] for key in ("read", "kept", "drawn", "defective", "by_choice")}
    assert counts == {"read": 6, "kept": 4, "drawn": 4, "defective": 1, "by_choice": 1}
    assert [(r["reason"], r["count"], r["dropped"], r["choice"]) for r in train["reasons"]] == [
        ("duplicate", 1, True, False),
        ("tie", 1, True, True),
    ]
    assert train["reasons"][0]["examples"] == ["train:0"]
    assert train["figures"]["pairs"] == 4
    assert [row["reason"] for row in one["rows"]] == ["duplicate", "tie"]
    assert one["rows"][0]["columns"] == [("prompt", "a"), ("chosen", "aaaa")]
    assert [s["side"] for s in two["splits"]] == ["train", "test"]
    assert {p["row_id"] for p in two["random"]} == {"u:1", "u:2", "u:3"}
    # "a" stands in both training splits, "z" on both sides of two
    assert data["overlaps"] == [("one", "train", "two", "train", 1), ("two", "train", "two", "test", 1)]
    assert data["mixture"]["reasons"][0]["examples"] == ["u:2"]
    assert data["mixture"]["figures"]["test"]["pairs"] == 2


def test_what_is_drawn_does_not_depend_on_the_order(tmp_path: Path) -> None:
    many = [pair(f"question {i}", "yes", "no", f"t:{i}") for i in range(200)]
    report = {"train": split("train", 200)}
    sources = [make_source(tmp_path / n, {"id": n, **report}, many, None, []) for n in ("one", "two")]
    mixture = make_mixture(tmp_path / "mixture", many, many[:1], [])

    def drawn(sources: list[Path], seed: int) -> dict[str, list[str]]:
        return {s["id"]: [p["row_id"] for p in s["random"]] for s in collect(sources, mixture, None, seed)["sources"]}

    first = drawn(sources, 1)
    assert first == drawn(sources[::-1], 1)
    assert first["one"] != first["two"]
    assert first["one"] != drawn(sources, 2)["one"]
    assert all(len(set(ids)) == 6 for ids in first.values())


def test_one_dataset_named_twice(tmp_path: Path) -> None:
    sources = [
        make_source(tmp_path / name, {"id": "same", "train": split("train", 4)}, TRAIN, None, []) for name in "ab"
    ]
    data = collect(sources, make_mixture(tmp_path / "m", TRAIN, TRAIN[:1], []), None, 0)
    assert [s["label"] for s in data["sources"]] == ["same", "same (entry 2)"]
    assert data["overlaps"] == [("same", "train", "same (entry 2)", "train", 3)]


def test_left_out_rows_are_few_and_languages_are_counted(tmp_path: Path) -> None:
    spoken = ["de", "de", "fr", None]
    rows = [
        quarantined("other_language", {"lang": language, "text": "x" * 10_000}, f"t:{i}")
        for i, language in enumerate(spoken)
    ]
    rows += [quarantined("too_long", {"chosen": "y" * 3_000_000}, "i" * 5000), quarantined("empty_answer", None)]
    dropped = {"other_language": 4, "too_long": 1, "empty_answer": 1}
    source = make_source(tmp_path / "s", {"id": "s", "train": split("train", 4, dropped)}, TRAIN, None, rows)
    found = collect([source], make_mixture(tmp_path / "m", TRAIN, TRAIN[:1], []), None, 0)["sources"][0]
    assert found["languages"] == [("de", 2), ("fr", 1), ("not named", 1)]
    assert Counter(row["reason"] for row in found["rows"]) == {"other_language": 3, "too_long": 1, "empty_answer": 1}
    assert len(json.dumps(found["rows"])) < 10_000


def test_order_of_reasons() -> None:
    found = {"dropped": {"tie": 9, "duplicate": 1, "identical": 2}, "warned": {"toxic": 50}}
    assert [r["reason"] for r in reason_rows(found)] == ["identical", "duplicate", "tie", "toxic"]
    assert reason_rows({"dropped": {"of_old": 1}, "warned": {}})[0]["meaning"] == "of_old"


def test_tables_add_up(folders: tuple[list[Path], Path]) -> None:
    sources, mixture = folders
    data = collect(sources, mixture, None, 42)
    counts = counts_table(data)
    assert counts["max_rows"]
    for row in [*counts["rows"], counts["total"]]:
        assert row["read"] - row["defective"] - row["by_choice"] == row["kept"]
        assert row["kept"] - row["beyond"] == row["drawn"]
    expected = {"read": 12, "defective": 1, "by_choice": 3, "kept": 8, "beyond": 1, "drawn": 7}
    assert counts["total"] == expected
    ledger = mixture_table(data)
    assert [(sign, pairs) for sign, _, pairs in ledger] == [
        ("", 6),  # 4 of one and 2 of two
        ("−", 1),  # of which one was split off
        ("−", 1),  # and one is held out already
        ("=", 4),
        ("", 1),
        ("+", 1),
        ("=", 2),
    ]


def test_figure_table() -> None:
    figures = Figures()
    for p in TRAIN:
        measure(p, "train", figures)
    found = figures.result()
    assert found is not None
    table = figure_table([("train", found)])
    cells = {label: cell for label, (cell,) in table["rows"]}
    assert cells["Different prompts"] == "3"
    assert cells["The user's turns"] == "1: 75.0%, 2: 25.0%"
    assert cells["With a system turn"] == "25.0%"
    assert cells["Chosen, likewise"] == "3 / 10 / 10"
    assert cells["Right guesses by length alone (95% interval)"] == "62.5% (21.9% to 90.8%), by the longer"
    assert cells["Score margin, chosen − rejected: mean"] == "1.500; below 0: 1 of 2"


def test_every_check_has_advice() -> None:
    assert set(ADVICE) == set(CHECKS)


def test_advice(folders: tuple[list[Path], Path]) -> None:
    sources, mixture = folders
    cards = advice(collect(sources, mixture, None, 42))
    found = [(card["kind"], card["reason"], card["where"]) for card in cards]
    assert found == [
        ("defect", "prompt_held_out", ["mixture: 1 of 5 (20.0%)"]),
        ("defect", "duplicate", ["one, train: 1 of 6 (16.7%)"]),
        ("choice", "tie", ["one, train: 1 of 6 (16.7%)", "two, test_prefs: 2 of 3 (66.7%)"]),
    ]


def test_advice_on_lengths_and_splits(tmp_path: Path) -> None:
    long = [pair(f"q{i}", "long answer", "short", f"t:{i}") for i in range(50)]
    sources = [
        make_source(tmp_path / "a", {"id": "a", "train": split("test_prefs", 50)}, long, None, []),
        make_source(tmp_path / "b", {"id": "b", "train": split("train", 4)}, TRAIN, None, []),
    ]
    cards = advice(collect(sources, make_mixture(tmp_path / "m", TRAIN, TRAIN[:1], []), None, 0))
    tells = next(card for card in cards if card["reason"] == "length_tells")
    # 50 of 50: Wilson's lower bound is 1 / (1 + z²/50) = 0.9287
    assert tells["where"] == ["a, test_prefs: right in 100.0% (95% interval 92.9% to 100.0%)"]
    assert "writing longer answers" in tells["advice"]
    assert next(card for card in cards if card["reason"] == "test_split_trained")["where"] == ["a, test_prefs"]


TRUNCATION = {
    "max_length": 512,
    "pairs": 1000,
    "counts": {"prompt_fills_max_length": 20, "empty_after_cut": 0, "identical_after_cut": 11},
    "indices": {"prompt_fills_max_length": [*range(20)], "empty_after_cut": [], "identical_after_cut": [*range(11)]},
    "cut": 1 + 120,
    "longest": 3000,
    "max_length_95": 768,
    "max_length_99": 1984,
    "percentiles": {"prompt": {"5": 3, "25": 9, "50": 40, "75": 90, "95": 400, "99": 800, "max": 2000}},
}


def test_truncation() -> None:
    pairs_ids = [([1] * 10, [2] * 4, [3] * 4), ([1] * 3, [2] * 4, [3] * 4), ([1] * 3, [2] * 90, [2] * 91)]
    faults = ["prompt_fills_max_length", None, "identical_after_cut"]
    pairs = list(zip(pairs_ids, faults, strict=True))
    found = {**truncation(pairs, 8), "max_length": 8}  # the shape that lengths.py gives
    assert truncation_table(found)["summary"] == (
        "At max_length 8, 2 of 3 pairs cannot be trained on and 2 lose tokens; "
        "95% of the pairs stay whole at 128 tokens, 99% at 128."
    )
    found = {**truncation(pairs, None), "max_length": None}
    assert truncation_table(found)["summary"].startswith("No max_length is set, so nothing is cut; 95% of the pairs")
    assert "tokenizer is not at hand" in truncation_table(None)["summary"]
    assert truncation_table({"not_counted": "the reason"}) == {"summary": "Not counted: the reason.", "rows": []}
    rows = dict(truncation_table(TRUNCATION)["rows"])
    assert rows["at max_length chosen and rejected are the same (identical_after_cut)"] == "11"
    assert rows["Tokens, prompt: median / 95% / longest"] == "40 / 400 / 2,000"


def test_advice_on_truncation(folders: tuple[list[Path], Path]) -> None:
    sources, mixture = folders
    data = collect(sources, mixture, TRUNCATION, 42)
    assert "indices" not in data["truncation"]
    card = advice(data)[0]
    assert card["title"] == "at max_length 512, 121 pairs are too long"
    assert card["where"] == [
        "the prompt alone fills max_length (prompt_fills_max_length): 20 of 1,000 (2.0%)",
        "at max_length chosen and rejected are the same (identical_after_cut): 11 of 1,000 (1.1%)",
        "tokens are cut off: 121 of 1,000 (12.1%)",
    ]
    assert "95% of the pairs stay whole at max_length 768" in card["advice"]
    for quiet in ({**TRUNCATION, "cut": 0}, {"not_counted": "no template"}, None):
        assert "max_length" not in json.dumps(advice(collect(sources, mixture, quiet, 42)))


def test_json(folders: tuple[list[Path], Path]) -> None:
    sources, mixture = folders
    reports = [json.loads((folder / "report.json").read_text()) for folder in sources]
    info = json.loads((mixture / "mixture.json").read_text())
    found = audit_json(reports, info, Path("/q"), TRUNCATION, Path("/p/audit.html"))
    assert [(s["id"], s["split"], s["read"], s["kept"], s["dropped"], s["notices"]) for s in found["sources"]] == [
        ("one", "train", 6, 4, {"duplicate": 1, "tie": 1}, []),
        ("two", "train_prefs", 3, 3, {}, []),
        ("two", "test_prefs", 3, 1, {"tie": 2}, []),
    ]
    assert found["sources"][0]["length_accuracy"] == 0.625
    assert found["mixture"]["train"] == 4
    assert found["mixture"]["test"] == 2
    assert found["mixture"]["shares"] == {"one": 1.0}
    assert (found["quarantine"], found["page"]) == ("/q", "/p/audit.html")
    assert found["truncation"] == {k: v for k, v in TRUNCATION.items() if k != "indices"}
    json.dumps(found, allow_nan=False)


def shown(data: dict[str, Any], width: int = 120) -> str:
    out = io.StringIO()
    show_audit(data, Console(file=out, width=width, force_terminal=False), Path("/data/audit.html"))
    return out.getvalue()


def test_terminal(folders: tuple[list[Path], Path]) -> None:
    sources, mixture = folders
    data = collect(sources, mixture, TRUNCATION, 42)
    text = shown(data)
    assert text == shown(json.loads(json.dumps(data)))  # as the step keeps it
    for told in (
        "one",
        "rows read",
        "duplicate",
        "left out by choice",
        "train:0",
        "drawn (max_rows)",
        "pairs held out",
    ):
        assert told in text
    assert "the longer answer is chosen in 62.5%" in text
    assert "truncation: At max_length 512, 31 of 1,000 pairs cannot be trained on" in text
    assert text.rstrip().endswith("page: /data/audit.html")


def test_terminal_takes_no_orders(tmp_path: Path) -> None:
    evil = "[red]x[/] [/nothing] \x1b[31mred\x07 \ud800"
    report = {"id": evil, "notices": [evil], "train": split(evil, 4, {"tie": 1}, examples={"tie": [evil]})}
    source = make_source(tmp_path / "s", report, TRAIN, None, [])
    info = {"by_source": {evil: 4}, "notices": [evil], "dropped": {evil: 1}, "drawn": 5}
    data = collect([source], make_mixture(tmp_path / "m", TRAIN, TRAIN[:1], [], **info), None, 0)
    text = shown(data, 400)
    text.encode()
    assert "\x1b" not in text
    assert "\x07" not in text
    assert text.count("[red]x[/] [/nothing] \ufffd[31mred\ufffd \ufffd") >= 5


def test_samples_are_not_the_first_rows(tmp_path: Path) -> None:
    rows = [quarantined("duplicate", {"prompt": str(i)}, f"t:{i}") for i in range(300)]
    random.Random(0).shuffle(rows)
    source = make_source(tmp_path / "s", {"id": "s", "train": split("train", 4, {"duplicate": 300})}, TRAIN, None, rows)
    mixture = make_mixture(tmp_path / "m", TRAIN, TRAIN[:1], [])
    found = [row["row_id"] for row in collect([source], mixture, None, 3)["sources"][0]["rows"]]
    assert len(set(found)) == 3
    assert found != [row["row_id"] for row in rows[:3]]
