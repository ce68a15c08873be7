"""Next-token cross-entropy that never holds all logits at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from keyekit.batch import IGNORED_LABEL

__all__ = ["CrossEntropy"]


class CrossEntropy(nn.Module):
    """Sum of next-token cross-entropies over the labelled positions, computed in chunks.

    Positions without a label cost nothing; logits exist for one chunk at a time, in float32, and are recomputed in the
    backward pass. The caller divides by the number of targets of the global batch (Keye-VL 8B sheet 1.6: logits in float32,
    ignored label -100).

    Args:
        chunk_size: Labelled positions per chunk.
    """

    def __init__(self, chunk_size: int = 4096) -> None:
        super().__init__()
        if chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: at least one position is needed")
        self.chunk_size = chunk_size

    def forward(self, hidden: Tensor, weight: Tensor, labels: Tensor, num_targets: int) -> Tensor:
        """Add up the losses.

        Args:
            hidden: ``[T, D]`` final hidden states.
            weight: ``[V, D]`` output layer.
            labels: ``[T]`` int64, already shifted, :data:`~keyekit.batch.IGNORED_LABEL` where nothing is to be learnt.
            num_targets: Number of labels that are not ignored, known on the host so that nothing synchronises.

        Returns:
            Scalar float32 sum in nats.
        """
        targets = torch.nonzero_static(labels != IGNORED_LABEL, size=num_targets)[:, 0]
        hidden, labels = hidden[targets], labels[targets]
        if num_targets <= self.chunk_size:
            return _summed(hidden, weight, labels)
        total = hidden.new_zeros((), dtype=torch.float32)
        for part, part_labels in zip(hidden.split(self.chunk_size), labels.split(self.chunk_size), strict=True):
            total = total + checkpoint(_summed, part, weight, part_labels, use_reentrant=False)
        return total


def _summed(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight).float(), labels, reduction="sum")
