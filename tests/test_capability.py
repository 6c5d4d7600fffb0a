"""lm-eval tasks on a model in memory: rows and summaries against lm-eval's own numbers and our own scoring.

Most tests run on a scripted model, so that every number can be told by hand.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune.capability import run_tasks
from preftune.data.pairs import Pair
from preftune.errors import UserError
from preftune.lm_tasks.documents import read_documents

OWN_GROUP = """
group: colors
task: [warm, cool]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
CHOICE = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}, cache_dir: CACHE}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{options}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
FILTERED = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}, cache_dir: CACHE}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 4}
process_results: !function hooks.results
metric_list:
  - {metric: wrong, aggregation: mean, higher_is_better: false}
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
  - {metric: length, aggregation: mean, higher_is_better: true}
  - {metric: parts, aggregation: !function hooks.total, higher_is_better: true}
filter_list:
  - {name: strict-match, filter: [{function: take_first}]}
  - {name: flexible-extract, filter: [{function: regex, regex_pattern: "(.)"}, {function: take_first}]}
"""
HOOKS = """
def results(doc, results):
    n = len(results[0])
    length = float("nan") if doc["q"] == "a" else n / 2
    return {"wrong": n > 1, "exact_match": n == 1, "length": length, "parts": [n, 1]}

def total(items):
    return sum(sum(i) for i in items)
"""


@pytest.fixture(autouse=True)
def no_inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval asks pip, gcc and nvidia-smi for versions after each call: a second that changes no number."""
    import lm_eval.evaluator

    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda storage: None)


class Tokenizer:
    """Renders a chat so that a reader sees it."""

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def scripted(answer: Callable[[str], str] = lambda prompt: "", tokenizer: Any = None) -> tuple[Any, Any]:
    """(an lm-eval LM that says `answer(prompt)`, and finds short texts the likelier; its tokenizer)."""
    from lm_eval.api.model import LM

    class Scripted(LM):
        tokenizer_name = "scripted"

        def __init__(self) -> None:
            super().__init__()
            self.asked: list[tuple[str, str, bool | None]] = []
            self.add_bos_token: bool | None = True

        def apply_chat_template(self, history: list[dict[str, str]], **_: Any) -> str:
            return spoken.apply_chat_template(history)

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            self.asked += [("write", r.args[0], self.add_bos_token) for r in requests]
            return [answer(r.args[0]) for r in requests]

        def loglikelihood(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            self.asked += [("compare", r.args[0], self.add_bos_token) for r in requests]
            return [(-float(len(r.args[1])), False) for r in requests]

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
            raise NotImplementedError

    spoken = tokenizer or Tokenizer()
    return Scripted(), spoken


@pytest.fixture
def model() -> tuple[Any, Any]:
    return scripted()


def pairs(count: int) -> list[Pair]:
    return [
        Pair(
            row_id=f"row-{i}",
            group_id=f"group-{i // 2}",
            source="test",
            prompt=[{"role": "user", "content": f"Say {i}."}],
            chosen=[{"role": "assistant", "content": "yes " * (i % 3 + 1)}],
            rejected=[{"role": "assistant", "content": "no no"}],
        )
        for i in range(count)
    ]


def run(model: tuple[Any, Any], folder: Path, *tasks: str, limit: int | None = None, own: Path | None = None) -> Any:
    """(summaries, rows) of a run."""
    settings = {"tasks": tasks, "task_folder": own and str(own), "task_limit": limit, "batch_size": 4}
    folder.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    run_tasks(*model, pairs(5), settings, folder, said.append)
    rows = [json.loads(line) for line in (folder / "lm_eval.jsonl").read_text().splitlines()]
    return json.loads((folder / "lm_eval.json").read_text()), rows


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str, str, list[dict[str, Any]]], Path]:
    """Writes a task file of the user's own, with its data."""

    def write(name: str, text: str, rows: list[dict[str, Any]]) -> Path:
        folder = tmp_path / "own"
        folder.mkdir(exist_ok=True)
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(r) + "\n" for r in rows))
        text = text.replace("NAME", name).replace("DATA", str(data)).replace("CACHE", str(tmp_path / "cache"))
        (folder / f"{name}.yaml").write_text(text)
        return folder

    return write


