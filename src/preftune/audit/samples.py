"""Pairs and rows to look at: drawn at random, or because they stand out; their texts cut for display.

Only what is shown is held in memory, whatever passes by.
"""

import heapq
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from preftune.data.pairs import Message, Pair

LONGEST_TEXT = 2000  # characters of a text that the page shows
LONGEST_ROW = 600  # of a row that became no pair
LONGEST_NAME = 120  # of a row id or column name
WORST = 3  # pairs of each kind that stands out


def cut(text: str, limit: int = LONGEST_TEXT) -> str:
    """The text, or its beginning and how long it is."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters in all)"


def shown_row(row: Any) -> list[tuple[str, str]]:
    """A row's columns, each with the beginning of its value, `LONGEST_ROW` characters in all.

    Args:
        row: Any JSON value.
    """
    columns = row.items() if isinstance(row, Mapping) else [("", row)]
    found: list[tuple[str, str]] = []
    room = LONGEST_ROW
    for name, value in columns:
        if room <= 0:
            found.append(("…", f"and {len(columns) - len(found):,} more columns"))
            break
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        found.append((cut(str(name), LONGEST_NAME), cut(text, min(room, LONGEST_ROW // 3))))
        room -= min(len(text), LONGEST_ROW // 3) + min(len(str(name)), LONGEST_NAME)
    return found


def text_of_answer(messages: list[Message]) -> str:
    """What the assistant says, without the roles."""
    return "\n\n".join(m["content"] for m in messages)


def shared_ends(a: str, b: str) -> tuple[int, int]:
    """How many characters two texts have in common at the beginning, and how many of the rest at the end."""
    shorter = min(len(a), len(b))
    start = _longest(shorter, lambda n: a[:n] == b[:n])
    return start, _longest(shorter - start, lambda n: a[len(a) - n :] == b[len(b) - n :])


def _longest(most: int, same: Callable[[int], bool]) -> int:
    """The largest n up to `most` for which `same` holds; slices are compared in C, and twenty are enough."""
    least = 0
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if same(middle) else (least, middle - 1)
    return least


def shown_messages(messages: list[Message]) -> list[Message]:
    """A prompt for display: the first two and the last four messages."""
    shown = [{"role": m["role"], "content": cut(m["content"])} for m in messages]
    if len(shown) <= 7:
        return shown
    between = {"role": "", "content": f"… {len(shown) - 6:,} messages are not shown …"}
    return [*shown[:2], between, *shown[-4:]]


def shown_pair(pair: Pair, side: str, value: float | None = None, mark: bool = False) -> dict[str, Any]:
    """A pair for display.

    Args:
        pair: The pair.
        side: Of the source: `train` or `test`.
        value: What makes it stand out.
        mark: Tell the answers' shared ends apart from what differs.
    """
    texts = [text_of_answer(pair.chosen), text_of_answer(pair.rejected)]
    start, end = shared_ends(*texts) if mark else (0, 0)
    answers = []
    for text, score in zip(texts, (pair.score_chosen, pair.score_rejected), strict=True):
        parts = (text[:start], text[start : len(text) - end], text[len(text) - end :]) if mark else ("", text, "")
        before = parts[0] if len(parts[0]) <= 300 else f"… {parts[0][-200:]}"  # the difference must be in sight
        after = parts[2] if len(parts[2]) <= 300 else f"{parts[2][:200]} …"
        answers.append({"text": [before, cut(parts[1]), after], "chars": len(text), "score": score})
    return {
        "row_id": cut(pair.row_id, LONGEST_NAME),
        "side": side,
        "value": value,
        "prompt": shown_messages(pair.prompt),
        "chosen": answers[0],
        "rejected": answers[1],
    }


class Reservoir:
    """A uniform random sample of fixed size."""

    def __init__(self, size: int, seed: str) -> None:
        self.size, self.seen = size, 0
        self.random = random.Random(seed.encode(errors="replace"))  # a name can hold half an emoji
        self.items: list[Any] = []

    def offer(self, make: Callable[[], Any]) -> None:
        """Takes the item or leaves it; `make` is called only if it is taken."""
        self.seen += 1
        if len(self.items) < self.size:
            self.items.append(make())
        elif (place := self.random.randrange(self.seen)) < self.size:
            self.items[place] = make()


class Top:
    """The few items with the largest keys; of equal ones the earlier."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self._heap: list[tuple[float, int, Any]] = []

    def offer(self, key: float, make: Callable[[], Any]) -> None:
        """Takes the item if its key is large enough; `make` is called only then."""
        self.seen += 1
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, (key, -self.seen, make()))
        elif key > self._heap[0][0]:
            heapq.heapreplace(self._heap, (key, -self.seen, make()))

    @property
    def items(self) -> list[Any]:
        return [item for _, _, item in sorted(self._heap, reverse=True)]


class Gallery:
    """Pairs of one source to look at: drawn at random, and the ones that stand out."""

    def __init__(self, size: int, seed: str) -> None:
        self.random = Reservoir(size, seed)
        names = ("length_ratio", "alike", "margin_low", "margin_high", "longest_prompt")
        self.worst = {name: Top(WORST) for name in names}
        self.prompts: Counter[int] = Counter()
        self.repeated: dict[int, list[Message]] = {}  # the most frequent prompts so far

    def add(self, pair: Pair, side: str, prompt: int, chosen: str, rejected: str, shared: float) -> None:
        """Looks at one pair.

        Args:
            pair: The pair.
            side: Of the source: `train` or `test`.
            prompt: Its prompt's digest.
            chosen: The answer's text.
            rejected: Likewise.
            shared: Share of the longer answer that both have in common at the ends.
        """
        self.random.offer(lambda: shown_pair(pair, side))
        self._count(prompt, pair.prompt)

        def offer(name: str, value: float, key: float, mark: bool = False) -> None:
            self.worst[name].offer(key, lambda: shown_pair(pair, side, value, mark))

        short, long = sorted((len(chosen), len(rejected)))
        ratio = long / max(short, 1)
        if ratio > 1:
            offer("length_ratio", ratio, ratio)
        if shared > 0.5:
            offer("alike", shared, shared, mark=True)
        length = sum(len(m["content"]) for m in pair.prompt)
        offer("longest_prompt", length, length)
        if pair.score_chosen is not None and pair.score_rejected is not None:
            margin = pair.score_chosen - pair.score_rejected
            offer("margin_low", margin, -margin)
            offer("margin_high", margin, margin)

    def _count(self, digest: int, prompt: list[Message]) -> None:
        """A prompt that is among the most frequent in the end was so when it was last met: none is missed."""
        self.prompts[digest] += 1
        if self.prompts[digest] == 1 or digest in self.repeated:
            return
        if len(self.repeated) >= WORST:
            least = min(self.repeated, key=lambda d: self.prompts[d])
            if self.prompts[digest] <= self.prompts[least]:
                return
            del self.repeated[least]
        self.repeated[digest] = shown_messages(prompt)

    def result(self) -> dict[str, Any]:
        """The pairs, ready to be shown."""
        repeated = sorted(self.repeated, key=lambda digest: -self.prompts[digest])
        return {
            "random": self.random.items,
            "worst": {name: top.items for name, top in self.worst.items() if top.items},
            "repeated": [{"count": self.prompts[d], "prompt": self.repeated[d]} for d in repeated],
        }
