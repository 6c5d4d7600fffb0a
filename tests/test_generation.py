"""Answers against transformers' own: greedy ones token by token, samples against their distribution; rows that come
and go must not change any."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from preftune import generation
from preftune.data.pairs import to_pair
from preftune.errors import UserError
from preftune.generation import Decoding, generate, sample
from preftune.scoring import answer_logps
from preftune.tokens import tokenize_prompt

ROOT = Path(__file__).parent.parent


SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.5,  # answers that wander; with the usual 0.02 a random model repeats one token
}


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval(), AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def prompts(loaded: Any) -> list[list[int]]:
    """Twenty, of 20 to 100 tokens, and one of a single token."""
    lines = (ROOT / "recipes/starter/pairs/test.jsonl").read_text().splitlines()[:20]
    pairs = [to_pair(json.loads(line), "starter", "") for line in lines]
    return [*(tokenize_prompt(loaded[1], p.prompt) for p in pairs), [5]]


def by_transformers(model: Any, prompt: list[int], tokens: int, end: int | None) -> list[int]:
    """`model.generate` on one prompt alone."""
    given = torch.tensor([prompt])
    out = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def common_token(model: Any, prompts: list[list[int]], tokens: int = 24) -> int:
    """The token that ends answers at the most different places, and some never."""
    free = [by_transformers(model, p, tokens, None) for p in prompts]
    places = {t: [a.index(t) for a in free if t in a] for a in free for t in a}
    return max(places, key=lambda t: (len(places[t]) < len(free), len(set(places[t]))))


@pytest.fixture(scope="module")
def end(loaded: Any, prompts: list[list[int]]) -> int:
    return common_token(loaded[0], prompts)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_greedy_answers_are_those_of_transformers(
    loaded: Any, prompts: list[list[int]], end: int, batch_size: int
) -> None:
    """With a batch of 1 there are 16 rows for 21 prompts: they come in groups of 2 as others leave."""
    model, _ = loaded
    found = generate(model, prompts, Decoding(24), eos_ids={end}, batch_size=batch_size)
    expected = [by_transformers(model, p, 24, end) for p in prompts]
    assert [a.ids for a in found] == expected
    assert [a.stopped for a in found] == [ids[-1] == end for ids in expected]
    assert len({len(ids) for ids in expected}) > 3 and {a.stopped for a in found} == {True, False}


def test_the_log_probability_is_that_of_a_forward_pass(loaded: Any, prompts: list[list[int]], end: int) -> None:
    model, _ = loaded
    for decoding in (Decoding(24), Decoding(24, temperature=1.5, top_p=0.9, seed=3)):
        found = generate(model, prompts, decoding, eos_ids={end}, batch_size=1)
        scores = answer_logps(
            model, [(p, a.ids) for p, a in zip(prompts, found, strict=True)], max_length=500, batch_size=4
        )
        assert [a.logp for a in found] == pytest.approx([s.logp for s in scores], abs=1e-4)


def test_a_row_that_has_ended_is_not_computed(loaded: Any, prompts: list[list[int]], end: int) -> None:
    """Tokens that go through the model: those of the prompts and of the answers, and at most a sixteenth more."""
    model, _ = loaded
    read: list[int] = []
    with model.get_input_embeddings().register_forward_hook(lambda _, given, __: read.append(given[0].numel())):
        found = generate(model, prompts, Decoding(24), eos_ids={end}, batch_size=1)
    written = sum(len(a.ids) for a in found)
    assert sum(len(p) for p in prompts) + written - len(prompts) <= sum(read)
    padding = 0.3 * sum(len(p) for p in prompts)  # prompts that begin together are padded to the longest
    assert sum(read) < sum(len(p) for p in prompts) + padding + written * 16 / 15 + 16


MAMBA: dict[str, Any] = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 2,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
WINDOW: dict[str, Any] = {"sliding_window": 8}
OTHERS: dict[str, Callable[[], Any]] = {
    "all layers keep a window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, **WINDOW)),
    "some layers keep a window": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, **WINDOW)),
    "attention beside recurrent states": lambda: FalconH1ForCausalLM(FalconH1Config(**SHAPE, **MAMBA)),
    "no position ids": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.5)
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_models_of_other_kinds(prompts: list[list[int]], kind: str) -> None:
    """Where nobody can join a batch, or leave it, the answers are the same."""
    torch.manual_seed(0)
    model = OTHERS[kind]().eval()
    asked = prompts[3:]
    end = common_token(model, asked, 16)
    found = generate(model, asked, Decoding(16), eos_ids={end}, batch_size=1)
    assert [a.ids for a in found] == [by_transformers(model, p, 16, end) for p in asked]


def test_a_model_with_a_memory_of_its_own_is_refused(prompts: list[list[int]]) -> None:
    model: Any = MambaForCausalLM(MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1, state_size=8))
    with pytest.raises(UserError, match="mamba"):
        generate(model, prompts, Decoding(2), eos_ids={2}, batch_size=1)


def test_keys_and_values_have_a_limit(loaded: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model keeps 2 layers x 2 (keys, values) x 16 numbers of 4 bytes: 256 bytes a token."""
    model, _ = loaded
    expected = generate(model, prompts, Decoding(4), eos_ids={0}, batch_size=2)
    rows: list[int] = []
    longest = max(map(len, prompts))
    monkeypatch.setattr(generation, "_CACHE_BYTES", 256 * (longest + 4) * 3 / 2 + 1)  # 3 rows, for a batch of 2
    with model.lm_head.register_forward_hook(lambda _, __, out: rows.append(out.shape[0])):
        found = generate(model, prompts, Decoding(4), eos_ids={0}, batch_size=2)
    assert [a.ids for a in found] == [a.ids for a in expected]
    assert rows[0] == 3 and max(rows) * (min(map(len, prompts)) + 4) <= 3 * (longest + 4)


