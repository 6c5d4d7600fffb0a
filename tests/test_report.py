"""The report: everything told, everything escaped, nothing loaded from elsewhere."""

import json
import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from preftune.report import ReportInput, measure_rows, render_report
from preftune.schema import Gate
from preftune.verdict import compare

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use"}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def model_rows(gain: float, evil: str = "") -> dict[str, list[dict[str, Any]]]:
    """What the evaluation of a model writes: 40 pairs, 9 prompts."""
    rng = random.Random(0)
    pairs = []
    for i in range(40):
        base, shift = -60 - 20 * rng.random(), rng.gauss(gain, abs(gain))
        pairs.append(
            {
                "row_id": i,
                "group_id": f"g{i}",
                "source": f"shop-chats{evil}",
                "chosen_logp": base + shift - gain,
                "rejected_logp": base - rng.gauss(0, 4) - shift - gain,
                "chosen_tokens": 30,
                "rejected_tokens": 28,
            }
        )
    answers = []
    for i in range(9):
        stopped, tokens = i != 4, 40 + 7 * i + int(gain)
        answers.append(
            {
                "row_id": i,
                "prompt": [
                    {"role": "system", "content": "You help customers of a small shop." + evil},
                    {"role": "user", "content": f"Where is my order number {i}?" + evil},
                ],
                "text": "" if i == 7 else "Your order left our house this morning.\nIt comes tomorrow." + evil,
                "chosen": "I looked it up: it arrives tomorrow before noon." + evil,
                "tokens": tokens,
                "stopped": stopped,
                "seq_rep_4": 0.02 * i,
                "logp": -1.4 * tokens,
                "sft_logp": -(1.4 + gain / 100) * tokens,
                "logp_tokens": tokens + 1,
            }
        )
    lm_eval = [
        {"row_id": i, "task": "preference_pairs", "acc": float(rng.random() < 0.6), "acc_norm": 1.0} for i in range(40)
    ]
    return {"pairs": pairs, "answers": answers, "lm_eval": lm_eval}


NOTES = [
    {"severity": "warning", "name": "margin-flat", "text": "the margin did not grow", "advice": "read some pairs"},
    {"severity": "note", "name": "clipping", "text": "75% of the gradients were cut", "advice": ""},
]


def make(folder: Path, evil: str = "", gain: float = 4.0) -> ReportInput:
    sft, policy = model_rows(0.0, evil), model_rows(gain, evil)
    for who, found in (("sft", sft), ("policy", policy)):
        (folder / who).mkdir()
        for name, rows in found.items():
            write(folder / who / f"{name}.jsonl", rows)
    training = {"steps": 120, "max_steps": 120, "pairs": 960, "epochs": 1.0, "adapter": True, "world_size": 2}
    training |= {"trainable_parameters": 1_200_000, "parameters": 134_515_008}
    verdict = compare(folder / "sft", folder / "policy", training, 0.1, Gate.model_validate({}), folder, NOTES)
    curves = []
    for step in range(0, 121, 10):
        won = 1 - math.exp(-step / 50)
        values = {
            "loss": 0.69 - 0.2 * won,
            "rewards/chosen": -0.1 * won,
            "rewards/rejected": -0.8 * won,
            "rewards/margins": 0.7 * won,
            "rewards/accuracies": 0.5 + 0.25 * won,
        }
        metrics = {f"train/{k}": v for k, v in values.items()}
        if step % 40 == 0:
            metrics |= {f"eval/{k}": v * 0.97 for k, v in values.items()}
        curves.append({"step": step, "metrics": metrics})
    split = {"split": "train", "read": 1200, "kept": 1150, "dropped": {"duplicate": 44, "tie": 6}}
    split |= {"mean_chars": {"chosen": 201.5, "rejected": 188.1}, "chosen_longer": 0.5414}
    ids = [f"data/shop-chats.jsonl{evil}", "HuggingFaceH4/ultrafeedback_binarized"]
    return ReportInput(
        name=f"shop-assistant{evil}",
        verdict={**verdict, "reasons": [r + evil for r in verdict["reasons"]]},
        curves=curves,
        margins=[json.loads(line)["margin"] for line in (folder / "comparison.jsonl").read_text().splitlines()],
        answers=list(zip(sft["answers"], policy["answers"], strict=True)),
        sources=[
            {"id": i, "source_digest": "9f2c" * 16, "notices": [f"split 'train' was read{evil}"], "train": split}
            for i in ids
        ],
        mixture={
            "train": 960,
            "test": 40,
            "overlap": 3,
            "by_source": {ids[0]: 700, ids[1]: 260},
            "shares": {ids[0]: 0.7292, ids[1]: 0.2708},
            "notices": [f"no test split is named: 10% of the prompts are held out{evil}"],
        },
        training=training,
        recipe={"model_name_or_path": f"org/model{evil}", "learning_rate": 5e-6, "gate": {"min_reward_accuracy": 0.5}},
        steps={"check": "cached", "mix": "cached", "train": "run", "evaluate": "run"},
        lineage={f"base model{evil}": f"SmolLM2-135M-Instruct{evil}", "git revision": "4c1d9aa"},
    )


