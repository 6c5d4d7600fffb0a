"""Scoring, greedy answers and tokenization against independent references: plain transformers and TRL itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.data.pairs import Pair, to_pair
from preftune.scoring import answer_logps, generate, seq_rep
from preftune.tokens import tokenize_pair, tokenize_prompt

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    lines = (ROOT / "recipes/starter/pairs/test.jsonl").read_text().splitlines()
    return [to_pair(json.loads(line), "starter", str(i)) for i, line in enumerate(lines[:20])]


def one_by_one(model: Any, prompt: list[int], answer: list[int], limit: int) -> float:
    """The same number without batches, padding or a partial head."""
    ids = (prompt + answer)[:limit]
    logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[t - 1, ids[t]]) for t in range(len(prompt), len(ids)))


@pytest.mark.parametrize("limit", [512, 60])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_logps_equal_one_by_one(loaded: Any, pairs: list[Pair], batch: int, limit: int) -> None:
    model, tokenizer = loaded
    tokens = [tokenize_pair(tokenizer, p) for p in pairs]
    sequences = [(t.prompt, t.chosen) for t in tokens] + [(t.prompt, t.rejected) for t in tokens]
    found = answer_logps(model, sequences, max_length=limit, batch_size=batch)
    with torch.inference_mode():
        expected = [one_by_one(model, p, a, limit) for p, a in sequences]
    assert [f[0] for f in found] == pytest.approx(expected, abs=1e-3)
    assert [f[1] for f in found] == [max(len((p + a)[:limit]) - len(p), 0) for p, a in sequences]


def test_tokens_are_those_of_trl(
    tiny_model: Path, loaded: Any, pairs: list[Pair], tmp_path: Path, trl_trainer: Callable[..., Any]
) -> None:
    trainer = trl_trainer(tiny_model, pairs, tmp_path)
    for pair, row in zip(pairs, trainer.train_dataset, strict=True):
        mine = tokenize_pair(loaded[1], pair)
        assert (mine.prompt, mine.chosen, mine.rejected) == (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])


def test_logps_are_those_of_trl(
    tiny_model: Path, loaded: Any, pairs: list[Pair], tmp_path: Path, trl_trainer: Callable[..., Any]
) -> None:
    """TRL logs the mean summed log-probabilities of a batch; one batch holds all pairs."""
    trainer = trl_trainer(tiny_model, pairs, tmp_path)
    logged = trainer.evaluate()
    tokens = [tokenize_pair(loaded[1], p) for p in pairs]
    for side in ("chosen", "rejected"):
        found = answer_logps(loaded[0], [(t.prompt, getattr(t, side)) for t in tokens], max_length=256, batch_size=7)
        assert sum(f[0] for f in found) / len(found) == pytest.approx(logged[f"eval_logps/{side}"], rel=1e-4)


def test_greedy_answers_equal_one_by_one(loaded: Any, pairs: list[Pair]) -> None:
    model, tokenizer = loaded
    prompts = [tokenize_prompt(tokenizer, p.prompt) for p in pairs[:6]]
    eos = tokenizer.eos_token_id
    found = generate(model, prompts, eos_ids={eos}, pad_id=tokenizer.pad_token_id, max_new_tokens=12, batch_size=4)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = list(prompt)
        for _ in range(12):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == eos:
                break
        assert answer.ids == ids[len(prompt) :]
        assert answer.stopped == (ids[-1] == eos)


def test_an_answer_that_ends_is_cut_after_its_end_token(loaded: Any) -> None:
    """Every token the model writes counts as an end: the first one must be the whole answer."""
    model, tokenizer = loaded
    prompt = tokenizer("hello")["input_ids"]
    (free,) = generate(model, [prompt], eos_ids={0}, pad_id=0, max_new_tokens=3, batch_size=1)
    (ended,) = generate(model, [prompt], eos_ids={free.ids[0]}, pad_id=0, max_new_tokens=3, batch_size=1)
    assert ended.ids == free.ids[:1]
    assert ended.stopped
    assert not free.stopped


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 3], 0.0),  # no 4-gram
        ([1, 2, 3, 4, 5], 0.0),  # two different ones
        ([7] * 7, 0.75),  # four, one unique
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.2),  # five: 1234 2341 3412 4123 1234
    ],
)
def test_seq_rep_by_hand(ids: list[int], expected: float) -> None:
    assert seq_rep(ids) == pytest.approx(expected)


@given(st.lists(st.integers(0, 3), max_size=40))
def test_seq_rep_is_a_share(ids: list[int]) -> None:
    assert 0 <= seq_rep(ids) < 1
