"""What a run tells people: tables, notices, the JSON summary's parts."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from preftune.digest import library_versions
from preftune.markdown import code, markdown
from preftune.models import StartingModel
from preftune.schema import Recipe
from preftune.store import StepResult
from preftune.tracking_address import without_password
from preftune.workspace import Workspace

# (metric, label, decimals, better when higher: True, lower: False, neither: None)
HEADLINES: list[tuple[str, str, int, bool | None]] = [
    ("lc_win_rate", "win rate, length-controlled", 3, True),
    ("win_rate", "win rate against SFT", 3, True),
    ("mt_bench/score", "MT-Bench (1 to 10)", 2, True),
    ("alpaca_eval/lc_win_rate", "AlpacaEval, length-controlled", 3, True),
    ("reward_accuracy", "reward accuracy", 3, True),
    ("reward_margin", "reward margin", 3, True),
    ("ranking_accuracy", "ranking accuracy", 3, True),
    ("ranking_accuracy_per_token", "ranking accuracy per token", 3, True),
    ("lm_eval/facts/acc", "facts (lm-eval)", 3, True),
    ("lm_eval/instructions/prompt_level_strict_acc", "instructions followed (lm-eval)", 3, True),
    ("response_tokens", "answer length (tokens)", 1, None),
    ("stop_rate", "answers that stop by themselves", 3, True),
    ("empty_rate", "empty answers", 3, False),
    ("seq_rep_4", "repetition (seq-rep-4)", 3, False),
    ("nll_under_sft", "NLL under SFT (nats per token)", 3, False),
    ("kl_per_token", "KL to SFT (nats per token)", 3, None),
]


def headline_rows(metrics: dict[str, dict[str, float | None]]) -> list[tuple[str, str, str]]:
    """(label, SFT, policy with its interval) of each headline measure that is there."""

    def text(who: str, name: str, decimals: int) -> str:
        value, low, high = (metrics[who].get(f"{name}{end}") for end in ("", "_lo", "_hi"))
        if value is None:
            return "not measured"
        if low is None or high is None or low == high:
            return f"{value:.{decimals}f}"
        return f"{value:.{decimals}f}  [{low:.{decimals}f}, {high:.{decimals}f}]"

    return [
        (label, text("sft", name, decimals), text("policy", name, decimals))
        for name, label, decimals, _ in HEADLINES
        if name in metrics["policy"]
    ]


def verdict_markdown(info: dict[str, Any], report: str) -> str:
    """The verdict as Markdown, for the flow run's page; it says where the report stands."""
    lines = [f"# {info['outcome']}", "", *(f"- {markdown(r)}" for r in info["reasons"]), ""]
    if info["advice"]:
        lines += ["## What to do next", "", *(f"- {markdown(a)}" for a in info["advice"]), ""]
    lines += ["| measure | SFT | DPO |", "|---|---|---|"]
    lines += [f"| {label} | {sft} | {policy} |" for label, sft, policy in headline_rows(info["metrics"])]
    if info["training_notes"]:
        lines += ["", "## What the training shows", "", *training_note_lines(info["training_notes"])]
    return "\n".join([*lines, "", f"Report: {code(report)}"])


def training_note_lines(notes: list[dict[str, str]]) -> list[str]:
    """What the training's curves show, as a Markdown list."""
    texts = [n["text"] + (f" ({n['advice']})" if n["advice"] else "") for n in notes]
    return [f"- {n['severity']}: {markdown(text)}" for n, text in zip(notes, texts, strict=True)]


def data_table(sources: list[StepResult]) -> list[dict[str, Any]]:
    """What each dataset's splits gave, a row each."""
    return [
        {
            "dataset": source.info["id"],
            "split": found["split"],
            "for": {"train": "training", "test": "held out"}[side],
            "read": found["read"],
            "kept": found["kept"],
            "dropped": sum(found["dropped"].values()),
            "why": ", ".join(f"{n} {reason}" for reason, n in found["dropped"].items()),
        }
        for source in sources
        for side, found in source.info.items()
        if side in ("train", "test")
    ]


def mixture_table(info: dict[str, Any]) -> list[dict[str, Any]]:
    """What is trained on, a row for each dataset."""
    return [
        {"dataset": n, "pairs": pairs, "share": f"{info['shares'][n]:.1%}"} for n, pairs in info["by_source"].items()
    ]


