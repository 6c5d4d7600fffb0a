"""Sampling, shares and the split by prompt group."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.mixture import DEFAULT_TEST_SIZE, build_mixture, load_pairs, sample, split_by_group
from preftune.data.pairs import Pair, group_of
from preftune.errors import UserError
from preftune.schema import Mixture, Validation


def pair(source: str, i: int, group: str | None = None) -> Pair:
    return Pair(
        prompt=[{"role": "user", "content": f"{source} {i}"}],
        chosen=[{"role": "assistant", "content": "A"}],
        rejected=[{"role": "assistant", "content": "B"}],
        source=source,
        row_id=f"{source}:{i}",
        group_id=group or f"{source}-{i}",
    )


def pairs(source: str, n: int) -> list[Pair]:
    return [pair(source, i) for i in range(n)]


def mixture(*weights: float, **more: Any) -> Mixture:
    entries = [{"id": "abc"[i], "weight": w} for i, w in enumerate(weights)]
    return Mixture.model_validate({"datasets": entries, **more})


def ids(found: list[Pair]) -> list[str]:
    return [p.row_id for p in found]


# --- sampling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 42, 1234])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.3), (0.01, 1.0), (0.29, 0.57)])
def test_keep_is_the_handbook_s_algorithm(seed: int, weights: tuple[float, float]) -> None:
    """Row for row what alignment-handbook does, run with the `datasets` library: shuffle each dataset with the
    seed, keep the first int(rows x weight), concatenate, shuffle with the seed."""
    sizes = (100, 37)
    sources = [Dataset.from_dict({"id": [f"{'ab'[k]}:{i}" for i in range(n)]}) for k, n in enumerate(sizes)]
    kept = [d.shuffle(seed=seed).select(range(int(len(d) * w))) for d, w in zip(sources, weights, strict=True)]
    expected = concatenate_datasets(kept).shuffle(seed=seed)["id"]
    found = sample([pairs("a", 100), pairs("b", 37)], mixture(*weights, seed=seed))
    assert ids(found) == list(expected)


def test_keep_counts() -> None:
    """int(100 x 0.7) = 70 (the float product is 70.0), int(37 x 0.3) = int(11.1) = 11."""
    found = ids(sample([pairs("a", 100), pairs("b", 37)], mixture(0.7, 0.3)))
    assert (sum(i.startswith("a") for i in found), sum(i.startswith("b") for i in found)) == (70, 11)
    assert len(set(found)) == 81


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        # the largest total T with T·w/Σw <= size for each: min(100/0.7, 37/0.3) = 123.3 -> 86 and 37
        ((100, 37), (0.7, 0.3), [86, 37]),
        # min(1000·2, 10·2) = 20
        ((1000, 10), (1, 1), [10, 10]),
        # weights need not sum to 1: min(30·100/70, 60·100/30) = 42.86 -> 30 and 12
        ((30, 60), (70, 30), [30, 12]),
        # 0.1 + 0.2 + 0.7 in floats: min(10/0.1, 20/0.2, 70/0.7) = 100 -> all
        ((10, 20, 70), (0.1, 0.2, 0.7), [10, 20, 70]),
        ((5,), (0.2,), [5]),
    ],
)
def test_share_counts(sizes: tuple[int, ...], weights: tuple[float, ...], counts: list[int]) -> None:
    """Shares of the result; nothing is drawn twice."""
    sources = [pairs("abc"[k], n) for k, n in enumerate(sizes)]
    found = ids(sample(sources, mixture(*weights, weighting="share")))
    assert [sum(i.startswith("abc"[k]) for i in found) for k in range(len(sizes))] == counts
    assert len(set(found)) == len(found)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.floats(0.01, 1)), min_size=1, max_size=3),
    st.sampled_from(["keep", "share"]),
    st.integers(0, 2**31),
)
def test_sampling_draws_each_row_at_most_once(parts: list[tuple[int, float]], weighting: str, seed: int) -> None:
    """Every row is one of its source's, and the same seed gives the same rows."""
    sources = [pairs("abc"[k], n) for k, (n, _) in enumerate(parts)]
    recipe = mixture(*(w for _, w in parts), weighting=weighting, seed=seed)
    found = ids(sample(sources, recipe))
    assert len(set(found)) == len(found)
    assert set(found) <= {p.row_id for s in sources for p in s}
    assert found == ids(sample(sources, recipe))
    if weighting == "share" and all(n for n, _ in parts):
        # one dataset is exhausted (but for the fraction of a row that rounding takes)
        assert any(sum(i.startswith("abc"[k]) for i in found) == n for k, (n, _) in enumerate(parts))


