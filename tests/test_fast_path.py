"""Packed rows give TRL's log-probabilities and gradients, for several architectures and all kinds of rows.

Where a model cannot read them, it says why.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import our_trainer

from preftune.data.pairs import Pair, to_pair

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3")
FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
LIMIT = 40
# Lengths of prompt, chosen and rejected: the extremes are prompts of one token and of LIMIT - 1.
LENGTHS = [(10, 20, 5), (1, 7, 9), (LIMIT - 1, 1, 1), (12, 1, 28), (2, 30, 30)]


def model_of(kind: str, **keys: Any) -> Any:
    """A small model of an architecture, random weights, the same ones each time, with TRL's fused LM head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **keys}), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3  # away from the uniform distribution
    add_fused_lm_head(model, outputs=FIELDS)
    return model.train()


def rows(padded_left: bool, cut_start: bool = False) -> dict[str, Any]:
    """TRL's tensors of pairs: all chosen sequences, then all rejected ones."""
    import torch

    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 97, (count,), generator=generator).tolist()

    sequences: list[tuple[list[int], list[int]]] = []
    for prompt, *answers in LENGTHS:
        shared = ids(prompt)
        sequences += [(shared, ids(n)) for n in answers]
    sequences = sequences[::2] + sequences[1::2]
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, answer in sequences:
        part = slice(-LIMIT + 8, None) if cut_start else slice(LIMIT)
        tokens, labels = (prompt + answer)[part], ([-100] * len(prompt) + answer)[part]
        empty = LIMIT - len(tokens)
        for name, values, filler in (
            ("input_ids", tokens, 0),
            ("attention_mask", [1] * len(tokens), 0),
            ("labels", labels, -100),
        ):
            columns[name].append([filler] * empty + values if padded_left else values + [filler] * empty)
    return {name: torch.tensor(values) for name, values in columns.items()}


