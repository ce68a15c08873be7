"""The contract of distillation objectives: a student's hidden states and a teacher in, a loss and its meters out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keyekit.batch import IGNORED_LABEL, Segments
from keyekit.objectives.chunked_head import sum_over_rows
from keyekit.objectives.distillation.topk import TopK

__all__ = ["DistillationObjective", "DistillationOutput", "Head", "OnPolicy", "target_rows"]


@dataclass(slots=True, kw_only=True)
class Head:
    """A model's final hidden states and the output layer that makes logits of them, so that logits need not be held.

    Args:
        hidden: ``[T, D]``; widths of student and teacher may differ.
        weight: ``[V, D]``; vocabularies may not.
    """

    hidden: Tensor
    weight: Tensor


@dataclass(slots=True, kw_only=True)
class OnPolicy:
    """What is known of answers that the student sampled itself; ``MOPD`` alone needs it.

    Args:
        segments: The sequences of the pack.
        categories: ``[T]`` int64 category of each label, by its place in the objective's ``category_factors``; -1 for none.
        collapse: ``[B]`` int64 token of the answer, counted from 0, at which the sequence begins to repeat itself; -1 if it
            does not.
    """

    segments: Segments
    categories: Tensor | None = None
    collapse: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationOutput:
    """What a distillation objective returns.

    Args:
        loss: Scalar.
        meters: Detached scalars, means over the tokens that are learnt; ``dropped_tokens`` counts those for which the teacher
            gave no number.
    """

    loss: Tensor
    meters: dict[str, Tensor]


class DistillationObjective(nn.Module, ABC):
    """Base of the distillation family."""

    meter_names: tuple[str, ...] = ()
    """Meters besides ``dropped_tokens``, in the order of the notes of :meth:`row_losses`."""

    chunk_size: int | None = None
    """Positions whose logits exist at a time."""

    @abstractmethod
    def prepare(self, labels: Tensor, rows: Tensor, on_policy: OnPolicy | None) -> Tensor:
        """What :meth:`row_losses` has to know of each row besides logits, ``[rows, n]``; most need nothing.

        Args:
            labels: ``[T]``.
            rows: Positions of the tokens that are learnt.
            on_policy: As given to :meth:`forward`.
        """

    @abstractmethod
    def row_losses(
        self, logits: Tensor, teacher: TopK | Tensor, labels: Tensor, prepared: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and meters of some tokens.

        Args:
            logits: ``[rows, V]`` of the student, float32 or wider.
            teacher: Logits ``[rows, V]`` or the best words.
            labels: ``[rows]``.
            prepared: ``[rows, n]`` of :meth:`prepare`.

        Returns:
            Losses ``[rows]``, meters ``[rows, len(meter_names)]``, and the rows ``[rows]`` bool whose teacher is sound.
        """

    def count(self, labels: Tensor, num_targets: int, on_policy: OnPolicy | None = None) -> Tensor | int:
        """What the loss is a mean over, to be added up over the packs and ranks of a step: tokens by default."""
        return num_targets

    def forward(
        self,
        student: Head,
        teacher: Head | TopK,
        labels: Tensor,
        num_targets: int,
        on_policy: OnPolicy | None = None,
        total: Tensor | float | None = None,
    ) -> DistillationOutput:
        """Compute the loss. Neither model's logits are held whole.

        Args:
            student: The model that learns.
            teacher: Another model's hidden states, or its best words at every token of the pack. No gradient flows there.
            labels: ``[T]`` int64, already shifted, :data:`~keyekit.batch.IGNORED_LABEL` where nothing is to be learnt.
            num_targets: Number of labels that are not ignored, known on the host so that nothing synchronises.
            on_policy: About answers that the student sampled itself, for objectives that ask for it.
            total: :meth:`count` of the whole step, so that the losses of its packs add up to that of the step; this pack's by
                default.

        Returns:
            The loss and its meters; a loss of 0, with a gradient of 0, if nothing is to be learnt.

        Raises:
            ValueError: If the teacher has another vocabulary or another number of tokens.
        """
        _check(student, teacher, labels)
        rows = target_rows(labels, num_targets)
        targets, prepared = labels[rows], self.prepare(labels, rows, on_policy)
        known = _Teacher(teacher, rows)

        def loss(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            losses, notes, sound = self.row_losses(logits, known.part(part), targets[part], prepared[part])
            notes = torch.where(sound[:, None], notes.detach(), 0)
            return torch.where(sound, losses, 0), torch.cat([notes, (~sound)[:, None].to(notes.dtype)], dim=1)

        summed, notes = sum_over_rows(
            student.hidden[rows], student.weight, loss, len(self.meter_names) + 1, self.chunk_size
        )
        dropped = notes[:, -1].sum()
        means = notes[:, :-1].sum(0) / (num_targets - dropped).clamp(min=1)
        meters = dict(zip(self.meter_names, means, strict=True)) | {"dropped_tokens": dropped}
        if total is None:
            total = torch.as_tensor(self.count(labels, num_targets, on_policy), device=summed.device).clamp(min=1)
        return DistillationOutput(loss=summed / total, meters=meters)


def target_rows(labels: Tensor, num_targets: int) -> Tensor:
    """Positions of the labels that are not ignored, ``[num_targets]``; nothing synchronises."""
    return torch.nonzero_static(labels != IGNORED_LABEL, size=num_targets)[:, 0]


class _Teacher:
    """A teacher's rows that are learnt, a chunk at a time."""

    def __init__(self, teacher: Head | TopK, rows: Tensor) -> None:
        self._kept = teacher.rows(rows) if isinstance(teacher, TopK) else teacher.hidden.detach()[rows]
        self._weight = None if isinstance(teacher, TopK) else teacher.weight.detach()

    def part(self, part: slice) -> TopK | Tensor:
        """Best words or logits of a chunk; called where autocast is off, so the dtypes are met here."""
        if isinstance(self._kept, TopK):
            return self._kept.rows(part)
        assert self._weight is not None
        kind = torch.promote_types(self._kept.dtype, self._weight.dtype)
        with torch.no_grad():
            logits = self._kept[part].to(kind) @ self._weight.to(kind).T
        return logits.to(torch.promote_types(kind, torch.float32))


def _check(student: Head, teacher: Head | TopK, labels: Tensor) -> None:
    size = len(teacher.indices) if isinstance(teacher, TopK) else len(teacher.hidden)
    if not len(student.hidden) == size == len(labels):
        raise ValueError(
            f"{len(student.hidden)} tokens of the student, {size} of the teacher and {len(labels)} labels: the teacher must "
            "see the same tokens; tokenise its sequence again and compare spans"
        )
    if isinstance(teacher, Head) and len(teacher.weight) != len(student.weight):
        raise ValueError(
            f"the student knows {len(student.weight)} words, the teacher {len(teacher.weight)}: their words must be the same; "
            "cut output layers that are only padded to one size"
        )
