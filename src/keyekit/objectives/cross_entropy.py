"""Next-token cross-entropy that never holds all logits at once."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from keyekit.batch import IGNORED_LABEL
from keyekit.objectives.cross_entropy_kernels import KERNELS, load_kernel, usable_kernels
from keyekit.objectives.linear_cross_entropy import linear_cross_entropy

__all__ = ["CrossEntropy"]

_log = logging.getLogger(__name__)


class CrossEntropy(nn.Module):
    """Sum of next-token cross-entropies over the labelled positions.

    Positions without a label cost nothing. Logits exist for one chunk at a time, in float32, and become gradients at once.
    The caller divides by the number of targets of the global batch (Keye-VL 8B sheet 1.6: logits in float32, ignored label
    -100).

    Args:
        chunk_size: Labelled positions per chunk; by default as many as fill 64 MiB of logits on a processor, 512 MiB on a GPU.
        implementation: ``torch`` is ours; ``cce`` and ``liger`` are the kernels of cut-cross-entropy and liger-kernel, for
            GPUs; ``auto`` takes the first that is installed and runs on the device, and logs which.
    """

    def __init__(
        self, chunk_size: int | None = None, implementation: Literal["auto", "torch", "cce", "liger"] = "auto"
    ) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: at least one position is needed")
        if implementation not in ("auto", "torch", *KERNELS):
            raise ValueError(f"implementation={implementation!r}: choose auto, torch, {' or '.join(KERNELS)}")
        self.chunk_size = chunk_size
        self.implementation = implementation

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
        taken = _resolve(self.implementation, hidden.device.type)
        if taken == "torch" or num_targets == 0:
            return linear_cross_entropy(hidden, weight, labels, self.chunk_size)
        return load_kernel(taken)(hidden, weight, labels)


@cache
def _resolve(implementation: str, device: str) -> str:
    """The implementation for a type of device; says once what ``auto`` took.

    Raises:
        ValueError: If a kernel is asked for that is not installed or does not run there.
    """
    usable = usable_kernels(device)
    if implementation == "auto":
        implementation = usable[0] if usable else "torch"
        _log.info("cross-entropy on %s uses the %r implementation", device, implementation)
    elif implementation != "torch":
        load_kernel(implementation)
        if implementation not in usable:
            raise ValueError(
                f"implementation={implementation!r} runs on GPUs, this is a {device}: choose 'torch' or 'auto'"
            )
    return implementation
