"""Divergences of two distributions that are given as log-probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["forward_kl", "generalized_jensen_shannon", "reverse_kl"]


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """``KL(teacher || student)``: the student must cover whatever the teacher might say.

    Args:
        student: ``[..., V]`` log-probabilities.
        teacher: ``[..., V]`` log-probabilities.

    Returns:
        ``[...]`` in nats.

    Example:
        >>> student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
        >>> round(forward_kl(student, teacher).item(), 3), round(reverse_kl(student, teacher).item(), 3)
        (0.368, 0.511)
    """
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """``KL(student || teacher)``: the student must not say what the teacher would not."""
    return forward_kl(teacher, student)


def generalized_jensen_shannon(student: Tensor, teacher: Tensor, beta: float = 0.5) -> Tensor:
    """``beta * KL(teacher || m) + (1 - beta) * KL(student || m)`` with ``m = beta * teacher + (1 - beta) * student``.

    arXiv:2306.13649, equation 1. It is bounded, and symmetric for ``beta`` = 0.5. Divided by ``beta`` it becomes the forward
    divergence as ``beta`` goes to 0, divided by ``1 - beta`` the reverse one as it goes to 1; undivided it vanishes there.

    Args:
        student: ``[..., V]`` log-probabilities.
        teacher: ``[..., V]`` log-probabilities.
        beta: Share of the teacher in the mixture, between 0 and 1, both excluded.

    Returns:
        ``[...]`` in nats.
    """
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * forward_kl(mixture, teacher) + (1 - beta) * forward_kl(mixture, student)
