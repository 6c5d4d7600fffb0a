"""The data steps together: a recipe's datasets checked and mixed, as `check`, `audit` and `run` do it."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, concatenate_datasets

from preftune.data import steps
from preftune.data.mixture import load_pairs
from preftune.data.sources import Source, find_source
from preftune.errors import UserError
from preftune.recipe import load_recipe
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.workspace import Workspace


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def row(name: str, i: int) -> dict[str, Any]:
    """A row of ultrafeedback_binarized: a text prompt beside two whole conversations."""
    asked = message("user", f"{name} question {i}")
    answers = {side: [asked, message("assistant", f"{side} {name} {i}")] for side in ("chosen", "rejected")}
    return {"prompt": asked["content"], "prompt_id": str(i), **answers, "score_chosen": 8.0, "score_rejected": 5.0}


def write(folder: Path, split: str, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row(split, i)) + "\n" for i in range(count))
    (folder / f"{split}.jsonl").write_text("".join(lines))


def prepared(project: Path, **keys: Any) -> tuple[Workspace, Recipe, list[Source]]:
    path = project / "recipes" / "r" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(keys))
    workspace = Workspace(project, project / ".preftune").make()
    recipe = load_recipe(path, {})
    return workspace, recipe, [find_source(e, workspace) for e in recipe.mixture.datasets]


def make(project: Path, **keys: Any) -> tuple[list[StepResult], StepResult, Workspace]:
    workspace, recipe, found = prepared(project, **keys)
    return *steps.make_data(workspace, recipe, found), workspace


def test_a_handbook_recipe_that_trains_on_test_rows_gets_its_rows_and_a_warning(tmp_path: Path) -> None:
    """train_prefs and test_prefs mixed and split again: row for row the handbook's algorithm up to the split, which
    is made by prompt here (and therefore by other rows)."""
    write(tmp_path / "uf", "train_prefs", 80)
    write(tmp_path / "uf", "test_prefs", 20)
    entries = [{"id": "uf", "split": s, "weight": 0.5} for s in ("train_prefs", "test_prefs")]
    sources, mixture, workspace = make(
        tmp_path, dataset_mixture={"datasets": entries, "test_split_size": 0.1, "seed": 0}
    )
    handbook = [
        Dataset.from_list([{"name": f"{s} question {i}"} for i in range(n)]).shuffle(seed=0).select(range(n // 2))
        for s, n in (("train_prefs", 80), ("test_prefs", 20))
    ]
    expected = concatenate_datasets(handbook).shuffle(seed=0)["name"]
    folder = mixture.folder(workspace)
    asked = {
        side: [p.prompt[-1]["content"] for p in load_pairs(folder / f"{side}.jsonl")] for side in ("train", "test")
    }
    assert (len(asked["train"]), len(asked["test"])) == (45, 5)
    assert asked["train"] == [name for name in expected if name in asked["train"]]
    assert sorted(asked["train"] + asked["test"]) == sorted(expected)
    assert any("official test split 'test_prefs' is used for training" in n for n in sources[1].info["notices"])
    assert mixture.info["by_source"] == {"uf": 45}


def test_official_test_rows_never_get_into_training_by_themselves(tmp_path: Path) -> None:
    """`split: train` where there is only train_prefs: fixed, told, and without a row of test_prefs."""
    write(tmp_path / "uf", "train_prefs", 30)
    write(tmp_path / "uf", "test_prefs", 10)
    sources, mixture, workspace = make(tmp_path, dataset_name="uf", dataset_test_split="validation")
    assert [n for n in sources[0].info["notices"] if "is read as" in n] != []
    train = load_pairs(mixture.folder(workspace) / "train.jsonl")
    assert {p.prompt[-1]["content"].split()[0] for p in train} == {"train_prefs"}
    assert (mixture.info["train"], mixture.info["test"]) == (30, 10)


def test_strict_refuses_what_would_be_fixed(tmp_path: Path) -> None:
    write(tmp_path / "uf", "train_prefs", 3)
    with pytest.raises(UserError, match="train_prefs"):
        make(tmp_path, dataset_name="uf", validation={"strict": True})


def test_max_rows_and_seed_are_part_of_the_key(tmp_path: Path) -> None:
    """Another seed draws other rows; without max_rows the checked source is shared."""
    write(tmp_path / "uf", "train", 40)

    def keys(seed: int, **entry: Any) -> tuple[str, str]:
        sources, mixture, _ = make(tmp_path, dataset_mixture={"datasets": [{"id": "uf", **entry}], "seed": seed})
        return sources[0].key, mixture.info["train_sha256"]

    assert keys(1)[0] == keys(2)[0]
    assert keys(1, max_rows=20)[0] != keys(2, max_rows=20)[0]
    assert keys(1, max_rows=20) == keys(1, max_rows=20)


def test_evaluation_sets_and_similarity_are_part_of_the_mixture_s_key(tmp_path: Path) -> None:
    write(tmp_path / "uf", "train", 40)
    (tmp_path / "bench.jsonl").write_text(json.dumps({"prompt": "train question 7"}) + "\n")

    def result(**validation: Any) -> tuple[str, int]:
        _, mixture, _ = make(tmp_path, dataset_name="uf", validation=validation)
        return mixture.key, mixture.info["drawn"] - mixture.info["train"]

    plain, near, clean = result(), result(near_duplicates=0.5), result(decontaminate=["bench.jsonl"])
    assert len({plain[0], near[0], clean[0]}) == 3
    (tmp_path / "bench.jsonl").write_text(json.dumps({"prompt": "something else"}) + "\n")
    assert result(decontaminate=["bench.jsonl"])[0] != clean[0]
    assert clean[1] <= 1


def audit(project: Path, **keys: Any) -> tuple[Any, Any, Workspace]:
    workspace, recipe, found = prepared(project, **keys)
    return *steps.audit_data(workspace, recipe, None, found), workspace


def test_data_that_would_stop_a_run_is_shown_all_the_same(tmp_path: Path) -> None:
    rows = [json.dumps(row("q", i)) for i in range(6)] + ['"text"'] * 9
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    result, stop, workspace = audit(tmp_path, dataset_name="x.jsonl")
    assert stop is not None and "9 of 15 rows (60%) are unusable" in stop.error
    summary = result.info["summary"]
    assert summary["sources"][0]["dropped"] == {"not_an_object": 9}
    assert any(n.startswith("a run stops here: 9 of 15 rows") for n in summary["mixture"]["notices"])
    assert (result.folder(workspace) / "audit.html").stat().st_size > 1000
    clean, nothing, _ = audit(tmp_path, dataset_name="x.jsonl", validation={"max_dropped": 0.7})
    assert nothing is None and clean.info["summary"]["sources"][0]["kept"] == 6


def test_an_audit_of_broken_texts(tmp_path: Path) -> None:
    """Half an emoji in the data must not end the audit; the quarantine file holds every dropped row."""
    broken = {**row("q", 8), "chosen": "cut \ud83d", "rejected": "b"}
    rows = [row("q", i) for i in range(6)] + [broken, row("q", 0)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    result, stop, _ = audit(tmp_path, dataset_name="x.jsonl")
    assert stop is None
    thrown = [json.loads(line) for line in Path(result.info["summary"]["quarantine"]).read_text().splitlines()]
    assert [q["reason"] for q in thrown] == ["broken_text", "duplicate"]


@pytest.mark.parametrize("name", ["loop", "x" * 300, "~nobody-here/x"])
def test_ids_that_are_no_paths(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError):
        make(tmp_path, dataset_name=name)


def test_documented_checks_are_the_real_ones() -> None:
    """docs/own-data.md's table, row for row."""
    from preftune.data.check_list import CHECKS

    page = (Path(__file__).parent.parent / "docs" / "own-data.md").read_text()
    for name, check in CHECKS.items():
        assert f"| `{name}` | {check.item} | {check.severity} | " in page, name
        assert f"| {check.meaning} |" in page, name