@pytest.fixture
def data(tmp_path: Path) -> ReportInput:
    return make(tmp_path)


class Balance(HTMLParser):
    """Fails at the first tag that does not close where it should; collects ids and what refers to them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.refers: set[str] = set()
        self.levels: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        for name, value in attrs:
            text = value or ""
            if name == "id":
                self.ids.append(text)
            elif name == "href" and text.startswith("#"):
                self.refers.add(text[1:])
            elif name == "aria-labelledby":
                self.refers.update(text.split())
            self.refers.update(re.findall(r"url\(#([^)]*)\)", text))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def parse(text: str) -> Balance:
    parser = Balance()
    parser.feed(text)
    parser.close()
    assert not parser.open
    return parser


def test_tells_everything(data: ReportInput) -> None:
    text = render_report(data)
    outcome = data.verdict["outcome"]
    assert outcome == "promote"
    assert 0 < text.index(f"</svg>{outcome}</p>") < text.index("<table")
    for name in data.verdict["metrics"]["policy"]:
        if not name.endswith(("_lo", "_hi")):
            assert f"<code>{name}</code>" in text
    for told in (*data.verdict["reasons"], *(d["name"] for d in data.verdict["damages"]), *data.steps):
        assert escape(told) in text
    assert "120 of 120 steps on 960 pairs" in text
    assert "the same pair stands earlier in this source" in text
    assert "learning_rate: 5.0e-06" in text
    assert text.count('<article class="answer"') == 6
    assert text.count("<summary>Prompt ") == 3
    assert "SFT and DPO did not stop" not in text  # row 4 is one of the open ones
    assert text.count('class="tag bad">did not stop') == 2
    assert text.count("(empty answer)") == 2
    assert text.count('<figure class="chart">') == 6


def test_what_the_training_shows_stands_beside_its_curves(data: ReportInput) -> None:
    text = render_report(data)
    parse(text)
    part = text[text.index("What the training shows") : text.index('id="margins"')]
    assert part.index("the margin did not grow.") < part.index("75% of the gradients were cut.")
    assert part.count("look into it") == 1 and "read some pairs." in part
    assert "What the training shows" not in render_report(replace(data, verdict={**data.verdict, "training_notes": []}))


def test_orpo_s_curves_are_drawn(data: ReportInput) -> None:
    """Its rewards are log-probabilities, it logs more measures, and it may have no held-out side."""
    rows = []
    for step in range(1, 9):
        named = {"loss": 2.5 - step / 9, "nll_loss": 2.2, "log_odds_ratio": -0.6, "log_odds_chosen": 0.1}
        named |= {"rewards/chosen": -0.2, "rewards/rejected": -0.21, "rewards/margins": 0.01, "rewards/accuracies": 0.6}
        rows.append({"step": step, "metrics": {f"train/{k}": v for k, v in named.items()}})
    text = render_report(replace(data, curves=rows))
    parse(text)
    assert "ORPO loss" in text and "DPO loss" not in text
    assert text.count('<figure class="chart">') == 6


def test_is_well_formed(data: ReportInput) -> None:
    found = parse(render_report(data))
    assert len(found.ids) == len(set(found.ids))
    assert found.refers <= set(found.ids)
    assert found.levels[0] == 1
    assert found.levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(found.levels, found.levels[1:], strict=False))


def test_loads_nothing(data: ReportInput) -> None:
    text = render_report(data)
    assert not re.search(r"""(?:src|href|action|srcset)\s*=\s*["']?\s*(?!#|data:,)[^"'>]""", text)
    assert not re.search(r"@import|url\(\s*(?!#)", text)
    assert "<script" not in text
    assert "http://" not in text


def test_same_twice(data: ReportInput) -> None:
    assert render_report(data) == render_report(data)


def test_all_text_is_escaped(tmp_path: Path) -> None:
    text = render_report(make(tmp_path, EVIL))
    parse(text)
    assert "<script" not in text
    escaped = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"
    for before in (
        "shop-assistant",
        "no damage measure exceeds its bar",
        "data/shop-chats.jsonl",
        "is my order number 0?",
        "It comes tomorrow.",
        "before noon.",
        "small shop.",
        "base model",
        "SmolLM2-135M-Instruct",
        "model_name_or_path: org/model",
        "&#39;train&#39; was read",
        "are held out",
    ):
        assert f"{before}{escaped}" in text, before


def test_what_was_not_measured(data: ReportInput) -> None:
    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items()}
        return [None] * 3 if isinstance(value, list) else None

    verdict = {
        **data.verdict,
        "outcome": "reject",
        "reasons": ["reward_accuracy is missing or not finite"],
        "metrics": without(data.verdict["metrics"]),
        "differences": without(data.verdict["differences"]),
        "damages": [{**d, "mean": None, "low": None} for d in data.verdict["damages"]],
        "displacement": without(data.verdict["displacement"]),
    }
    bare = replace(data, verdict=verdict, curves=[], margins=[], answers=[], sources=[], steps={}, lineage={})
    text = render_report(bare)
    parse(text)
    assert "</svg>reject</p>" in text
    assert text.count("not measured") > 20
    assert "<figure" not in text
    for note in ("No training curves", "No chart: no margins", "No charts: no answers", "No answers were generated"):
        assert note in text


