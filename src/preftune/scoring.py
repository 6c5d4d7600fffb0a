"""Log-probabilities of given answers, and how often an answer repeats itself."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from preftune.data.lengths import cut
from preftune.prefix import Prefix, bare_model, read_prefix, takes_any_order

Progress = Callable[[int, int], None]
LOGITS = 2**26  # numbers that stand in memory at once: a vocabulary of 50,000 for 1,300 tokens


def no_progress(done: int, total: int) -> None:
    """For callers who need none."""


class Score(NamedTuple):
    """What a model gives to an answer.

    Args:
        logp: log π(answer | prompt) in nats, summed over its tokens.
        tokens: Number of answer tokens that remained after the cut.
        each: log π of each of them.
        greedy: How many of the first ones are the model's likeliest tokens.
        lead: Of the prompt's last tokens, as many as were asked for: (log π, whether it is the likeliest).
    """

    logp: float
    tokens: int
    each: tuple[float, ...]
    greedy: int
    lead: tuple[tuple[float, bool], ...] = ()


@dataclass(frozen=True)
class _Group:
    """Answers to one prompt, which the model reads together: prompt, first answer, second answer …

    Args:
        prompt: Ids.
        answers: Which sequence each is, and its ids.
    """

    prompt: list[int]
    answers: list[tuple[int, list[int]]]

    @property
    def width(self) -> int:
        """Tokens that the model reads: not the last of an answer, after which nothing is predicted."""
        return len(self.prompt) + sum(len(ids) - 1 for _, ids in self.answers)


@torch.inference_mode()
def answer_logps(
    model: Any,
    sequences: Sequence[tuple[list[int], list[int]]],
    *,
    max_length: int,
    batch_size: int,
    keep_end: bool = False,
    lead: int = 0,
    progress: Progress = no_progress,
) -> list[Score]:
    """Summed log-probability of each answer given its prompt. Answers to the same prompt share the reading of it.

    Args:
        model: A causal language model in eval mode.
        sequences: (prompt ids, answer ids) each.
        max_length: Prompt + answer are cut to this length.
        batch_size: Sequences in one forward pass; they are padded on the right.
        keep_end: Cut at the start (TRL's `truncation_mode: keep_end`) instead of at the end.
        lead: How many of the prompt's last tokens are scored too (not the first token of all).
        progress: Called with (sequences done, all sequences).

    Returns:
        The score of each sequence, in order. One of which no answer token remained has 0.0 nats and 0 tokens.
    """
    result = [Score(0.0, 0, (), 0)] * len(sequences)
    groups: dict[Any, _Group] = {}
    together = takes_any_order(model)
    for i, (prompt, answer) in enumerate(sequences):
        begin, ids = cut(prompt, answer, max_length, keep_end)
        if len(ids) > begin:
            key = tuple(ids[:begin]) if together else i
            groups.setdefault(key, _Group(ids[:begin], [])).answers.append((i, ids[begin:]))
    prefix = read_prefix(model, [g.prompt for g in groups.values()], left=1 + lead)
    done = len(sequences) - sum(len(g.answers) for g in groups.values())
    for batch in _batches(list(groups.values()), batch_size):
        for i, score in _scores(model, batch, lead, prefix):
            result[i] = score
            done += 1
        progress(done, len(sequences))
    return result


def _batches(groups: list[_Group], size: int) -> Iterator[list[_Group]]:
    """Groups of similar length, the longest first (so that a lack of memory shows at once), of `size` sequences."""
    batch: list[_Group] = []
    for group in sorted(groups, key=lambda g: -g.width):
        if batch and sum(len(g.answers) for g in (*batch, group)) > size:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _scores(model: Any, groups: list[_Group], lead: int, prefix: Prefix) -> Iterator[tuple[int, Score]]:
    """Yields (which sequence, its score) of the answers in one forward pass."""
    device, known = model.device, prefix.length
    ids = torch.zeros(len(groups), max(g.width for g in groups) - known, dtype=torch.long)
    part = torch.full_like(ids, -1)  # 0: the prompt; 1, 2 …: an answer; -1: padding
    positions = torch.zeros_like(ids)
    rows, places, targets = [], [], []  # where the model predicts a token that is asked for, and which it is
    for r, group in enumerate(groups):
        prompt = group.prompt[known:]
        end = len(prompt)
        before = group.prompt[max(len(group.prompt) - lead, 1) :] if lead else []
        rows += [r] * len(before)
        places += range(end - 1 - len(before), end - 1)
        targets += before
        ids[r, :end], part[r, :end], positions[r, :end] = torch.tensor(prompt), 0, torch.arange(end) + known
        for n, (_, answer) in enumerate(group.answers, start=1):
            here = slice(end, end := end + len(answer) - 1)
            ids[r, here], part[r, here] = torch.tensor(answer[:-1], dtype=torch.long), n
            positions[r, here] = torch.arange(len(answer) - 1) + len(group.prompt)
            rows += [r] * len(answer)
            places += [len(prompt) - 1, *range(here.start, here.stop)]
            targets += answer
    # Padding on the right needs no mask: nothing before it sees it.
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "use_cache": False}
    if any(len(g.answers) > 1 for g in groups):  # an answer sees the prompt and itself, not the other answer
        sees = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
        sees = pad(sees & torch.ones(sees.shape[1:], dtype=torch.bool).tril(), (known, 0), value=True)
        inputs |= {"attention_mask": sees[:, None].to(device), "position_ids": positions.to(device)}
    if known:
        cache = DynamicCache(config=bare_model(model).config)
        inputs |= {"past_key_values": prefix.fill(cache, len(groups)), "use_cache": True}
    each, likeliest = _logps_at(model, inputs, rows, places, targets)
    begin = 0
    for group in groups:
        end = begin + min(lead, len(group.prompt) - 1)
        before = tuple(zip(each[begin:end], likeliest[begin:end], strict=True))
        for i, answer in group.answers:
            here = slice(end, end := end + len(answer))
            greedy = next((n for n, is_it in enumerate(likeliest[here]) if not is_it), len(answer))
            yield i, Score(sum(each[here]), len(answer), tuple(each[here]), greedy, before)
        begin = end


def _logps_at(
    model: Any, inputs: dict[str, Any], rows: list[int], places: list[int], targets: list[int]
) -> tuple[list[float], list[bool]]:
    """log π of the target tokens, and whether each is the likeliest.

    The head's input is swapped for the places that are asked for, a part at a time: so a big vocabulary never stands
    for all tokens, and what the model does to its logits afterwards (scaling, a soft cap) stays in effect. For the
    second part on, the model reads one token only, as its output is the head's.

    Args:
        model: The model.
        inputs: Of the forward pass.
        rows: Of each place.
        places: Positions in the row, at which the target is predicted.
        targets: Token ids.
    """
    head = model.get_output_embeddings()
    size = max(1, LOGITS // head.weight.shape[0])
    hidden: torch.Tensor | None = None
    each: list[float] = []
    likeliest: list[bool] = []

    def swap(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        nonlocal hidden
        hidden = given[0][rows, places] if hidden is None else hidden
        return (hidden[None, begin : begin + size], *given[1:])

    with head.register_forward_pre_hook(swap):
        for begin in range(0, len(targets), size):
            logits = model(**inputs).logits[0].float()
            target = torch.tensor(targets[begin : begin + size], device=logits.device)
            each += (logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1)).tolist()
            likeliest += (logits.argmax(-1) == target).tolist()
            inputs = {"input_ids": inputs["input_ids"][:1, :1], "use_cache": False}
    return each, likeliest


def seq_rep(ids: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that repeat an earlier one: 1 − unique / total (Welleck et al., arXiv 1908.04319, eq. 12)."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