def data_notices(sources: list[StepResult], mixture: StepResult, lengths: StepResult | None) -> list[str]:
    """What was fixed, dropped or kept with a warning, a line each."""
    lines = [n for s in sources for n in s.info["notices"]]
    for source in sources:
        for side in ("train", "test"):
            found = source.info.get(side, {})
            for what in ("dropped", "warned"):
                if counts := found.get(what):
                    reasons = ", ".join(f"{n} {r}" for r, n in counts.items())
                    kept = " (kept)" if what == "warned" else ""
                    lines.append(f"{source.info['id']} ({found['split']}): {what} {reasons}{kept}")
    return lines + mixture.info["notices"] + length_notices(lengths)


def mixture_line(info: dict[str, Any], lengths: StepResult | None) -> str:
    """The mixture's realised counts in one line, without the pairs of which nothing is left at max_length."""
    counts = lengths.info.get("train", {}).get("counts", {}) if lengths else {}
    lost = sum(counts.values())
    line = f"{info['train'] - lost:,} pairs to train on, {info['test']:,} held out"
    if lost:
        line += f"; {lost:,} more cannot be trained on at max_length"
    if len(info["by_source"]) < 2:
        return line
    parts = (f"{name} {n:,} ({info['shares'][name]:.1%})" for name, n in info["by_source"].items())
    return f"{line}; trained on: {', '.join(parts)}"


def length_notices(lengths: StepResult | None) -> list[str]:
    """What max_length does to the pairs, a line each."""
    if lengths is None:
        return []
    if why := lengths.info.get("not_counted"):
        return [f"how many pairs max_length cuts could not be counted: {why}"]
    lines = []
    for side, what in (("train", "training"), ("test", "held-out")):
        found = lengths.info[side]
        lost = ", ".join(f"{n} {name}" for name, n in found["counts"].items() if n)
        if lost:
            lines.append(f"{what} pairs left out at max_length={found['max_length']}: {lost}")
        if side == "train" and found["cut"]:
            lines.append(
                f"{found['cut']} of {found['pairs']} {what} pairs are cut at max_length={found['max_length']}: 95 % "
                f"would fit whole in {found['max_length_95']} tokens, 99 % in {found['max_length_99']}"
            )
    return lines


def lineage(recipe: Recipe, model: StartingModel, results: dict[str, Any], links: dict[str, str]) -> dict[str, str]:
    """Which data, model and code made this result; for the report."""
    versions = library_versions("torch", "transformers", "trl", "peft", "lm-eval", "prefect", "mlflow")
    found = {
        "starting model": f"{model.name} ({model.digest})",
        **{f"dataset {i + 1}": f"{s.info['id']} ({s.digest})" for i, s in enumerate(results["source"])},
        "training pairs": results["mixture"].info["train_sha256"],
        "held-out pairs": results["mixture"].info["test_sha256"],
        **{f"{s} key": results[s].key for s in ("mixture", "baseline", "train", "policy", "judge") if s in results},
    }
    if "train" in results:
        found["trained weights"] = results["train"].digest
    if "evaluated" in results:
        found["evaluated policy"] = f"{results['evaluated'].folder} ({results['evaluated'].digest})"
    told = ", ".join(f"{k} {v}" for k, v in versions.items())
    return {**found, "recipe": str(recipe.path.name), **links, "versions": told}


def write_tracked(marker: Path, workspace: Workspace, runs: dict[str, str]) -> None:
    """Notes that both MLflow runs are complete, so that a cached run need not import mlflow."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"uri": without_password(workspace.mlflow_uri), **runs}))


def read_tracked(marker: Path, workspace: Workspace) -> dict[str, str] | None:
    """The runs noted for this result, if they were sent to the tracking address in force and are still there."""
    try:
        runs = json.loads(marker.read_text())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(runs, dict) or runs.get("uri") != without_password(workspace.mlflow_uri):
        return None
    if workspace.mlflow_uri.startswith("sqlite:///"):
        database = Path(workspace.mlflow_uri.removeprefix("sqlite:///"))
        if not database.exists():
            return None
        query = "select count(*) from runs where run_uuid in (?, ?) and lifecycle_stage = 'active'"
        try:
            with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
                if connection.execute(query, (runs["sft"], runs["policy"])).fetchone()[0] != 2:
                    return None
        except sqlite3.Error:  # empty, or no database
            return None
    return runs
