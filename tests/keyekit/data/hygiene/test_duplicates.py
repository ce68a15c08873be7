"""Duplicates: planted ones are found, what only resembles is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from keyekit.data.hygiene.duplicates import Clusters, DuplicateFinder
from keyekit.data.hygiene.perceptual_hash import frame_hashes
from keyekit.data.sample import Sample, parse_sample
from keyekit.testing.tiny import tiny_record


def hashes(seed: int, size: tuple[int, int] = (112, 84)) -> tuple[int, ...]:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    whole = Image.fromarray(coarse).resize((112, 84), Image.Resampling.BICUBIC)
    return frame_hashes([np.asarray(whole.resize(size))[None]])


def sample(question: str, answer: str = "yes") -> Sample:
    return parse_sample(tiny_record("x", question, answer), "f:1", Path())


QUESTION = "What can be seen on the left side of this picture, and how many of them are there in all?"


def test_planted_duplicates() -> None:
    finder = DuplicateFinder()
    for medium, seed in (("a", 0), ("b", 1), ("copy", 0)):
        finder.add_medium(medium, f"{medium}.png", hashes(seed))
    finder.add("0", sample(QUESTION), ["a"])
    finder.add("1", sample(QUESTION), ["b"])  # the same question about another picture
    finder.add("2", sample("Is it night?"), ["a"])  # another question about the same picture
    finder.add("3", sample(QUESTION.upper()), ["copy"])  # the same about a copy under another name
    finder.add("4", sample(QUESTION), [])
    finder.add("5", sample(QUESTION), ["a", "b"])
    finder.add("6", sample(QUESTION), ["b", "a"])
    finder.add("7", sample(QUESTION), ["copy", "b"])
    found = finder.found()
    assert found.samples == (("0", "3"), ("5", "7"))
    assert found.media == (("a.png", "copy.png"),)
    assert found.surplus == 2


def test_a_file_that_is_seen_twice_is_no_second_file() -> None:
    finder = DuplicateFinder()
    finder.add_medium("a", "a.png", hashes(0))
    finder.add_medium("a", "a.png", hashes(0))
    assert finder.knows("a")
    assert finder.found().media == ()


def test_texts_that_are_nearly_the_same() -> None:
    finder = DuplicateFinder(text_threshold=0.8)
    long = " ".join(f"word{number}" for number in range(60))
    finder.add("0", sample(long), [])
    finder.add("1", sample(long.replace("word59", "other")), [])
    finder.add("2", sample(long.replace("word20", "x").replace("word40", "y").replace("word5 ", "z ")), [])
    assert finder.found().samples == (("0", "1"),)


def test_clusters_do_not_chain() -> None:
    clusters = Clusters(0.75)
    chain = [frozenset(range(start, start + 20)) for start in (0, 2, 4)]  # neighbours at 18/22, ends at 16/24
    assert [clusters.assign([items]) for items in chain] == [0, 0, 1]
    assert [clusters.assign([]), clusters.assign([])] == [2, 3]  # nothing is known of either
