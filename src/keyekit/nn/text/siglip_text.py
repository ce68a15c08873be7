"""SigLIP's text tower as transformers has it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import SiglipTextConfig, SiglipTextModel

from keyekit.batch import Segments
from keyekit.nn.text.base import TextEncoder

__all__ = ["SiglipText"]


class SiglipText(TextEncoder):
    """SigLIP's text tower from transformers, the one that Keye's vision tower is trained against (8B sheet 4.2).

    It was trained on captions padded to ``max_tokens`` whose padding takes part in attention, and its embedding is that of
    the last position: captions are padded here, so that any tokens may come packed. The defaults are so400m's size.

    Args:
        vocab_size: Rows of the embedding.
        dim: Width.
        num_layers: Blocks.
        num_heads: Attention heads.
        hidden_dim: Inner width of the perceptrons.
        max_tokens: Length that captions are padded to.
        pad_token: Token that pads; 1 for SigLIP's own tokenizer, where it also ends a caption.
        weights: Local folder of a transformers checkpoint whose text tower is loaded; nothing is downloaded.

    Raises:
        ValueError: If the folder lacks a tensor of the tower, or its sizes differ.

    Example:
        >>> import torch
        >>> text = SiglipText(vocab_size=16, dim=32, num_layers=1, num_heads=2, hidden_dim=48, max_tokens=4)
        >>> text(torch.tensor([3, 4, 5]), Segments.of([1, 2])).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        vocab_size: int = 32000,
        dim: int = 1152,
        num_layers: int = 27,
        num_heads: int = 16,
        hidden_dim: int = 4304,
        max_tokens: int = 64,
        pad_token: int = 1,
        weights: str | None = None,
    ) -> None:
        super().__init__(dim, max_tokens)
        self.pad_token = pad_token
        config = SiglipTextConfig(
            vocab_size=vocab_size,
            hidden_size=dim,
            intermediate_size=hidden_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            max_position_embeddings=max_tokens,
            projection_size=dim,
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
        )
        self.model = SiglipTextModel(config) if weights is None else _loaded(weights, config)

    def forward(self, tokens: Tensor, segments: Segments) -> Tensor:
        """Encode packed captions ``[T]`` to ``[number of captions, dim]``; see :class:`TextEncoder`."""
        caption, position = self.positions(segments)
        padded = tokens.new_full((len(segments), self.max_tokens), self.pad_token)
        padded[caption, position] = tokens
        return self.model(input_ids=padded).pooler_output


def _loaded(folder: str, config: SiglipTextConfig) -> SiglipTextModel:
    """The tower with the weights of a folder; transformers alone would go on with random ones where some are missing."""
    try:
        loaded: Any = SiglipTextModel.from_pretrained(
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
