"""Vision encoder, projector and decoder as one network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from keyekit.batch import Batch
from keyekit.models.decoder import Decoder, DecoderCache, DecoderOutput, LayerSelection
from keyekit.nn.projector import Projector
from keyekit.nn.vision.base import VisionEncoder

__all__ = ["VisionLanguageModel"]


class VisionLanguageModel(nn.Module):
    """Keye-VL at any size: vision features replace the placeholders among the token embeddings (Keye-VL 8B sheet 1.1).

    Args:
        vision: Encodes patches.
        projector: Turns patch features into token embeddings.
        decoder: Reads text and vision together.

    Raises:
        ValueError: If the projector's width is not the decoder's.
    """

    def __init__(self, vision: VisionEncoder, projector: Projector, decoder: Decoder) -> None:
        super().__init__()
        if projector.dim != decoder.dim:
            raise ValueError(f"the projector gives tokens of width {projector.dim}, the decoder reads {decoder.dim}")
        self.vision = vision
        self.projector = projector
        self.decoder = decoder

    def forward(
        self, batch: Batch, cache: DecoderCache | None = None, selections: Sequence[LayerSelection] | None = None
    ) -> DecoderOutput:
        """Encode a batch.

        Args:
            batch: A pack of samples.
            cache: Filled with keys and values when given (prefill).
            selections: Discrete choices to replay, one entry per layer.

        Returns:
            Hidden states ``[T, D]`` with losses, meters, selections and routing.
        """
        num_tokens = batch.samples[-1].stop if batch.samples else None
        return self.decoder(
            self.embed(batch),
            batch.positions,
            batch.segments,
            num_tokens=num_tokens,
            tokens=batch.tokens,
            cache=cache,
            selections=selections,
        )

    def embed(self, batch: Batch) -> Tensor:
        """Token embeddings ``[T, D]`` with vision features in place of the placeholders.

        Raises:
            ValueError: If the number of vision features differs from the number of placeholders.
        """
        embeddings = self.decoder.embed_tokens(batch.tokens)
        if batch.vision is None:
            return embeddings + self._idle_vision(embeddings) if self.training else embeddings
        vision = batch.vision
        features = self.projector(self.vision(vision.patches, vision.grids, vision.frames), vision.grids)
        if features.shape[0] != batch.vision_index.shape[0]:
            raise ValueError(
                f"{features.shape[0]} vision features for {batch.vision_index.shape[0]} placeholders: the grids of the media "
                "and the placeholders in the prompt must describe the same number of merged patches"
            )
        return embeddings.index_copy(0, batch.vision_index, features.to(embeddings.dtype))

    def _idle_vision(self, embeddings: Tensor) -> Tensor:
        """Run the vision side on one blank token with weight zero.

        Every rank then takes part in the tower's collectives, and its parameters get a (zero) gradient.
        """
        side = self.projector.merge
        patches = embeddings.new_zeros(side * side, 3, self.vision.patch_size, self.vision.patch_size)
        return self.projector(self.vision(patches, [(side, side)]), [(side, side)]).sum() * 0.0
