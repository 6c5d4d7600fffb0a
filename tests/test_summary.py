"""What a run tells people."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from preftune.models import StartingModel
from preftune.recipe import resolve
from preftune.store import StepResult
from preftune.summary import (
    HEADLINES,
    data_notices,
    data_table,
    headline_rows,
    lineage,
    mixture_line,
    mixture_table,
    read_tracked,
    verdict_markdown,
    write_tracked,
)
from preftune.workspace import Workspace


def with_interval(name: str, value: float, low: float, high: float) -> dict[str, float | None]:
    return {name: value, f"{name}_lo": low, f"{name}_hi": high}


METRICS: dict[str, dict[str, float | None]] = {
    "sft": {**with_interval("reward_accuracy", 0.5, 0.5, 0.5), **with_interval("response_tokens", 20.04, 18, 22)},
    "policy": {
        **with_interval("reward_accuracy", 0.71234, 0.61, 0.79),
        **with_interval("response_tokens", 24.26, 22, 26.5),
        "stop_rate": None,
        "other": 3.0,
    },
}


def test_headline_rows() -> None:
    """Rounded, with an interval where there is one; NaN (null in the file) is told in words."""
    assert headline_rows(METRICS) == [
        ("reward accuracy", "0.500", "0.712  [0.610, 0.790]"),
        ("answer length (tokens)", "20.0  [18.0, 22.0]", "24.3  [22.0, 26.5]"),
        ("answers that stop by themselves", "not measured", "not measured"),
    ]


def test_headlines_are_named_once() -> None:
    assert len({h[0] for h in HEADLINES}) == len({h[1] for h in HEADLINES}) == len(HEADLINES)


def test_verdict_markdown() -> None:
    note = {"severity": "warning", "name": "margin-flat", "text": "the margin did not grow", "advice": "read pairs"}
    info = {"outcome": "promote", "reasons": ["first", "second"], "metrics": METRICS, "training_notes": [note]}
    info["advice"] = ["read the worst losses"]
    text = verdict_markdown(info, "data/x/report.html")
    lines = text.splitlines()
    assert lines[0] == "# promote" and "- first" in lines and "- second" in lines
    assert lines[lines.index("## What to do next") + 2] == "- read the worst losses"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 3 and {line.count("|") for line in table} == {4}
    assert "| reward accuracy | 0.500 | 0.712  [0.610, 0.790] |" in table
    assert lines[-3:] == ["- warning: the margin did not grow (read pairs)", "", "Report: `data/x/report.html`"]


def test_verdict_markdown_shows_foreign_text_as_it_is() -> None:
    """A dataset's or task's name stands in a reason; it must become neither a link, nor a tag, nor a table."""
    wild = "<img src=x> [a](http://b) | `c` **d**"
    note = {"severity": "warning", "name": "n", "text": wild, "advice": ""}
    text = verdict_markdown(
        {"outcome": "reject", "reasons": [wild], "advice": [wild], "metrics": METRICS, "training_notes": [note]}, "r"
    )
    escaped = r"&lt;img src=x&gt; \[a\](http://b) \| \`c\` \*\*d\*\*"
    assert text.count(escaped) == 3 and "<img" not in text and "[a](" not in text.replace(escaped, "")


def step(name: str, info: dict[str, Any] | None = None) -> StepResult:
    return StepResult(step=name, key=f"{name}-key", digest=f"{name}-digest", info=info or {})


def test_data_notices() -> None:
    """What was fixed, what was dropped from each side, what the mixture says; nothing for clean data."""
    sources = [
        step(
            "source",
            {
                "id": "a",
                "notices": ["a: split fixed"],
                "train": {"split": "train_prefs", "dropped": {"tie": 3, "identical": 1}},
                "test": {"split": "test_prefs", "dropped": {}},
            },
        ),
        step("source", {"id": "b", "notices": [], "train": {"split": "train", "dropped": {}}}),
    ]
    sources[1].info["train"]["warned"] = {"prompt_mismatch": 2}
    found = [
        "a: split fixed",
        "a (train_prefs): dropped 3 tie, 1 identical",
        "b (train): warned 2 prompt_mismatch (kept)",
        "keep-weights",
    ]
    mixture = step("mixture", {"notices": ["keep-weights"]})
    assert data_notices(sources, mixture, None) == found
    reason = step("lengths", {"not_counted": "no tokenizer.json"})
    assert data_notices(sources, mixture, reason)[4:] == [
        "how many pairs max_length cuts could not be counted: no tokenizer.json"
    ]
    whole = {"pairs": 90, "max_length": 512, "counts": {"identical_after_cut": 0}, "cut": 0}
    cut = {**whole, "cut": 7, "counts": {"identical_after_cut": 2}, "max_length_95": 640, "max_length_99": 1024}
    assert data_notices(sources, mixture, step("lengths", {"train": cut, "test": whole}))[4:] == [
        "training pairs left out at max_length=512: 2 identical_after_cut",
        "7 of 90 training pairs are cut at max_length=512: 95 % would fit whole in 640 tokens, 99 % in 1024",
    ]


def test_mixture_line() -> None:
    one = {"train": 1200, "test": 90, "by_source": {"a": 1200}, "shares": {"a": 1.0}}
    assert mixture_line(one, None) == "1,200 pairs to train on, 90 held out"
    cut = step("lengths", {"train": {"counts": {"prompt_fills_max_length": 30, "identical_after_cut": 6}}})
    assert mixture_line(one, cut) == (
        "1,164 pairs to train on, 90 held out; 36 more cannot be trained on at max_length"
    )
    two = {**one, "by_source": {"a": 840, "b": 360}, "shares": {"a": 0.7, "b": 0.3}}
    assert mixture_line(two, None).endswith("; trained on: a 840 (70.0%), b 360 (30.0%)")


def test_lineage() -> None:
    """Model, data, keys, weights, code."""
    recipe = resolve({"dataset_name": "x"}, Path("/somewhere/recipes/demo/config.yaml"))
    results: dict[str, Any] = {
        "source": [step("source", {"id": "a"}), step("source", {"id": "b"})],
        "mixture": step("mixture", {"train_sha256": "t1", "test_sha256": "t2"}),
        **{name: step(name) for name in ("baseline", "train", "policy")},
    }
    found = lineage(recipe, StartingModel("sft", "/p", None, "d1", "t", weights="w"), results, {"code": "abc+"})
    assert found["starting model"] == "sft (d1)"
    assert found["dataset 1"] == "a (source-digest)" and found["dataset 2"].startswith("b")
    assert (found["training pairs"], found["held-out pairs"]) == ("t1", "t2")
    assert found["train key"] == "train-key" and found["trained weights"] == "train-digest"
    assert found["recipe"] == "config.yaml" and found["code"] == "abc+"
    assert "trl 1." in found["versions"]
    assert all(isinstance(v, str) for v in found.values())


# --- what was sent to MLflow ------------------------------------------------------------------------------

RUNS = {"experiment": "1", "sft": "run-a", "policy": "run-b"}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workspace(tmp_path, tmp_path / "home")


def database(workspace: Workspace, **stages: str) -> Path:
    """MLflow's table of runs, as far as it is asked."""
    path = workspace.home / "mlflow.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table runs (run_uuid text, lifecycle_stage text)")
        rows = [(k.replace("_", "-"), v) for k, v in stages.items()]
        connection.executemany("insert into runs values (?, ?)", rows)
        connection.commit()
    return path


