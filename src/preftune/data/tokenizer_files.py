"""A model folder's tokenizer, set up as transformers 5's AutoTokenizer does it, without transformers.

For some classes that is not what tokenizer.json says: they take its vocabulary and write the rest themselves.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class NotCounted(Exception):
    """The ids cannot be told without transformers, or not at all; the text says why."""


_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# transformers.models.auto.tokenization_auto: families that load tokenizer.json whatever class they declare, and …
_AS_WRITTEN = (
    *("glm", "glm4", "gpt_bigcode", "granite", "granitemoe", "internlm2", "internlm3", "minicpm3", "ministral"),
    *("ministral3", "mistral", "mistral3", "mixtral", "nemotron", "olmo2", "olmo3", "phi3", "phimoe", "stablelm"),
)
# … those whose declared class does not count, and whose own class is not rebuilt here.
_OTHER = frozenset(["qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp", "hyperclovax_vision_v2", "siglip2"])
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _class_of(settings: dict[str, Any], config: dict[str, Any], raw: dict[str, Any]) -> str:
    """The class that AutoTokenizer loads: `TokenizersBackend` takes tokenizer.json as it is."""
    name = str(settings.get("tokenizer_class") or config.get("tokenizer_class") or "").removesuffix("Fast")
    family = config.get("model_type")
    if "auto_map" in settings or settings.get("split_special_tokens"):
        raise NotCounted("the tokenizer brings its own code or splits special tokens")
    if family == "qwen2":
        return "Qwen2Tokenizer"
    byte_level = '"ByteLevel"' in json.dumps([raw.get("pre_tokenizer"), raw.get("decoder")])
    if (name == "LlamaTokenizer" and byte_level) or family in _AS_WRITTEN:
        return "TokenizersBackend"
    if family not in _OTHER and name in ("TokenizersBackend", "PreTrainedTokenizer"):
        return "TokenizersBackend"
    if family not in _OTHER and name in _REBUILT and raw["model"].get("type") == "BPE":
        return name
    raise NotCounted(f"the tokenizer class {name or family!r} is known to transformers only")


def _llama(settings: dict[str, Any]) -> dict[str, Any]:
    scheme = "always" if settings.get("legacy", False) else "first"
    if settings.get("add_prefix_space") is False:
        scheme = "never"
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    return {"model": {"fuse_unk": True, "byte_fallback": True}, "normalizer": None, "pre_tokenizer": metaspace}


def _gemma(settings: dict[str, Any]) -> dict[str, Any]:
    space = {"String": " "}
    return {
        "model": {"fuse_unk": True, "byte_fallback": True, "unk_token": _content(settings.get("unk_token", "<unk>"))},
        "normalizer": {"type": "Replace", "pattern": space, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": False},
    }


def _byte_level(settings: dict[str, Any], use_regex: bool) -> dict[str, Any]:
    prefix = bool(settings.get("add_prefix_space"))
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": use_regex}


def _qwen2(settings: dict[str, Any]) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": _QWEN2}, "behavior": "Isolated", "invert": False}
    steps = [split, _byte_level(settings, False)]
    affixes = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    sequence = {"type": "Sequence", "pretokenizers": steps}
    return {"model": affixes, "normalizer": {"type": "NFC"}, "pre_tokenizer": sequence}


def _gpt2(settings: dict[str, Any]) -> dict[str, Any]:
    affixes = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    return {"model": affixes, "normalizer": None, "pre_tokenizer": _byte_level(settings, True)}


_END = "<|endoftext|>"
# Classes that keep only the vocabulary of tokenizer.json: their special tokens, and the rest of the pipeline.
_REBUILT: dict[str, tuple[dict[str, str], Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "LlamaTokenizer": (dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>"), _llama),
    "GemmaTokenizer": (
        dict(unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", mask_token="<mask>"),
        _gemma,
    ),
    "Qwen2Tokenizer": (dict(unk_token=_END, eos_token=_END, pad_token=_END), _qwen2),
    "GPT2Tokenizer": (dict(unk_token=_END, bos_token=_END, eos_token=_END), _gpt2),
}


def _content(token: Any) -> Any:
    return token["content"] if isinstance(token, dict) else token


def _added(token: Any) -> Any:
    from tokenizers import AddedToken

    if not isinstance(token, dict):
        return AddedToken(token, special=True)
    return AddedToken(**{k: v for k, v in token.items() if k not in ("__type", "id")})


def load_tokenizer(folder: Path) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """Reads a model folder's tokenizer.

    Returns:
        (`tokenizers.Tokenizer`, special tokens by name, the pipeline as tokenizer.json would write it).

    Raises:
        NotCounted: If there is no tokenizer.json, or transformers would load something else.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.exists():
        raise NotCounted(f"there is no tokenizer.json in {folder}")
    raw = json.loads(path.read_text())

    files = {
        name: json.loads(file.read_text()) if (file := folder / f"{name}.json").exists() else {}
        for name in ("tokenizer_config", "config", "special_tokens_map")
    }
    settings = files["tokenizer_config"]
    name = _class_of(settings, files["config"], raw)
    decoder = settings.get("added_tokens_decoder")
    if decoder is None:
        settings = settings | files["special_tokens_map"]
        decoder = {token["id"]: token for token in raw.get("added_tokens", [])}
    if name in _REBUILT:
        defaults, rest = _REBUILT[name]
        settings = defaults | settings
        changed = rest(settings)
        kept = {"type": "BPE", "vocab": raw["model"]["vocab"], "merges": raw["model"]["merges"]}
        raw = raw | changed | {"model": kept | changed["model"], "added_tokens": []}
        tokenizer = Tokenizer.from_str(json.dumps(raw))
    else:
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    extra = settings.get("extra_special_tokens", settings.get("additional_special_tokens")) or []
    if isinstance(extra, dict):
        settings, extra = settings | extra, []
    names = [*_TOKENS, *(k for k in settings if k.endswith("_token") and k not in _TOKENS)]
    special = {k: settings[k] for k in names if isinstance(settings.get(k), str | dict)}
    tokenizer.add_tokens([_added(token) for _, token in sorted(decoder.items(), key=lambda item: int(item[0]))])
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([_added(t) for t in (*special.values(), *extra) if _content(t) not in there])
    return tokenizer, {k: _content(v) for k, v in special.items()}, raw
