"""What all prompts begin with is read once: the same numbers and answers as without, from fewer tokens."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from preftune import prefix
from preftune.generation import Decoding, generate
from preftune.prefix import read_prefix, takes_any_order
from preftune.scoring import answer_logps

SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.5,
}
SYSTEM = list(range(100, 130))
PROMPTS = [[*SYSTEM, 200 + i, *range(i, 3 * i)] for i in range(1, 14)]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


class Tokens:
    """Counts the tokens that a model reads."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        model.get_input_embeddings().register_forward_hook(self._add)

    def _add(self, _: Any, given: Any, __: Any) -> None:
        self.count += given[0].numel()

    def taken(self) -> int:
        count, self.count = self.count, 0
        return count


@pytest.mark.parametrize("answers_each", [1, 2])
@pytest.mark.parametrize("lead", [0, 2])
def test_scores(model: Any, monkeypatch: pytest.MonkeyPatch, answers_each: int, lead: int) -> None:
    sequences = [(p, [7 + n, 8, 9][: 2 + n]) for p in PROMPTS for n in range(answers_each)]
    tokens = Tokens(model)
    found = answer_logps(model, sequences, max_length=500, batch_size=4, lead=lead)
    few = tokens.taken()
    monkeypatch.setattr(prefix, "_WORTH", 10**6)
    expected = answer_logps(model, sequences, max_length=500, batch_size=4, lead=lead)
    many = tokens.taken()
    for f, e in zip(found, expected, strict=True):
        assert f.each == pytest.approx(e.each, abs=1e-4) and (f.tokens, f.greedy) == (e.tokens, e.greedy)
        assert [n for n, _ in f.lead] == pytest.approx([n for n, _ in e.lead], abs=1e-4)
    # 30 tokens are common; the shortest prompt has 33, and keeps one to predict the answer from, and `lead` more.
    assert many - few == (len(PROMPTS) - 1) * (30 - max(0, 1 + lead - 3))


def test_answers(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as rows join and leave; samples too."""
    tokens = Tokens(model)
    for decoding in (Decoding(12), Decoding(12, temperature=1.0)):
        found = generate(model, PROMPTS, decoding, eos_ids={3}, batch_size=1)
        few = tokens.taken()
        with monkeypatch.context() as patch:
            patch.setattr(prefix, "_WORTH", 10**6)
            expected = generate(model, PROMPTS, decoding, eos_ids={3}, batch_size=1)
        many = tokens.taken()
        assert [f.ids for f in found] == [e.ids for e in expected]
        assert [f.logp for f in found] == pytest.approx([e.logp for e in expected], abs=1e-4)
        assert many - few == (len(PROMPTS) - 1) * 30


def test_where_there_is_none(model: Any) -> None:
    other = [1, *PROMPTS[0][1:]]
    windowed: Any = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)).eval()
    assert not takes_any_order(windowed)
    with torch.inference_mode():
        assert read_prefix(model, PROMPTS, left=1).length == 30
        assert read_prefix(model, [*PROMPTS, SYSTEM[:20]], left=1).length == 19
        assert read_prefix(model, [*PROMPTS, other], left=1).length == 0
        assert read_prefix(model, [*PROMPTS, SYSTEM[:8]], left=1).length == 0  # seven are not worth it
        assert read_prefix(model, PROMPTS[:1], left=1).length == 0
        assert read_prefix(model, [], left=1).length == 0
        assert read_prefix(windowed, PROMPTS, left=1).length == 0
