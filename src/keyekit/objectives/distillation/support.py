"""Which words two distributions are compared on: all of them, or the best few with or without the rest."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from keyekit.objectives.distillation.topk import TopK, log_complement

__all__ = ["Tail", "Whose", "compared_bins"]

Tail = Literal["bin", "renormalise", "drop"]
"""What becomes of the words outside the best few.

- ``bin``: together they are one more word, so that both sides still add up to 1.
- ``renormalise``: both sides are scaled to add up to 1 without them; nothing is said about the mass outside.
- ``drop``: their terms are left out of the sum. What is left is no divergence: it can be negative, and a student lowers the
  reverse one by moving its mass out of sight.
"""

Whose = Literal["teacher", "student"]
"""Whose best words are compared."""


def compared_bins(
    student: Tensor, teacher: TopK | Tensor, topk: int | None, whose: Whose, tail: Tail
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of student and teacher over the same bins.

    Args:
        student: ``[rows, V]`` log-probabilities.
        teacher: ``[rows, V]`` log-probabilities, or its best words.
        topk: Words to compare; all by default. Of a teacher given as best words, as many as it lists, if that is fewer.
        whose: Whose best words; only the teacher's can be had if it is given as best words.
        tail: What becomes of the others.

    Returns:
        Student and teacher, ``[rows, bins]`` each.
    """
    if isinstance(teacher, TopK):
        kept = teacher if topk is None else teacher.best(topk)
        indices, known, rest = kept.indices, kept.log_probs.to(student.dtype), kept.tail_log_probs().to(student.dtype)
    elif topk is None or topk >= student.shape[-1]:
        return student, teacher
    else:
        indices = (teacher if whose == "teacher" else student.detach()).topk(topk, dim=-1).indices
        known = teacher.gather(-1, indices)
        rest = log_complement(known)
    seen = student.gather(-1, indices)
    if tail == "renormalise":
        return seen.log_softmax(-1), known.log_softmax(-1)
    if tail == "drop" or indices.shape[-1] == student.shape[-1]:
        return seen, known
    return torch.cat([seen, log_complement(seen)[:, None]], dim=-1), torch.cat([known, rest[:, None]], dim=-1)
