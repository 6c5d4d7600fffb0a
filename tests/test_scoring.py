"""Scoring and tokenization against independent references: plain transformers and TRL itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from preftune import scoring
from preftune.data.pairs import Pair, to_pair
from preftune.prefix import takes_any_order
from preftune.scoring import answer_logps, seq_rep
from preftune.tokens import tokenize_pair

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


def greedy_prefix(model: Any, prompt: list[int], answer: list[int]) -> int:
    likeliest = model(torch.tensor([prompt + answer])).logits[0].argmax(-1).tolist()
    here = [likeliest[len(prompt) - 1 + n] == token for n, token in enumerate(answer)]
    return here.index(False) if False in here else len(answer)


def test_each_token_s_part_and_how_far_it_is_greedy(loaded: Any) -> None:
    model, tokenizer = loaded
    prompt = tokenizer("What now?")["input_ids"]
    with torch.inference_mode():
        ids = list(prompt)
        for _ in range(4):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        greedy = ids[len(prompt) :]
        answers = [greedy, [*greedy[:2], (greedy[2] + 1) % 100, *greedy[3:]], [greedy[0]], [(greedy[0] + 1) % 100]]
        found = answer_logps(model, [(prompt, a) for a in answers], max_length=100, batch_size=8)
        for score, answer in zip(found, answers, strict=True):
            parts = [one_by_one(model, prompt + answer[:n], [answer[n]], 100) for n in range(len(answer))]
            assert score.each == pytest.approx(parts, abs=1e-4)
            assert score.logp == pytest.approx(sum(parts), abs=1e-4)
            assert score.greedy == greedy_prefix(model, prompt, answer)
    assert [s.greedy for s in found] == [4, 2, 1, 0]


def test_the_prompt_s_last_tokens_are_scored_where_asked_for(loaded: Any, pairs: list[Pair]) -> None:
    model, tokenizer = loaded
    tokens = [tokenize_pair(tokenizer, p) for p in pairs[:3]]
    sequences = [(t.prompt, a) for t in tokens for a in (t.chosen, t.rejected)]
    plain = answer_logps(model, sequences, max_length=512, batch_size=8)
    found = answer_logps(model, [*sequences, ([5], [6, 7])], max_length=512, batch_size=8, lead=2)
    assert found[-1].lead == () and found[-1].tokens == 2  # nothing predicts the first token
    with torch.inference_mode():
        for (prompt, _), p, f in zip(sequences, plain, found, strict=False):
            assert f.each == pytest.approx(p.each, abs=1e-5) and f.greedy == p.greedy
            for n, (nats, is_likeliest) in zip((2, 1), f.lead, strict=True):
                head, token = prompt[: len(prompt) - n], prompt[len(prompt) - n]
                assert nats == pytest.approx(one_by_one(model, head, [token], 512), abs=1e-4)
                assert is_likeliest == (greedy_prefix(model, head, [token]) == 1)


def test_a_big_vocabulary_stands_in_parts(loaded: Any, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for the logits of seven tokens, the head is asked for no more at once; the numbers are the same."""
    model, tokenizer = loaded
    sequences = [(t.prompt, t.chosen) for t in (tokenize_pair(tokenizer, p) for p in pairs[:4])]
    expected = answer_logps(model, sequences, max_length=512, batch_size=4)
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(scoring, "LOGITS", 7 * 400 + 1)
    with model.lm_head.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape))):
        found = answer_logps(model, sequences, max_length=512, batch_size=4)
    assert [f.each for f in found] == [pytest.approx(e.each, abs=1e-5) for e in expected]
    tokens = sum(e.tokens for e in expected)
    assert shapes == [(1, 7, 400)] * (tokens // 7) + ([(1, tokens % 7, 400)] if tokens % 7 else [])


TINY: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
}


def other_models() -> list[Any]:
    """Models whose layers keep a window of 8 tokens, and one that caps its logits."""
    torch.manual_seed(0)
    gemma = Gemma2Config(**TINY, sliding_window=8, final_logit_softcapping=0.05, layer_types=["full_attention"] * 2)
    return [
        MistralForCausalLM(MistralConfig(**TINY, sliding_window=8)).eval(),
        Gemma2ForCausalLM(gemma).eval(),
    ]


def test_models_of_other_kinds(loaded: Any, pairs: list[Pair]) -> None:
    """Where layers keep a window, prompts are not shared; a cap on the logits stays in effect."""
    tokens = [tokenize_pair(loaded[1], p) for p in pairs[:4]]
    sequences = [(t.prompt, t.chosen) for t in tokens] + [(t.prompt, t.rejected) for t in tokens]
    windowed, capped = other_models()
    assert takes_any_order(loaded[0]) and not takes_any_order(windowed)
    with torch.inference_mode():
        for model in (windowed, capped):
            found = answer_logps(model, sequences, max_length=512, batch_size=8)
            expected = [one_by_one(model, p, a, 512) for p, a in sequences]
            assert [f.logp for f in found] == pytest.approx(expected, abs=1e-3)
        # A cap of 0.05 leaves almost all tokens alike: ln 400 = 5.99 nats each.
        assert found[0].logp / found[0].tokens == pytest.approx(-5.99, abs=0.1)


def test_the_prompt_is_read_once(loaded: Any, pairs: list[Pair]) -> None:
    model, tokenizer = loaded
    tokens = tokenize_pair(tokenizer, pairs[0])
    shapes: list[tuple[int, ...]] = []
    embedding = model.get_input_embeddings()
    with embedding.register_forward_hook(lambda _, given, __: shapes.append(tuple(given[0].shape))):
        answer_logps(
            model, [(tokens.prompt, a) for a in (tokens.chosen, tokens.rejected)], max_length=512, batch_size=2
        )
    # Nothing is predicted after an answer's last token, so it is not read.
    assert shapes == [(1, len(tokens.prompt) + len(tokens.chosen) + len(tokens.rejected) - 2)]


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