def test_another_seed_draws_other_rows() -> None:
    sources = [pairs("a", 50)]
    assert set(ids(sample(sources, mixture(0.5, seed=1)))) != set(ids(sample(sources, mixture(0.5, seed=2))))


# --- the split --------------------------------------------------------------------------------------------

grouped = st.lists(st.sampled_from("abcdefgh"), max_size=30).map(
    lambda names: [pair("s", i, group) for i, group in enumerate(names)]
)


@settings(deadline=None, max_examples=200)
@given(grouped, st.one_of(st.floats(0.001, 0.999), st.integers(1, 40).map(float)), st.integers(0, 2**31))
def test_no_group_is_on_both_sides(found: list[Pair], size: float, seed: int) -> None:
    """Nothing is lost or doubled, order stays, and whole groups are taken until the size is reached."""
    train, test = split_by_group(found, size, seed)
    assert not {p.group_id for p in train} & {p.group_id for p in test}
    assert sorted(ids(train) + ids(test)) == sorted(ids(found))
    for side in (train, test):
        assert ids(side) == [i for i in ids(found) if i in set(ids(side))]
    target = size * len(found) if size < 1 else size
    if train:
        assert len(test) >= target
    if test:  # without its last group it would have been too small
        assert any(len(test) - sum(p.group_id == g for p in test) < target for g in {p.group_id for p in test})
    assert (ids(train), ids(test)) == tuple(ids(s) for s in split_by_group(found, size, seed))


def test_the_split_does_not_depend_on_the_order_of_rows() -> None:
    """Which prompts are held out is decided by their names and the seed."""
    found = [pair("s", i, f"g{i % 7}") for i in range(40)]
    first, second = split_by_group(found, 0.3, 5), split_by_group(found[::-1], 0.3, 5)
    assert {p.group_id for p in first[1]} == {p.group_id for p in second[1]}


@pytest.mark.parametrize(("size", "held"), [(0.1, 10), (0.101, 11), (1, 1), (17, 17), (0.5, 50)])
def test_sizes_of_single_pair_groups(size: float, held: int) -> None:
    """A share below 1, a number from 1 on; a share is rounded up."""
    train, test = split_by_group(pairs("a", 100), size, 0)
    assert (len(train), len(test)) == (100 - held, held)


def test_which_rows_are_drawn_does_not_depend_on_the_datasets_order() -> None:
    a, b = pairs("a", 40), pairs("b", 30)
    first = sample([a, b], mixture(0.5, 0.4))
    entries = [{"id": "b", "weight": 0.4}, {"id": "a", "weight": 0.5}]
    second = sample([b, a], Mixture.model_validate({"datasets": entries}))
    assert sorted(ids(first)) == sorted(ids(second))


# --- the step ---------------------------------------------------------------------------------------------


def write(path: Path, found: list[Pair]) -> Path:
    path.write_text("".join(p.model_dump_json() + "\n" for p in found))
    return path


def build(
    sources: list[Any], recipe: Mixture, folder: Path, evaluation: Sequence[str] = (), **validation: Any
) -> dict[str, Any]:
    return build_mixture(sources, recipe, Validation(**validation), evaluation, folder)


def test_topics_survive_the_mixture(tmp_path: Path) -> None:
    sources = [[pair("a", i).model_copy(update={"topic": f"t{i}"}) for i in range(8)], pairs("b", 8)]
    files: list[tuple[Path, Path | None]] = [
        (write(tmp_path / f"{i}.jsonl", found), None) for i, found in enumerate(sources)
    ]
    build(files, mixture(1.0, 1.0), tmp_path)
    found = [p for side in ("train", "test") for p in load_pairs(tmp_path / f"{side}.jsonl")]
    assert {p.row_id: p.topic for p in found} == {p.row_id: p.topic for s in sources for p in s}


