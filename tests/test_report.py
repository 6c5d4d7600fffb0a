"""The report: everything told, everything escaped, nothing loaded from elsewhere."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from sample_evidence import curves, judgement, make_input, make_verdict

from preftune.report import ReportInput, render_report, training_sentence

EVIL = "<script>alert('x')</script>"
ESCAPED = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"
VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use"}


@pytest.fixture(scope="module")
def data() -> ReportInput:
    return make_input()


@pytest.fixture(scope="module")
def page(data: ReportInput) -> str:
    return render_report(data)


@pytest.fixture(scope="module")
def evil_page() -> str:
    return render_report(make_input(EVIL))


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


def section(page: str, name: str) -> str:
    """The page's part of that id."""
    start = page.index(f'<section id="{name}"')
    return page[start : page.index("</section>", start)]


def words(markup: str) -> str:
    """What a reader sees: the text without tags, on one line."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", markup))


def test_tells_everything(data: ReportInput, page: str) -> None:
    outcome = data.verdict["outcome"]
    assert 0 < page.index(f"</svg>{outcome}</p>") < page.index("<table")
    for name in data.verdict["metrics"]["policy"]:
        if not name.endswith(("_lo", "_hi")):
            assert f"<code>{name}</code>" in page
    told = (*data.verdict["reasons"], *data.verdict["advice"], data.verdict["power"]["text"], *data.steps)
    for text in (*told, *(d["name"] for d in data.verdict["damages"])):
        assert escape(text) in page
    assert "120 of 120 steps on 960 pairs" in page
    assert "the same pair stands earlier in this source" in page
    assert "learning_rate: 5.0e-06" in page
    assert page.count('<figure class="chart">') == 6


def test_the_primary_measure_has_a_gauge_with_its_bar(page: str) -> None:
    verdict = section(page, "verdict")
    label = "Length-controlled win rate 58.0%, 95% interval 52.0% to\xa064.0%; it must lie above 50.0%"
    assert f'aria-label="{label}"' in verdict
    assert 'class="range" style="left:52.00%;width:12.00%"' in verdict
    assert 'class="dot" style="left:58.00%"' in verdict and 'class="bar" style="left:50.00%"' in verdict
    assert "<strong>Power:</strong> with 40 pairs" in verdict
    measures = words(section(page, "measures"))
    assert "Win rate, length-controlled primary lc_win_rate" in measures and measures.count(" primary ") == 1


def test_notes_of_the_verdict_and_of_the_training_stand_apart(page: str, data: ReportInput) -> None:
    part = section(page, "training")
    assert part.index("the margin did not grow.") < part.index("75% of the gradients were cut.")
    assert part.count("look into it") == 1 and "read some pairs." in part
    verdict = section(page, "verdict")
    assert "12 % flip." in verdict and "a larger judge." in verdict and "gradients" not in verdict
    without = replace(data, verdict={**data.verdict, "training_notes": [], "notes": []})
    assert "What the training shows" not in render_report(without)
    assert "Worth knowing" not in render_report(without)


def test_the_judge_s_section(page: str) -> None:
    judge = words(section(page, "judge"))
    assert "Held-out prompts DPO against SFT, 200 comparisons 110 won, 24 tied, 66 lost 61.0%" in judge
    assert "AlpacaEval SFT against the reference answers" in judge
    assert "AlpacaEval DPO against the reference answers" in judge
    for told in ("12.0%", "56.0% (50% is no bias)", "0.9%", "380 made, 46 from the cache", "1.23", "2 × time-out"):
        assert told in judge, told
    assert "210,345 read, 40,211 written" in judge
    assert "Turn 2 6.50 6.00 to 7.00 8.00 7.20 to 8.80" in judge and "+1.50 +0.70 to +2.30 better" in judge
    assert "not usable" not in judge


def test_a_judge_that_cannot_be_used_says_why(data: ReportInput) -> None:
    judge = {**data.verdict["judge"], "usable": False, "why": "43 % of its verdicts flip"}
    page = render_report(replace(data, verdict={**data.verdict, "judge": judge}))
    assert "not usable 43 % of its verdicts flip" in words(section(page, "judge"))


def test_capability_tasks_with_their_tests(page: str) -> None:
    tasks = words(section(page, "tasks"))
    assert (
        "facts exact_match 120 41.0% 40.0% −1.0 points −5.0 to +3.0 no clear change 0.750 exact McNemar 1.000" in tasks
    )
    assert "120 in 60 groups" in tasks and "&lt; 0.001" in tasks


def test_accuracy_by_source_and_topic(page: str) -> None:
    pairs = words(section(page, "pairs"))
    assert "shop-chats 26 85.0% 75.0% to 95.0% 50.0% 60.0%" in pairs
    assert "returns 13 70.0%" in pairs
    assert "fell by 2.400 nats an answer on average (−0.080 per token" in pairs


def test_without_a_judge(data: ReportInput) -> None:
    page = render_report(make_input(judged=False))
    parse(page)
    assert 'id="judge"' not in page and 'href="#judge"' not in page and 'id="suites"' not in page
    assert "The primary measure: reward accuracy" in page
    assert "No judge compared the answers" in section(page, "answers")


def test_a_policy_that_was_not_trained_here(data: ReportInput) -> None:
    page = render_report(replace(data, policy_name="policy", training=None, curves=[]))
    parse(page)
    assert '<th scope="col" class="n">Policy</th>' in page
    assert "The policy, compared with the SFT model" in page
    assert "was not trained here" in section(page, "training")
    assert "nothing was logged" not in page and "DPO" not in words(section(page, "answers"))


def test_orpo_s_curves_are_drawn(data: ReportInput) -> None:
    """Its rewards are log-probabilities, it logs more measures, and it may have no held-out side."""
    rows = []
    for step in range(1, 9):
        named = {"loss": 2.5 - step / 9, "nll_loss": 2.2, "log_odds_ratio": -0.6, "log_odds_chosen": 0.1}
        named |= {"rewards/chosen": -0.2, "rewards/rejected": -0.21, "rewards/margins": 0.01, "rewards/accuracies": 0.6}
        rows.append({"step": step, "metrics": {f"train/{k}": v for k, v in named.items()}})
    text = render_report(replace(data, curves=rows, policy_name="ORPO"))
    parse(text)
    assert "ORPO loss" in text and "DPO loss" not in text and "The ORPO model moved towards" in text
    assert text.count('<figure class="chart">') == 6


@pytest.mark.parametrize("judged", [True, False])
def test_is_well_formed(judged: bool) -> None:
    found = parse(render_report(make_input(EVIL, judged)))
    assert len(found.ids) == len(set(found.ids))
    assert found.refers <= set(found.ids)
    assert found.levels[0] == 1
    assert found.levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(found.levels, found.levels[1:], strict=False))


def test_loads_nothing(page: str) -> None:
    assert not re.search(r"""(?:src|href|action|srcset)\s*=\s*["']?\s*(?!#|data:,)[^"'>]""", page)
    assert not re.search(r"@import|url\(\s*(?!#)", page)
    assert "<script" not in page
    assert "http://" not in page
    assert "default-src 'none'" in page


def test_same_twice(data: ReportInput, page: str) -> None:
    assert render_report(data) == page


def test_all_text_is_escaped(evil_page: str) -> None:
    parse(evil_page)
    assert "<script" not in evil_page
    for before in (
        "shop-assistant",
        "no damage measure exceeds its bar",
        "before you promote it",
        "4 times in 10",
        "12 % flip",
        "a larger judge",
        "lm-eval facts",
        "prompts",
        "judge-large",
        "2 × time-out",
        "max_requests reached",
        "writing",
        "helpful_base",
        "a-reference-model",
        "The Rhine and gladly, number 0.",
        "Use 1 eggs.",
        "An ode.",
        "A fair answer.",
        "On second thought.",
        "delivery",
        "data/shop-chats.jsonl",
        "is my order number 0?",
        "It comes tomorrow.",
        "before noon.",
        "who knows.",
        "small shop.",
        "base model",
        "SmolLM2-135M-Instruct",
        "model_name_or_path: org/model",
        "&#39;train&#39; was read",
        "are held out",
    ):
        assert f"{before}{ESCAPED}" in evil_page.replace("<ins>", "").replace("</ins>", ""), before


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\ud800b", "a?b"),
        ("a\x00b\x1b[31mc", "a\ufffdb\ufffd[31mc"),
        ("\u202etxet desrever\u202c", "\u202etxet desrever\u202c"),
        ("&lt;b&gt; &amp;nbsp;", "&amp;lt;b&amp;gt; &amp;amp;nbsp;"),
    ],
)
def test_odd_characters(data: ReportInput, tmp_path: Path, text: str, shown: str) -> None:
    both = [({**s, "text": text}, {**p, "text": text}) for s, p in data.answers]
    page = render_report(replace(data, name=text, answers=both))
    parse(page)
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    # A direction override ends with its element: each text has one of its own.
    assert f'<div class="text" dir="auto">{shown}</div>' in page
    assert f"<h1><bdi>{shown}</bdi></h1>" in page


