"""Texts that stand in two places: nearly equal ones, and ones that share a long run of words.

Nearly equal means: the Jaccard similarity of the texts' sets of word trigrams (of the whole text, if it has fewer
words) reaches the threshold. Candidates come from MinHash signatures cut into bands (locality-sensitive hashing),
each is then decided by its exact similarity: nothing is reported wrongly. A pair exactly at the threshold is missed
with a probability of less than 0.5 % (`_bands`), a more similar one more rarely, an equal one never.

Nothing here depends on the order of the texts (but for the stated rule of ties) or on the process.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

PERMUTATIONS = 128
RECALL = 0.995
CHUNK = 2000

_ASCII_WORD = re.compile(r"[a-z0-9]+")
# Scripts that put no spaces between words: each of their characters is a word.
_UNSPACED = re.compile(
    "[\u0e01-\u0e30\u0e32-\u0e33\u0e40-\u0e46"  # Thai
    "\u0e81-\u0eb0\u0eb2-\u0eb3\u0ebd-\u0ec6\u1000-\u102a\u1780-\u17b3"  # Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u3098\u309b-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # Han
)


class _Letters(dict[int, str]):
    """What becomes of each character: a letter, digit or combining mark stays, others separate words."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if not (char.isalnum() or unicodedata.category(char)[0] == "M"):
            char = " "
        self[code] = value = f" {char} " if _UNSPACED.match(char) else char
        return value


_LETTERS = _Letters()


def normal(text: str) -> str:
    """The text's words in small letters, with a space between them; Chinese or Japanese characters are words."""
    if text.isascii():
        return " ".join(_ASCII_WORD.findall(text.lower()))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_LETTERS).split())


def _key(text: str) -> str:
    """What is compared: the words, or of a text without any (`???`, an emoji) the text itself."""
    return normal(text) or " ".join(text.split())


class _WordHashes(dict[str, int]):
    """64 bits of each word, the same in every process."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
        self[word] = value
        return value


def _shingles(key: str, hashes: _WordHashes) -> list[int]:
    """64 bits of each trigram of words."""
    import numpy as np

    words = key.split(" ")
    if len(words) < 3:
        return [hashes[key]]
    one = np.array([hashes[w] for w in words], dtype=np.uint64)
    a, b, c = (np.uint64(f) for f in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))
    return (one[:-2] * a + one[1:-1] * b + one[2:] * c).tolist()


def similarity(a: str, b: str) -> float:
    """Exact Jaccard similarity of the two texts' sets of word trigrams."""
    hashes = _WordHashes()
    return _jaccard(*(frozenset(_shingles(_key(t), hashes)) for t in (a, b)))


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _signatures(keys: list[str]) -> Any:
    """MinHash signatures, a row for each key."""
    import numpy as np
    from datasketch import MinHash

    hashes = _WordHashes()
    shingles = ([h >> 32 for h in _shingles(key, hashes)] for key in keys)
    sketches = MinHash.generator(shingles, num_perm=PERMUTATIONS, seed=1, hashfunc=int)
    signatures = np.empty((len(keys), PERMUTATIONS), dtype=np.uint32)
    for row, sketch in zip(signatures, sketches, strict=True):
        row[:] = sketch.hashvalues
    return signatures


def _bands(threshold: float) -> tuple[int, int]:
    """(bands, rows in each): as many rows as find a pair at the threshold with probability `RECALL`.

    A pair of similarity s becomes a candidate with the probability 1 - (1 - s^rows)^bands.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def _nearest(queries: list[int], pool: list[int], keys: list[str], signatures: Any, threshold: float) -> dict[int, int]:
    """Key → most similar key of the pool, the earlier one of equally similar ones; for those that reach the threshold.

    Args:
        queries: Numbers of keys.
        pool: Numbers of keys.
        keys: What is compared, no two alike.
        signatures: Of the keys.
        threshold: Least similarity.
    """
    import numpy as np

    there = set(pool)
    result = {q: q for q in queries if q in there}
    left = [q for q in queries if q not in there]
    if not left or not pool:
        return result
    bands, rows = _bands(threshold)
    factors = np.random.default_rng(1).integers(1, 2**63, rows, dtype=np.uint64) | np.uint64(1)
    buckets = []  # of each band: the pool in the order of its hashes, and where each query's bucket begins and ends
    for band in range(bands):
        part = (signatures[:, band * rows : (band + 1) * rows] * factors).sum(axis=1, dtype=np.uint64)
        order = np.argsort(part[pool], kind="stable")
        ranked = part[pool][order]
        buckets.append(
            (order, np.searchsorted(ranked, part[left], "left"), np.searchsorted(ranked, part[left], "right"))
        )
    hashes = _WordHashes()
    shingles = lru_cache(maxsize=10_000)(lambda number: frozenset(_shingles(keys[number], hashes)))
    for i in np.flatnonzero(np.any([end > begin for _, begin, end in buckets], axis=0)):
        candidates = np.unique(np.concatenate([order[begin[i] : end[i]] for order, begin, end in buckets]))
        mine = shingles(left[i])
        best = max((_jaccard(mine, shingles(pool[c])), -c) for c in candidates.tolist())
        if best[0] >= threshold:
            result[left[i]] = pool[-best[1]]
    return result


def _numbered(keys: Iterable[str]) -> tuple[list[int], list[str]]:
    """Each key's number, and the keys by number."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(k, len(numbers)) for k in keys], list(numbers)


