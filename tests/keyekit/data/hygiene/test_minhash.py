"""MinHash against exact similarities of all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from keyekit.data.hygiene.minhash import SimilarSets, jaccard, shingles


def families(seed: int, largest: int = 2**20, size: int = 60) -> list[frozenset[int]]:
    """Sets of which many differ from another one in a few elements."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(40):
        base = random.choice(largest, size, replace=False)
        for changes in (0, 1, 4, 15):
            changed = base.copy()
            changed[:changes] = random.choice(largest, changes, replace=False)
            found.append(frozenset(changed.tolist()))
    return found


def test_an_agreement_of_signatures_is_the_similarity() -> None:
    sets = SimilarSets(0.5, permutations=4096)
    first, second = frozenset(range(100)), frozenset(range(50, 150))
    agreement = (sets.signature(first) == sets.signature(second)).mean()
    assert agreement == pytest.approx(jaccard(first, second), abs=0.03)


@pytest.mark.parametrize("threshold", [0.95, 0.8])
def test_all_similar_pairs_and_no_other(threshold: float) -> None:
    given, sets = families(0), SimilarSets(threshold)
    for number, items in enumerate(given):
        sets.add(str(number), items)
    for items in given:
        expected = {str(n) for n, other in enumerate(given) if jaccard(items, other) > threshold}
        assert sets.similar(items) == expected


def test_sets_of_small_numbers_are_compared_with_others_too() -> None:
    """Of perceptual hashes, whose sets are bits of 64, and of sets that reach just beyond."""
    given = [*families(1, 64, 32), *families(2, 66, 32), frozenset(), frozenset(range(64)), frozenset(range(65))]
    sets = SimilarSets(0.8)
    for number, items in enumerate(given):
        sets.add(str(number), items)
    for items in given:
        expected = {str(n) for n, other in enumerate(given) if jaccard(items, other) > 0.8}
        assert sets.similar(items) == expected
    assert sets.similar(frozenset(range(65))) == {"321", "322"}


def test_a_thing_of_parts_needs_more_than_half() -> None:
    sets = SimilarSets(0.9)
    parts = [frozenset(range(start, start + 20)) for start in range(0, 200, 50)]
    for part in parts:
        sets.add("known", part)
    strange = frozenset(range(1000, 1020))
    assert sets.hits(parts) == {"known"}
    assert sets.hits([*parts[:2], strange]) == {"known"}
    assert sets.hits([*parts[:2], strange, strange]) == set()
    assert sets.hits([]) == set()


def test_shingles() -> None:
    assert len(shingles("one two three four five")) == 3
    assert shingles("One, two. THREE!") == shingles("one two three")
    assert shingles("one two three") != shingles("three two one")
    assert len(shingles("")) == 1
    assert shingles("Wie viele Bälle 球") != shingles("Wie viele Bälle")


def test_mistakes_are_explained() -> None:
    with pytest.raises(ValueError, match=r"threshold=1\.0"):
        SimilarSets(1.0)
    assert [SimilarSets(threshold).bands for threshold in (0.95, 0.9, 0.8, 0.0)] == [16, 16, 32, 128]
    assert jaccard(frozenset(), frozenset()) == 1.0
    assert SimilarSets(0.9).similar(frozenset()) == set()
