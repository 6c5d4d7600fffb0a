"""Our lm-eval model against lm-eval's own HFLM, through lm-eval's own evaluator, on the same tasks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from preftune.capability import run_tasks
from preftune.children import read_json_lines
from preftune.data.pairs import Pair, to_pair
from preftune.lm_in_memory import ModelInMemory
from preftune.scoring import answer_logps
from preftune.tokens import tokenize_pair

ROOT = Path(__file__).parent.parent


def quiet(_: str) -> Any:
    return lambda done, total: None


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    lines = (ROOT / "recipes/starter/pairs/test.jsonl").read_text().splitlines()
    return [to_pair(json.loads(line), "starter", str(i)) for i, line in enumerate(lines[:10])]


def both(loaded: Any) -> tuple[Any, Any]:
    model, tokenizer = loaded
    theirs: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, add_bos_token=False)  # pyright: ignore
    ours: Any = ModelInMemory(model, tokenizer, batch_size=2, progress=quiet)  # pyright: ignore
    return theirs, ours


def asked(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Any]:
    return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]


def test_the_same_results_on_whole_tasks(loaded: Any, pairs: list[Pair], tmp_path: Path) -> None:
    """Likelihoods of the pairs, and the two local tasks that write."""
    settings = {"tasks": ("preference_pairs", "facts", "instructions"), "task_folder": None, "task_limit": 6}
    files = []
    for name, lm in zip(("theirs", "ours"), both(loaded), strict=True):
        folder = tmp_path / name
        folder.mkdir()
        run_tasks(lm, loaded[1], pairs, {**settings, "batch_size": 4}, folder, lambda _: None)
        files.append((read_json_lines(folder / "lm_eval.jsonl"), json.loads((folder / "lm_eval.json").read_text())))
    assert files[0] == files[1]
    assert [len([r for r in files[0][0] if r["task"] == t]) for t in settings["tasks"]] == [6, 6, 6]


def test_likelihoods(loaded: Any) -> None:
    """Choices that begin alike, a context that is empty, one that does not fit, one that ends in a space."""
    theirs, ours = both(loaded)
    long = " ".join(f"word{i}" for i in range(200))  # more than the model's 256 tokens
    arguments = [
        *(("The sky is", f" {colour}") for colour in ("blue", "green", "blue and green", "b")),
        ("", "Nothing before it"),
        (long, " and the end"),
        ("A space at the end ", "of it"),
        ("The sky is", " blue"),  # asked twice
    ]
    requests = asked("loglikelihood", arguments)
    expected, found = theirs.loglikelihood(requests), ours.loglikelihood(requests)
    assert [f[0] for f in found] == pytest.approx([e[0] for e in expected], abs=1e-3)
    assert [f[1] for f in found] == [e[1] for e in expected]


def test_greedy_continuations_are_told(loaded: Any) -> None:
    theirs, ours = both(loaded)
    settings = {"until": [], "max_gen_toks": 3}
    (text,) = ours.generate_until(asked("generate_until", [("Tell me", settings)]))
    requests = asked("loglikelihood", [("Tell me", text), ("Tell me", text + " else")])
    assert [f[1] for f in ours.loglikelihood(requests)] == [e[1] for e in theirs.loglikelihood(requests)]


def test_generation_with_stop_texts(loaded: Any) -> None:
    theirs, ours = both(loaded)
    contexts = ["One", "Two words", "A longer text, to be gone on with", "x" * 600]
    free = ours.generate_until(asked("generate_until", [(c, {"until": [], "max_gen_toks": 24}) for c in contexts]))
    stops = [free[0][5:8], free[2][9:10]]  # what they really write
    arguments = [
        *((c, {"until": [], "max_gen_toks": 24}) for c in contexts),
        *((c, {"until": stops, "max_gen_toks": 24}) for c in contexts),
        *((c, {"until": stops[0], "max_gen_toks": 7, "do_sample": False, "temperature": 0.0}) for c in contexts),
    ]
    requests = asked("generate_until", arguments)
    expected, found = theirs.generate_until(requests), ours.generate_until(requests)
    assert found == expected
    assert len(found[4]) < len(found[0])  # it did stop there


def test_what_asks_for_more_than_greedy_goes_lm_eval_s_way(loaded: Any) -> None:
    theirs, ours = both(loaded)
    requests = asked(
        "generate_until", [("One", {"until": [], "max_gen_toks": 5, "do_sample": True, "temperature": 1.0})]
    )
    texts = []
    for lm in (theirs, ours):
        torch.manual_seed(3)
        texts.append(lm.generate_until(requests))
    assert texts[0] == texts[1]


def test_what_was_scored_already_costs_nothing(loaded: Any, pairs: list[Pair], tmp_path: Path) -> None:
    """preference_pairs asks for the pairs' very tokens, less the end token; only what was cut is computed."""
    model, tokenizer = loaded
    tokens = [tokenize_pair(tokenizer, p) for p in pairs]
    sides = [(t.prompt, t.chosen) for t in tokens] + [(t.prompt, t.rejected) for t in tokens]
    limit = sorted(len(p) + len(a) for p, a in sides)[-4]
    scores = answer_logps(model, sides, max_length=limit, batch_size=4, lead=2)
    scored = [(p, a, s) for (p, a), s in zip(sides, scores, strict=True) if len(p) + len(a) <= limit]
    settings = {"tasks": ("preference_pairs",), "task_folder": None, "task_limit": None, "batch_size": 2}
    found, read = [], []
    for name, known in (("anew", []), ("looked-up", scored)):
        lm: Any = ModelInMemory(model, tokenizer, batch_size=2, scored=known, progress=quiet)  # pyright: ignore
        folder = tmp_path / name
        folder.mkdir()
        rows: list[int] = []
        with model.lm_head.register_forward_hook(lambda _, __, out, rows=rows: rows.append(out.shape[1])):
            run_tasks(lm, tokenizer, pairs, settings, folder, lambda _: None)
        found.append(read_json_lines(folder / "lm_eval.jsonl"))
        read.append(sum(rows))
    assert found[0] == found[1]
    # lm-eval asks for the line's end before the answer as well, and not for <|im_end|> and the line's end after it.
    assert read[0] == sum(len(a) - 1 for _, a in sides)
    assert read[1] == sum(len(a) - 1 for p, a in sides if len(p) + len(a) > limit) < read[0]
