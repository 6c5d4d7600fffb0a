"""Log-probabilities of given answers, and greedy answers to given prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from preftune.data.lengths import cut

Progress = Callable[[int, int], None]


def _no_progress(done: int, total: int) -> None:
    pass


def _batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first (so that a lack of memory shows at once)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + size] for i in range(0, len(order), size)]


@torch.inference_mode()
def answer_logps(
    model: Any,
    sequences: Sequence[tuple[list[int], list[int]]],
    *,
    max_length: int,
    batch_size: int,
    keep_end: bool = False,
    progress: Progress = _no_progress,
) -> list[tuple[float, int]]:
    """Summed log-probability of each answer given its prompt.

    Args:
        model: A causal language model in eval mode.
        sequences: (prompt ids, answer ids) each.
        max_length: Prompt + answer are cut to this length.
        batch_size: Sequences in one forward pass; they are padded on the right.
        keep_end: Cut at the start (TRL's `truncation_mode: keep_end`) instead of at the end.
        progress: Called with (sequences done, all sequences).

    Returns:
        For each sequence, in order: (log π(answer | prompt) in nats, number of answer tokens that remained).
    """
    rows = [cut(p, a, max_length, keep_end) for p, a in sequences]
    result: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    device = model.device
    done = 0
    for batch in _batches([len(row) for _, row in rows], batch_size):
        width = max(len(rows[i][1]) for i in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for r, i in enumerate(batch):
            row = torch.tensor(rows[i][1])
            ids[r, : len(row)], mask[r, : len(row)] = row, 1
        # The head's output is needed from the last prompt position on; that of the shortest prompt counts.
        first = min(rows[i][0] for i in batch) - 1
        logits = model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            logits_to_keep=width - first,
            use_cache=False,
        ).logits
        for r, i in enumerate(batch):
            prompt, row = rows[i]
            if len(row) > prompt:
                # The logits at position t - 1 predict the token at t.
                at = logits[r, prompt - 1 - first : len(row) - 1 - first].float()
                target = torch.tensor(row[prompt:], device=device)
                logp = at.gather(-1, target[:, None])[:, 0] - at.logsumexp(-1)
                result[i] = (float(logp.double().sum()), len(row) - prompt)
        done += len(batch)
        progress(done, len(rows))
    return result


@dataclass(frozen=True)
class Answer:
    """A greedy answer: its token ids (with the end token, if it wrote one) and whether it stopped by itself."""

    ids: list[int]
    stopped: bool
    logp: float = 0.0


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    eos_ids: set[int],
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress = _no_progress,
) -> list[Answer]:
    """Greedy answers.

    Args:
        model: A causal language model in eval mode.
        prompts: Token ids, each ending where the assistant begins to write.
        eos_ids: Tokens that end an answer.
        pad_id: Padding, on the left.
        max_new_tokens: Where an answer is cut.
        batch_size: Prompts at once.
        progress: Called with (prompts done, all prompts).
    """
    answers: list[Answer] = [Answer([], False)] * len(prompts)
    done = 0
    for batch in _batches([len(p) for p in prompts], batch_size):
        width = max(len(prompts[i]) for i in batch)
        ids = torch.full((len(batch), width), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for r, i in enumerate(batch):
            ids[r, width - len(prompts[i]) :], mask[r, width - len(prompts[i]) :] = (
                torch.tensor(prompts[i]),
                1,
            )
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=sorted(eos_ids),
            pad_token_id=pad_id,
        )
        for r, i in enumerate(batch):
            new = out[r, width:].tolist()
            end = next((n for n, t in enumerate(new) if t in eos_ids), None)
            answers[i] = Answer(new, False) if end is None else Answer(new[: end + 1], True)
        done += len(batch)
        progress(done, len(prompts))
    limit = max(len(p) + len(a.ids) for p, a in zip(prompts, answers, strict=True))
    scores = answer_logps(
        model,
        [(p, a.ids) for p, a in zip(prompts, answers, strict=True)],
        max_length=limit,
        batch_size=max(1, batch_size // 2),
    )
    return [Answer(a.ids, a.stopped, s[0]) for a, s in zip(answers, scores, strict=True)]


def seq_rep(ids: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that repeat an earlier one: 1 − unique / total (Welleck et al., arXiv 1908.04319, eq. 12)."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
