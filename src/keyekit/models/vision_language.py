"""Vision encoder, projector and decoder as one network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from keyekit.batch import Batch, VisionBatch
from keyekit.models.decoder import Decoder, DecoderCache, DecoderOutput, LayerSelection
from keyekit.nn.projector import Projector
from keyekit.nn.vision.base import VisionEncoder
from keyekit.nn.vision.exchange import VisionExchange, encode_here

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
        self.vision_exchange: VisionExchange = encode_here
        """Where media are encoded in training; vision balancing replaces it."""
        self.vision_is_shared = False
        """Whether other ranks wait for this one's vision tower: it then runs on a pack of text in evaluation too."""

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
            part=batch.part,
        )

    def divide(self, batch: Batch) -> Batch:
        """What of a pack this rank computes in training: everything, unless packs are divided (sequence parallelism).

        Args:
            batch: The pack, best before it is copied to the device.
        """
        return self.decoder.exchange.divide(batch, self.projector.merge, self.vision.mixes_frames)

    def embed(self, batch: Batch) -> Tensor:
        """Token embeddings ``[T, D]`` with vision features in place of the placeholders.

        Raises:
            ValueError: If the number of vision features differs from the number of placeholders.
        """
        embeddings = self.decoder.embed_tokens(batch.tokens)
        if batch.vision is None and not (self.training or self.vision_is_shared):
            return embeddings
        exchange = self.vision_exchange if self.training else encode_here
        features = exchange(batch.vision, self._blank(embeddings), self._encode)
        if features.shape[0] != batch.vision_index.shape[0]:
            raise ValueError(
                f"{features.shape[0]} vision features for {batch.vision_index.shape[0]} placeholders: the grids of the media "
                "and the placeholders in the prompt must describe the same number of merged patches"
            )
        features = features.to(embeddings.dtype)
        if batch.part is None:
            return embeddings.index_copy(0, batch.vision_index, features)
        # An image that goes on at another rank ends in a row that is cut off.
        return functional.pad(embeddings, (0, 0, 0, 1)).index_copy(0, batch.vision_index, features)[:-1]

    def _encode(self, vision: VisionBatch) -> Tensor:
        """Tokens ``[M, D]`` of media."""
        return self.projector(self.vision(vision.patches, vision.grids, vision.frames), vision.grids)

    def _blank(self, like: Tensor) -> VisionBatch:
        """An image of one token, which stands for no image: the tower runs on it, and nothing uses what comes out."""
        side = self.projector.merge
        patches = like.new_zeros(side * side, 3, self.vision.patch_size, self.vision.patch_size)
        return VisionBatch(patches=patches, grids=((side, side),))
