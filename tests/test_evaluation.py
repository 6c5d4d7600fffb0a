"""The evaluation child on the tiny model: the files it writes, for the starting model and for policies."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEMPLATE
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

import preftune.tokens
from preftune.children import read_json_lines
from preftune.data.lengths import count
from preftune.data.pair_tokenizer import pair_tokenizer
from preftune.data.pairs import Pair, to_pair
from preftune.data.token_file import write_tokens
from preftune.errors import UserError
from preftune.evaluation import evaluate

ROOT = Path(__file__).parent.parent
SETTINGS = {
    "max_pairs": 8,
    "max_prompts": 5,
    "max_new_tokens": 6,
    "temperature": 0.0,
    "top_p": 1.0,
    "seed": 0,
    "tasks": [],
    "task_folder": None,
    "task_limit": None,
    "batch_size": 2,
}
QUESTIONS = [
    {
        "suite": "mt_bench",
        "id": "81",
        "category": "writing",
        "turns": [[{"role": "user", "content": "Say one."}], [{"role": "user", "content": "Say two."}]],
        "reference": None,
        "generator": None,
    },
    {
        "suite": "prompts",
        "id": "1",
        "category": None,
        "turns": [[{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]],
        "reference": None,
        "generator": None,
    },
]


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    lines = (ROOT / "recipes/starter/pairs/test.jsonl").read_text().splitlines()
    found = [to_pair(json.loads(line), "starter", str(i)) for i, line in enumerate(lines[:7])]
    twin = found[0].model_copy(update={"row_id": "twin", "chosen": found[1].chosen})  # one prompt, two pairs
    return [*found, twin]


Measure = Callable[..., dict[str, list[dict[str, Any]]]]


@pytest.fixture
def measure(tiny_model: Path, pairs: list[Pair], tmp_path: Path) -> Measure:
    """Runs the child's work in this process; returns the lines of its files."""

    def run(**changes: Any) -> dict[str, list[dict[str, Any]]]:
        folder = tmp_path / f"evaluation-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "test.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in pairs))
        (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
        job = {
            "folder": str(folder),
            "model_path": str(tiny_model),
            "revision": None,
            "chat_template": None,
            "dtype": "float32",
            "policy": None,
            "pairs": str(folder / "test.jsonl"),
            "suites": None,
            "left_out": None,
            "max_length": 256,
            "truncation": "keep_start",
            "threads": torch.get_num_threads(),
        }
        evaluate({**job, **changes, "evaluation": {**SETTINGS, **changes.get("evaluation", {})}})
        return {p.stem: read_json_lines(p) for p in folder.glob("*.jsonl")}

    return run


def shifted(model: Path, folder: Path) -> Path:
    """A policy of its own weights."""
    policy = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        policy.model.norm.weight *= 1.3
    policy.save_pretrained(folder)
    return folder


def test_pairs_and_answers_carry_where_they_come_from(measure: Measure, pairs: list[Pair]) -> None:
    found = measure()
    names = ("row_id", "group_id", "source", "topic")
    expected = [[getattr(p, n) for n in names] for p in pairs]
    assert [[r[n] for n in names] for r in found["pairs"]] == expected
    assert pairs[0].topic == "home, garden and repairs"
    texts = {
        json.dumps([p.prompt, p.chosen, p.rejected]): r["digest"] for p, r in zip(pairs, found["pairs"], strict=True)
    }
    assert len(set(texts.values())) == len(texts), "one digest for one text"
    # The twin's prompt is asked once; max_prompts ends the list.
    assert [[r[n] for n in names] for r in found["answers"]] == expected[:5]
    assert found["suite_answers"] == []
    for row, pair in zip(found["answers"], pairs, strict=False):
        assert row["prompt"] == pair.prompt and row["chosen"] == pair.chosen[-1]["content"]
        assert row["logp"] == pytest.approx(row["sft_logp"], abs=1e-4)  # the starting model is its own reference
        assert row["logp_tokens"] == row["tokens"] + row["stopped"]


def test_counted_ids_give_the_same_rows(
    measure: Measure, tiny_model: Path, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of the pairs are too long; only the few that are compared are tokenized again."""
    rows, tokenizer = tmp_path / "p.jsonl", pair_tokenizer(tiny_model, TEMPLATE)
    rows.write_text("".join(p.model_dump_json() + "\n" for p in pairs))
    length = sorted(len(prompt) for prompt, _, _ in tokenizer.ids(pairs))[-2]
    file = tmp_path / "p.arrow"
    found = count(rows, tokenizer, length, False, file)
    gone = sorted(i for of in found["indices"].values() for i in of)
    assert gone == [0, 5, 7]  # 7 has the prompt of 0
    left_out = {"left_out": {"train": [], "test": gone}, "max_length": length, "truncation": "keep_start"}
    other = tmp_path / "other.arrow"
    with write_tokens(other):  # what it holds is not these pairs': they are tokenized
        pass
    expected = measure(**left_out, tokens={"test": str(other)})
    assert len(expected["pairs"]) == len(pairs) - len(gone) == len(pairs) - len(expected["dropped"])
    calls: list[Pair] = []
    original = preftune.tokens.tokenize_pair
    monkeypatch.setattr(preftune.tokens, "tokenize_pair", lambda t, p: calls.append(p) or original(t, p))
    monkeypatch.setattr(preftune.tokens, "CHECKED", 2)
    assert measure(**left_out, tokens={"test": str(file)}) == expected
    assert calls == [p for i, p in enumerate(pairs) if i not in gone][:2]


def test_a_policy_of_its_own_weights_is_held_against_the_starting_model(
    measure: Measure, tiny_model: Path, tmp_path: Path
) -> None:
    baseline, policy = measure(), measure(policy=str(shifted(tiny_model, tmp_path / "policy")))
    assert [r["chosen_logp"] for r in policy["pairs"]] != [r["chosen_logp"] for r in baseline["pairs"]]
    same = [
        (b, p) for b, p in zip(baseline["answers"], policy["answers"], strict=True) if b["text"] == p["text"]
    ]  # a scaled last norm sharpens the distribution: the likeliest token stays
    assert len(same) == 5
    for b, p in same:
        assert p["sft_logp"] == pytest.approx(b["sft_logp"], abs=1e-4)
        assert p["logp"] > p["sft_logp"] + 1e-4


def test_an_adapter_is_held_against_its_base(measure: Measure, tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(1)
    adapter = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    adapter.save_pretrained(str(tmp_path / "adapter"))
    whole = AutoModelForCausalLM.from_pretrained(tiny_model)
    PeftModel.from_pretrained(whole, str(tmp_path / "adapter")).merge_and_unload().save_pretrained(
        str(tmp_path / "whole")
    )
    found = [measure(policy=str(tmp_path / name)) for name in ("adapter", "whole")]
    for a, b in zip(*(f["answers"] for f in found), strict=True):
        assert a["text"] == b["text"]
        assert (a["logp"], a["sft_logp"]) == pytest.approx((b["logp"], b["sft_logp"]), abs=1e-3)
    assert any(abs(a["logp"] - a["sft_logp"]) > 0.1 for a in found[0]["answers"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_identical_policy_has_no_divergence(measure: Measure, tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    """Also in 16 bits, where generation and scoring round differently."""
    config: Any = AutoConfig.from_pretrained(tiny_model)
    config.update({"initializer_range": 0.3, "hidden_size": 64, "head_dim": 32, "tie_word_embeddings": False})
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    shutil.copytree(tiny_model, tmp_path / "start")
    model.save_pretrained(tmp_path / "start")
    shutil.copytree(tmp_path / "start", tmp_path / "copy")
    found = measure(model_path=str(tmp_path / "start"), policy=str(tmp_path / "copy"), dtype=dtype)
    for row in found["answers"]:
        assert row["logp"] == pytest.approx(row["sft_logp"], abs=1e-4)


def test_a_second_turn_follows_the_models_own_first_answer(measure: Measure, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    two, one = measure(suites=str(tmp_path / "q.jsonl"))["suite_answers"]
    assert (two["suite"], two["id"], two["category"], len(two["turns"])) == ("mt_bench", "81", "writing", 2)
    first, second = two["turns"]
    assert first["prompt"] == QUESTIONS[0]["turns"][0]
    assert second["prompt"] == [
        *first["prompt"],
        {"role": "assistant", "content": first["text"]},
        {"role": "user", "content": "Say two."},
    ]
    assert [t["prompt"] for t in one["turns"]] == QUESTIONS[1]["turns"]
    assert set(one) == {"suite", "id", "category", "turns", "reference", "generator"}
    assert all(set(t) == {"prompt", "text", "tokens", "stopped"} for t in (*two["turns"], *one["turns"]))


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({}, "neither a model"),
        ({"config.json": "{}"}, "cannot be loaded"),
        ({"adapter_config.json": '{"peft_type": "LORA"}'}, "cannot be loaded"),
    ],
)
def test_a_folder_that_is_no_policy(measure: Measure, tmp_path: Path, files: dict[str, str], error: str) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    for name, text in files.items():
        (policy / name).write_text(text)
    with pytest.raises(UserError, match=error) as raised:
        measure(policy=str(policy))
    assert raised.value.where == str(policy)


def test_weights_that_are_not_finite_stop_the_starting_model_only(
    measure: Measure, tiny_model: Path, tmp_path: Path
) -> None:
    broken = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    shutil.copytree(tiny_model, tmp_path / "start")
    shutil.copy(tmp_path / "broken" / "model.safetensors", tmp_path / "start")
    with pytest.raises(UserError, match="gives 16 of 16 held-out answers a likelihood that is not finite"):
        measure(model_path=str(tmp_path / "start"))
    found = measure(policy=str(tmp_path / "broken"))
    assert all(r["chosen_logp"] is None for r in found["pairs"])  # written as null
    assert all(r["logp"] is None and r["sft_logp"] is not None for r in found["answers"])


def test_an_error_says_in_which_part_it_was(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("preftune.scoring.answer_logps", full)
    with pytest.raises(RuntimeError) as raised:
        measure()
    assert raised.value.__notes__ == ["while scoring the held-out pairs"]
