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
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, cast

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


def _sketches(keys: list[str]) -> Iterator[Any]:
    """The MinHash of each key, one after the other."""
    from datasketch import MinHash

    hashes = _WordHashes()
    shingles = ([h >> 32 for h in _shingles(key, hashes)] for key in keys)
    return MinHash.generator(shingles, num_perm=PERMUTATIONS, seed=1, hashfunc=int)


def _bands(threshold: float) -> tuple[int, int]:
    """(bands, rows in each): as many rows as find a pair at the threshold with probability `RECALL`.

    A pair of similarity s becomes a candidate with the probability 1 - (1 - s^rows)^bands.
    """
    for rows in range(PERMUTATIONS // 2, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


class _Pool:
    """Keys that others are compared with.

    Args:
        keys: All keys by number, no two alike.
        threshold: Least similarity.
    """

    def __init__(self, keys: list[str], threshold: float) -> None:
        from datasketch import MinHashLSH

        self.keys, self.threshold = keys, threshold
        self.lsh = MinHashLSH(num_perm=PERMUTATIONS, params=_bands(threshold))
        self.rank: dict[int, int] = {}  # of each key in the pool
        hashes = _WordHashes()
        self.shingles = lru_cache(maxsize=10_000)(lambda number: frozenset(_shingles(keys[number], hashes)))

    def add(self, number: int, sketch: Any) -> None:
        """Puts a key into the pool."""
        self.rank[number] = len(self.rank)
        self.lsh.insert(number, sketch, check_duplication=False)

    def nearest(self, number: int, sketch: Any) -> int | None:
        """The pool's most similar key, the earlier one of equally similar ones; None below the threshold."""
        if number in self.rank:
            return number
        candidates: list[int] = sorted(cast(Any, self.lsh.query(sketch)), key=self.rank.__getitem__)
        if not candidates:
            return None
        mine = self.shingles(number)
        similarity, rank = max((_jaccard(mine, self.shingles(c)), -i) for i, c in enumerate(candidates))
        return candidates[-rank] if similarity >= self.threshold else None


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
    pool, found = _Pool(keys, threshold), dict[int, int | None]()
    for number, sketch in enumerate(_sketches(keys)):  # the others come first
        if number in first:
            pool.add(number, sketch)
        else:
            found[number] = pool.nearest(number, sketch)
    nearest = [found.get(number, number) for number in asked]
    return {i: first[number] for i, number in enumerate(nearest) if number is not None}


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
    order = sorted(range(len(texts)), key=lambda i: (sources[i], keys[numbers[i]], texts[i], i))
    pool = _Pool(keys, threshold)
    stays: dict[int, int] = {}
    result: dict[int, int] = {}
    for _, group in groupby(order, key=lambda i: sources[i]):
        members = list(group)
        own = list(dict.fromkeys(numbers[i] for i in members))
        new, found = [], {}
        for number, sketch in zip(own, _sketches([keys[n] for n in own]), strict=True):
            if (near_one := pool.nearest(number, sketch)) is None:
                new.append((number, sketch.copy()))
            else:
                found[number] = near_one
        for number, sketch in new:
            pool.add(number, sketch)
        for i in members:
            if numbers[i] in found:
                result[i] = stays[found[numbers[i]]]
            else:
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