def test_what_was_not_measured(data: ReportInput) -> None:
    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items()}
        return [None] * 3 if isinstance(value, list) else None

    verdict = {
        **make_verdict(judged=False),
        "outcome": "reject",
        "reasons": ["reward_accuracy is missing or not finite"],
        "primary": {**data.verdict["primary"], "name": "reward_accuracy", "value": None, "low": None, "high": None},
        "metrics": without(data.verdict["metrics"]),
        "differences": without(data.verdict["differences"]),
        "damages": [{**d, "mean": None, "low": None} for d in data.verdict["damages"]],
        "displacement": without(data.verdict["displacement"]),
        **{"by_source": [], "by_topic": [], "tasks": [], "power": None, "advice": [], "notes": []},
    }
    bare = replace(data, verdict=verdict, curves=[], comparison=[], answers=[], suite_answers=[], judgements=[])
    bare = replace(bare, pairs=[], grades=[], sources=[], steps={}, lineage={})
    text = render_report(bare)
    parse(text)
    assert "</svg>reject</p>" in text
    assert text.count("not measured") > 20
    assert "<figure" not in text and '<div class="gauge">' not in text
    for note in ("No training curves", "No chart: no margins", "No charts: no answers", "No answers were generated"):
        assert note in text
    for heading in ("What ran", "Lineage", "By source", "By topic", "furthest below 0", "What to do next"):
        assert heading not in text


