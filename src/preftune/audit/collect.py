"""The audit of the data: what the finished `source` and `mixture` steps hold, as one plain dict for page and terminal.

Files are read as streams. Nothing is judged anew: what was dropped, and why, is taken from the steps.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preftune.audit.measures import Figures, measure
from preftune.audit.samples import LONGEST_NAME, Gallery, Reservoir, cut, shown_row
from preftune.data.check_list import CHECKS
from preftune.data.pairs import Pair

RANDOM_PAIRS = 6
ROWS_PER_REASON = 3
LANGUAGES = 8
SIDES = ("train", "test")


def collect(sources: list[Path], mixture: Path, truncation: dict[str, Any] | None, seed: int) -> dict[str, Any]:
    """Collects what the audit's page shows.

    Args:
        sources: The folder of each dataset's `source` step, in the recipe's order.
        mixture: The folder of the `mixture` step.
        truncation: What `lengths.count` found in the pairs to train on, with the recipe's `max_length` (None: no
            limit); `{"not_counted": why}`; or None, if the model is not at hand.
        seed: Draws the pairs and rows that are shown.

    Returns:
        JSON-able: `sources` (counts, reasons, left-out rows, figures by side, pairs), `mixture`, `overlaps`
        (source, side, source, side, prompts in common), `truncation`, `seed`.
    """
    found, prompts = [], []
    for folder in sources:
        source, asked = _source(folder, seed)
        before = sum(other["id"] == source["id"] for other in found)
        label = source["id"] if not before else f"{source['id']} (entry {before + 1})"
        found.append(source | {"label": label})
        prompts += [(label, side, digests) for side, digests in asked.items()]
    common = ((a[0], a[1], b[0], b[1], len(a[2] & b[2])) for a, b in itertools.combinations(prompts, 2))
    return {
        "sources": found,
        "mixture": _mixture(mixture, seed),
        "overlaps": sorted((c for c in common if c[4]), key=lambda c: -c[4]),
        "truncation": _without_indices(truncation),
        "seed": seed,
    }


def _without_indices(truncation: dict[str, Any] | None) -> dict[str, Any] | None:
    """The counts alone; which pairs are meant can be many thousands of numbers."""
    return truncation and {key: value for key, value in truncation.items() if key != "indices"}


def _pairs(path: Path) -> Iterator[Pair]:
    with path.open() as f:
        for line in f:
            yield Pair.model_validate_json(line)


def _source(folder: Path, seed: int) -> tuple[dict[str, Any], dict[str, set[int]]]:
    """One dataset, and the digests of its prompts by side."""
    report = json.loads((folder / "report.json").read_text())
    gallery = Gallery(RANDOM_PAIRS, f"{seed}:{report['id']}")
    splits, prompts = [], {}
    for side in SIDES:
        if side not in report:
            continue
        figures = Figures()
        for pair in _pairs(folder / f"{side}.jsonl"):
            measure(pair, side, figures, gallery)
        splits.append(_split(side, report[side]) | {"figures": figures.result()})
        prompts[side] = figures.prompts
    kept = {key: report[key] for key in ("id", "notices")}
    digest = cut(report["source_digest"], LONGEST_NAME)
    rows = _quarantine(folder / "quarantine.jsonl", seed)
    return kept | {"digest": digest, "splits": splits, **rows, **gallery.result()}, prompts


def _split(side: str, found: dict[str, Any]) -> dict[str, Any]:
    """A split's counts; they add up: read = kept + by choice + defective."""
    reasons = reason_rows(found)
    dropped = [r for r in reasons if r["dropped"]]
    return {
        **{key: found[key] for key in ("split", "read", "kept", "drawn")},
        "side": side,
        "by_choice": sum(r["count"] for r in dropped if r["choice"]),
        "defective": sum(r["count"] for r in dropped if not r["choice"]),
        "reasons": reasons,
    }


def reason_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Each check that found something, the most frequent first.

    Args:
        found: A split's or the mixture's report: `dropped` and `warned` by check, `examples` where there are any.
    """
    rows = []
    for key in ("dropped", "warned"):
        for name, count in found[key].items():
            check = CHECKS.get(name)  # none: a step of an older version
            rows.append(
                {
                    "reason": name,
                    "meaning": check.meaning if check else name,
                    "choice": bool(check and check.choice),
                    "dropped": key == "dropped",
                    "count": count,
                    "examples": [cut(row, LONGEST_NAME) for row in found.get("examples", {}).get(name, [])],
                }
            )
    return sorted(rows, key=lambda row: (not row["dropped"], row["choice"], -row["count"]))


def _quarantine(path: Path, seed: int) -> dict[str, Any]:
    """A few rows of each reason, and the languages of the rows that were left out for theirs."""
    samples: dict[tuple[str, str], Reservoir] = {}
    languages: Counter[str] = Counter()
    with path.open() as f:
        for text in f:
            line = json.loads(text)
            key = line["split"], line["reason"]
            if key not in samples:
                samples[key] = Reservoir(ROWS_PER_REASON, f"{seed}:{key}")
            samples[key].offer(
                lambda line=line: {
                    **{k: line[k] for k in ("source", "split", "reason", "meaning")},
                    "row_id": cut(line["row_id"], LONGEST_NAME),
                    "columns": shown_row(line["row"]),
                }
            )
            if line["reason"] == "other_language":
                named = line["row"].get("language") or line["row"].get("lang") or "not named"
                languages[cut(str(named), LONGEST_NAME)] += 1
    rows = [row for sample in samples.values() for row in sample.items]
    return {"rows": rows, "languages": languages.most_common(LANGUAGES), "quarantine": str(path)}


def _mixture(folder: Path, seed: int) -> dict[str, Any]:
    info = json.loads((folder / "mixture.json").read_text())
    figures = {}
    for side in SIDES:
        found = Figures()
        for pair in _pairs(folder / f"{side}.jsonl"):
            measure(pair, side, found)
        figures[side] = found.result()
    keys = ("drawn", "train", "test", "by_source", "shares", "notices")
    shown = _quarantine(folder / "quarantine.jsonl", seed)
    examples: dict[str, list[str]] = {}
    for row in shown["rows"]:
        examples.setdefault(row["reason"], []).append(row["row_id"])
    reasons = reason_rows(info | {"examples": examples})
    told = {key: info[key] for key in keys} | {"test_dropped": sum(info["test_dropped"].values())}
    return told | {"reasons": reasons, "figures": figures, **shown}


def audit_json(
    sources: list[dict[str, Any]],
    mixture: dict[str, Any],
    quarantine: Path,
    truncation: dict[str, Any] | None,
    page: Path,
) -> dict[str, Any]:
    """What `preftune audit --json` prints.

    Args:
        sources: Each dataset's report.json.
        mixture: mixture.json.
        quarantine: Where the rows that became no pair stand.
        truncation: As for `collect`.
        page: The HTML page.
    """
    keys = ("split", "read", "kept", "dropped", "warned", "length_accuracy")
    return {
        "sources": [
            {"id": report["id"], **{key: report[side][key] for key in keys}, "notices": report["notices"]}
            for report in sources
            for side in SIDES
            if side in report
        ],
        "mixture": {key: mixture[key] for key in ("train", "test", "shares", "drawn", "dropped", "warned", "notices")},
        "quarantine": str(quarantine),
        "truncation": _without_indices(truncation),
        "page": str(page),
    }
