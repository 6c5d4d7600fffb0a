"""The two MLflow runs of a verdict: the SFT baseline's and the policy's, with everything that belongs to them."""

import tempfile
from pathlib import Path
from typing import Any

from preftune import tracking
from preftune.children import read_json_lines
from preftune.digest import json_digest
from preftune.live_metrics import outage, outage_note
from preftune.markdown import markdown
from preftune.schema import Recipe
from preftune.store import locked
from preftune.strict_yaml import dump_yaml
from preftune.summary import training_note_lines
from preftune.workspace import Workspace

_EVALUATION = ("pairs.jsonl", "answers.jsonl", "lm_eval.jsonl", "lm_eval.json", "suite_answers.jsonl")
_JUDGE = ("judgements.jsonl", "grades.jsonl", "judge.json")


def _datasets(results: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the sources, the held-out side) as MLflow's dataset inputs."""
    mixture = results["mixture"].info
    held_out = {
        "name": "held-out pairs",
        "digest": mixture["test_sha256"][:20],
        "context": "evaluation",
        "profile": {"pairs": mixture["test"]},
    }
    sources = [
        {"name": s.info["id"], "digest": s.digest, "context": "training", "profile": s.info["train"]}
        for s in results["source"]
    ]
    return sources, held_out


def _note(info: dict[str, Any], links: dict[str, str]) -> str:
    """The run's page in Markdown: outcome, reasons, what to do, where else to look."""
    note = f"**{info['outcome']}**\n\n" + "\n".join(f"- {markdown(r)}" for r in info["reasons"])
    if info["advice"]:
        note += "\n\n**what to do next**\n\n" + "\n".join(f"- {markdown(a)}" for a in info["advice"])
    if notes := info["training_notes"]:
        note += "\n\n**what the training shows**\n\n" + "\n".join(training_note_lines(notes))
    return note + "\n" + "".join(f"\n- {k}: {v}" for k, v in links.items())


def _artifacts(workspace: Workspace, results: dict[str, Any], resolved: Path) -> list[tuple[Path, str]]:
    """(file, folder in the run) of all that the policy's run keeps."""
    place = {n: r.folder(workspace) for n, r in results.items() if n not in ("source", "evaluated")}
    found = [(place["verdict"] / n, "") for n in ("report.html", "verdict.json")]
    found += [(p, "plots") for p in sorted((place["verdict"] / "plots").glob("*.svg"))]
    found += [(place["policy"] / n, "evaluation") for n in _EVALUATION if (place["policy"] / n).exists()]
    found += [(place["verdict"] / "comparison.jsonl", "evaluation")]
    if "judge" in place:
        found += [(place["judge"] / n, "judge") for n in _JUDGE]
    found += [(place["mixture"] / "mixture.json", "data"), (place["mixture"] / "quarantine.jsonl", "data/mixture")]
    found += [(place["lengths"] / "lengths.json", "data"), (place["lengths"] / "quarantine.jsonl", "data/lengths")]
    for i, source in enumerate(results["source"]):
        found += [(source.folder(workspace) / n, f"data/source-{i}") for n in ("report.json", "quarantine.jsonl")]
    return [*found, (resolved, "")]


def record_both(
    workspace: Workspace,
    recipe: Recipe,
    results: dict[str, Any],
    identity: str,
    links: dict[str, str],
    origin: dict[str, str],
) -> dict[str, str]:
    """Completes the SFT baseline's and the policy's run; one recording of a workspace at a time, so that two runs that
    end together do not both make the baseline's.

    Args:
        workspace: Where the results stand.
        recipe: The resolved recipe.
        results: Step name → result; `source` holds a list. Either `train`, or `evaluated` (a policy on disk).
        identity: From `keys.run_identity`.
        links: Label → text, for the runs' note and tags.
        origin: More tags of the policy's run: its lineage, by which it can be registered.

    Returns:
        {"experiment": id, "sft": run id, "policy": run id}, and "notice" if MLflow was away during training.
    """
    with locked(workspace.home / "tracked" / "recording.lock"):
        return _record_both(workspace, recipe, results, identity, links, origin)


def _record_both(
    workspace: Workspace,
    recipe: Recipe,
    results: dict[str, Any],
    identity: str,
    links: dict[str, str],
    origin: dict[str, str],
) -> dict[str, str]:
    client = tracking.connect(workspace)
    experiment = tracking.experiment_id(client, workspace, recipe.experiment)
    verdict, baseline = results["verdict"], results["baseline"]
    sources, held_out = _datasets(results)
    tags = {f"preftune.{k}": v for k, v in links.items()} | dict(recipe.tracking.tags)
    metrics = verdict.info["metrics"]
    name = tracking.run_name(recipe, "sft")
    sft = tracking.open_run(client, experiment, baseline.key, name, {"preftune.kind": "sft"})
    there = [(baseline.folder(workspace) / n, "evaluation") for n in _EVALUATION]
    tracking.record(
        client,
        sft,
        content=json_digest([baseline.key, metrics["sft"]]),
        params={"model_name_or_path": recipe.model_name, "evaluation": recipe.evaluation.model_dump()},
        metrics=metrics["sft"],
        curves=[],
        datasets=[held_out],
        artifacts=[(path, place) for path, place in there if path.exists()],
        tags={**tags, "mlflow.note.content": f"SFT baseline: {recipe.model_name}"},
    )
    evaluated, train = results.get("evaluated"), results.get("train")
    kind = "evaluation" if evaluated else "dpo"
    name = f"{evaluated.folder.name} evaluation" if evaluated else tracking.run_name(recipe, "dpo")
    policy = tracking.open_run(client, experiment, identity, name, {"preftune.kind": kind})
    late = outage(outage_note(workspace, identity)) if train else None
    tags |= {"preftune.verdict": verdict.info["outcome"], "preftune.sft_run": sft}
    tags |= {"preftune.metrics_late": late} if late else {}
    tags |= {f"preftune.{k}": v for k, v in origin.items()}
    with tempfile.TemporaryDirectory() as scratch:
        resolved = Path(scratch) / "recipe.yaml"
        resolved.write_text(dump_yaml(recipe.resolved()))
        tracking.record(
            client,
            policy,
            content=verdict.key,
            params=recipe.resolved() | ({"policy": str(evaluated.folder)} if evaluated else {}),
            metrics=metrics["policy"],
            curves=read_json_lines(train.folder(workspace) / "metrics.jsonl") if train else [],
            datasets=[*(sources if train else []), held_out],
            artifacts=_artifacts(workspace, results, resolved),
            tags={**tags, "mlflow.note.content": _note(verdict.info, links)},
        )
    return {"experiment": experiment, "sft": sft, "policy": policy} | ({"notice": late} if late else {})
