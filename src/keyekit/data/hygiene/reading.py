"""Reads every sample of sources as training would, and keeps what could not be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from keyekit.data.encode import EncodedSample, SampleEncoder
from keyekit.data.errors import BadData
from keyekit.data.sources.base import Source

__all__ = ["EncodedEntry", "Problem", "SampleReader"]


class Problem(NamedTuple):
    """An entry that cannot be used.

    Args:
        source: Name of its source.
        index: Number in the source.
        reason: Short name of the defect.
        message: What is wrong, where.
    """

    source: str
    index: int
    reason: str
    message: str


class EncodedEntry(NamedTuple):
    """An entry that can be used.

    Args:
        source: Name of its source.
        index: Number in the source.
        sample: As it is trained on.
    """

    source: str
    index: int
    sample: EncodedSample

    @property
    def place(self) -> str:
        """Where it stands and what it is called."""
        return f"{self.source}[{self.index}] {self.sample.sample.id}"


class SampleReader:
    """Iterates over the usable entries of sources; the others are in ``problems`` afterwards.

    Args:
        sources: Sources by name.
        encoder: Decodes media and encodes conversations, as in training.
        progress: Called with the numbers of finished and of all entries.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        encoder: SampleEncoder,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.sources = dict(sources)
        self.encoder = encoder
        self.progress = progress
        self.problems: list[Problem] = []

    @property
    def total(self) -> int:
        """Entries of all sources, good and bad."""
        return sum(len(source) for source in self.sources.values())

    def __iter__(self) -> Iterator[EncodedEntry]:
        self.problems = []
        done, total = 0, self.total
        for name, source in self.sources.items():
            for index in range(len(source)):
                done += 1
                if self.progress is not None:
                    self.progress(done, total)
                try:
                    encoded = self.encoder.encode(source[index])
                except BadData as error:
                    self.problems.append(Problem(name, index, error.reason, error.message))
                else:
                    yield EncodedEntry(name, index, encoded)
