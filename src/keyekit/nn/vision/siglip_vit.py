"""SigLIP 2's native-resolution tower as transformers has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Siglip2VisionConfig, Siglip2VisionModel

from keyekit.nn.vision.base import VisionEncoder
from keyekit.nn.vision.grouping import encode_by_shape

__all__ = ["SiglipViT"]


class SiglipViT(VisionEncoder):
    """SigLIP 2's NaFlex vision tower from transformers (arXiv:2502.14786): learned positions alone, resized to each grid.

    Every image or frame attends to itself alone. The pooling head is left out. The defaults are so400m's size.

    Args:
        dim: Width.
        num_layers: Blocks.
        num_heads: Attention heads.
        hidden_dim: Inner width of the perceptrons.
        patch_size: Side of a patch in pixels.
        image_size: Side in pixels of the square for which the learned table is made.
        weights: Local folder of a transformers checkpoint whose vision tower is loaded; nothing is downloaded.

    Raises:
        ValueError: If the folder lacks a tensor of the tower, or its sizes differ.

    Example:
        >>> vit = SiglipViT(dim=32, num_layers=1, num_heads=2, hidden_dim=64, image_size=56)
        >>> vit(torch.zeros(4 + 6, 3, 14, 14), [(2, 2), (2, 3)]).shape
        torch.Size([10, 32])
    """

    def __init__(
        self,
        dim: int = 1152,
        num_layers: int = 27,
        num_heads: int = 16,
        hidden_dim: int = 4304,
        patch_size: int = 14,
        image_size: int = 224,
        weights: str | None = None,
    ) -> None:
        super().__init__(dim, patch_size)
        config = Siglip2VisionConfig(
            hidden_size=dim,
            intermediate_size=hidden_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            patch_size=patch_size,
            num_patches=(image_size // patch_size) ** 2,
            vision_use_head=False,
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
        )
        self.model = Siglip2VisionModel(config) if weights is None else _loaded(weights, config)

    @property
    def mixes_frames(self) -> bool:
        """Every image or frame attends to itself alone."""
        return False

    def forward(self, patches: Tensor, grids: Sequence[tuple[int, int]], frames: Sequence[int] | None = None) -> Tensor:
        """Encode ``patches [P, C, patch, patch]`` to ``[P, dim]``; see :class:`VisionEncoder`."""
        return encode_by_shape(patches, grids, self._encode)

    def _encode(self, images: Tensor, shape: tuple[int, int]) -> Tensor:
        pixels = images.permute(0, 1, 3, 4, 2).flatten(2)  # SigLIP 2 reads a patch as (row, column, channel)
        shapes = torch.tensor([shape] * len(images))  # on the host: transformers reads it there
        mask = torch.ones(pixels.shape[:2], dtype=torch.int64, device=pixels.device)
        return self.model(pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=shapes).last_hidden_state


def _loaded(folder: str, config: Siglip2VisionConfig) -> Siglip2VisionModel:
    """The tower with the weights of a folder; transformers alone would go on with random ones where some are missing."""
    try:
        loaded: Any = Siglip2VisionModel.from_pretrained(
            folder, config=config, local_files_only=True, output_loading_info=True
        )
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit the sizes given: {error}") from error
    model, report = loaded
    if report["missing_keys"]:
        raise ValueError(
            f"{folder} lacks {len(report['missing_keys'])} tensors, such as {sorted(report['missing_keys'])[0]}"
        )
    return model
