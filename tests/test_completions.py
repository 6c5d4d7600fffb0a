"""Completions of a local model: what is known is not made again, however the process ended that made it."""

import importlib.machinery
import json
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from preftune import accelerate_configs
from preftune.content_cache import ContentCache
from preftune.errors import StepError, UserError
from preftune.generation import Answer, Decoding, generate
from preftune.own_pairs import completions, sampling
from preftune.own_pairs.completions import complete, completion_key, engine
from preftune.own_pairs.sampling import sample, seed_of
from preftune.pairs_schema import LocalGenerator, Pairs
from preftune.workspace import Workspace

Row = dict[str, Any]
ENDS = [2, *range(10, 380, 12)]  # 2: <|im_end|>; the others stand for words


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the tiny model, but its answers wander (with the usual weights a random model repeats one token), and many
    tokens end them."""
    folder = tmp_path_factory.mktemp("wandering")
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model, initializer_range=0.3))
    assert made.generation_config is not None
    made.generation_config.eos_token_id = ENDS
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The child's work in this very process, which spares the start of another one. The jobs that it was given."""
    jobs: list[Row] = []

    def run(_: Workspace, module: str, job: Row, *__: Any) -> None:
        assert module == "preftune.own_pairs.sampling"
        jobs.append(json.loads(json.dumps(job)))
        sample(jobs[-1])

    monkeypatch.setattr(completions, "run_model_child", run)
    return jobs


def prompt(number: int, words: str = "What comes after") -> Row:
    return {"id": f"row-{number}", "prompt": [{"role": "user", "content": f"{words} {number}?"}]}


PROMPTS = [prompt(i) for i in range(5)]


def settings(**keys: Any) -> Pairs:
    section: Row = {
        "prompts": "p.txt",
        "completions": 4,
        "temperatures": [0.7, 1.3],
        "max_new_tokens": 12,
        "scorer": {"kind": "rule", "function": "rule.py:score"},
    }
    return Pairs.model_validate(section | keys)


def done(
    model: Path, folder: Path, prompts: list[Row] = PROMPTS, tell: Callable[[str], None] = print, **keys: Any
) -> tuple[list[Row], Row]:
    """`complete` in a workspace of its own below the folder."""
    job = {
        "folder": str(folder / "step"),
        "model_path": str(model),
        "revision": None,
        "chat_template": None,
        "threads": 1,
        "dtype": "float32",
    }
    workspace = Workspace(folder, folder / "home")
    return complete(prompts, settings(**keys), "the model", job, workspace, "k", tell)


def kept(folder: Path) -> dict[str, str]:
    """What stands in the cache's file, read without the product's code."""
    rows = sqlite3.connect(folder / "home/completions/completions.sqlite")
    try:
        return dict(rows.execute("SELECT key, value FROM completions"))
    finally:
        rows.close()


# What is made


