"""The pipeline's steps on data as plain functions: check, mix, count tokens, audit. Seconds on a CPU; no model."""

import json
from pathlib import Path
from typing import Any, TextIO

from preftune import keys, store
from preftune.data.check_list import CHECKS
from preftune.data.checks import check_source
from preftune.data.decontamination import evaluation_sources, evaluation_texts, own_texts
from preftune.data.lengths import count, stop_if_untrainable
from preftune.data.mixture import build_mixture
from preftune.data.pair_tokenizer import NotCounted, pair_tokenizer
from preftune.data.sources import Source
from preftune.digest import file_sha256
from preftune.errors import UserError
from preftune.models import StartingModel
from preftune.schema import Mixture, Recipe, Validation
from preftune.store import StepResult
from preftune.summary import length_notices
from preftune.workspace import Workspace

SIDES = ("train", "test")


def make_source(workspace: Workspace, key: str, source: Source, validation: Validation, seed: int) -> StepResult:
    """Converts and checks one dataset; see `checks.check_source`."""
    return store.make(workspace, "source", key, lambda folder: check_source(source, validation, folder, seed))


def make_mixture(
    workspace: Workspace, key: str, sources: list[StepResult], mixture: Mixture, validation: Validation
) -> StepResult:
    """Samples and splits; the info holds counts, shares, and the digests of both sides."""

    def build(folder: Path) -> dict[str, Any]:
        places = [s.folder(workspace) for s in sources]
        files = [
            (p / "train.jsonl", p / "test.jsonl" if e.test_split else None)
            for p, e in zip(places, mixture.datasets, strict=True)
        ]
        texts = [*own_texts(), *evaluation_texts(evaluation_sources(validation, workspace))]
        info = build_mixture(files, mixture, validation, texts, folder)
        if info["train"] == 1:
            advice = "nothing general is learned from it: add pairs, or raise the weights"
            raise UserError("there is one pair to train on", "dataset_mixture", advice)
        return info | {f"{side}_sha256": file_sha256(folder / f"{side}.jsonl") for side in ("train", "test")}

    return store.make(workspace, "mixture", key, build)


def make_data(workspace: Workspace, recipe: Recipe, found: list[Source]) -> tuple[list[StepResult], StepResult]:
    """Every dataset checked, and the mixture, without Prefect: for commands that look and do not train."""
    check, seed = recipe.validation, recipe.mixture.seed
    sources = [make_source(workspace, keys.source_key(s, check, seed), s, check, seed) for s in found]
    key = keys.mixture_key(sources, recipe.mixture, check, evaluation_sources(check, workspace))
    return sources, make_mixture(workspace, key, sources, recipe.mixture, check)


def make_lengths(workspace: Workspace, recipe: Recipe, model: StartingModel, mixture: StepResult) -> StepResult:
    """Tokenizes the pairs with the model's tokenizer and template; counts what the recipe's max_length does to them.

    The info holds `lengths.truncation` of each side, without the indices (these stand in `left_out.json`), or
    `not_counted` with the reason. The ids stand in train.arrow and test.arrow, for the training and the evaluations.

    Raises:
        UserError: If too many pairs cannot be trained on, or a check set to `fail` failed.
    """
    limit = recipe.training.get("max_length", keys.max_length(recipe))
    keep_end = keys.truncation(recipe) == "keep_end"

    def build(folder: Path) -> dict[str, Any]:
        place = mixture.folder(workspace)
        try:
            tokenizer = pair_tokenizer(Path(model.files), model.template)
            sides = {s: count(place / f"{s}.jsonl", tokenizer, limit, keep_end, folder / f"{s}.arrow") for s in SIDES}
        except NotCounted as e:
            for side in SIDES:
                (folder / f"{side}.arrow").unlink(missing_ok=True)
            (folder / "lengths.json").write_text(json.dumps({"not_counted": str(e)}))
            (folder / "quarantine.jsonl").touch()
            return {"not_counted": str(e)}
        by_reason = {s: {i: r for r, found in side.pop("indices").items() for i in found} for s, side in sides.items()}
        lost = {s: sorted(found) for s, found in by_reason.items()}
        (folder / "left_out.json").write_text(json.dumps(lost))
        with (folder / "quarantine.jsonl").open("w") as out:
            for side, found in by_reason.items():
                _quarantine(place / f"{side}.jsonl", side, found, out)
        stop_if_untrainable(sides["train"], limit, recipe.validation)
        info = {s: {**side, "max_length": limit} for s, side in sides.items()}
        (folder / "lengths.json").write_text(json.dumps(info, indent=1))
        return info

    return store.make(workspace, "lengths", keys.lengths_key(recipe, model, mixture), build)


