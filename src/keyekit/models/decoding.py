"""The two forward passes of generation: prompts all at once, then one token per sequence and step, over one cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from keyekit.batch import Batch, Segments
from keyekit.models.cache import SequenceCache
from keyekit.models.decoder import LayerSelection
from keyekit.models.vision_language import VisionLanguageModel

__all__ = ["DecodeState", "decode_step", "prefill"]


@dataclass(slots=True, kw_only=True)
class DecodeState:
    """Everything needed to produce the next token of each sequence.

    Args:
        cache: Keys and values so far.
        positions: ``[B]`` int64 next position of each sequence. All three axes advance together in text, so that the released
            models' difference between position and length (``rope_delta``) needs no place of its own.
        logits: ``[B, V]`` float32 logits of the next token.
        selections: Discrete choices of each layer in the last forward pass, for its tokens in packed order.
        segments: Sequences of that pass; selected keys are rows of its packed keys.
    """

    cache: SequenceCache
    positions: Tensor
    logits: Tensor
    selections: tuple[LayerSelection, ...] = ()
    segments: Segments | None = None

    @classmethod
    def reserved(cls, network: VisionLanguageModel, slots: int, capacity: int) -> DecodeState:
        """A state without sequences, with room for ``slots`` of at most ``capacity`` tokens; they come by :meth:`adopt`."""
        weight = network.decoder.lm_head.weight
        return cls(
            cache=SequenceCache.reserved(len(network.decoder.layers), slots, capacity),
            positions=torch.zeros(0, dtype=torch.int64, device=weight.device),
            logits=torch.zeros(0, weight.shape[0], device=weight.device),
        )

    def adopt(self, other: DecodeState, sequences: Sequence[int]) -> None:
        """Add copies of another state's sequences behind the present ones; one may be copied several times.

        Raises:
            ValueError: If there is no room for them.
        """
        for sequence in sequences:
            self.cache.adopt(other.cache, sequence)
        rows = torch.tensor(list(sequences), dtype=torch.int64, device=self.positions.device)
        self.positions = torch.cat([self.positions, other.positions[rows]])
        self.logits = torch.cat([self.logits, other.logits[rows]])

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop all sequences but these, in this order."""
        self.cache.keep(sequences)
        rows = torch.tensor(sequences, dtype=torch.int64, device=self.positions.device)
        self.positions, self.logits = self.positions[rows], self.logits[rows]


@torch.no_grad()
def prefill(network: VisionLanguageModel, batch: Batch, max_new_tokens: int) -> DecodeState:
    """Read the prompts of a pack.

    Args:
        network: The model.
        batch: Prompts, one per sample; a padding tail is cut off.
        max_new_tokens: Tokens that will be generated at most, for the size of the cache.

    Returns:
        The state from which :func:`decode_step` goes on.

    Raises:
        ValueError: If there is no prompt, or an empty one.
    """
    lengths = [sample.stop - sample.start for sample in batch.samples]
    if not lengths or min(lengths) < 1:
        raise ValueError(f"the batch holds {len(lengths)} prompts, of {lengths} tokens: each needs at least one")
    cache = SequenceCache(len(network.decoder.layers), [length + max_new_tokens for length in lengths])
    stop = batch.samples[-1].stop
    prompts = replace(
        batch,
        tokens=batch.tokens[:stop],
        labels=batch.labels[:stop],
        positions=batch.positions[:, :stop],
        segments=cache.segments_for(lengths, batch.tokens.device),
    )
    output = network(prompts, cache=cache)
    cache.advance(lengths)
    last = prompts.segments.offsets[1:].long() - 1
    # Keye-VL 8B sheet 2.3: an image takes fewer positions than tokens, and text goes on after the largest of them.
    positions = torch.stack([part.max() + 1 for part in prompts.positions.split(lengths, dim=1)])
    return DecodeState(
        cache=cache,
        positions=positions,
        logits=network.decoder.logits(output.hidden[last]),
        selections=output.selections,
        segments=prompts.segments,
    )


@torch.no_grad()
def decode_step(network: VisionLanguageModel, state: DecodeState, tokens: Tensor) -> None:
    """Feed one token ``[B]`` per sequence and replace the state's logits by those of the next."""
    decoder = network.decoder
    ones = [1] * tokens.shape[0]
    segments = state.cache.segments_for(ones, tokens.device)
    embeddings, positions = decoder.embed_tokens(tokens), state.positions.expand(3, -1)
    output = decoder(embeddings, positions, segments, tokens=tokens, cache=state.cache)
    state.cache.advance(ones)
    state.positions = state.positions + 1
    state.logits = decoder.logits(output.hidden)
    state.selections, state.segments = output.selections, segments
