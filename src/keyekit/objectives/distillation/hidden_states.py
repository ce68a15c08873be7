"""Hidden states of a student are matched to those of a teacher, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from keyekit.objectives.distillation.base import DistillationOutput

__all__ = ["HiddenStateMatching"]


class HiddenStateMatching(nn.Module):
    """Mean over tokens and pairs of layers of a distance of hidden states.

    Widths must agree: an objective has no weights, so that a projection from one width to another belongs to the network.

    Args:
        distance: ``squared`` is the mean squared difference (TinyBERT, arXiv:1909.10351); ``cosine`` is 1 minus the cosine
            (DistilBERT, arXiv:1910.01108), which does not mind scales; ``normalised`` the squared difference of states that
            were scaled to a root mean square of 1.

    Raises:
        ValueError: If the distance is unknown.
    """

    def __init__(self, distance: Literal["squared", "cosine", "normalised"] = "normalised") -> None:
        super().__init__()
        if distance not in ("squared", "cosine", "normalised"):
            raise ValueError(f"distance={distance!r}: choose squared, cosine or normalised")
        self.distance = distance

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor, total: Tensor | float | None = None
    ) -> DistillationOutput:
        """Compute the loss.

        Args:
            student: ``[T, D]`` of each chosen layer.
            teacher: ``[T, D]`` of the layer that it is to follow; no gradient flows there.
            mask: ``[T]`` bool, the tokens that count.
            total: Tokens of the whole step; those of the mask by default.

        Returns:
            The loss, and the distance of every layer as ``layer_<n>``.

        Raises:
            ValueError: If numbers of layers or shapes differ.
        """
        if len(student) != len(teacher) or not student:
            raise ValueError(
                f"{len(student)} layers of the student, {len(teacher)} of the teacher: name as many of both"
            )
        count = mask.sum().clamp(min=1) if total is None else total
        distances = []
        for number, (own, other) in enumerate(zip(student, teacher, strict=True)):
            if own.shape != other.shape:
                raise ValueError(
                    f"pair {number} has the shapes {tuple(own.shape)} and {tuple(other.shape)}: project the student's states "
                    "to the teacher's width in the network"
                )
            each = self._distances(own.float() if own.dtype != torch.float64 else own, other.detach())
            distances.append(torch.where(mask, each, 0).sum() / count)
        meters = {f"layer_{number}": value.detach() for number, value in enumerate(distances)}
        return DistillationOutput(loss=torch.stack(distances).mean(), meters=meters)

    def _distances(self, own: Tensor, other: Tensor) -> Tensor:
        other = other.to(own.dtype)
        if self.distance == "cosine":
            return 1 - functional.cosine_similarity(own, other, dim=-1)
        if self.distance == "normalised":
            own, other = (functional.rms_norm(states, states.shape[-1:], eps=1e-6) for states in (own, other))
        return (own - other).square().mean(-1)