def test_tracked_runs_are_read_back(workspace: Workspace) -> None:
    marker = workspace.home / "tracked" / "x.json"
    assert read_tracked(marker, workspace) is None
    write_tracked(marker, workspace, RUNS)
    database(workspace, run_a="active", run_b="active", run_c="deleted")
    found = read_tracked(marker, workspace)
    assert found and {k: found[k] for k in RUNS} == RUNS


@pytest.mark.parametrize("stages", [{}, {"run_a": "active"}, {"run_a": "active", "run_b": "deleted"}])
def test_runs_that_were_deleted_are_sent_again(workspace: Workspace, stages: dict[str, str]) -> None:
    write_tracked(workspace.home / "x.json", workspace, RUNS)
    database(workspace, **stages)
    assert read_tracked(workspace.home / "x.json", workspace) is None


def test_a_database_that_is_gone_empty_or_broken(workspace: Workspace) -> None:
    """The runs are not there: they are sent again."""
    marker = workspace.home / "x.json"
    write_tracked(marker, workspace, RUNS)
    assert read_tracked(marker, workspace) is None
    path = workspace.home / "mlflow.db"
    path.touch()
    assert read_tracked(marker, workspace) is None
    path.write_text("this is no database, but long enough to be read as one " * 10)
    assert read_tracked(marker, workspace) is None


def test_another_address_has_other_runs(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is believed without asking it: a cached run takes no connection."""
    marker = workspace.home / "x.json"
    write_tracked(marker, workspace, RUNS)
    database(workspace, run_a="active", run_b="active")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert read_tracked(marker, workspace) is None
    write_tracked(marker, workspace, RUNS)
    assert read_tracked(marker, workspace)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"uri": 3}'])
def test_a_broken_marker_counts_as_none(workspace: Workspace, text: str) -> None:
    database(workspace, run_a="active", run_b="active")
    (workspace.home / "x.json").write_text(text)
    assert read_tracked(workspace.home / "x.json", workspace) is None


@pytest.mark.parametrize("name", ["a b", "50% done", "what?", "nr#1", "é"])
def test_project_folders_of_any_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs that mean something in an address."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Workspace(tmp_path, tmp_path / name)
    write_tracked(workspace.home / "x.json", workspace, RUNS)
    database(workspace, run_a="active", run_b="active")
    found = read_tracked(workspace.home / "x.json", workspace)
    assert found and found["sft"] == "run-a"


def test_the_marker_is_plain_json(workspace: Workspace) -> None:
    write_tracked(workspace.home / "x.json", workspace, RUNS)
    assert json.loads((workspace.home / "x.json").read_text()) == {"uri": workspace.mlflow_uri, **RUNS}


def test_tables_of_the_data() -> None:
    """A row for each split that was read, in words; a row for each dataset that is trained on."""
    side = {"split": "train_prefs", "read": 10, "kept": 7, "dropped": {"empty-chosen": 2, "identical": 1}}
    held_out = {"split": "test_prefs", "read": 3, "kept": 3, "dropped": {}}
    found = data_table([step("source", {"id": "a", "notices": [], "train": side, "test": held_out})])
    assert [list(row.values()) for row in found] == [
        ["a", "train_prefs", "training", 10, 7, 3, "2 empty-chosen, 1 identical"],
        ["a", "test_prefs", "held out", 3, 3, 0, ""],
    ]
    shares = mixture_table({"by_source": {"a": 7, "b": 21}, "shares": {"a": 0.25, "b": 0.75}})
    assert [list(row.values()) for row in shares] == [["a", 7, "25.0%"], ["b", 21, "75.0%"]]