def _quarantine(path: Path, side: str, reasons: dict[int, str], out: TextIO) -> None:
    with path.open() as f:
        for i, line in enumerate(f):
            if (name := reasons.get(i)) is not None:
                pair = json.loads(line)
                told = {"source": pair["source"], "split": side, "row_id": pair["row_id"], "reason": name}
                out.write(json.dumps({**told, "meaning": CHECKS[name].meaning, "row": pair}, ensure_ascii=False) + "\n")


def left_out(lengths: StepResult, workspace: Workspace) -> dict[str, list[int]] | None:
    """Side → line numbers (from 0) of the pairs that cannot be trained on; None if that could not be counted."""
    if "not_counted" in lengths.info:
        return None
    return json.loads((lengths.folder(workspace) / "left_out.json").read_text())


def tokens(lengths: StepResult, workspace: Workspace) -> dict[str, str] | None:
    """Side → file with the token ids of its pairs that are not `left_out`; None if they could not be told."""
    if "not_counted" in lengths.info:
        return None
    return {side: str(lengths.folder(workspace) / f"{side}.arrow") for side in SIDES}


def make_audit(
    workspace: Workspace, recipe: Recipe, lengths: StepResult | None, sources: list[StepResult], mixture: StepResult
) -> StepResult:
    """Writes the audit's page, and one quarantine file of all sources and the mixture.

    Args:
        workspace: Where the steps stand.
        recipe: The resolved recipe.
        lengths: What max_length does; None if the starting model is not at hand.
        sources: The checked datasets.
        mixture: The mixture.
    """
    from preftune.audit.collect import audit_json, collect
    from preftune.audit.page import render_audit

    def build(folder: Path) -> dict[str, Any]:
        places = [s.folder(workspace) for s in sources]
        truncation = None
        if lengths is not None:
            truncation = lengths.info if "not_counted" in lengths.info else lengths.info["train"]
        with (folder / "quarantine.jsonl").open("w") as out:
            for place in (*places, mixture.folder(workspace), *([lengths.folder(workspace)] if lengths else [])):
                with (place / "quarantine.jsonl").open() as rows:
                    out.writelines(rows)
        data = collect(places, mixture.folder(workspace), truncation, recipe.mixture.seed)
        notices = [*recipe.notices, *data["mixture"]["notices"], *length_notices(lengths)]
        data["mixture"]["notices"] = notices
        (folder / "audit.json").write_text(json.dumps(data))
        (folder / "audit.html").write_text(render_audit(data), encoding="utf-8")
        final = workspace.store / "audit" / folder.name
        reports = [s.info for s in sources]
        info = {**mixture.info, "notices": notices}
        summary = audit_json(reports, info, final / "quarantine.jsonl", truncation, final / "audit.html")
        return {"summary": summary}

    key = keys.audit_key(recipe, lengths, sources, mixture)
    return store.make(workspace, "audit", key, build)


def audit_data(
    workspace: Workspace, recipe: Recipe, model: StartingModel | None, found: list[Source]
) -> tuple[StepResult, UserError | None]:
    """Checks, mixes, counts and audits; also data that would stop a run, with what would stop it as a notice.

    Raises:
        UserError: If there is nothing to show.
    """
    try:
        return _audit(workspace, recipe, model, found), None
    except UserError as e:
        keep = {name: does for name, does in recipe.validation.severity.items() if does != "fail"}
        validation = recipe.validation.model_copy(update={"max_dropped": 1.0, "severity": keep})
        notices = (f"a run stops here: {e.error} ({e.where})", *recipe.notices)
        lenient = recipe.model_copy(update={"validation": validation, "notices": notices})
        return _audit(workspace, lenient, model, found), e


def _audit(workspace: Workspace, recipe: Recipe, model: StartingModel | None, found: list[Source]) -> StepResult:
    sources, mixture = make_data(workspace, recipe, found)
    lengths = make_lengths(workspace, recipe, model, mixture) if model else None
    return make_audit(workspace, recipe, lengths, sources, mixture)
