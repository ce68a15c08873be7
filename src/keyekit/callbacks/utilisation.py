"""How many useful operations a step takes, and how many the device could do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from keyekit.batch import Batch
from keyekit.callbacks.rates import own_media
from keyekit.models.flops import Flops, forward_flops, training_flops
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

    The parts of a pack that is divided among ranks add up to the whole pack: what both sides of a border compute counts once.

    Vision tower, projector and decoder may be frozen, each as a whole. A frozen part has no gradient of its weights, and none
    of its input either if nothing before it trains.

    Args:
        network: The network that is trained.

    Raises:
        ValueError: If its operations are not known: it is no :class:`VisionLanguageModel`, has parts that can only be guessed,
            or a part is frozen by halves.
    """

    def __init__(self, network: nn.Module) -> None:
        if not isinstance(network, VisionLanguageModel):
            raise ValueError(f"operations are known of VisionLanguageModel, not of {type(network).__name__}")
        self._trains = {name: _trains(name, part) for name, part in network.named_children()}
        self.sizes = NetworkSizes.of(network)
        if self.sizes.assumptions:
            raise ValueError("; ".join(self.sizes.assumptions))
        if not self._trains["decoder"] and any(layer.topk or layer.pattern for layer, _ in self.sizes.layers):
            raise ValueError("the operations of a frozen decoder with sparse attention are not known")

    def of(self, batch: Any) -> float:
        """Operations of one step; 0 for a batch of another kind."""
        if not isinstance(batch, Batch):
            return 0.0
        lengths = [sample.stop - sample.start for sample in batch.samples]
        keys = lengths if batch.part is None else [keys for _, keys in batch.part.own_queries]
        media, targets = own_media(batch), batch.num_targets
        everything = training_flops(self.sizes, lengths, media, key_lengths=keys, targets=targets)
        if all(self._trains.values()):
            return everything.total
        forward = forward_flops(self.sizes, lengths, media, key_lengths=keys, targets=targets)
        return _without_frozen(everything, forward, self._trains).total


def _trains(name: str, part: nn.Module) -> bool:
    trained = {parameter.requires_grad for parameter in part.parameters()}
    if len(trained) > 1:
        raise ValueError(f"the {name} is frozen by halves, and operations are counted for whole parts")
    return trained == {True}


def _without_frozen(everything: Flops, forward: Flops, trains: Mapping[str, bool]) -> Flops:
    """What is left of the operations of a training when parts are frozen.

    A matrix costs its forward once, once more for the gradient of its input, and once more for that of its weight. Attention
    has no weights: it costs all three, or the forward alone.
    """
    changed: dict[str, float] = {}
    if not trains["vision"]:
        changed |= {"vision_linear": forward.vision_linear, "vision_attention": forward.vision_attention}
    if not trains["projector"]:
        changed["projector"] = forward.projector * (2 if trains["vision"] else 1)
    if not trains["decoder"]:
        follows = trains["vision"] or trains["projector"]
        matrices = ("linear", "head", "router", "experts")
        changed |= {name: getattr(forward, name) * (2 if follows else 1) for name in matrices}
        changed["attention"] = forward.attention * (3 if follows else 1)
    return replace(everything, **changed)


def device_name(device: torch.device) -> str:
    """The driver's name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
