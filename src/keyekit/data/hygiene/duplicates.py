"""Duplicates: samples that show nearly the same and say nearly the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from keyekit.data.hygiene.minhash import SimilarSets, shingles
from keyekit.data.hygiene.perceptual_hash import set_bits
from keyekit.data.sample import Sample

__all__ = ["Clusters", "DuplicateFinder", "Duplicates"]


class Clusters:
    """Things by what they are alike to: each joins the cluster whose first member it resembles, or begins one.

    Only first members are compared with, so that a chain of small differences does not join what differs much.

    Args:
        threshold: Jaccard similarity above which two sets are alike.
    """

    def __init__(self, threshold: float) -> None:
        self._firsts = SimilarSets(threshold)
        self._known: dict[tuple[frozenset[int], ...], int] = {}  # what repeats exactly needs no comparing
        self._count = 0

    def assign(self, parts: Sequence[frozenset[int]]) -> int:
        """Number of the cluster of a thing; what more than half of its parts resemble is alike.

        A thing without parts, such as a picture of one colour, is like no other.
        """
        key = tuple(parts)
        if key in self._known:
            return self._known[key]
        found = self._firsts.hits(parts)
        if found:
            number = min(map(int, found))
        else:
            number, self._count = self._count, self._count + 1
            for part in parts:
                self._firsts.add(str(number), part)
        if parts:
            self._known[key] = number
        return number


class Duplicates(NamedTuple):
    """What was found.

    Args:
        samples: Groups of samples that agree in media and text, each in order of arrival.
        media: Groups of different files that look alike.
    """

    samples: tuple[tuple[str, ...], ...]
    media: tuple[tuple[str, ...], ...]

    @property
    def surplus(self) -> int:
        """Samples that could be left out."""
        return sum(len(group) - 1 for group in self.samples)


class DuplicateFinder:
    """Collects samples and finds those that repeat others.

    Media are compared by the perceptual hashes of an image, or of some frames of a video; texts by their shingles.
    A sample repeats another when all its media, in their order, and its text do. Many questions about one clip are none.

    Args:
        media_threshold: Jaccard similarity of the set bits of two hashes above which they are alike (Keye-VL 8B sheet 4.5).
        text_threshold: Jaccard similarity of the shingles of two conversations above which they are alike.
    """

    def __init__(self, media_threshold: float = 0.95, text_threshold: float = 0.9) -> None:
        self._media_clusters = Clusters(media_threshold)
        self._text_clusters = Clusters(text_threshold)
        self._clusters_of: dict[str, int] = {}
        self._files: dict[int, dict[str, None]] = defaultdict(dict)
        self._samples: dict[tuple[int, ...], list[str]] = defaultdict(list)

    def knows(self, medium: str) -> bool:
        """Whether a medium was seen; then its hashes need not be given again."""
        return medium in self._clusters_of

    def add_medium(self, medium: str, file: str, hashes: Sequence[int]) -> None:
        """Add a medium.

        Args:
            medium: Its cache key.
            file: Its file, for the report.
            hashes: Of an image, or of frames of a video.
        """
        if not self.knows(medium):
            self._clusters_of[medium] = self._media_clusters.assign([set_bits(value) for value in hashes])
            self._files[self._clusters_of[medium]][file] = None

    def add(self, place: str, sample: Sample, media: Sequence[str]) -> None:
        """Add a sample whose media were added.

        Args:
            place: Where it stands, for the report.
            sample: The conversation.
            media: Cache keys of its media.
        """
        text = "\n".join(message.text for message in sample.messages)
        clusters = [self._clusters_of[medium] for medium in media]
        self._samples[self._text_clusters.assign([shingles(text)]), *clusters].append(place)

    def found(self) -> Duplicates:
        """All groups so far."""
        samples = tuple(tuple(group) for group in self._samples.values() if len(group) > 1)
        media = tuple(tuple(group) for group in self._files.values() if len(group) > 1)
        return Duplicates(samples, media)