def test_build_holds_out_a_tenth_by_default(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", pairs("a", 50))
    info = build([(a, None)], mixture(1.0), tmp_path)
    assert (info["train"], info["test"], info["overlap"]) == (45, 5, 0)
    assert info["by_source"] == {"a": 45} and info["shares"] == {"a": 1.0}
    assert any(f"{DEFAULT_TEST_SIZE:.0%} of the prompts are held out" in n for n in info["notices"])
    train, test = load_pairs(tmp_path / "train.jsonl"), load_pairs(tmp_path / "test.jsonl")
    assert sorted(ids(train) + ids(test)) == sorted(ids(pairs("a", 50)))
    assert json.loads((tmp_path / "mixture.json").read_text()) == info
    assert (info["drawn"], info["dropped"], info["warned"], info["overlaps"]) == (45, {}, {}, [])


def test_build_with_a_named_test_split(tmp_path: Path) -> None:
    """Nothing is split off; a training pair whose prompt is held out is left out, also from another source."""
    held = [pair("t", 0, "a-3"), pair("t", 1, "b-1"), pair("t", 2)]
    files = [
        (write(tmp_path / "a.jsonl", pairs("a", 10)), write(tmp_path / "t.jsonl", held)),
        (write(tmp_path / "b.jsonl", pairs("b", 10)), None),
    ]
    info = build(files, mixture(1.0, 1.0), tmp_path)
    assert (info["train"], info["test"], info["overlap"]) == (18, 3, 2)
    assert info["by_source"] == {"a": 9, "b": 9} and info["shares"] == {"a": 0.5, "b": 0.5}
    assert any("2 training pairs left out of training: the prompt is held out" in n for n in info["notices"])
    train, test = load_pairs(tmp_path / "train.jsonl"), load_pairs(tmp_path / "test.jsonl")
    assert not {p.group_id for p in train} & {p.group_id for p in test}
    assert ids(test) == ids(held)


def test_build_with_both(tmp_path: Path) -> None:
    """A named split and a size: both are held out."""
    files = [(write(tmp_path / "a.jsonl", pairs("a", 10)), write(tmp_path / "t.jsonl", pairs("t", 4)))]
    info = build(files, mixture(1.0, test_split_size=3), tmp_path)
    assert (info["train"], info["test"]) == (7, 7)


@pytest.mark.parametrize(
    ("weights", "weighting", "told"),
    [((0.7, 0.3), "keep", True), ((0.7, 0.2), "keep", False), ((0.7, 0.3), "share", False), ((1.0,), "keep", False)],
)
def test_keep_weights_that_look_like_shares(
    tmp_path: Path, weights: tuple[float, ...], weighting: str, told: bool
) -> None:
    files: list[Any] = [(write(tmp_path / f"{k}.jsonl", pairs("ab"[k], 40)), None) for k in range(len(weights))]
    info = build(files, mixture(*weights, weighting=weighting), tmp_path)
    assert any("keep-weights sum to 1" in n for n in info["notices"]) is told


@pytest.mark.parametrize(
    ("n", "weight", "size", "side"),
    [(1, 1.0, None, "train"), (5, 0.1, None, "train"), (5, 1.0, 5, "train"), (5, 1.0, 99, "train")],
)
def test_an_empty_side_is_an_error(tmp_path: Path, n: int, weight: float, size: float | None, side: str) -> None:
    """A single row; a weight that leaves none (int(5 x 0.1) = 0); everything held out."""
    a = write(tmp_path / "a.jsonl", pairs("a", n))
    with pytest.raises(UserError, match=f"{side} side is empty"):
        build([(a, None)], mixture(weight, test_split_size=size), tmp_path)


def asking(source: str, i: int, prompt: str, chosen: str = "yes", rejected: str = "no") -> Pair:
    return Pair(
        prompt=[{"role": "user", "content": prompt}],
        chosen=[{"role": "assistant", "content": chosen}],
        rejected=[{"role": "assistant", "content": rejected}],
        source=source,
        row_id=f"{source}:{i}",
        group_id=group_of([{"role": "user", "content": prompt}]),
    )


# 14 words: 12 trigrams; with another last word 11 of 13 different ones are shared (0.846).
LONG = "what is the best way to learn to play the piano as an adult"
NEAR = "what is the best way to learn to play the piano as an actor"


@pytest.mark.parametrize(
    ("more", "train", "dropped", "warned"),
    [
        ({}, ["a:2"], {"near_held_out": 1, "prompt_held_out": 1}, {}),
        ({"near_duplicates": 0.9}, ["a:1", "a:2"], {"prompt_held_out": 1}, {}),
        ({"near_duplicates": None}, ["a:1", "a:2"], {"prompt_held_out": 1}, {}),
        ({"severity": {"near_held_out": "warn"}}, ["a:1", "a:2"], {"prompt_held_out": 1}, {"near_held_out": 1}),
    ],
)
def test_what_is_nearly_held_out_is_not_trained_on(
    tmp_path: Path, more: dict[str, Any], train: list[str], dropped: dict[str, int], warned: dict[str, int]
) -> None:
    found = [asking("a", 0, LONG.upper() + " "), asking("a", 1, NEAR), asking("a", 2, "and how does one boil an egg")]
    files = [(write(tmp_path / "a.jsonl", found), write(tmp_path / "t.jsonl", [asking("a", 9, LONG)]))]
    info = build(files, mixture(1.0), tmp_path, **more)
    assert sorted(ids(load_pairs(tmp_path / "train.jsonl"))) == train
    assert (info["dropped"], info["warned"]) == (dropped, warned)
    assert info["drawn"] == info["train"] + sum(info["dropped"].values()) == 3
    thrown = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert sorted((q["row_id"], q["reason"]) for q in thrown)[0] == ("a:0", "prompt_held_out")
    assert len(thrown) == sum(dropped.values())


def test_nearly_held_out_can_stop_the_run(tmp_path: Path) -> None:
    files = [(write(tmp_path / "a.jsonl", [asking("a", 1, NEAR)]), write(tmp_path / "t.jsonl", [asking("a", 9, LONG)]))]
    with pytest.raises(UserError, match=r"1 pairs \(train\) fail the check near_held_out.*a:1 of a"):
        build(files, mixture(1.0), tmp_path, severity={"near_held_out": "fail"})


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_nearly_the_same_pair_from_two_sources_is_taken_once(tmp_path: Path, order: str) -> None:
    """Whatever the datasets' order. The same question with other answers is another pair."""
    answer = "begin with a teacher, a quarter of an hour each day, and songs that you like to hear"
    of = {
        "a": [asking("a", 0, LONG, answer, "do not"), asking("a", 1, "one two three four five six")],
        "b": [asking("b", 0, LONG, answer.upper(), "do not!"), asking("b", 1, "one two three four five six", "x y z")],
    }
    files = [(write(tmp_path / f"{k}.jsonl", of[k]), None) for k in order]
    held = [asking("a", 9, "something else altogether is asked in here")]
    files[0] = (files[0][0], write(tmp_path / "t.jsonl", held))
    info = build(files, Mixture.model_validate({"datasets": [{"id": k} for k in order]}), tmp_path)
    assert sorted(ids(load_pairs(tmp_path / "train.jsonl"))) == ["a:0", "a:1", "b:1"]
    assert info["dropped"] == {"near_duplicate": 1}
    assert info["overlaps"] == [("a", "b", 2)]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_the_same_pair_from_two_sources_and_its_opposite(tmp_path: Path, order: str) -> None:
    """Exactly equal ones count once, on either side; what prefers the other answer is a contradiction, also nearly."""
    answer = "begin with a teacher, a quarter of an hour each day, and songs that you like to hear"
    of = {
        "a": [asking("a", 0, "Q one"), asking("a", 1, "Q two"), asking("a", 2, LONG, answer, "do not")],
        "b": [asking("b", 0, "q ONE"), asking("b", 1, "Q two", "no", "yes"), asking("b", 2, LONG, "do not!", answer)],
    }
    held = {k: [asking(k, 8, "H one"), asking(k, 9, "H two", *(("x", "y") if k == "a" else ("y", "x")))] for k in "ab"}
    files = [(write(tmp_path / f"{k}.jsonl", of[k]), write(tmp_path / f"{k}t.jsonl", held[k])) for k in order]
    recipe = Mixture.model_validate({"datasets": [{"id": k} for k in order]})
    info = build(files, recipe, tmp_path)
    assert sorted(ids(load_pairs(tmp_path / "train.jsonl"))) == ["a:0", "a:1", "a:2"]
    assert sorted(ids(load_pairs(tmp_path / "test.jsonl"))) == ["a:8", "a:9"]
    assert info["dropped"] == {"contradiction": 2, "duplicate": 1}
    assert info["test_dropped"] == {"contradiction": 1, "duplicate": 1}
    assert info["drawn"] == info["train"] + sum(info["dropped"].values()) == 6
    thrown = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert sorted((q["split"], q["row_id"]) for q in thrown) == [
        ("test", "b:8"),
        ("test", "b:9"),
        ("train", "b:0"),
        ("train", "b:1"),
        ("train", "b:2"),
    ]
    with pytest.raises(UserError, match=r"1 pairs \(test\) fail the check contradiction"):
        build(files, recipe, tmp_path, severity={"contradiction": "fail"})


def test_what_is_kept_with_a_warning_is_still_compared_with_the_held_out_side(tmp_path: Path) -> None:
    found = [asking("a", 0, NEAR), asking("a", 1, NEAR), asking("a", 2, "something else")]
    files = [(write(tmp_path / "a.jsonl", found), write(tmp_path / "t.jsonl", [asking("a", 9, LONG)]))]
    info = build(files, mixture(1.0), tmp_path, severity={"duplicate": "warn"})
    assert info["dropped"] == {"near_held_out": 2} and info["train"] == 1


def test_shares_hold_after_the_drops(tmp_path: Path) -> None:
    """70 of a and 30 of b asked for and drawn; 15 of b are held out: 15/0.3 = 50 pairs in all, so 35 of a."""
    a, b = pairs("a", 70), pairs("b", 30)
    held = [p.model_copy(update={"row_id": f"t:{i}"}) for i, p in enumerate(b[:15])]
    files = [
        (write(tmp_path / "a.jsonl", a), write(tmp_path / "t.jsonl", held)),
        (write(tmp_path / "b.jsonl", b), None),
    ]
    info = build(files, mixture(0.7, 0.3, weighting="share"), tmp_path)
    assert info["by_source"] == {"a": 35, "b": 15}
    assert info["dropped"] == {"over_share": 35, "prompt_held_out": 15}
    assert build(files, mixture(1.0, 1.0), tmp_path)["by_source"] == {"a": 70, "b": 15}


def test_evaluation_sets_are_not_trained_on(tmp_path: Path) -> None:
    """13 words in a row; 12 are not enough."""
    words = [f"w{i}" for i in range(30)]
    found = [
        asking("a", 0, "please " + " ".join(words[3:16])),
        asking("a", 1, "please " + " ".join(words[3:15])),
        asking("a", 2, "another"),
    ]
    files = [(write(tmp_path / "a.jsonl", found), write(tmp_path / "t.jsonl", [asking("a", 9, "held")]))]
    info = build(files, mixture(1.0), tmp_path, evaluation=[" ".join(words)])
    assert sorted(ids(load_pairs(tmp_path / "train.jsonl"))) == ["a:1", "a:2"]
    assert info["dropped"] == {"contaminated": 1}


def test_texts_come_back_as_they_were(tmp_path: Path) -> None:
    """Line ends of every kind inside a text are no line ends of the file."""
    odd = pair("a", 0).model_copy(update={"chosen": [{"role": "assistant", "content": "a\nb\rc\u2028d\x85e\x0bf"}]})
    assert load_pairs(write(tmp_path / "x.jsonl", [odd, pair("a", 1)]))[0] == odd


def test_held_out_pairs_of_two_datasets_have_different_ids(tmp_path: Path) -> None:
    """Both have a row `2`: what two models do on the held-out side is joined by row id."""

    def write(source: str, side: str, numbers: tuple[int, ...]) -> Path:
        rows = [pair(source, i, f"{source} {side} {i}").model_copy(update={"row_id": str(i)}) for i in numbers]
        rows = [p.model_copy(update={"prompt": [{"role": "user", "content": p.group_id}]}) for p in rows]
        path = tmp_path / f"{source}-{side}.jsonl"
        path.write_text("".join(p.model_dump_json() + "\n" for p in rows))
        return path

    files = [(write("a", "train", (1,)), write("a", "test", (1, 2)))]
    files.append((write("b", "train", (1,)), write("b", "test", (2, 3))))
    settings = Mixture.model_validate({"datasets": [{"id": s, "test_split": "test"} for s in "ab"]})
    validation = Validation.model_validate({"near_duplicates": None})
    build_mixture([(train, test) for train, test in files], settings, validation, [], tmp_path)
    found = {p.row_id: p.prompt[-1]["content"] for p in load_pairs(tmp_path / "test.jsonl")}
    assert found == {"1": "a test 1", "a/2": "a test 2", "b/2": "b test 2", "3": "b test 3"}
