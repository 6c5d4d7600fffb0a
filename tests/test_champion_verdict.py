"""Challenger against champion: whom the texts name, what can be measured; both verdicts decide."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_verdict import DONE, Rows, answered, judge_folder, moved, sft_rows, verdicts, write

from preftune.champion import Version
from preftune.champion_verdict import decision, measurable
from preftune.gate import CHAMPION
from preftune.models import StartingModel
from preftune.policies import read_policy
from preftune.schema import Gate
from preftune.verdict import compare
from preftune.workspace import Workspace

# What is measured under the SFT model, whoever is compared.
TRULY_SFT = r"NLL of the answers under SFT|under it than under SFT|what the SFT model finds very unlikely|an SFT term"
NOT_FINITE = answered()
NOT_FINITE["pairs"][0]["chosen_logp"] = float("nan")


@pytest.mark.parametrize(
    ("policy", "judge", "outcome", "says"),
    [
        (answered(), None, "promote", "can replace the champion"),
        (moved([-1.0] * 9 + [1.0], [0.0]), None, "reject", "the champion tells chosen and rejected"),
        (moved([1.0] * 6 + [-1.0] * 4, [0.0]), None, "inconclusive", "until then keep the champion"),
        (answered(stopped=False), None, "reject", "worse than the champion by"),
        (answered(sft_logp=-152.0), None, "reject", "above 2 × the champion's"),
        (answered(text="a much longer answer than it was before, and then some more of it"), None, "promote", ""),
        (answered(), [("sft", "sft")] * 30 + [("policy", "policy")] * 10, "reject", "prefers the champion's answers"),
        (NOT_FINITE, None, "reject", "missing or not finite"),
    ],
)
def test_the_champion_is_not_called_sft(
    tmp_path: Path, policy: Rows, judge: list[Any] | None, outcome: str, says: str
) -> None:
    found = compare(
        *(write(tmp_path / "champion", sft_rows()), write(tmp_path / "challenger", policy), DONE, 0.1),
        *(Gate.model_validate({}), tmp_path),
        judge=judge_folder(tmp_path, verdicts(judge)) if judge else None,
        opponent=CHAMPION,
    )
    told = json.dumps([found[k] for k in ("reasons", "advice", "notes", "damages")], ensure_ascii=False)
    assert found["outcome"] == outcome and says in told
    assert "SFT" not in re.sub(TRULY_SFT, "", told), told


PROMOTE, REJECT = {"outcome": "promote", "reasons": ["good"]}, {"outcome": "reject", "reasons": ["bad"]}
UNDECIDED = {"outcome": "inconclusive", "reasons": ["?"]}


def version(number: str, policy: str, **tags: str) -> Version:
    return Version(model="m", number=number, run_id="r", tags={"policy": policy, **tags})


@pytest.mark.parametrize(
    ("verdict", "against", "champion", "why_not", "promoted", "says"),
    [
        (PROMOTE, None, None, None, True, "no champion yet"),
        (REJECT, None, None, None, False, "against the SFT model: reject: bad"),
        (PROMOTE, PROMOTE, version("1", "x"), None, True, "than the champion (version 1)"),
        (PROMOTE, REJECT, version("1", "x"), None, False, "against the champion (version 1): reject: bad"),
        (PROMOTE, UNDECIDED, version("1", "x"), None, False, "against the champion (version 1): inconclusive"),
        (REJECT, PROMOTE, version("1", "x"), None, False, "against the SFT model"),
        (UNDECIDED, PROMOTE, version("1", "x"), None, False, "against the SFT model: inconclusive"),
        (PROMOTE, None, version("1", "x"), "an adapter on another model", False, "an adapter on another model"),
        (PROMOTE, None, version("1", "mine"), None, False, "the very model of the champion (version 1)"),
        (PROMOTE, None, version("9", "mine"), None, True, "it is the champion already"),
        (REJECT, None, version("9", "mine"), None, True, "it is the champion already"),
    ],
)
def test_both_verdicts_must_be_promote(
    verdict: Any, against: Any, champion: Version | None, why_not: str | None, promoted: bool, says: str
) -> None:
    found, reason = decision(verdict, against, champion, version("9", "mine"), why_not)
    assert found is promoted and says in reason


def test_what_can_be_measured_beside_a_challenger(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, tmp_path / ".preftune").make()
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"vocab_size": 100}')
    model = StartingModel("base", str(base), None, "d", "t", str(base), weights="w1")
    adapter, whole, small = (tmp_path / n for n in ("adapter", "whole", "small"))
    for folder, name, config in (
        (adapter, "adapter", {"r": 8}),
        (whole, "", {"vocab_size": 100}),
        (small, "", {"vocab_size": 9}),
    ):
        folder.mkdir()
        (folder / f"{name or 'm'}{'_model' if name else ''}.safetensors").write_text("w")
        (folder / f"{name}{'_' if name else ''}config.json").write_text(json.dumps(config))

    def tried(folder: Path, weights: str, digest: str | None = None) -> str | None:
        tags = {"sft_weights": weights, "sft_model": "another"}
        champion = version("4", digest or read_policy(folder, workspace).digest, **tags)
        policy, why_not = measurable(champion, folder, workspace, model)
        assert (policy is None) == (why_not is not None)
        return why_not

    assert tried(adapter, "w1") is None
    assert "an adapter on another starting model (another)" in str(tried(adapter, "w2"))
    assert tried(whole, "w2") is None, "a whole model brings its own weights"
    assert "it knows 9 tokens" in str(tried(small, "w1"))
    assert "not those that were registered" in str(tried(whole, "w1", digest="other"))
