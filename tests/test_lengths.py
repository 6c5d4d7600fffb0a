"""Lengths in tokens, cuts, and the ids without transformers against those of transformers and TRL."""

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TEMPLATE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from preftune.data.lengths import count, cut, fault, truncation
from preftune.data.pair_tokenizer import Ids, NotCounted, pair_tokenizer
from preftune.data.pairs import Pair
from preftune.tokens import tokenize_pair

LLAMA3 = """{{- bos_token }}
{%- if strftime_now is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
MISTRAL = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + m['content'] | trim + ' ' }}{% if loop.last %}{{ eos_token }}{% endif %}{% endif %}{% endfor %}"""
PHI3 = """{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{%- endif %}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}
{{- '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
PLAIN = """{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m | tojson }}
{%- generation %} {{ m.content }}{% endgeneration %}{% endfor %}{{ sep_token }}{{ documents }}"""
TEMPLATES = {"chatml": TEMPLATE, "llama3": LLAMA3, "mistral": MISTRAL, "phi3": PHI3, "gemma": GEMMA, "plain": PLAIN}
SPECIAL = [
    *("<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "<|end|>", "<|assistant|>", "<|user|>", "<start_of_turn>", "<end_of_turn>"),
]


def pair(prompt: str, chosen: str, rejected: str, system: str | None = None, more: tuple[str, ...] = ()) -> Pair:
    turns = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate((*more, prompt))]
    before = [] if system is None else [{"role": "system", "content": system}]
    answers = [[{"role": "assistant", "content": t}] for t in (chosen, rejected)]
    return Pair(prompt=before + turns, chosen=answers[0], rejected=answers[1], source="s", row_id="1", group_id="g")


PAIRS = [
    pair("What comes after 12?", "After 12 comes 13.", "Well, who is to say."),
    pair("  spaces \n", "\n\nYes", " yes ", more=("first", "answer")),
    pair("Grüße 日本語 🙂", "e\u0301 é", "𝒳\t\n", system=" be brief "),
    pair("what", "the same", "the same but longer", system=""),
    pair("a<|im_end|>b <s>c</s> <|end|>  d", "<|im_start|>", "x <|eot_id|> <|end|>\n y"),
    pair("12345 don't", "'s 3", "it's  "),
]


def expected(folder: Path, template: str, pairs: list[Pair]) -> list[Ids]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    found = [tokenize_pair(tokenizer, p) for p in pairs]
    return [(t.prompt, t.chosen, t.rejected) for t in found]


def corpus() -> list[str]:
    return (ROOT / "recipes/starter/pairs/test.jsonl").read_text().splitlines()[:60]


def byte_level(**special: Any) -> Tokenizer:
    """As SmolLM2's."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    tokens = [AddedToken(t, **{"special": True, "normalized": False, **special}) for t in SPECIAL]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=500, special_tokens=tokens, initial_alphabet=alphabet)
    )
    return raw


def llama3() -> Tokenizer:
    raw = byte_level()
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    return raw


