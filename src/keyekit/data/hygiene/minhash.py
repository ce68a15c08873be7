"""MinHash: sets that have most in common, found among many without comparing all pairs."""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

__all__ = ["SimilarSets", "jaccard", "shingles"]

_PRIME = 2**31 - 1
_BITS = 64


def jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    """What two sets share of what they hold together; 1 for two empty ones.

    Example:
        >>> jaccard(frozenset({1, 2, 3}), frozenset({2, 3, 4}))
        0.5
    """
    shared = len(first & second)
    together = len(first) + len(second) - shared
    return shared / together if together else 1.0


def shingles(text: str, words: int = 3) -> frozenset[int]:
    """Hashes of all runs of words of a text, without case and punctuation; of a shorter text all of it is one.

    Example:
        >>> shingles("How many balls?") == shingles("how many  BALLS")
        True
    """
    found = re.findall(r"\w+", text.lower())
    runs = [" ".join(found[start : start + words]) for start in range(max(len(found) - words + 1, 1))]
    return frozenset(zlib.crc32(run.encode()) & _PRIME for run in runs)


class SimilarSets:
    """An index of sets of whole numbers below 2**31 that finds those with a Jaccard similarity above a threshold.

    Signatures of ``permutations`` minima are cut into bands; sets that agree in a band are candidates, and candidates are
    compared exactly, so nothing below the threshold is ever reported. There are as few bands as miss a pair at the threshold
    with a probability below one in a thousand: 16 for 0.95, which miss one in 36 million.

    Args:
        threshold: Similarity above which two sets are alike.
        permutations: Minima of a signature (128 in the Keye-VL 8B sheet 4.5).
        seed: Seed of the permutations.

    Example:
        >>> sets = SimilarSets(0.5)
        >>> sets.add("a", frozenset({1, 2, 3, 4}))
        >>> sets.similar(frozenset({1, 2, 3, 5})), sets.similar(frozenset({7}))
        ({'a'}, set())
    """

    def __init__(self, threshold: float, permutations: int = 128, seed: int = 0) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold}: sets are alike above it, so give at least 0 and less than 1")
        random = np.random.default_rng(seed)
        self.threshold = threshold
        self.bands = _fewest_bands(threshold, permutations)
        self._factors = random.integers(1, _PRIME, permutations)
        self._shifts = random.integers(0, _PRIME, permutations)
        self._keys: dict[_Kept, list[str]] = defaultdict(list)  # equal sets are kept once
        self._buckets: dict[tuple[int, bytes], list[_Kept]] = defaultdict(list)
        self._bands = lru_cache(maxsize=4096)(self._bands_of)  # what is looked up is often added next

    def signature(self, items: Iterable[int]) -> np.ndarray:
        """``[permutations]``: of each permutation the smallest number; two agree as often as their sets are similar."""
        numbers = np.fromiter(items, dtype=np.int64)
        if not len(numbers):
            return np.full(len(self._factors), _PRIME)
        return ((_mixed(numbers)[:, None] * self._factors + self._shifts) % _PRIME).min(axis=0)

    def add(self, key: str, items: frozenset[int]) -> None:
        """Add a set under a name; several may have one name."""
        kept = _kept(items)
        if kept not in self._keys:
            for bucket in self._bands(items):
                self._buckets[bucket].append(kept)
        self._keys[kept].append(key)

    def similar(self, items: frozenset[int]) -> set[str]:
        """Names of all sets that are alike."""
        if not self._keys:
            return set()
        candidates = {other for bucket in self._bands(items) for other in self._buckets.get(bucket, ())}
        own = _kept(items)
        near = [other for other in candidates if _similarity(own, other) > self.threshold]
        return {key for other in near for key in self._keys[other]}

    def hits(self, parts: Sequence[frozenset[int]]) -> set[str]:
        """Names that more than half of the parts of a thing are similar to, as of the frames of a video."""
        counts = Counter(key for part in parts for key in self.similar(part))
        return {key for key, count in counts.items() if count > len(parts) / 2}

    def _bands_of(self, items: frozenset[int]) -> list[tuple[int, bytes]]:
        rows = self.signature(items).reshape(self.bands, -1)
        return [(band, row.tobytes()) for band, row in enumerate(rows)]


_Kept = int | frozenset[int]
"""How an index keeps a set: one of small numbers as the bits of one number, which compares ten times as fast in a tenth of the
memory."""


def _kept(items: frozenset[int]) -> _Kept:
    return sum(1 << item for item in items) if not items or max(items) < _BITS else items


def _similarity(first: _Kept, second: _Kept) -> float:
    if isinstance(first, int) and isinstance(second, int):
        together = (first | second).bit_count()
        return (first & second).bit_count() / together if together else 1.0
    if isinstance(first, int) or isinstance(second, int):
        return jaccard(_unkept(first), _unkept(second))
    return jaccard(first, second)


def _unkept(kept: _Kept) -> frozenset[int]:
    return frozenset(bit for bit in range(_BITS) if kept >> bit & 1) if isinstance(kept, int) else kept


def _fewest_bands(threshold: float, permutations: int) -> int:
    for bands in range(1, permutations):
        missed = (1 - threshold ** (permutations // bands)) ** bands
        if permutations % bands == 0 and missed < 1e-3:
            return bands
    return permutations


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Numbers below the prime without the order of the given ones, which linear permutations would keep in part."""
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((mixed ^ (mixed >> np.uint64(32))) % np.uint64(_PRIME)).astype(np.int64)
