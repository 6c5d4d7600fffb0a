"""What `max_length` does to pairs: how long they are, which are cut, and which have nothing left to learn from.

Cut as TRL 1.16 does: prompt + answer keep their first `max_length` tokens (`keep_end`: their last).
"""

import itertools
import sys
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from preftune.data.check_list import CHECKS, TOKENS
from preftune.data.pair_tokenizer import Ids, PairTokenizer
from preftune.data.pairs import Pair
from preftune.data.token_file import write_tokens
from preftune.errors import UserError
from preftune.schema import Validation

PERCENTILES = (5, 25, 50, 75, 95, 99)
CHUNK = 1000
STEP = 64


def cut(prompt: list[int], answer: list[int], max_length: int | None, keep_end: bool) -> tuple[int, list[int]]:
    """(where the scored tokens begin, the sequence); the first token of all is never scored: nothing predicts it."""
    ids = prompt + answer
    if max_length is None or len(ids) <= max_length:
        return max(len(prompt), 1), ids
    if not keep_end:
        return max(len(prompt), 1), ids[:max_length]
    return max(len(prompt) - (len(ids) - max_length), 1), ids[-max_length:]


def fault(pair: Ids, max_length: int | None, keep_end: bool) -> str | None:
    """The first of `check_list.TOKENS` that makes a pair useless at this length."""
    prompt, chosen, rejected = pair
    if max_length is not None and not keep_end and len(prompt) >= max_length:
        return "prompt_fills_max_length"
    sides = [cut(prompt, answer, max_length, keep_end) for answer in (chosen, rejected)]
    if any(len(ids) <= begin for begin, ids in sides):
        return "empty_after_cut"
    return "identical_after_cut" if sides[0] == sides[1] else None


def _at(ordered: list[int], percent: int) -> int:
    """The smallest value that `percent` of all do not exceed."""
    return ordered[max(-(-len(ordered) * percent // 100), 1) - 1]


def truncation(pairs: Iterable[tuple[Ids, str | None]], max_length: int | None) -> dict[str, Any]:
    """Counts what a `max_length` does to pairs; keeps their lengths only.

    Args:
        pairs: (prompt, chosen, rejected) ids of each pair, and its `fault`.
        max_length: The limit of prompt + answer; None: no limit.

    Returns:
        `pairs`; `tokens` in both sequences of the pairs that can be trained on, after the cut; `counts` and `indices`
        by name of `check_list.TOKENS` (each pair under the first that applies); `cut`, the pairs that lose tokens
        (those in `counts` as well); `longest`; `max_length_95` and `max_length_99`, at which 95 % and 99 % of the
        pairs stay whole (rounded up to a multiple of 64); `percentiles` of the lengths of prompt, chosen and
        rejected.
    """
    indices: dict[str, list[int]] = {name: [] for name in TOKENS}
    lengths = {"prompt": array("l"), "chosen": array("l"), "rejected": array("l")}
    needed = array("l")
    tokens = 0
    for index, (pair, name) in enumerate(pairs):
        for of, ids in zip(lengths.values(), pair, strict=True):
            of.append(len(ids))
        needed.append(len(pair[0]) + max(len(pair[1]), len(pair[2])))
        if name is not None:
            indices[name].append(index)
        else:
            tokens += sum(min(len(pair[0]) + len(answer), max_length or sys.maxsize) for answer in pair[1:])
    ordered = sorted(needed)
    result: dict[str, Any] = {
        "pairs": len(ordered),
        "tokens": tokens,
        "counts": {name: len(found) for name, found in indices.items()},
        "indices": indices,
        "cut": 0 if max_length is None else sum(n > max_length for n in ordered),
    }
    if ordered:
        sides = {name: sorted(of) for name, of in lengths.items()}
        result |= {
            "longest": ordered[-1],
            **{f"max_length_{p}": -(-_at(ordered, p) // STEP) * STEP for p in (95, 99)},
            "percentiles": {
                name: {str(p): _at(of, p) for p in PERCENTILES} | {"max": of[-1]} for name, of in sides.items()
            },
        }
    return result


def stop_if_untrainable(found: dict[str, Any], max_length: int | None, validation: Validation) -> None:
    """Stops before a GPU hour is spent on pairs that `max_length` spoils.

    Args:
        found: `truncation` of the training side.
        max_length: The limit that was counted with.
        validation: `max_dropped` and severities.

    Raises:
        UserError: If a larger share than `max_dropped` cannot be trained on, or a check set to `fail` failed.
    """
    lost = {name: n for name, n in found["counts"].items() if n}
    failed = [name for name in lost if validation.does(name) == "fail"]
    if sum(lost.values()) <= validation.max_dropped * found["pairs"] and not failed:
        return
    reasons = ", ".join(f"{n} × {CHECKS[name].meaning}" for name, n in lost.items())
    raise UserError(
        f"{sum(lost.values())} of {found['pairs']} training pairs cannot be trained on at {max_length=}: {reasons}",
        "max_length",
        f"raise max_length (validation.max_dropped is {validation.max_dropped:g}): 95 % of the pairs fit whole in "
        f"{found['max_length_95']} tokens, 99 % in "
        f"{found['max_length_99']}" + (f"; or change validation.severity ({failed[0]})" if failed else ""),
    )


def count(path: Path, tokenizer: PairTokenizer, max_length: int | None, keep_end: bool, target: Path) -> dict[str, Any]:
    """`truncation` of a file of pairs, in memory that does not grow with it; writes their ids, too.

    Args:
        path: A step's .jsonl of pairs.
        tokenizer: From `pair_tokenizer`.
        max_length: The limit of prompt + answer; None: no limit.
        keep_end: Cut at the start instead of at the end.
        target: Gets the whole ids of the pairs that have no `fault`, in their order, as `token_file` writes them.

    Raises:
        NotCounted: If the chat template refuses a conversation.
    """

    def tokenized() -> Iterator[tuple[Ids, str | None]]:
        with path.open() as f, write_tokens(target) as write:
            while lines := list(itertools.islice(f, CHUNK)):
                pairs = [Pair.model_validate_json(line) for line in lines]
                rows = tokenizer.ids(pairs)
                faults = [fault(ids, max_length, keep_end) for ids in rows]
                write([(p, ids) for p, ids, name in zip(pairs, rows, faults, strict=True) if name is None])
                yield from zip(rows, faults, strict=True)

    return truncation(tokenized(), max_length)
