"""Recorded runs, read back from MLflow, to be compared with each other."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from preftune.children import read_json_lines
from preftune.compare_page import render_compare
from preftune.digest import json_digest
from preftune.errors import UserError
from preftune.run_comparison import RunEvidence, answers_in_common, cautions, pairs_in_common
from preftune.run_comparison import compare_runs as compare_evidence
from preftune.strict_yaml import load_yaml
from preftune.tracking import compare_url, connect, list_runs, mlflow_errors
from preftune.workspace import Workspace


def resolve_run(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The one recorded run whose id starts with this.

    Args:
        name: A run id, or its first characters.
        rows: From `tracking.list_runs`.

    Raises:
        UserError: If there is none, or more than one.
    """
    found = [row for row in rows if row["run_id"].startswith(name)]
    if not name or not found:
        raise UserError("no recorded run has an id that starts so", f"run {name!r}", "preftune runs lists them")
    if len(found) > 1:
        several = ", ".join(row["run_id"][:12] for row in found[:5])
        raise UserError(f"{len(found)} runs have an id that starts so: {several}", f"run {name!r}", "write more of it")
    return found[0]


def _evidence(client: Any, row: dict[str, Any]) -> RunEvidence:
    """What one run keeps of its evaluation."""
    run_id = row["run_id"]
    if row["kind"] == "pairs":
        raise UserError("this is a dataset, not a model's run", f"run {run_id}", "preftune runs lists the others")
    if row["kind"] == "sweep":
        raise UserError("this is a sweep, not a run", f"run {run_id}", "name trials of it: preftune runs lists them")
    there = {a.path for folder in (None, "evaluation") for a in client.list_artifacts(run_id, folder)}
    if not {"evaluation/pairs.jsonl", "evaluation/answers.jsonl"} <= there:
        raise UserError("the run keeps no evaluation: it is not finished", f"run {run_id}", "run its command again")
    with tempfile.TemporaryDirectory() as scratch:

        def lines(name: str) -> list[dict[str, Any]]:
            path = f"evaluation/{name}.jsonl"
            return read_json_lines(Path(client.download_artifacts(run_id, path, scratch))) if path in there else []

        def text(name: str) -> str | None:
            return Path(client.download_artifacts(run_id, name, scratch)).read_text("utf-8") if name in there else None

        tags = client.get_run(run_id).data.tags
        verdict, recipe = text("verdict.json"), text("recipe.yaml")
        return RunEvidence(
            name=row["name"],
            run_id=run_id,
            verdict=json.loads(verdict) if verdict else {},
            pairs=lines("pairs"),
            comparison=lines("comparison"),
            answers=lines("answers"),
            lm_eval=lines("lm_eval"),
            recipe=load_yaml(recipe, "recipe.yaml") if recipe else {},
            lineage={k.removeprefix("preftune."): v for k, v in sorted(tags.items()) if k.startswith("preftune.")},
        )


def compare_runs(workspace: Workspace, names: list[str]) -> dict[str, Any]:
    """Compares recorded runs, each with the first, and writes the page.

    Args:
        workspace: Whose MLflow is asked; the page goes to its `reports/`.
        names: Run ids, or what they start with; at least two.

    Returns:
        What `preftune compare --json` prints (docs/json.md).

    Raises:
        UserError: If a run is not found, is named twice, or was measured on nothing that the first one was.
    """
    rows = list_runs(workspace)
    chosen = [resolve_run(name, rows) for name in names]
    ids = [row["run_id"] for row in chosen]
    if twice := next((i for i in ids if ids.count(i) > 1), None):
        raise UserError("the same run is named twice", f"run {twice}", "name different runs")
    with mlflow_errors(workspace):
        client = connect(workspace)
        runs = [_evidence(client, row) for row in chosen]
        experiment = client.get_run(ids[0]).info.experiment_id
    measured = compare_evidence(runs)
    digest = json_digest(ids)[:6]
    report = workspace.home / "reports" / f"compare-{'-'.join(i[:6] for i in ids[:3])}-{digest}.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(render_compare(runs), encoding="utf-8")
    return {
        "runs": [{"run_id": r.run_id, "name": r.name, "verdict": r.verdict.get("outcome")} for r in runs],
        "pairs": len(pairs_in_common(runs)),
        "answers": len(answers_in_common(runs)),
        "metrics": {m.name: [_finite(v) for v in m.values] for m in measured},
        "differences": {m.name: [[_finite(v) for v in d] for d in m.differences] for m in measured},
        "notices": cautions(runs),
        "report": str(report),
        "compare_url": compare_url(workspace, experiment, ids),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