@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [0.25],
        [-3.0, -3.0, -3.0],
        [0.0, math.nan],
        [math.inf, 1.0],
        [1e-9, -1e9, 2.0],
        [5e-324, 0.0],
        [None, 1.0],
    ],
)
def test_charts_of_odd_values(data: ReportInput, values: list[Any]) -> None:
    names = ("loss", "rewards/chosen", "rewards/accuracies")
    rows: list[dict[str, Any]] = [
        {"step": s, "metrics": {f"train/{n}": v for n in names}} for s, v in enumerate(values)
    ]
    rows += [{"step": 7, "metrics": {"eval/loss": None}}, {"step": None, "metrics": None}]
    comparison = [{**c, "margin": v} for c, v in zip(data.comparison, values, strict=False)]
    text = render_report(replace(data, curves=rows, comparison=comparison, answers=data.answers[:1]))
    parse(text)
    assert 'id="margins-title"' in text
    assert "nan" not in re.sub(r"<style.*?</style>", "", text, flags=re.S).lower()


def test_a_page_of_a_thousand_prompts_stays_small() -> None:
    """Long answers of both models, a judge who talks: under 2 MB, and it says what is left out."""
    data = make_input(prompts=1000)
    words_of = "This is a rather long answer that goes on & on, 'quoted' <here>. " * 30  # 2 kB, as 512 tokens are
    both = [({**s, "text": words_of + s["text"]}, {**p, "text": words_of + p["text"]}) for s, p in data.answers]
    judged = [judgement("held_out", s["row_id"], 1.0, words=words_of) for s, _ in both]
    page = render_report(replace(data, answers=both, judgements=judged, curves=curves()))
    assert 500_000 < len(page.encode()) < 2_000_000
    shown = section(page, "answers").count('<details class="answer"')
    assert f"{1000 - shown} of 1,000 prompts are not shown" in page and 50 < shown < 1000


def test_the_training_in_a_sentence() -> None:
    found = {"steps": 2, "max_steps": 4, "pairs": 1200, "epochs": 0.5, "world_size": 1, "adapter": False}
    told = training_sentence({**found, "trainable_parameters": 10, "parameters": 10})
    assert told.startswith("2 of 4 steps on 1,200 pairs (epochs: 0.5, processes: 1); full model")
    assert "?" in training_sentence({"steps": 2})
    assert "not trained here" in training_sentence(None)