def test_stop_texts(loaded: Any, prompts: list[list[int]]) -> None:
    model, _ = loaded
    (free,) = generate(model, prompts[:1], Decoding(8), eos_ids=set(), batch_size=1)
    (ended,) = generate(model, prompts[:1], Decoding(8), eos_ids=set(), batch_size=1, ended=lambda ids: len(ids) >= 3)
    assert (ended.ids, ended.stopped, free.stopped) == (free.ids[:3], True, False)


# --- sampling -----------------------------------------------------------------------------------------------


def test_samples_do_not_depend_on_the_prompts_beside_them(loaded: Any, prompts: list[list[int]]) -> None:
    model, _ = loaded
    decoding = Decoding(12, temperature=1.0, seed=5)
    together = generate(model, prompts, decoding, eos_ids={2}, batch_size=8)
    alone = [generate(model, [p], decoding, eos_ids={2}, batch_size=1)[0] for p in prompts]
    assert [a.ids for a in together] == [a.ids for a in alone]
    other = generate(model, prompts, Decoding(12, temperature=1.0, seed=6), eos_ids={2}, batch_size=8)
    assert sum(a.ids == b.ids for a, b in zip(together, other, strict=True)) < len(prompts) / 2


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (1.0, 0.65, [0.0, 4 / 7, 0.0, 3 / 7]),  # 0.4 alone is not enough, with 0.3 it is
        (1.0, 0.3, [0.0, 1.0, 0.0, 0.0]),
        (0.5, 1.0, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squared
    ],
)
def test_samples_have_their_distribution(temperature: float, top_p: float, expected: list[float]) -> None:
    """Of evenly spread random numbers, each token gets its share."""
    count = 4200
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(count, -1)
    found = sample(logits, uniform, Decoding(1, temperature=temperature, top_p=top_p))
    shares = [int((found == t).sum()) / count for t in range(4)]
    assert shares == pytest.approx(expected, abs=1 / count + 1e-9)


def test_a_broken_model_does_not_end_in_an_error() -> None:
    logits = torch.full((2, 5), float("nan"))
    for top_p in (1.0, 0.5):
        found = sample(logits, torch.tensor([0.1, 0.9], dtype=torch.float64), Decoding(1, temperature=1.0, top_p=top_p))
        assert found.shape == (2,) and int(found.max()) < 5 and int(found.min()) >= 0