@pytest.mark.usefixtures("here")
def test_each_prompt_gets_its_completions_at_the_temperatures_in_turns(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(sampling, "tell", told.append)
    rows, counts = done(model, tmp_path)
    assert [(r["id"], r["number"]) for r in rows] == [(f"row-{i}", n) for i in range(5) for n in range(4)]
    assert [r["temperature"] for r in rows] == [0.7, 1.3, 0.7, 1.3] * 5
    assert counts == {"made": 20, "cached": 0, "errors": {}, "again": 0}
    assert all(r["error"] is None and r["text"] == r["text"].strip() for r in rows)
    assert {r["tokens"] == 12 for r in rows if not r["whole"]} == {True}
    assert {r["tokens"] < 12 for r in rows if r["whole"]} == {True}  # the end is not counted
    assert all(len({r["text"] for r in rows if r["id"] == p["id"]}) == 4 for p in PROMPTS)
    assert told[-1].startswith("completed answers: 20/20 (0:")
    assert not (tmp_path / "step/sampling").exists()


@pytest.mark.usefixtures("here")
def test_texts_are_those_of_generate_with_the_numbers_own_seed(model: Path, tmp_path: Path) -> None:
    rows, _ = done(model, tmp_path, top_p=0.9)
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = LlamaForCausalLM.from_pretrained(model).eval()
    for row in rows:
        (asked,) = (p["prompt"] for p in PROMPTS if p["id"] == row["id"])
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
        decoding = Decoding(12, row["temperature"], 0.9, seed_of(42, row["number"]))
        (answer,) = generate(loaded, [ids], decoding, eos_ids=set(ENDS), batch_size=1)
        before_end = answer.ids[: len(answer.ids) - answer.stopped]
        text = tokenizer.decode(before_end, skip_special_tokens=True).strip()
        expected = (text, answer.stopped, len(before_end))
        assert (row["text"], row["whole"], row["tokens"]) == expected


def test_seeds_are_the_numbers_own() -> None:
    seeds = [seed_of(seed, number) for seed in (0, 1, 42, 43) for number in range(64)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**31 for s in seeds)


def test_greedy_answers_are_equal_and_made_once(model: Path, tmp_path: Path, here: list[Row]) -> None:
    rows, counts = done(model, tmp_path, temperatures=[0, 1.3])
    texts = [[r["text"] for r in rows if r["number"] == n] for n in range(4)]
    assert texts[0] == texts[2]
    assert texts[1] != texts[3] and texts[0] != texts[1]
    assert (counts["made"], counts["cached"], len(kept(tmp_path))) == (15, 5, 15)
    again, counts = done(model, tmp_path, temperatures=[0, 1.3], seed=7)
    assert [r["text"] for r in again if not r["temperature"]] == [r["text"] for r in rows if not r["temperature"]]
    assert (counts["made"], counts["cached"], len(here)) == (10, 10, 2)


# What is known


def test_the_same_again_makes_nothing(model: Path, tmp_path: Path, here: list[Row]) -> None:
    rows, _ = done(model, tmp_path)
    again, counts = done(model, tmp_path)
    assert again == rows
    assert counts == {"made": 0, "cached": 20, "errors": {}, "again": 0}
    assert len(here) == 1


def test_more_completions_and_prompts_make_only_what_is_new(model: Path, tmp_path: Path, here: list[Row]) -> None:
    few, _ = done(model, tmp_path, PROMPTS[:3], completions=2)
    rows, counts = done(model, tmp_path)
    assert (counts["made"], counts["cached"]) == (14, 6)
    assert [r for r in rows if r["id"] in ("row-0", "row-1", "row-2") and r["number"] < 2] == few
    fresh, _ = done(model, tmp_path / "fresh")
    assert rows == fresh


KEY = ("m", [{"role": "user", "content": "q"}], 0.7, 1.0, 12, 42, 0)


@pytest.mark.parametrize(
    "changed",
    [
        ("other", *KEY[1:]),
        (KEY[0], [{"role": "system", "content": "q"}], *KEY[2:]),
        (*KEY[:2], 0.8, *KEY[3:]),
        (*KEY[:3], 0.9, *KEY[4:]),
        (*KEY[:4], 13, *KEY[5:]),
        (*KEY[:5], 43, 0),
        (*KEY[:6], 1),
    ],
)
def test_whatever_a_completion_depends_on_is_in_its_key(changed: Any) -> None:
    assert completion_key(*KEY) == completion_key(*KEY)
    assert completion_key(*changed) != completion_key(*KEY)


# A killed process

KILLED = """
import os, signal, sys
from preftune.content_cache import ContentCache
from preftune.own_pairs import sampling
add = ContentCache.add
def once(self, key, value):
    add(self, key, value)
    os.kill(os.getpid(), signal.SIGKILL)
ContentCache.add = once
sampling.child_main(sampling.sample)
"""


def test_a_killed_process_loses_what_was_in_flight_and_no_more(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first kept completion, then continued: the other 7 are made, and no more. Both in processes of
    their own, without accelerate's launcher, which takes longer than they do."""
    command = "preftune.model_process.launch_command"
    asked = PROMPTS[:2]
    with monkeypatch.context() as patched:
        patched.setattr(command, lambda _, job, *__: [sys.executable, "-c", KILLED, str(job)])
        with pytest.raises(StepError, match=signal.SIGKILL.name):
            done(model, tmp_path, asked)
    first = kept(tmp_path)
    assert len(first) == 1
    told: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(command, lambda module, job, *_: [sys.executable, "-m", module, str(job)])
        rows, counts = done(model, tmp_path, asked, tell=told.append)
    assert (counts["made"], counts["cached"]) == (7, 1)
    assert len(kept(tmp_path)) == 8 and first.items() <= kept(tmp_path).items()
    assert told[-1].startswith("completed answers: 7/7 (")
    monkeypatch.setattr(completions, "run_model_child", lambda _, __, job, *___: sample(job))
    whole, _ = done(model, tmp_path / "fresh", asked)
    assert rows == whole


@pytest.mark.usefixtures("here")
def test_on_a_full_disk_the_run_still_has_its_answers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ContentCache, "add", lambda *_: None)
    rows, counts = done(model, tmp_path)
    assert counts["made"] == 20 and all(r["error"] is None for r in rows)


# What cannot be answered

LONG = prompt(9, "word " * 505)  # the tiny model has 512 places


@pytest.mark.usefixtures("here")
def test_a_prompt_without_room_for_an_answer_is_counted(model: Path, tmp_path: Path) -> None:
    rows, counts = done(model, tmp_path, [PROMPTS[0], LONG])
    assert counts == {"made": 4, "cached": 0, "errors": {"too_long": 4}, "again": 0}
    assert [(r["text"], r["whole"], r["tokens"], r["error"]) for r in rows[4:]] == [("", False, None, "too_long")] * 4
    assert len(kept(tmp_path)) == 4


@pytest.mark.usefixtures("here")
def test_the_last_place_is_room_enough(model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.apply_chat_template(PROMPTS[0]["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    fits = 512 - len(ids)
    assert done(model, tmp_path, PROMPTS[:1], max_new_tokens=fits, completions=2)[1]["made"] == 2
    with pytest.raises(UserError, match="2 × too_long"):
        done(model, tmp_path, PROMPTS[:1], max_new_tokens=fits + 1, completions=2)


@pytest.mark.usefixtures("here")
def test_a_template_that_refuses_a_prompt(model: Path, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    strict = tmp_path / "strict"
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(strict)
    LlamaForCausalLM.from_pretrained(model).save_pretrained(strict)
    refused = {"id": "s", "prompt": [{"role": "system", "content": "Be brief."}, *PROMPTS[0]["prompt"]]}
    rows, counts = done(strict, tmp_path, [refused, PROMPTS[1]])
    assert counts == {"made": 4, "cached": 0, "errors": {"template": 4}, "again": 0}
    assert [r["error"] for r in rows] == ["template"] * 4 + [None] * 4
    with pytest.raises(UserError, match=r"none of 4 completions came \(4 × template\)") as told:
        done(strict, tmp_path, [refused])
    assert "chat template" in told.value.advice


def test_no_prompts_no_completions(model: Path, tmp_path: Path, here: list[Row]) -> None:
    assert done(model, tmp_path, []) == ([], {"made": 0, "cached": 0, "errors": {}, "again": 0})
    assert here == []


# generate tells of each answer when it ends


@pytest.mark.parametrize("batch_size", [1, 8])
def test_each_answer_is_told_once_when_it_ends(model: Path, batch_size: int) -> None:
    """Prompts of a single token; with a batch of 1 sixteen are answered at once, and the others wait."""
    loaded = LlamaForCausalLM.from_pretrained(model).eval()
    asked = [[t] for t in range(10, 50)]
    seen: list[tuple[int, Answer]] = []
    done_before: list[int] = []
    found = generate(
        loaded,
        asked,
        Decoding(20, temperature=1.0, seed=1),
        eos_ids=set(ENDS),
        batch_size=batch_size,
        finished=lambda i, a: seen.append((i, a)),
        progress=lambda done, _: done_before.append(done - len(seen)),
    )
    assert sorted(i for i, _ in seen) == list(range(40))
    assert all(a is found[i] for i, a in seen)
    assert done_before == [0] * 40  # each was told of at once
    assert [i for i, _ in seen] != list(range(40))
    assert {a.stopped for a in found} == {True, False}


# vLLM


class Stand:
    """What of vLLM is used, as its documentation has it: echoes the prompt's last tokens, or the end token."""

    def __init__(self, end: int) -> None:
        self.loaded: list[Row] = []
        self.asked: list[tuple[list[list[int]], Row]] = []
        self._end = end

    def module(self) -> ModuleType:
        module = ModuleType("vllm")
        module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
        stand = self

        class LLM:
            def __init__(self, **options: Any) -> None:
                stand.loaded.append(options)

            def generate(self, prompts: list[Row], params: Any) -> list[Any]:
                stand.asked.append(([p["prompt_token_ids"] for p in prompts], params))
                return [stand.answer(p["prompt_token_ids"]) for p in prompts]

        vars(module).update(LLM=LLM, SamplingParams=lambda **options: options)
        return module

    def answer(self, ids: list[int]) -> Any:
        """Prompts of an even length end by themselves."""
        whole = len(ids) % 2 == 0
        tokens = (*ids[4:7], *((self._end,) if whole else ()))
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, finish_reason="stop" if whole else "length")])


@pytest.fixture
def vllm(model: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    stand = Stand(AutoTokenizer.from_pretrained(model).eos_token_id)
    monkeypatch.setitem(sys.modules, "vllm", stand.module())
    return stand


@pytest.mark.usefixtures("here")
def test_vllm_is_asked_in_chunks(model: Path, vllm: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CHUNK", 2)
    asked = [prompt(i, "What comes after" + "!" * i) for i in range(3)]
    generator = {"kind": "local", "engine": "vllm"}
    rows, counts = done(model, tmp_path, asked, generator=generator, completions=2, top_p=0.9)
    assert (counts["made"], len(kept(tmp_path))) == (6, 6)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [
        tokenizer.apply_chat_template(p["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        for p in asked
    ]
    assert {len(i) % 2 for i in ids} == {0, 1}
    expected = [(tokenizer.decode(i[4:7]).strip(), len(i) % 2 == 0, 3) for i in ids for _ in range(2)]
    assert [(r["text"], r["whole"], r["tokens"]) for r in rows] == expected
    assert [len(prompts) for prompts, _ in vllm.asked] == [2, 1, 2, 1]
    assert [params for _, params in vllm.asked[::2]] == [
        {
            "temperature": t,
            "top_p": 0.9,
            "max_tokens": 12,
            "seed": seed_of(42, n),
            "stop_token_ids": ENDS,
        }
        for n, t in enumerate((0.7, 1.3))
    ]
    (options,) = vllm.loaded
    assert options["model"] == str(model) and options["trust_remote_code"] is False
    assert options["max_model_len"] == max(map(len, ids)) + 12


@pytest.mark.parametrize(("wanted", "gpus", "expected"), [("auto", 1, "vllm"), ("auto", 0, "transformers")])
@pytest.mark.usefixtures("vllm")
def test_vllm_is_taken_where_there_is_a_gpu(
    wanted: Any, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate_configs, "gpu_count", lambda: gpus)
    assert engine(LocalGenerator(engine=wanted)) == expected
    assert engine(LocalGenerator(engine="vllm")) == "vllm"
    assert engine(LocalGenerator(engine="transformers")) == "transformers"


def test_vllm_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "installed", lambda _: False)
    monkeypatch.setattr(accelerate_configs, "gpu_count", lambda: 1)
    assert engine(LocalGenerator()) == "transformers"
    with pytest.raises(UserError, match="not installed") as told:
        engine(LocalGenerator(engine="vllm"))
    assert (told.value.where, "pip install vllm" in told.value.advice) == ("pairs.generator.engine", True)