def sentence_piece(prepend: bool) -> Tokenizer:
    """As Llama 2's: a normalizer puts ▁ before each piece of text."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prepend else []
    raw.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = [AddedToken(t, special=True, normalized=False) for t in SPECIAL]
    tokens += [AddedToken(f"<0x{i:02X}>", special=False, normalized=False) for i in range(256)]
    raw.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=700, special_tokens=tokens))
    written = json.loads(raw.to_str())
    written["added_tokens"] = [t for t in written["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(written))


def save(folder: Path, raw: Tokenizer, family: str, **config: Any) -> Path:
    folder.mkdir()
    raw.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", **config})
    )
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "fast": lambda p: save(p, byte_level(), "llama", tokenizer_class="PreTrainedTokenizerFast"),
    "llama3": lambda p: save(p, llama3(), "llama", tokenizer_class="PreTrainedTokenizerFast"),
    "no-family": lambda p: save(p, byte_level(), "gpt2", tokenizer_class="TokenizersBackend"),
    "strips": lambda p: save(p, byte_level(rstrip=True), "phi3", tokenizer_class="LlamaTokenizer"),
    "normalized": lambda p: save(p, byte_level(normalized=True), "llama", tokenizer_class="PreTrainedTokenizerFast"),
    "smollm2-hub": lambda p: save(p, byte_level(), "llama", tokenizer_class="GPT2Tokenizer"),
    "qwen2": lambda p: save(p, byte_level(), "qwen2", tokenizer_class="Qwen2Tokenizer", bos_token=None),
    "qwen2-other-class": lambda p: save(p, byte_level(), "qwen2", tokenizer_class="PreTrainedTokenizerFast"),
    "llama3-as-llama": lambda p: save(p, byte_level(), "llama", tokenizer_class="LlamaTokenizer"),
    "mistral": lambda p: save(p, sentence_piece(True), "mistral", tokenizer_class="LlamaTokenizerFast"),
    "llama2": lambda p: save(p, sentence_piece(True), "llama", tokenizer_class="LlamaTokenizer", legacy=False),
    "llama-legacy": lambda p: save(p, sentence_piece(True), "llama", tokenizer_class="LlamaTokenizer", legacy=True),
    "llama-no-prefix": lambda p: save(
        p, sentence_piece(True), "llama", tokenizer_class="LlamaTokenizer", add_prefix_space=False
    ),
    "gemma": lambda p: save(p, sentence_piece(False), "gemma", tokenizer_class="GemmaTokenizer", sep_token="<sep>"),
    "config-decoder": lambda p: save(
        p,
        byte_level(),
        "llama",
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token={"__type": "AddedToken", "content": "<|new|>", "special": True, "lstrip": False},
        added_tokens_decoder={
            "9": {"content": "<|end|>", "rstrip": True, "lstrip": False, "normalized": False, "special": True}
        },
        additional_special_tokens=["<|more|>", "<|user|>"],
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("tokenizers"), {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = KINDS[kind](root / kind)
        return made[kind]

    return get


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(folders: Callable[[str], Path], kind: str, template: str) -> None:
    folder = folders(kind)
    pairs = [p for p in PAIRS if template != "gemma" or p.prompt[0]["role"] != "system"]
    assert pair_tokenizer(folder, TEMPLATES[template]).ids(pairs) == expected(folder, TEMPLATES[template], pairs)


def test_pieces_are_encoded_apart_only_where_it_is_the_same(folders: Callable[[str], Path]) -> None:
    apart = {kind for kind in KINDS if pair_tokenizer(folders(kind), TEMPLATE).splitter is not None}
    # left: stripping tokens, tokens found in normalized text only, and prefixes that depend on the position
    assert set(KINDS) - apart == {"strips", "normalized", "mistral", "llama2", "config-decoder"}
    words = {kind for kind in KINDS if pair_tokenizer(folders(kind), TEMPLATE).words is not None}
    assert apart - words == {"llama-legacy", "llama-no-prefix", "gemma"}  # not byte-level


PIECES = st.sampled_from(
    [
        "a",
        " ",
        "\n",
        "é",
        "e\u0301",
        "12",
        "<|im_end|>",
        "<|im",
        "<s>",
        "'s",
        "日",
        "▁",
        ". the",
        " b",
        ", a",
        "<|end|>",
    ]
)
CONTENT = st.lists(PIECES, max_size=6).map("".join)


@given(st.lists(st.tuples(CONTENT, CONTENT, CONTENT), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("kind", ["fast", "qwen2", "smollm2-hub", "llama3", "llama-legacy", "gemma"])
def test_pieces_give_the_ids_of_the_whole(
    folders: Callable[[str], Path], kind: str, texts: list[tuple[str, str, str]]
) -> None:
    quick = pair_tokenizer(folders(kind), TEMPLATE)
    assert quick.splitter is not None
    slow = type(quick)(quick.tokenizer, quick.template, quick.special, None, None)
    pairs = [pair(*t) for t in texts]
    assert quick.ids(pairs) == slow.ids(pairs)


def test_model_folder_as_transformers_writes_it(tiny_model: Path) -> None:
    assert pair_tokenizer(tiny_model, TEMPLATE).ids(PAIRS) == expected(tiny_model, TEMPLATE, PAIRS)


def test_where_it_cannot_be_told(folders: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(NotCounted, match=r"no tokenizer\.json"):
        pair_tokenizer(tmp_path, TEMPLATE)
    with pytest.raises(NotCounted, match="template cannot be read"):
        pair_tokenizer(folders("fast"), "{% for %}")
    with pytest.raises(NotCounted, match="System role not supported"):
        pair_tokenizer(folders("fast"), GEMMA).ids(PAIRS)
    with pytest.raises(NotCounted, match="template cannot be applied"):
        pair_tokenizer(folders("fast"), "{{ messages[9].content + 1 }}").ids(PAIRS)
    shutil.copytree(folders("fast"), tmp_path / "other")
    (tmp_path / "other/tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(NotCounted, match="T5Tokenizer"):
        pair_tokenizer(tmp_path / "other", TEMPLATE)
    (tmp_path / "other/tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["a.B", null]}}')
    with pytest.raises(NotCounted, match="own code"):
        pair_tokenizer(tmp_path / "other", TEMPLATE)


@pytest.mark.parametrize(
    ("prompt", "answer", "limit", "keep_end", "begin", "ids"),
    [
        ([1, 2, 3], [4, 5], None, False, 3, [1, 2, 3, 4, 5]),
        ([1, 2, 3], [4, 5], 5, False, 3, [1, 2, 3, 4, 5]),
        ([1, 2, 3], [4, 5], 4, False, 3, [1, 2, 3, 4]),
        ([1, 2, 3], [4, 5], 4, True, 2, [2, 3, 4, 5]),
        ([1, 2, 3], [4, 5], 2, True, 1, [4, 5]),
        ([1, 2, 3], [4, 5], 1, True, 1, [5]),
        ([], [4, 5], 9, False, 1, [4, 5]),
    ],
)
def test_cut(
    prompt: list[int], answer: list[int], limit: int | None, keep_end: bool, begin: int, ids: list[int]
) -> None:
    assert cut(prompt, answer, limit, keep_end) == (begin, ids)


@pytest.mark.parametrize(
    ("ids", "limit", "keep_end", "name"),
    [
        (([1, 2], [3], [4]), 3, False, None),
        (([1, 2], [3], [4]), 2, False, "prompt_fills_max_length"),
        (([1, 2], [3], [4]), 2, True, None),
        (([1, 2], [3], [4]), 1, True, "empty_after_cut"),  # the only token left has nothing before it
        (([1, 2], [], [4]), None, False, "empty_after_cut"),
        (([1, 2], [3, 4], [3, 5]), 3, False, "identical_after_cut"),
        (([1, 2], [3, 4], [3, 5]), 4, False, None),
        (([1, 2], [3, 4], [3, 5]), 3, True, None),
        (([1, 2], [3, 9, 4], [5, 9, 4]), 2, True, "identical_after_cut"),
        (([1, 2], [3], [3]), None, False, "identical_after_cut"),
        (([1, 2], [3], [3, 4]), 3, False, "identical_after_cut"),
    ],
)
def test_fault_by_hand(ids: Ids, limit: int | None, keep_end: bool, name: str | None) -> None:
    assert fault(ids, limit, keep_end) == name


IDS = st.lists(st.integers(1, 3), max_size=5)


@given(st.tuples(IDS, IDS, IDS), st.integers(1, 8), st.booleans())
@settings(max_examples=300, deadline=None)
def test_fault_against_trl(ids: Ids, limit: int, keep_end: bool) -> None:
    prompt, chosen, rejected = ids
    collator = DataCollatorForPreference(
        pad_token_id=0, max_length=limit, truncation_mode="keep_end" if keep_end else "keep_start"
    )
    name = fault(ids, limit, keep_end)
    if not keep_end and len(prompt) >= limit:  # DPOTrainer's filter on prompt_ids
        assert name == "prompt_fills_max_length"
        return
    if not (prompt or chosen) or not (prompt or rejected):
        assert name == "empty_after_cut"  # TRL cannot collate them
        return
    out = collator([{"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}])
    scored = out["completion_mask"][:, 1:]  # as its loss does: the first token is not predicted
    if not scored.any(dim=1).all():
        assert name == "empty_after_cut"
    else:
        same = (out["input_ids"][0] == out["input_ids"][1]).all() and (scored[0] == scored[1]).all()
        assert name == ("identical_after_cut" if same else None)


def counted(pairs_ids: Iterable[Ids], limit: int | None) -> dict[str, Any]:
    return truncation(((ids, fault(ids, limit, False)) for ids in pairs_ids), limit)


def test_truncation_by_hand() -> None:
    def row(p: int, c: int, r: int) -> Ids:
        return [0] * p, [1] * c, [2] * r

    pairs = [row(10, 5, 20), row(64, 1, 1), row(63, 1, 2), ([1], [2] * 80, [2] * 90), row(1, 1, 1), row(5, 0, 5)]
    found = counted(pairs, 64)
    assert found["pairs"] == 6
    assert found["counts"] == {"prompt_fills_max_length": 1, "empty_after_cut": 1, "identical_after_cut": 1}
    assert found["indices"] == {"prompt_fills_max_length": [1], "empty_after_cut": [5], "identical_after_cut": [3]}
    assert found["cut"] == 3  # needed: 30, 65, 65, 91, 2, 10
    assert found["longest"] == 91
    assert found["max_length_95"] == found["max_length_99"] == 128
    assert found["percentiles"]["prompt"] == {"5": 1, "25": 1, "50": 5, "75": 63, "95": 64, "99": 64, "max": 64}
    assert found["percentiles"]["rejected"] == {"5": 1, "25": 1, "50": 2, "75": 20, "95": 90, "99": 90, "max": 90}
    assert counted(pairs, None)["cut"] == 0
    assert counted(pairs, None)["counts"]["identical_after_cut"] == 0
    assert counted([], 64)["pairs"] == 0


@pytest.mark.parametrize(
    ("needed", "limit_95", "limit_99"),
    [
        (range(1, 101), 128, 128),  # 95, 99
        (range(33, 133), 128, 192),  # 127, 131
        ([64] * 95 + [65] * 5, 64, 128),
        ([64] * 94 + [65] * 6, 128, 128),
        ([64] * 99 + [9999], 64, 64),
        ([9999], 10048, 10048),
    ],
)
def test_recommended_lengths(needed: list[int], limit_95: int, limit_99: int) -> None:
    found = counted((([0], [1] * (n - 1), [2]) for n in needed), None)
    assert (found["max_length_95"], found["max_length_99"]) == (limit_95, limit_99)


@given(st.lists(st.integers(1, 700), min_size=1, max_size=60))
def test_recommended_length_fits(needed: list[int]) -> None:
    found = counted((([0], [1] * (n - 1), []) for n in needed), None)
    for percent in (95, 99):
        limit = found[f"max_length_{percent}"]
        assert limit % 64 == 0
        assert 100 * sum(n <= limit for n in needed) >= percent * len(needed)
        assert 100 * sum(n <= limit - 64 for n in needed) < percent * len(needed)


def test_count_of_a_file(tiny_model: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    pairs = [pair(f"{i} " * rng.randrange(1, 40), "yes " * rng.randrange(1, 40), "no") for i in range(2300)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(p.model_dump_json() + "\n" for p in pairs))
    tokenizer = pair_tokenizer(tiny_model, TEMPLATE)
    found = count(path, tokenizer, 64, False, tmp_path / "ids.arrow")
    assert found == counted(tokenizer.ids(pairs), 64)
    assert found["pairs"] == 2300
    assert found["counts"]["prompt_fills_max_length"] > 100