def test_preference_pairs_against_our_own_scoring(tiny_model: Path, tmp_path: Path) -> None:
    """On a real model, acc is the share of pairs whose chosen answer has the higher summed log-probability."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from preftune.scoring import answer_logps

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    lm = HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=4)
    summary, rows = run((lm, tokenizer), tmp_path, "preference_pairs")
    expected = []
    for pair in pairs(5):
        prompt = tokenizer.apply_chat_template(pair.prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        texts = [pair.chosen[0]["content"], pair.rejected[0]["content"]]
        answers = [(ids, tokenizer(t, add_special_tokens=False).input_ids) for t in texts]
        (chosen, *_), (rejected, *_) = answer_logps(loaded, answers, max_length=512, batch_size=2)
        expected.append((float(chosen > rejected), float(chosen / len(texts[0]) > rejected / len(texts[1]))))
    assert [(r["metrics"]["acc"], r["metrics"]["acc_norm"]) for r in rows] == expected
    assert len(set(expected)) > 1
    assert [r["id"] for r in rows] == [f"row-{i}" for i in range(5)]
    assert [r["cluster"] for r in rows] == ["group-0", "group-0", "group-1", "group-1", "group-2"]
    assert [r["doc_id"] for r in rows] == list(range(5))
    task = summary["preference_pairs"]
    assert task["metrics"]["acc"] == pytest.approx(sum(e[0] for e in expected) / 5)
    assert task["main"] == "acc" and task["n"] == 5
    assert task["binary"] == {"acc": True, "acc_norm": True}
    assert task["higher_is_better"] == {"acc": True, "acc_norm": True}


def test_local_tasks(tmp_path: Path) -> None:
    """Right answers to every other question: rows, lm-eval's aggregates and the order asked for; twice the same."""
    facts, prompts = read_documents("facts"), read_documents("instructions")
    known = {f"<user>{d['question']} Answer in a few words.<assistant>": d["answers"][0] for d in facts[::2]}
    known |= {f"<user>{d['prompt']}<assistant>": d["example"] for d in prompts[::2]}
    names = ("facts", "preference_pairs", "instructions")
    summary, rows = run(scripted(lambda p: known.get(p, "")), tmp_path / "1", *names)
    assert list(summary) == list(names)
    by_task = {name: [r for r in rows if r["task"] == name] for name in names}
    assert [r["task"] for r in rows] == [name for name in names for _ in by_task[name]]
    assert [r["id"] for r in by_task["facts"]] == [d["id"] for d in facts]
    assert [r["cluster"] for r in by_task["instructions"]] == [d["cluster"] for d in prompts]
    assert [r["metrics"]["acc"] for r in by_task["facts"]] == [float(i % 2 == 0) for i in range(len(facts))]
    both = {"prompt_level_strict_acc": 1.0, "prompt_level_loose_acc": 1.0}
    none = dict.fromkeys(both, 0.0)
    assert [r["metrics"] for r in by_task["instructions"]] == [none if i % 2 else both for i in range(len(prompts))]
    assert summary["facts"]["metrics"] == {"acc": pytest.approx((len(facts) + 1) // 2 / len(facts))}
    rules, followed = (sum(len(d["rules"]) for d in part) for part in (prompts, prompts[::2]))
    assert summary["instructions"]["metrics"]["inst_level_strict_acc"] == pytest.approx(followed / rules)
    assert summary["instructions"]["main"] == "prompt_level_strict_acc"
    assert summary["instructions"]["n"] == len(prompts) and summary["facts"]["binary"] == {"acc": True}
    # -1 a character: "yes " and only it is likelier than "no no"; by character all are alike, and the first wins
    assert summary["preference_pairs"]["metrics"] == {"acc": pytest.approx(2 / 5), "acc_norm": 1.0}
    assert run(scripted(lambda p: known.get(p, "")), tmp_path / "2", *names) == (summary, rows)


def test_the_chat_template_is_where_it_belongs(model: tuple[Any, Any], tmp_path: Path, own: Any) -> None:
    """Tasks that write are asked as in a chat, tasks that compare likelihoods are not; pairs render themselves.

    Only bare text gets the tokenizer's start token: what comes from a template has it, if the template wants it.
    """
    folder = own("plain", CHOICE, [{"q": "Sky?", "options": ["blue", "red"], "label": 0}])
    summary, _ = run(model, tmp_path, "preference_pairs", "facts", "plain", limit=1, own=folder)
    question = read_documents("facts")[0]["question"]
    assert set(model[0].asked) == {
        ("compare", "<user>Say 0.<assistant>", False),
        ("compare", "Sky?", None),
        ("write", f"<user>{question} Answer in a few words.<assistant>", False),
    }
    assert [task["n"] for task in summary.values()] == [1, 1, 1]


def test_a_group_is_one_task(model: tuple[Any, Any], tmp_path: Path, own: Any) -> None:
    """Its subtasks are clusters, and its value is lm-eval's aggregate, weighted by size."""
    rows = [{"q": f"{i}?", "options": ["y", "no no", "x" * i], "label": i % 3} for i in range(1, 6)]
    own("warm", CHOICE, rows)
    own("cool", CHOICE, rows[:2])
    folder = own("colors", OWN_GROUP, [])
    summary, found = run(model, tmp_path, "colors", own=folder)
    assert list(summary) == ["colors"] and summary["colors"]["n"] == 7
    assert [r["cluster"] for r in found] == ["warm"] * 5 + ["cool"] * 2
    assert [r["id"] for r in found][::5] == ["warm/0", "cool/0"] and [r["doc_id"] for r in found] == list(range(7))
    assert summary["colors"]["metrics"]["acc"] == pytest.approx(sum(r["metrics"]["acc"] for r in found) / 7)
    assert summary["colors"]["main"] == "acc"


def test_filters_and_odd_metrics(tmp_path: Path, own: Any) -> None:
    """Several filters: several metrics a document, one row. Lists have no per-document number; NaN is null."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "hooks.py").write_text(HOOKS)
    folder = own("sums", FILTERED, [{"q": "a", "a": "1"}, {"q": "b", "a": "2"}])
    summary, rows = run(scripted(lambda p: "xyz"), tmp_path, "sums", own=folder)
    task = summary["sums"]
    assert task["main"] == "exact_match_flexible_extract" and task["n"] == len(rows) == 2
    names = {f"{m}_{f}" for m in ("wrong", "exact_match", "length") for f in ("strict_match", "flexible_extract")}
    assert set(rows[0]["metrics"]) == set(task["binary"]) == names
    assert set(task["metrics"]) == names | {"parts_strict_match", "parts_flexible_extract"}
    assert rows[0]["metrics"]["length_strict_match"] is None and task["metrics"]["length_strict_match"] is None
    assert rows[1]["metrics"]["length_flexible_extract"] == 0.5 and not task["binary"]["length_flexible_extract"]
    assert task["higher_is_better"]["wrong_strict_match"] is False
    assert task["metrics"]["exact_match_flexible_extract"] == 1.0
    assert task["metrics"]["exact_match_strict_match"] == 0.0


def test_no_tasks(model: tuple[Any, Any], tmp_path: Path) -> None:
    """Empty files, as the verdict expects them."""
    assert run(model, tmp_path) == ({}, [])


def test_a_task_that_cannot_be_loaded(model: tuple[Any, Any], tmp_path: Path, own: Any) -> None:
    """The user's own file: their message, no trace."""
    folder = own("plain", CHOICE.replace("multiple_choice", "telepathy"), [{"q": "?", "options": ["a"], "label": 0}])
    with pytest.raises(UserError, match=r"the task plain cannot be loaded: ValueError: .*telepathy"):
        run(model, tmp_path, "plain", own=folder)


def test_digests_tell_prompts_apart(model: tuple[Any, Any], tmp_path: Path, own: Any) -> None:
    """The same question has the same digest; with other options, or through another template, another one."""
    row = {"q": "Sky?", "options": ["blue", "red"], "label": 0}
    folder = own("plain", CHOICE, [row, row, {**row, "options": ["blue", "green"]}])
    _, rows = run(model, tmp_path, "plain", own=folder)
    assert rows[0]["digest"] == rows[1]["digest"] != rows[2]["digest"]
    asked = [["Sky?", " blue"], ["Sky?", " red"]]
    assert rows[0]["digest"] == hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    _, before = run(model, tmp_path, "facts", limit=1)

    class Other(Tokenizer):
        def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
            return super().apply_chat_template(messages) + "\n"

    _, after = run(scripted(tokenizer=Other()), tmp_path, "facts", limit=1)
    assert before[0]["id"] == after[0]["id"] and before[0]["digest"] != after[0]["digest"]
