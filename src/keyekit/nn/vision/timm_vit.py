"""Any transformer over patches that timm has, fed with packed patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from timm.models.naflexvit import NaFlexVit
from torch import Tensor, nn

from keyekit.nn.vision.base import VisionEncoder
from keyekit.nn.vision.grouping import encode_by_shape

__all__ = ["TimmViT"]


class TimmViT(VisionEncoder):
    """A vision transformer of timm by name, at native resolution.

    NaFlex models read patches with coordinates; others get every image reassembled and resize their positions to its
    grid. Every image or frame attends to itself alone. Class and register tokens take part but are not returned; what
    timm does after pooling is left out. Nothing is downloaded: give a local file for weights.

    Args:
        model: timm's name, such as ``vit_so400m_patch14_siglip_224`` or ``naflexvit_base_patch16_gap``.
        patch_size: Side of a patch in pixels, which must be that of the data.
        arguments: More arguments of timm's constructor, such as ``{depth: 2}``.
        weights: Local file with the model's weights, as ``timm.create_model(checkpoint_path=...)`` reads it: every
            tensor must be there and none too many.

    Raises:
        ValueError: If the model does not give one feature per patch, or has not these arguments.

    Example:
        >>> vit = TimmViT("vit_tiny_patch16_224", arguments={"img_size": 56, "depth": 1})
        >>> vit(torch.zeros(4 + 6, 3, 14, 14), [(2, 2), (2, 3)]).shape
        torch.Size([10, 192])
    """

    def __init__(
        self,
        model: str = "vit_so400m_patch14_siglip_224",
        patch_size: int = 14,
        arguments: dict[str, Any] | None = None,
        weights: str | None = None,
    ) -> None:
        chosen = {"num_classes": 0, "global_pool": "", "patch_size": patch_size} | (arguments or {})
        if not model.startswith("naflexvit"):
            chosen = {"dynamic_img_size": True} | chosen
        try:
            network: Any = timm.create_model(model, pretrained=False, checkpoint_path=weights or "", **chosen)
        except TypeError as error:
            raise ValueError(
                f"timm cannot build {model!r} with {chosen}: {error}; choose a vision transformer and arguments that it has"
            ) from error
        _check_patches(network, model, patch_size)
        super().__init__(cast(int, network.embed_dim), patch_size)
        # timm normalises after pooling where it pools by the mean: here that norm belongs to the patches, or would not learn.
        if isinstance(network.norm, nn.Identity):
            network.norm = network.fc_norm
        network.fc_norm = nn.Identity()
        self.model = network

    @classmethod
    def tiny_arguments(cls) -> dict[str, Any]:
        """A size for conformance tests."""
        sizes = {"img_size": 56, "embed_dim": 32, "depth": 1, "num_heads": 2}
        return {"model": "vit_tiny_patch16_224", "arguments": sizes}

    @property
    def mixes_frames(self) -> bool:
        """Every image or frame attends to itself alone."""
        return False

    def forward(self, patches: Tensor, grids: Sequence[tuple[int, int]], frames: Sequence[int] | None = None) -> Tensor:
        """Encode ``patches [P, C, patch, patch]`` to ``[P, dim]``; see :class:`VisionEncoder`."""
        encode = self._with_coordinates if isinstance(self.model, NaFlexVit) else self._reassembled
        return encode_by_shape(patches, grids, encode)

    def _reassembled(self, images: Tensor, shape: tuple[int, int]) -> Tensor:
        rows_of_patches = images.unflatten(1, shape)  # [N, rows, columns, C, patch, patch]
        whole = rows_of_patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return self._without_prefix(cast(Any, self.model).forward_features(whole))

    def _with_coordinates(self, images: Tensor, shape: tuple[int, int]) -> Tensor:
        pixels = images.permute(0, 1, 3, 4, 2).flatten(2)  # NaFlex reads a patch as (row, column, channel)
        index = torch.arange(pixels.shape[1], device=pixels.device)
        coordinates = torch.stack([index // shape[1], index % shape[1]], dim=-1).expand(len(images), -1, -1)
        valid = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
        output = cast(NaFlexVit, self.model).forward_features(pixels, patch_coord=coordinates, patch_valid=valid)
        return self._without_prefix(output["patches"] if isinstance(output, dict) else output)

    def _without_prefix(self, tokens: Tensor) -> Tensor:
        return tokens[:, cast(int, self.model.num_prefix_tokens) :]


def _check_patches(network: nn.Module, model: str, patch_size: int) -> None:
    """Refuse models that do not give one feature per patch of this size."""
    if isinstance(network, NaFlexVit):
        size = cast(Any, network.embeds).patch_size
    elif hasattr(network, "num_prefix_tokens") and hasattr(network, "patch_embed"):
        size = cast(Any, network.patch_embed).patch_size
    else:
        raise ValueError(
            f"timm's {model!r} is a {type(network).__name__}: choose a transformer with one feature per patch, such as "
            "vit_*, naflexvit_*, deit3_* or eva02_*"
        )
    if tuple(size) != (patch_size, patch_size):
        raise ValueError(f"timm's {model!r} has patches of {tuple(size)}, the data's are {patch_size}: pass patch_size")
