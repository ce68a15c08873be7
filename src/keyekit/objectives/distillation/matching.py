"""A student's next-word distributions are matched to a teacher's: forward, reverse and Jensen–Shannon divergence."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from keyekit.objectives.distillation.base import DistillationObjective, OnPolicy
from keyekit.objectives.distillation.divergences import forward_kl, generalized_jensen_shannon, reverse_kl
from keyekit.objectives.distillation.support import Tail, Whose, compared_bins
from keyekit.objectives.distillation.topk import TopK

__all__ = ["ForwardKL", "JensenShannon", "Matching", "ReverseKL"]


class Matching(DistillationObjective):
    """Base of the objectives that are a divergence of two distributions at every token.

    Args:
        student_temperature: Divides the student's logits.
        teacher_temperature: Divides the teacher's; of stored best words, the temperature that they were taken at.
        topk: Words to compare; all by default.
        whose: Whose best words.
        tail: What becomes of the other words; see :data:`~keyekit.objectives.distillation.support.Tail`.
        chunk_size: Positions whose logits exist at a time.

    Raises:
        ValueError: If an argument is out of range or unknown.
    """

    meter_names = ("divergence", "agreement", "student_entropy")

    def __init__(
        self,
        student_temperature: float,
        teacher_temperature: float,
        topk: int | None,
        whose: Whose,
        tail: Tail,
        chunk_size: int | None,
    ) -> None:
        super().__init__()
        if not student_temperature > 0 or not teacher_temperature > 0:
            raise ValueError(
                f"student_temperature={student_temperature} and teacher_temperature={teacher_temperature} must be positive"
            )
        if topk is not None and topk < 1:
            raise ValueError(f"topk={topk} must be at least 1; leave it out to compare all words")
        if whose not in ("teacher", "student"):
            raise ValueError(f"whose={whose!r}: choose teacher or student")
        if tail not in ("bin", "renormalise", "drop"):
            raise ValueError(f"tail={tail!r}: choose bin, renormalise or drop")
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.topk = topk
        self.whose: Whose = whose
        self.tail: Tail = tail
        self.chunk_size = chunk_size

    @abstractmethod
    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``[rows]`` from log-probabilities ``[rows, bins]``."""

    def prepare(self, labels: Tensor, rows: Tensor, on_policy: OnPolicy | None) -> Tensor:
        """Nothing: every token counts the same."""
        return labels.new_zeros(len(rows), 0)

    def row_losses(
        self, logits: Tensor, teacher: TopK | Tensor, labels: Tensor, prepared: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`~keyekit.objectives.distillation.base.DistillationObjective`."""
        student = (logits / self.student_temperature).log_softmax(-1)
        known, favourite, sound = self._teacher(teacher)
        losses = self.divergence(*compared_bins(student, known, self.topk, self.whose, self.tail))
        meters = torch.stack(
            [
                losses,
                (student.argmax(-1) == favourite).to(losses.dtype),
                -(student.exp() * student).sum(-1),
            ],
            dim=1,
        )
        return losses, meters, sound

    def _teacher(self, teacher: TopK | Tensor) -> tuple[TopK | Tensor, Tensor, Tensor]:
        """Its log-probabilities with unsound rows made harmless, its likeliest word, and the rows that are sound."""
        if isinstance(teacher, Tensor):
            scores = (teacher / self.teacher_temperature).log_softmax(-1)
            sound = scores.isfinite().all(-1)
            return torch.where(sound[:, None], scores, 0), scores.argmax(-1), sound
        self._check_stored(teacher)
        sound = teacher.log_probs.isfinite().all(-1)
        if teacher.tail is not None:
            sound = sound & ~teacher.tail.isnan()
        known = TopK(
            indices=torch.where(sound[:, None], teacher.indices, 0),
            log_probs=torch.where(sound[:, None], teacher.log_probs, -1),
            tail=None if teacher.tail is None else torch.where(sound, teacher.tail, -1),
            temperature=teacher.temperature,
        )
        return known, known.indices.gather(-1, known.log_probs.argmax(-1, keepdim=True))[:, 0], sound

    def _check_stored(self, teacher: TopK) -> None:
        if teacher.temperature != self.teacher_temperature:
            raise ValueError(
                f"the teacher's words were taken at temperature {teacher.temperature}, "
                f"teacher_temperature={self.teacher_temperature}: the temperature of stored words cannot be changed"
            )
        if self.whose == "student":
            raise ValueError(
                "whose='student' needs the teacher's hidden states: a list has the teacher's best words alone"
            )


class ForwardKL(Matching):
    """``KL(teacher || student)`` at every token: the student covers all that the teacher might say.

    Args:
        student_temperature: Divides the student's logits.
        teacher_temperature: Divides the teacher's; of stored best words, the temperature that they were taken at.
        topk: Words to compare; all by default.
        whose: Whose best words.
        tail: What becomes of the other words: one more bin, scaled away, or dropped.
        chunk_size: Positions whose logits exist at a time.
    """

    def __init__(
        self,
        student_temperature: float = 1.0,
        teacher_temperature: float = 1.0,
        topk: int | None = None,
        whose: Whose = "teacher",
        tail: Tail = "bin",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(student_temperature, teacher_temperature, topk, whose, tail, chunk_size)

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :class:`Matching`."""
        return forward_kl(student, teacher)


class ReverseKL(Matching):
    """``KL(student || teacher)`` at every token: the student says nothing that the teacher would not.

    On answers of the student it is on-policy distillation with the exact sum over the words; against a frozen copy of itself
    it is the exact divergence of a policy from its reference.

    Args:
        student_temperature: Divides the student's logits.
        teacher_temperature: Divides the teacher's; of stored best words, the temperature that they were taken at.
        topk: Words to compare; all by default.
        whose: Whose best words.
        tail: What becomes of the other words: one more bin, scaled away, or dropped.
        chunk_size: Positions whose logits exist at a time.
    """

    def __init__(
        self,
        student_temperature: float = 1.0,
        teacher_temperature: float = 1.0,
        topk: int | None = None,
        whose: Whose = "teacher",
        tail: Tail = "bin",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(student_temperature, teacher_temperature, topk, whose, tail, chunk_size)

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :class:`Matching`."""
        return reverse_kl(student, teacher)


class JensenShannon(Matching):
    """Generalised Jensen–Shannon divergence at every token, between forward and reverse, and bounded (arXiv:2306.13649).

    Args:
        beta: Share of the teacher in the mixture that both are compared with; 0.5 is symmetric.
        student_temperature: Divides the student's logits.
        teacher_temperature: Divides the teacher's; of stored best words, the temperature that they were taken at.
        topk: Words to compare; all by default.
        whose: Whose best words.
        tail: What becomes of the other words: one more bin, scaled away, or dropped.
        chunk_size: Positions whose logits exist at a time.

    Raises:
        ValueError: If ``beta`` does not lie between 0 and 1, both excluded.
    """

    def __init__(
        self,
        beta: float = 0.5,
        student_temperature: float = 1.0,
        teacher_temperature: float = 1.0,
        topk: int | None = None,
        whose: Whose = "teacher",
        tail: Tail = "bin",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(student_temperature, teacher_temperature, topk, whose, tail, chunk_size)
        if not 0 < beta < 1:
            raise ValueError(f"beta={beta} must lie between 0 and 1: at the ends take ForwardKL or ReverseKL")
        self.beta = beta

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See :class:`Matching`."""
        return generalized_jensen_shannon(student, teacher, self.beta)
