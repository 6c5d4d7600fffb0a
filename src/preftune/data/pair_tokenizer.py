"""Token ids of pairs with the model's own tokenizer and chat template, without transformers or torch.

The ids are those of `tokens.tokenize_pair`, and so of TRL's DPOTrainer. Templates are rendered in jinja2's sandbox
with what transformers 5 gives them. What occurs again (the prompt's three times, and most words) is encoded once,
where that provably gives the same ids.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from preftune.data.pairs import Message, Pair
from preftune.data.tokenizer_files import NotCounted, load_tokenizer

Ids = tuple[list[int], list[int], list[int]]

KNOWN_WORDS = 200_000
# What each piece of text becomes does not depend on where in the whole it stands.
_LOCAL_NORMALIZERS = frozenset(
    ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Replace", "StripAccents", "BertNormalizer", "Nmt", "Precompiled"]
)
_LOCAL_SPLITTERS = frozenset(
    ["ByteLevel", "Split", "Digits", "Whitespace", "WhitespaceSplit", "Punctuation", "BertPreTokenizer"]
)
# Regular expressions of which no match goes on from a sign over a space, and one begins at a space before a letter
# (as ByteLevel's own, GPT-2's): Llama 3's, Qwen 2's.
_WORDWISE = tuple(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + number
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for number in (r"\p{N}{1,3}", r"\p{N}")
)
_UNICODE = frozenset(["NFC", "NFD", "NFKC", "NFKD"])
_BEFORE_WORD = re.compile(r"(?<=[!-~])(?= [A-Za-z])")


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for p in part.get("normalizers", part.get("pretokenizers", [])) for step in _steps(p)]
    return [part]


def _is_local(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme") in ("always", "never")
    return step["type"] in _LOCAL_NORMALIZERS | _LOCAL_SPLITTERS


def _splitters(tokenizer: Any, raw: dict[str, Any]) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """(cuts a text into pieces that can be encoded alone, cuts a piece into words that can be); None: cannot.

    The pieces lie between the added tokens, where the tokenizer cuts first of all. They are not encoded alone where
    their ids may depend on others: a pipeline that looks at the position, or tokens that take white space from their
    neighbours. Tokens that are looked for in normalized text are left to the tokenizer.
    """
    splitters = _steps(raw.get("pre_tokenizer"))
    if not all(_is_local(step) for step in (*_steps(raw.get("normalizer")), *splitters)):
        return None, None
    tokens = [t for t in tokenizer.get_added_tokens_decoder().values() if t.content]
    first = sorted((t.content for t in tokens if not t.normalized), key=len, reverse=True)
    if not first or any(t.lstrip or t.rstrip or t.single_word for t in tokens):
        return None, None
    wordwise = [
        step.get("use_regex", True)
        if step["type"] == "ByteLevel"
        else step.get("pattern") in [{"Regex": known} for known in _WORDWISE]
        and (step["behavior"], step["invert"]) == ("Isolated", False)
        for step in splitters
        if step["type"] != "Digits" and (step["type"] != "ByteLevel" or step.get("use_regex", True))
    ]
    words = bool(wordwise) and all(wordwise) and {s["type"] for s in _steps(raw.get("normalizer"))} <= _UNICODE
    words = words and not any(" " in t.content for t in tokens if t.normalized)
    return re.compile(f"({'|'.join(map(re.escape, first))})"), _BEFORE_WORD if words else None


def _compile(template: str) -> Any:
    """The template, with what transformers' `apply_chat_template` puts at its disposal."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's text; nothing is done with it here."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own way

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

        def _inside(self, caller: Callable[[], str]) -> str:
            return caller()

    def to_json(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _shared(prompt: list[int], whole: list[int]) -> int:
    """How many ids both begin with."""
    if whole[: len(prompt)] == prompt:
        return len(prompt)
    return next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))


@dataclass(frozen=True)
class PairTokenizer:
    """A tokenizer with a chat template; `pair_tokenizer` makes it."""

    tokenizer: Any
    template: Any
    special: dict[str, str]
    splitter: re.Pattern[str] | None
    words: re.Pattern[str] | None
    _known: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def _render(self, messages: list[Message], generation: bool) -> str:
        try:
            return self.template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=generation, **self.special
            )
        except Exception as e:  # a template may raise anything
            raise NotCounted(f"the chat template cannot be applied: {e}") from None

    def _encode(self, pieces: list[str]) -> dict[str, list[int]]:
        """Ids of texts without added tokens."""
        if self.words is None:
            encoded = self.tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
            return {piece: e.ids for piece, e in zip(pieces, encoded, strict=True)}
        known = self._known
        if len(known) > KNOWN_WORDS:
            known.clear()
        parts = list(map(self.words.split, pieces))
        unknown = list({word: None for words in parts for word in words if word not in known})
        encoded = self.tokenizer.encode_batch_fast(unknown, add_special_tokens=False)
        known.update((word, tuple(e.ids)) for word, e in zip(unknown, encoded, strict=True))
        return {
            piece: list(chain.from_iterable(map(known.__getitem__, words)))
            for piece, words in zip(pieces, parts, strict=True)
        }

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of whole texts."""
        split = self.splitter.split if self.splitter else lambda text: [text]
        pieces = [split(text) for text in texts]
        # every second piece is an added token, the others hold none
        table = self._encode(list(dict.fromkeys(piece for part in pieces for piece in part[::2])))
        table |= {t: [self.tokenizer.token_to_id(t)] for t in {t for part in pieces for t in part[1::2]}}
        return [list(chain.from_iterable(map(table.__getitem__, part))) for part in pieces]

    def prompt_tokens(self, prompt: list[Message]) -> int:
        """How many tokens the model reads before it answers.

        Raises:
            NotCounted: If the template refuses the conversation.
        """
        return len(self._whole([self._render(prompt, True)])[0])

    def ids(self, pairs: Sequence[Pair]) -> list[Ids]:
        """(prompt, chosen, rejected) ids of each pair: prompt + answer is what the model reads.

        Equal pieces of text are encoded once, so give it many pairs at a time.

        Raises:
            NotCounted: If the template refuses a conversation.
        """
        whole = self._whole(
            [
                text
                for p in pairs
                for text in (
                    self._render(p.prompt, True),
                    self._render(p.prompt + p.chosen, False),
                    self._render(p.prompt + p.rejected, False),
                )
            ]
        )
        result = []
        for prompt, chosen, rejected in zip(whole[::3], whole[1::3], whole[2::3], strict=True):
            n = min(_shared(prompt, chosen), _shared(prompt, rejected))
            result.append((prompt[:n], chosen[n:], rejected[n:]))
        return result


def pair_tokenizer(folder: Path, template: str) -> PairTokenizer:
    """The tokenizer of a model folder with a chat template.

    Args:
        folder: The model's folder.
        template: Text of the chat template.

    Raises:
        NotCounted: If there is no tokenizer.json, transformers would load something else, or the template is broken.
    """
    tokenizer, special, raw = load_tokenizer(folder)
    try:
        compiled = _compile(template)
    except Exception as e:
        raise NotCounted(f"the chat template cannot be read: {e}") from None
    return PairTokenizer(tokenizer, compiled, special, *_splitters(tokenizer, raw))
