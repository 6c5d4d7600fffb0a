"""The report of verdicts as they are really computed, from the files that the evaluations and the judge leave."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_evidence import answer_rows, grades, held_out_pairs, judgements, make_input, pair_rows, suite_rows
from test_report import parse, section

from preftune.report import ReportInput, render_report
from preftune.schema import Gate
from preftune.verdict import compare

JUDGE = {
    **{"kind": "openai", "model": "judge-large", "requests": 40, "cached": 2, "errors": {}, "stopped": None},
    **{"prompt_tokens": 100, "completion_tokens": 10, "cost": None, "seconds": 1.0},
}


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        if isinstance(rows, dict):
            (folder / f"{name}.json").write_text(json.dumps(rows))
        else:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evidence(folder: Path, *, judged: bool, prompts: int = 20, silent: bool = False) -> ReportInput:
    """Files of 40 pairs and a task, the verdict computed from them, and all that the report needs beside it."""
    data = make_input(judged=judged, prompts=prompts)
    pairs = held_out_pairs(40)
    config = {"main": "exact_match", "higher_is_better": {"exact_match": True}, "binary": {"exact_match": True}}
    places = []
    for who, gain in (("baseline", 0.0), ("policy", 4.0)):
        documents = [
            {
                **{"task": "facts", "doc_id": i, "id": f"f{i}", "digest": "d" * 16, "cluster": None},
                "metrics": {"exact_match": float((i + int(gain)) % 3 == 0)},
            }
            for i in range(30)
        ]
        place = write(
            folder / who,
            pairs=pair_rows(pairs, gain),
            answers=answer_rows(pairs[:prompts], gain),
            suite_answers=suite_rows(gain) if judged else [],
            lm_eval=documents,
        )
        places.append(write(place, lm_eval={"facts": {**config, "metrics": {"exact_match": 1 / 3}, "n": 30}}))
    judge, found = None, judgements(answer_rows(pairs[:prompts], 0.0)) if judged else []
    if silent:
        orders = [{"winner": None, "error": "time-out", "text": None}] * 2
        found = [{**j, "orders": orders, "outcome": None, "flipped": False} for j in found]
    if judged:
        judge = write(folder / "judge", judgements=found, grades=grades(), judge=JUDGE)
    training = {"steps": 120, "max_steps": 120}
    verdict = compare(
        places[0], places[1], training, 0.1, Gate.model_validate({}), write(folder / "verdict"), judge=judge
    )
    rows = (folder / "verdict" / "comparison.jsonl").read_text().splitlines()
    return replace(data, verdict=verdict, comparison=[json.loads(row) for row in rows], judgements=found)


@pytest.mark.parametrize("judged", [True, False])
def test_every_measure_is_on_the_page(tmp_path: Path, judged: bool) -> None:
    data = evidence(tmp_path, judged=judged)
    page = render_report(data)
    parse(page)
    for name in data.verdict["metrics"]["policy"]:
        if not name.endswith(("_lo", "_hi")):
            assert f"<code>{name}</code>" in page, name
    assert data.verdict["power"]["text"] in page
    assert ('id="judge"' in page) == judged
    measured = data.verdict["primary"]["value"] is not None
    assert ('<div class="gauge">' in section(page, "verdict")) == measured
    assert ("It could not be measured" in section(page, "verdict")) != measured


@pytest.mark.parametrize("prompts", [2, 20])
def test_a_judge_that_never_answers(tmp_path: Path, prompts: int) -> None:
    data = evidence(tmp_path, judged=True, prompts=prompts, silent=True)
    page = render_report(data)
    parse(page)
    assert data.verdict["outcome"] != "promote"
    assert "not usable" in section(page, "judge")
    assert "It could not be measured" in section(page, "verdict")
