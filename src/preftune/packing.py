"""One row for a pair: prompt, chosen and rejected in one sequence, the prompt read once.

    TRL's rows      packed row (· = padding)
    p p p c c c     p p p c c p r r ·
    p p p r r r

The row begins with what chosen and rejected have in common, all of the prompt but its last token. Each answer then
brings that last token itself: so every token of the row predicts at most one other. An answer sees the common part and
itself, not the other answer, and its positions count on from the common part. A sequence's last token predicts nothing
and is left out.
"""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Packed:
    """Pairs as packed rows; B pairs, W tokens in the widest row, TRL's rows of T tokens.

    Args:
        ids: B × W.
        positions: B × W, of each token in its own sequence.
        parts: B × W: 0 the common part, 1 chosen, 2 rejected, 3 padding.
        scored: 2B × (T−1): which of TRL's next-token labels are asked for.
        at: N: for each of them, in its order, the token of the flattened rows that predicts it.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    parts: torch.Tensor
    scored: torch.Tensor
    at: torch.Tensor


def pack(
    ids: torch.Tensor, attention_mask: torch.Tensor, completion_mask: torch.Tensor, scored: torch.Tensor
) -> Packed:
    """Packs TRL's rows.

    Args:
        ids: 2B × T: the chosen sequences, then the rejected ones, padded on either side.
        attention_mask: 2B × T: 1 for tokens, 0 for padding.
        completion_mask: 2B × T: 1 for the answers' tokens.
        scored: 2B × (T−1): which next tokens are to be predicted; of the prompt's, the chosen sequence's only.
    """
    count, size = ids.shape
    pairs = count // 2
    columns = torch.arange(size, device=ids.device)
    begin = attention_mask.int().argmax(-1)  # where a row's padding on the left ends
    length = attention_mask.sum(-1)
    first = torch.where(
        completion_mask.any(-1), completion_mask.int().argmax(-1) - begin, length
    )  # the answer's first token

    # To the left edge, so that a column is a position.
    moved = (columns + begin[:, None]).clamp(max=size - 1)
    left = ids.gather(1, moved)
    same = (left[:pairs] == left[pairs:]) & (columns < torch.minimum(length[:pairs], length[pairs:])[:, None])
    common = torch.stack([same.cumprod(-1).sum(-1), first[:pairs] - 1, first[pairs:] - 1]).amin(0).clamp(min=0)[:, None]

    ends = (length[:pairs] - 1)[:, None]  # where the chosen sequence ends in the packed row
    widths = ends + length[pairs:, None] - 1 - common
    columns = torch.arange(max(int(widths.max()), 1), device=ids.device)[None]
    is_rejected, is_token = columns >= ends, columns < widths
    positions = torch.where(is_rejected, columns - ends + common, columns)
    positions = torch.where(is_token, positions, 0)
    rows = torch.arange(pairs, device=ids.device)[:, None] + pairs * is_rejected
    parts = torch.where(is_rejected, 2, torch.where(columns < common, 0, 1))

    pair, place = scored.nonzero(as_tuple=True)  # `place` predicts the token after it
    place = place - begin[pair]
    of = pair % pairs
    place = torch.where(pair >= pairs, place + (ends - common)[of, 0], place)
    return Packed(
        ids=torch.where(is_token, left[rows, positions], 0),
        positions=positions,
        parts=torch.where(is_token, parts, 3),
        scored=scored,
        at=of * columns.shape[1] + place,
    )


def sees(parts: torch.Tensor) -> torch.Tensor:
    """B × 1 × W × W: whether a token (third dimension) sees another (fourth): before it, and common or of its part.

    Padding sees itself: a row that sees nothing would be NaN.
    """
    mine, other = parts[:, :, None], parts[:, None, :]
    seen = (other == 0) | (other == mine)
    return (seen & torch.ones(seen.shape[1:], dtype=torch.bool, device=parts.device).tril())[:, None]


def sees_in_blocks(parts: torch.Tensor) -> Any:
    """The same as `sees`, as FlexAttention's BlockMask: blocks in which nothing is seen are not computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    def rule(row: torch.Tensor, _head: torch.Tensor, at: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (at >= other) & ((parts[row, other] == 0) | (parts[row, other] == parts[row, at]))

    rows, width = parts.shape
    return create_block_mask(rule, rows, None, width, width, device=parts.device)
