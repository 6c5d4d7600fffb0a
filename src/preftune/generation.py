"""Answers to given prompts, many at once. A row whose answer has ended leaves the batch; the others don't wait for it.

Imported in the evaluation child only.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from preftune.errors import UserError
from preftune.prefix import Prefix, bare_model, read_prefix
from preftune.scoring import Progress, no_progress

_ROOM = 64  # tokens that a layer's buffer can take before it is moved to a larger one
_ROWS = 16  # prompts at once, for each pair in one forward pass: one new token needs little memory
_CACHE_BYTES = 2**29  # of keys and values, for each pair in one forward pass


@dataclass(frozen=True)
class Decoding:
    """How an answer is chosen.

    Args:
        max_new_tokens: Where an answer is cut.
        temperature: 0: the likeliest token at each place (greedy); else logits are divided by it, then sampled.
        top_p: Sampled from the likeliest tokens of at least this probability mass (nucleus sampling, arXiv
            1904.09751).
        seed: Of the samples; each prompt has random numbers of its own, so that the prompts beside it don't matter.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """An answer.

    Args:
        ids: Its tokens, with the end token if it wrote one.
        stopped: Whether it ended by itself.
        logp: log π(answer | prompt) of the model itself (temperature 1), in nats, summed over `ids`.
    """

    ids: list[int]
    stopped: bool
    logp: float


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    eos_ids: set[int],
    batch_size: int,
    ended: Callable[[list[int]], bool] | None = None,
    finished: Callable[[int, Answer], None] | None = None,
    progress: Progress = no_progress,
) -> list[Answer]:
    """Answers each prompt.

    Args:
        model: A causal language model in eval mode. Of its generation settings only the end tokens count: a
            repetition penalty would hide the very damage that is looked for.
        prompts: Token ids, each ending where the assistant begins to write.
        decoding: How.
        eos_ids: Tokens that end an answer.
        batch_size: Pairs in one forward pass (`evaluation.batch_size`). Sixteen times as many prompts are answered
            at once, fewer if their keys and values need more than half a gibibyte for each.
        ended: Given an answer's tokens so far: whether it ends here (stop texts). Counts as stopped.
        finished: Called with (the prompt's place, its answer) when an answer ends, long before the others may.
        progress: Called with (prompts done, all prompts).

    Raises:
        UserError: If the model keeps what it has read in a way of its own (Mamba, RWKV).
    """
    if "past_key_values" not in inspect.signature(bare_model(model).forward).parameters:
        kind = bare_model(model).config.model_type
        advice = "choose a model whose layers keep keys and values, also beside recurrent ones"
        raise UserError(f"models of type {kind} are not generated from here", "model_name_or_path", advice)
    answers: dict[int, Answer] = {}
    written: dict[int, list[int]] = {}
    logps: dict[int, float] = {}
    draws: dict[int, torch.Tensor] = {}
    waiting = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))  # those that need most memory first
    batch = _Batch(model, read_prefix(model, prompts, left=1))
    while waiting or batch.rows:
        if new := _joining(batch, waiting, prompts, decoding.max_new_tokens, batch_size):
            waiting = waiting[len(new) :]
            batch.join({i: prompts[i] for i in new})
            written |= {i: [] for i in new}
            logps |= dict.fromkeys(new, 0.0)
            if decoding.temperature:
                draws |= {i: _draws(prompts[i], decoding) for i in new}
        logits = batch.logits()
        if decoding.temperature:
            uniform = torch.stack([draws[i][len(written[i]) if i in written else 0] for i in batch.rows])
            chosen = sample(logits, uniform.to(logits.device), decoding)
        else:
            chosen = logits.argmax(-1)
        batch.tokens = chosen
        nats = logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
        for i, token, logp in zip(batch.rows, chosen.tolist(), nats.tolist(), strict=True):
            if i not in written:
                continue  # it has ended, and leaves with the next ones
            written[i].append(token)
            logps[i] += logp
            stopped = token in eos_ids or (ended is not None and ended(written[i]))
            if stopped or len(written[i]) == decoding.max_new_tokens:
                answers[i] = Answer(written.pop(i), stopped, logps[i])
                if finished is not None:
                    finished(i, answers[i])
                progress(len(answers), len(prompts))
        batch.leave(set(written))
    return [answers[i] for i in range(len(prompts))]


def _joining(
    batch: "_Batch", waiting: list[int], prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int
) -> list[int]:
    """Which of the waiting prompts begin now. They come in groups: each time copies the batch's keys and values."""
    if not waiting or (batch.rows and not batch.joins):
        return []
    width = max(batch.width, len(prompts[waiting[0]])) + max_new_tokens
    rows = min(_ROWS * batch_size, int(_CACHE_BYTES * batch_size / (width * _bytes_per_token(batch.model))))
    group = min(2 * batch_size if batch.joins else rows, len(waiting))
    if not batch.rows:
        return waiting[: max(1, min(group, rows))]
    return waiting[:group] if len(batch.rows) + group <= rows else []


class _Batch:
    """The answers being written: a row for each, padded on the left.

    Args:
        model: The model.
        prefix: What all prompts begin with.

    Attributes:
        rows: Which prompt each row belongs to.
        tokens: The token that each row's model reads next.
        joins: Whether rows can join while others are being written: not where layers keep a window or a state.
    """

    def __init__(self, model: Any, prefix: Prefix) -> None:
        self.model = model
        self._prefix = prefix
        self.rows: list[int] = []
        self.tokens = torch.zeros(0, dtype=torch.long, device=model.device)
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)
        self._cache = _cache(model)
        self.joins = all(isinstance(layer, _GrowingLayer) for layer in self._cache.layers)
        self._leaves = not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in self._cache.layers)
        self._takes_positions = "position_ids" in inspect.signature(bare_model(model).forward).parameters

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return self._mask.shape[1]

    def _read(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> Any:
        place = {"position_ids": positions} if self._takes_positions else {}
        return self.model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1, **place
        ).logits[:, -1]

    def join(self, prompts: dict[int, list[int]]) -> None:
        """Reads prompts, all but their last token, and adds them to the batch."""
        known = self._prefix.length
        parts = [p[known:-1] for p in prompts.values()]
        width = max(1, *map(len, parts))
        ids = torch.zeros(len(parts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for r, part in enumerate(parts):
            ids[r, width - len(part) :], mask[r, width - len(part) :] = torch.tensor(part, dtype=torch.long), 1
        ids, mask = ids.to(self.model.device), pad(mask.to(self.model.device), (known, 0), value=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, known:]
        cache = self._prefix.fill(_cache(self.model), len(parts))
        self._read(ids, positions, mask, cache)
        last = torch.tensor([p[-1] for p in prompts.values()], device=self.model.device)
        if not self.rows:
            self.rows, self.tokens, self._mask, self._cache = list(prompts), last, mask, cache
            return
        width = max(self.width, mask.shape[1])
        for layer, new in zip(self._growing(self._cache), self._growing(cache), strict=True):
            layer.join(new, width)
        self.rows += prompts
        self.tokens = torch.cat([self.tokens, last])
        self._mask = torch.cat([pad(m, (width - m.shape[1], 0)) for m in (self._mask, mask)])

    @staticmethod
    def _growing(cache: DynamicCache) -> "list[_GrowingLayer]":
        return [layer for layer in cache.layers if isinstance(layer, _GrowingLayer)]

    def logits(self) -> torch.Tensor:
        """Reads `tokens`: rows × vocabulary, float32, of the token after each."""
        positions = self._mask.sum(-1, keepdim=True)
        self._mask = pad(self._mask, (0, 1), value=1)
        return self._read(self.tokens[:, None], positions, self._mask, self._cache).float()

    def leave(self, staying: set[int]) -> None:
        """Drops the other prompts' rows, once they are a sixteenth: each time copies the keys and values that stay."""
        if not staying:
            self.rows, self._mask = [], self._mask[:0, :0]
        elif self._leaves and len(staying) <= len(self.rows) * 15 / 16:
            stay = torch.tensor([r for r, i in enumerate(self.rows) if i in staying], device=self.model.device)
            self._cache.batch_select_indices(stay)
            self.rows = [i for i in self.rows if i in staying]
            self.tokens, self._mask = self.tokens[stay], self._mask[stay]
            if self.joins and (empty := int(self._mask.argmax(-1).min())):  # padding that no row needs any more
                self._mask = self._mask[:, empty:]
                for layer in self._growing(self._cache):
                    layer.trim(empty)


def sample(logits: torch.Tensor, uniform: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Draws a token for each row, by the inverse of the cumulative distribution.

    Args:
        logits: Rows × vocabulary.
        uniform: A random number in [0, 1) for each row.
        decoding: Temperature (above 0) and top_p.
    """
    probabilities = (logits.double() / decoding.temperature).softmax(-1)
    if decoding.top_p == 1:
        cumulative = probabilities.cumsum(-1)
        return (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    cumulative = ordered.where(before < decoding.top_p, 0.0).cumsum(-1)
    place = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
    return tokens.gather(-1, place[:, None])[:, 0]


def _draws(prompt: list[int], decoding: Decoding) -> torch.Tensor:
    seed = hashlib.sha256(f"{decoding.seed} {prompt}".encode()).digest()[:7]
    generator = torch.Generator().manual_seed(int.from_bytes(seed))
    return torch.rand(decoding.max_new_tokens, dtype=torch.float64, generator=generator)


def _bytes_per_token(model: Any) -> int:
    """Of keys and values; for layers that keep less (sliding windows, latent attention) it is too many."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return 2 * config.num_hidden_layers * kv_heads * width * model.dtype.itemsize


class _GrowingLayer(DynamicLayer):
    """transformers' layer of keys and values, which copies all of them at every new token: here they stand in a
    buffer with room for the next ones. Shapes: rows × heads × tokens × width."""

    keys: torch.Tensor
    values: torch.Tensor
    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if self._buffers is None or after > self._buffers[0].shape[-2]:
            shapes = [(*new.shape[:2], after + _ROOM, new.shape[3]) for new in (key_states, value_states)]
            self._buffers = key_states.new_empty(shapes[0]), value_states.new_empty(shapes[1])
            if before:
                self._buffers[0][..., :before, :], self._buffers[1][..., :before, :] = self.keys, self.values
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., before:after, :] = new
        self.keys, self.values = self._buffers[0][..., :after, :], self._buffers[1][..., :after, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._buffers = None

    def join(self, new: "_GrowingLayer", width: int) -> None:
        """Adds another layer's rows; both are padded on the left to `width` tokens."""
        self.keys = torch.cat([pad(x, (0, 0, width - x.shape[-2], 0)) for x in (self.keys, new.keys)])
        self.values = torch.cat([pad(x, (0, 0, width - x.shape[-2], 0)) for x in (self.values, new.values)])
        self._buffers = None

    def trim(self, count: int) -> None:
        """Forgets the first tokens of all rows."""
        self.keys, self.values = self.keys[..., count:, :], self.values[..., count:, :]
        self._buffers = None


def _cache(model: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