@pytest.mark.parametrize(
    "values",
    [[0.0], [0.25], [-3.0, -3.0, -3.0], [0.0, math.nan], [math.inf, 1.0], [1e-9, -1e9, 2.0], [5e-324, 0.0]],
)
def test_charts_of_odd_values(data: ReportInput, values: list[float]) -> None:
    names = ("loss", "rewards/chosen", "rewards/accuracies")
    curves: list[dict[str, Any]] = [
        {"step": s, "metrics": {f"train/{n}": v for n in names}} for s, v in enumerate(values)
    ]
    curves += [{"step": 7, "metrics": {"eval/loss": None}}, {"step": None, "metrics": None}]
    text = render_report(replace(data, curves=curves, margins=values, answers=data.answers[:1]))
    parse(text)
    assert 'id="margins-title"' in text
    assert "nan" not in re.sub(r"<style.*?</style>", "", text, flags=re.S).lower()


def test_differences_are_told_as_points(data: ReportInput) -> None:
    verdict = json.loads(json.dumps(data.verdict))
    verdict["metrics"]["policy"]["stop_rate"] = 0.5
    verdict["differences"] |= {"stop_rate": [-0.25, -0.4, -0.1], "empty_rate": [0.0, -0.1, 0.1]}
    verdict["differences"]["response_tokens"] = [12.5, 3.0, 20.0]
    verdict["metrics"]["policy"]["new_measure"] = 2.5
    rows = {r["name"]: r for group in measure_rows(verdict).values() for r in group}
    stop = rows["stop_rate"]
    assert stop["policy"]["value"] == "50.0%"
    assert stop["difference"] == {"value": "−25.0 points", "interval": "−40.0 to\u00a0−10.0"}
    assert stop["judgement"] == "worse"
    assert rows["empty_rate"]["judgement"] == "no clear change"
    assert rows["response_tokens"]["judgement"] == "higher"
    assert rows["reward_accuracy"]["difference"] is None
    assert rows["new_measure"]["policy"]["value"] == "2.500"
    assert rows["new_measure"]["sft"]["value"] == "not measured"


def test_lone_surrogates_can_be_written(data: ReportInput, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(render_report(replace(data, name="a\ud800b")))
