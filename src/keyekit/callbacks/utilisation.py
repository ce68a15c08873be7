"""How many useful operations a step takes, and how many the device could do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from keyekit.batch import Batch, VisionBatch
from keyekit.models.flops import training_flops
from keyekit.models.sizes import NetworkSizes
from keyekit.models.vision_language import VisionLanguageModel

__all__ = ["StepFlops", "device_name", "peak_flops"]

_PEAKS: tuple[tuple[str, float], ...] = (
    # Dense products in 16 bits per second, from the makers' data sheets; the first name that the device's contains counts.
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Operations a second that a device can do at most, or ``None`` if that is not known.

    Args:
        device_name: As the driver gives it.
        precision: Lightning's name; only products in 16 bits have a known peak.

    Example:
        >>> peak_flops("NVIDIA H100 80GB HBM3", "bf16-mixed"), peak_flops("NVIDIA H100 80GB HBM3", "32-true")
        (989000000000000.0, None)
    """
    if not precision.startswith(("bf16", "16")):
        return None
    return next((peak for name, peak in _PEAKS if name in device_name), None)


class StepFlops:
    """Counts the operations of forward and backward over the samples of a batch; padding is no useful work.

    Args:
        network: The network that is trained.

    Raises:
        ValueError: If its operations are not known: it is no :class:`VisionLanguageModel`, has parts that can only be guessed,
            or some of it is frozen.
    """

    def __init__(self, network: nn.Module) -> None:
        if not isinstance(network, VisionLanguageModel):
            raise ValueError(f"operations are known of VisionLanguageModel, not of {type(network).__name__}")
        if not all(parameter.requires_grad for parameter in network.parameters()):
            raise ValueError("a part of the network is frozen, and operations are counted for training all of it")
        self.sizes = NetworkSizes.of(network)
        if self.sizes.assumptions:
            raise ValueError("; ".join(self.sizes.assumptions))

    def of(self, batch: Any) -> float:
        """Operations of one step; 0 for a batch of another kind."""
        if not isinstance(batch, Batch):
            return 0.0
        lengths = [sample.stop - sample.start for sample in batch.samples]
        media = [] if batch.vision is None else _media(batch.vision)
        return training_flops(self.sizes, lengths, media, targets=batch.num_targets).total


def _media(vision: VisionBatch) -> list[tuple[int, int, int]]:
    """``(frames, rows, columns)`` of every medium."""
    media, start = [], 0
    for frames in vision.frames:
        media.append((frames, *vision.grids[start]))
        start += frames
    return media


def device_name(device: torch.device) -> str:
    """The driver's name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