def near(texts: Sequence[str], others: Sequence[str], threshold: float) -> dict[int, int]:
    """Which texts are nearly one of the others.

    Args:
        texts: The texts.
        others: What they are compared with.
        threshold: Least similarity, above 0 and at most 1.

    Returns:
        Index of the text → index of the most similar other one (the lowest of equally similar ones).
    """
    if not texts or not others:
        return {}
    numbers, keys = _numbered(_key(t) for part in (others, texts) for t in part)
    first: dict[int, int] = {}
    for index, number in enumerate(numbers[: len(others)]):
        first.setdefault(number, index)
    asked = numbers[len(others) :]
    found = _nearest(list(dict.fromkeys(asked)), list(first), keys, _signatures(keys), threshold)
    return {i: first[found[number]] for i, number in enumerate(asked) if number in found}


def near_across(texts: Sequence[str], sources: Sequence[str], threshold: float) -> dict[int, int]:
    """Which texts are nearly one of another source that stays.

    The sources are taken by name: all of the first one's texts stay, of each further one those that are not
    near to any that stays already. So no two that stay and come from different sources are near each other.

    Args:
        texts: The texts.
        sources: The name of each text's source.
        threshold: Least similarity, above 0 and at most 1.

    Returns:
        Index of a text to leave out → index of the most similar one that stays (of equally similar ones: of the
        source, then the text, that sorts first).
    """
    if len(set(sources)) < 2:
        return {}
    numbers, keys = _numbered(_key(t) for t in texts)
    signatures = _signatures(keys)
    order = sorted(range(len(texts)), key=lambda i: (sources[i], keys[numbers[i]], texts[i], i))
    stays: dict[int, int] = {}
    result: dict[int, int] = {}
    for _, group in groupby(order, key=lambda i: sources[i]):
        members = list(group)
        found = _nearest(list({numbers[i]: None for i in members}), list(stays), keys, signatures, threshold)
        result |= {i: stays[found[numbers[i]]] for i in members if numbers[i] in found}
        for i in members:
            if numbers[i] not in found:
                stays.setdefault(numbers[i], i)
    return result


def shares_words(texts: Sequence[str], evaluation: Iterable[str], n: int = 13) -> dict[int, int]:
    """Which texts share `n` words in a row with an evaluation text (Brown et al. 2020, appendix C).

    An evaluation text of fewer than `n` words counts only if it is the whole text. Memory is proportional to the
    evaluation's texts.

    Args:
        texts: The texts.
        evaluation: The evaluation's texts.
        n: How many words.

    Returns:
        Index of the text → index of the (first) evaluation text.
    """
    import numpy as np

    numbers: dict[str, int] = {}
    whole: dict[str, int] = {}
    rows = []  # of each long evaluation text: its words' numbers, then -1
    owners = []
    for index, text in enumerate(evaluation):
        words = normal(text).split()
        if len(words) >= n:
            rows.append(np.array([*(numbers.setdefault(w, len(numbers)) for w in words), -1], dtype=np.int32))
            owners.append(np.full(len(words) + 1, index, dtype=np.int32))
        elif words:
            whole.setdefault(" ".join(words), index)
    known = np.concatenate(rows) if rows else np.empty(0, dtype=np.int32)
    owner = np.concatenate(owners) if owners else known
    starts, hashes = _runs(known, n)
    order = np.argsort(hashes, kind="stable")  # stable: of equal runs the first evaluation text's comes first
    starts, hashes = starts[order], hashes[order]
    result: dict[int, int] = {}
    for begin in range(0, len(texts), CHUNK):
        keys = [normal(t) for t in texts[begin : begin + CHUNK]]
        result |= {begin + i: whole[k] for i, k in enumerate(keys) if k in whole}
        lists = [[numbers.get(w, -1) for w in k.split()] for k in keys]
        asked = np.array([x for row in lists for x in (*row, -1)], dtype=np.int32)
        text_of = np.repeat(np.arange(len(lists)), [len(row) + 1 for row in lists])
        at, wanted = _runs(asked, n)
        found = np.searchsorted(hashes, wanted)
        hit = np.flatnonzero(hashes[np.minimum(found, len(hashes) - 1)] == wanted) if len(hashes) else []
        for h in hit:
            place = found[h]  # equal hashes need not mean equal words
            while place < len(hashes) and hashes[place] == wanted[h]:
                if np.array_equal(known[starts[place] : starts[place] + n], asked[at[h] : at[h] + n]):
                    index, other = begin + int(text_of[at[h]]), int(owner[starts[place]])
                    result[index] = min(other, result.get(index, other))
                    break
                place += 1
    return dict(sorted(result.items()))


def _runs(numbers: Any, n: int) -> tuple[Any, Any]:
    """Where `n` numbers in a row are all known (not -1), and a hash of each such run."""
    import numpy as np

    if len(numbers) < n:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
    unknown = np.concatenate([[0], np.cumsum(numbers < 0)])
    starts = np.flatnonzero(unknown[n:] == unknown[:-n])
    hashes = np.zeros(len(starts), dtype=np.uint64)
    for k in range(n):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + numbers[starts + k].astype(np.uint64)
        hashes ^= hashes >> np.uint64(29)
    return starts, hashes
