"""The contract of teachers: a pack of answers in, each target's best words and their log-probabilities out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from keyekit.batch import Batch, SampleInfo
from keyekit.data.vocabulary import Vocabulary
from keyekit.objectives.distillation.base import Head, target_rows
from keyekit.objectives.distillation.topk import TopK

__all__ = ["Scores", "Teacher", "TeacherRefused", "spread_rows", "whose_rows"]


class TeacherRefused(RuntimeError):
    """The teacher is there, but refuses what it is asked: asking again would not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a teacher says about a pack.

    Args:
        words: ``[T, N]`` words and log-probabilities; rows that are no targets, or of samples without an answer, hold zeros.
        answered: For each sample whether the teacher said something about it.
        meters: Numbers to log, such as how many responses are spelt otherwise than the teacher would.
    """

    words: TopK
    answered: tuple[bool, ...]
    meters: dict[str, float]


class Teacher(ABC):
    """Base of the teachers. They never learn, and no checkpoint holds them."""

    @abstractmethod
    def score(self, batch: Batch, topk: int, asked: Tensor | None = None) -> Scores:
        """Read a pack and say how likely words are at every target.

        Args:
            batch: A pack of prompts with answers; its labels say which tokens are targets.
            topk: How many of its likeliest words the teacher lists.
            asked: ``[T, N]`` int64 ids that the teacher scores instead of its own best words.

        Returns:
            Words for every target. A sample of which the teacher knows nothing is marked, and is not an error.

        Raises:
            ValueError: If the pack is none that this teacher can read: other placeholders, grids or positions.
            TeacherRefused: If asking again would not help.
        """

    def vocabulary(self) -> Vocabulary | None:
        """Every token that the teacher knows, or ``None`` if that is not known."""
        return None

    def check(self, samples: Iterable[SampleInfo]) -> None:  # noqa: B027 most teachers read everything
        """Refuse samples that this teacher has nothing to say about, before a run begins.

        Raises:
            ValueError: If there are some.
        """

    def move(self, device: torch.device | str) -> None:  # noqa: B027
        """Be ready where the student is; a teacher that is elsewhere does nothing."""

    def head(self, batch: Batch) -> Head | None:
        """Final hidden states and output layer, where the teacher is at hand: all its words instead of the best ones."""
        return None


def whose_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Targets of a pack and whose they are.

    Returns:
        Positions ``[R]`` of the targets in packed order, and ``[R]`` the number of the sample that each belongs to.
    """
    rows = target_rows(batch.labels, batch.num_targets)
    stops = torch.tensor([sample.stop for sample in batch.samples], device=rows.device)
    return rows, torch.searchsorted(stops, rows, right=True)


def spread_rows(words: TopK, rows: Tensor, total: int) -> TopK:
    """Words of some tokens as words of the whole pack, zeros elsewhere.

    Args:
        words: ``[R, N]``.
        rows: ``[R]`` their positions.
        total: Tokens T of the pack.
    """
    size = (total, words.indices.shape[1])
    tail = None
    if words.tail is not None:
        tail = words.tail.new_zeros(total).index_copy(0, rows, words.tail)
    return TopK(
        indices=words.indices.new_zeros(size).index_copy(0, rows, words.indices),
        log_probs=words.log_probs.new_zeros(size).index_copy(0, rows, words.log_probs),
        tail=tail,
        temperature=words.temperature,
    )