@pytest.mark.parametrize("cut_start", [False, True], ids=["keep_start", "keep_end"])
@pytest.mark.parametrize("padded_left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_log_probabilities_and_gradients(kind: str, padded_left: bool, cut_start: bool) -> None:
    from preftune.fast_path import install, reason_against

    bare, mine = model_of(kind), model_of(kind)
    assert reason_against(mine, LIMIT) is None
    install(mine, probes=False)
    batch = rows(padded_left, cut_start)
    # TRL pads on the right; where there is padding on the left, transformers wants to be told the positions.
    place = {"position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)} if padded_left else {}
    expected = bare(**batch, **place, fused_lm_head=True, use_cache=False)
    found = mine(**batch, fused_lm_head=True, use_cache=False)
    assert float(expected.log_probs.detach().min()) < -5, "the model is sure of something"
    for name in FIELDS:
        one, other = (getattr(output, name).detach().float() for output in (found, expected))
        assert float((one - other).abs().max()) < 1e-4, name
    assert float((found.log_probs - expected.log_probs).detach().sum(-1).abs().max()) < 1e-4, "a row's sum"
    for output in (expected, found):
        (output.log_probs.sum(-1).mul(0.1).sigmoid().sum() + output.log_probs.square().mean()).backward()
    largest = max(float(p.grad.abs().max()) for p in bare.parameters() if p.grad is not None)
    for (name, one), other in zip(mine.named_parameters(), bare.parameters(), strict=True):
        assert float((one.grad - other.grad).abs().max()) <= 1e-5 * largest, name


@pytest.mark.slow  # it is compiled
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own, in what it traces
def test_flex_attention_sees_the_same() -> None:
    """Forward only: on a CPU torch has no backward pass for it."""
    import torch

    from preftune.fast_path import install, reason_against

    bare, mine = model_of("llama"), model_of("llama")
    mine.set_attn_implementation("flex_attention")
    assert reason_against(mine, LIMIT) is None
    install(mine, probes=True)
    with torch.no_grad():
        expected, found = (model(**rows(False), fused_lm_head=True).log_probs for model in (bare, mine))
    assert float((found - expected).abs().max()) < 1e-4


def test_fewer_tokens_go_through_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import trl.trainer.utils as head

    from preftune.fast_path import install

    model, seen = model_of("llama"), []
    install(model, probes=False)
    model.model.embed_tokens.register_forward_hook(lambda _m, given, _o: seen.append(given[0].shape))
    heads: list[int] = []
    real = head._ChunkedLogProbFunction.apply
    spy = SimpleNamespace(apply=lambda hidden, *rest: (heads.append(len(hidden)), real(hidden, *rest))[1])
    monkeypatch.setattr(head, "_ChunkedLogProbFunction", spy)
    model(**rows(False), fused_lm_head=True)
    # A prompt's last token comes twice, the answers' last ones never.
    width = max(p - 1 + min(c, LIMIT - p) + min(r, LIMIT - p) for p, c, r in LENGTHS)
    assert seen == [(len(LENGTHS), width)]
    assert heads == [sum(min(n, LIMIT - p) for p, *answers in LENGTHS for n in answers)]


def test_what_is_not_a_pair_goes_the_usual_way() -> None:
    import torch

    from preftune.fast_path import install

    bare, mine = model_of("llama"), model_of("llama")
    install(mine, probes=False)
    batch = rows(False)
    expected, found = bare(**batch), mine(**batch)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.loss, expected.loss)


@pytest.mark.parametrize(
    ("kind", "keys", "reason"),
    [
        ("llama", {"attn_implementation": "eager"}, "attn_implementation: eager"),
        ("llama", {"attention_dropout": 0.1}, "dropout"),
        ("mistral", {"sliding_window": 16}, "sliding window of 16"),
        ("gemma3_text", {"sliding_window": 16}, "sliding window of 16"),
        ("mamba", {}, "counts positions by itself"),
        ("bloom", {"n_head": 4}, "counts positions by itself"),
    ],
)
def test_why_it_is_off(kind: str, keys: dict[str, Any], reason: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from preftune.fast_path import reason_against

    sizes = {**SIZES, **{k: v for k, v in keys.items() if k != "attn_implementation"}}
    config = AutoConfig.for_model(kind, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=keys.get("attn_implementation"))
    told = reason_against(model, LIMIT)
    assert told and reason in told


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        ({"kind": "PromptTuningConfig", "num_virtual_tokens": 4}, "tokens of its own"),
        ({"kind": "LoraConfig", "lora_dropout": 0.1, "target_modules": "all-linear"}, "dropout"),
        ({"kind": "LoraConfig", "target_modules": ["q_proj", "lm_head"]}, "LM head"),
        ({"kind": "LoraConfig", "target_modules": "all-linear"}, None),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_adapters(adapter: dict[str, Any], reason: str | None) -> None:
    import peft

    from preftune.fast_path import reason_against

    kind = adapter.pop("kind")
    model = peft.get_peft_model(model_of("llama"), getattr(peft, kind)(task_type="CAUSAL_LM", **adapter))
    told = reason_against(model, LIMIT)
    assert (told is None) == (reason is None) and (reason or "") in (told or "")


def test_a_model_that_reads_packed_rows_otherwise_is_found_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Here the positions are lost; the first batch shows it, and all go TRL's way."""
    from preftune.fast_path import install

    bare, mine = model_of("llama"), model_of("llama")
    inner = mine.model.forward
    mine.model.forward = lambda *args, **kwargs: inner(*args, **{**kwargs, "position_ids": None})
    install(mine, probes=True)
    batch = rows(False)
    found = mine(**batch, fused_lm_head=True).log_probs
    expected = bare(**batch, fused_lm_head=True).log_probs
    assert float((found - expected).detach().abs().max()) < 1e-5
    assert "fast path: off, the model reads packed rows otherwise" in capsys.readouterr().out


def test_a_model_that_takes_no_such_mask_is_found_out(capsys: pytest.CaptureFixture[str]) -> None:
    from preftune.fast_path import install

    mine = model_of("llama")
    inner = mine.model.forward

    def picky(*args: Any, **kwargs: Any) -> Any:
        if kwargs["attention_mask"].ndim != 2:
            raise ValueError("attention_mask must have two dimensions")
        return inner(*args, **kwargs)

    mine.model.forward = picky
    install(mine, probes=True)
    assert mine(**rows(False), fused_lm_head=True).log_probs.shape == (2 * len(LENGTHS), LIMIT - 1)
    assert "takes no packed rows (attention_mask must have two dimensions)" in capsys.readouterr().out


def test_the_launcher_s_parallelism_and_the_router_s_loss_switch_it_off(capsys: pytest.CaptureFixture[str]) -> None:
    from preftune.fast_path import switch_on

    model = model_of("llama")
    accelerator: Any = SimpleNamespace(
        unwrap_model=lambda m: m, parallelism_config=object(), distributed_type="NO", device=SimpleNamespace(type="cpu")
    )
    trainer = SimpleNamespace(
        args=SimpleNamespace(max_length=LIMIT), model=model, accelerator=accelerator, aux_loss_enabled=False
    )
    assert "several devices" in switch_on(trainer)
    trainer.aux_loss_enabled = True
    assert "router" in switch_on(trainer)
    trainer.aux_loss_enabled, accelerator.parallelism_config = False, None
    assert switch_on(trainer) == "on"
    assert capsys.readouterr().out.count("fast path: off") == 2


def starter(count: int) -> list[Pair]:
    import json

    lines = Path(__file__).parents[1].joinpath("recipes/starter/pairs/train.jsonl").read_text().splitlines()[:count]
    return [to_pair(json.loads(line), "starter", str(i)) for i, line in enumerate(lines)]


CURVES = [
    *[(loss, lora) for loss in ("sigmoid", "ipo", "apo_zero", "robust") for lora in (False, True)],
    ("orpo", False),
    ("orpo", True),
]


@pytest.mark.parametrize(
    ("loss", "lora"),
    [pytest.param(*c, marks=[pytest.mark.slow] * (c not in (("sigmoid", True), ("ipo", False)))) for c in CURVES],
)
def test_the_loss_curve_of_fifty_steps_is_trl_s(tiny_model: Path, tmp_path: Path, loss: str, lora: bool) -> None:
    """With packed rows and sorted micro-batches, against our trainer with both switched off, which test_losses.py and
    test_training.py hold against TRL's own."""
    curves = {}
    for way in ("auto", "off"):
        keys: dict[str, Any] = {
            "max_steps": 50,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "eval_strategy": "no",
            "max_length": 96,
            "seed": 3,
            "disable_tqdm": True,
        }
        method = "orpo" if loss == "orpo" else "dpo"
        if method == "dpo":
            keys |= {"loss_type": [loss], "label_smoothing": 0.1, "precompute_ref_log_probs": True}
        trainer = our_trainer(
            tiny_model,
            starter(60),
            tmp_path / way,
            reference=tmp_path / "reference",
            settings={"use_peft": True, "lora_r": 4} if lora else {},
            fast_path=way,
            method=method,
            **keys,
        )
        assert trainer.fast_path == ("on" if way == "auto" else "switched off")
        trainer.train()
        curves[way] = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    assert len(curves["auto"]) == 50
    assert max(curves["auto"]) - min(curves["auto"]) > 0.005, "it learns"
    assert curves["auto"] == pytest.approx(curves["off"], abs=1e-4)
