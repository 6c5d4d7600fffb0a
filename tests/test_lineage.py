"""What makes a retraining: recipe, data, starting model; and what does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from preftune.data.sources import find_source
from preftune.lineage import lineage
from preftune.models import StartingModel
from preftune.recipe import resolve
from preftune.workspace import Workspace

MODEL = StartingModel("base", "base", None, "d", "t", weights="w")
ROW = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "pairs.jsonl").write_text(ROW * 3)
    (tmp_path / "held.jsonl").write_text('{"question": "q"}\n')
    return Workspace(tmp_path, tmp_path / ".preftune")


def found(workspace: Workspace, model: StartingModel = MODEL, **keys: Any) -> dict[str, str]:
    recipe = resolve({"model_name_or_path": "base", "dataset_name": "pairs.jsonl", **keys}, Path("recipes/x/c.yaml"))
    sources = [find_source(e, workspace) for e in recipe.mixture.datasets]
    return lineage(recipe, workspace, model, sources)


@pytest.mark.parametrize(
    "keys",
    [
        {"output_dir": "data/other"},
        {"tracking": {"experiment": "other", "tags": {"a": "b"}}},
        {"push_to_hub": True, "hub_model_id": "me/mine"},
        {"merge_adapter": True, "use_peft": True},
    ],
)
def test_where_a_result_goes_makes_no_retraining(workspace: Workspace, keys: dict[str, Any]) -> None:
    plain = {"use_peft": True} if "use_peft" in keys else {}
    assert found(workspace, **keys) == found(workspace, **plain)


def test_recipe_data_and_model_do(workspace: Workspace) -> None:
    before = found(workspace)
    assert list(json.loads(before["sources"])) == ["pairs.jsonl"]
    others = [
        found(workspace, beta=0.2),
        found(workspace, gate={"min_reward_accuracy": 0.6}),
        found(workspace, StartingModel("base", "base", None, "d2", "t", weights="w")),
        found(workspace, validation={"decontaminate": ["held.jsonl"]}),
    ]
    (workspace.project / "pairs.jsonl").write_text(ROW * 2 + ROW.replace("b", "x"))
    others.append(found(workspace))
    digests = [o["lineage"] for o in others]
    assert len({before["lineage"], *digests}) == 1 + len(others)
    assert others[-1]["recipe"] == before["recipe"] and others[-1]["sources"] != before["sources"]
    (workspace.project / "held.jsonl").write_text('{"question": "q2"}\n')
    assert found(workspace, validation={"decontaminate": ["held.jsonl"]})["lineage"] not in digests
