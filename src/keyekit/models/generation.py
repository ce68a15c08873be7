"""Generation of answers: prefill once, then one token per sequence and step, over one cache type."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from keyekit.batch import Batch, Segments
from keyekit.models.cache import SequenceCache
from keyekit.models.vision_language import VisionLanguageModel

__all__ = ["DecodeState", "Sampler", "decode_step", "generate", "prefill", "stream"]


@dataclass(slots=True, kw_only=True)
class DecodeState:
    """Everything needed to produce the next token of each sequence.

    Args:
        cache: Keys and values so far.
        positions: ``[B]`` next position of each sequence (all three axes advance together in text).
        logits: ``[B, V]`` float32 logits of the next token.
    """

    cache: SequenceCache
    positions: Tensor
    logits: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """How the next token is drawn.

    Args:
        temperature: 0 takes the most likely token.
        top_k: Draw among this many most likely tokens; 0 for all.
        top_p: Draw among the most likely tokens that together reach this probability.
        seed: Seed of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def generator(self, device: torch.device | str) -> torch.Generator:
        """A generator for a sequence of :meth:`draw` calls."""
        return torch.Generator(device=device).manual_seed(self.seed)

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Draw tokens ``[B]`` int64 from ``logits [B, V]``."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        logits = logits / self.temperature
        if self.top_k:
            smallest = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < smallest, -torch.inf)
        if self.top_p < 1:
            ordered, index = logits.softmax(dim=-1).sort(dim=-1, descending=True)
            beyond = ordered.cumsum(dim=-1) - ordered >= self.top_p
            logits = logits.masked_fill(beyond.scatter(1, index, beyond), -torch.inf)
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


@torch.no_grad()
def prefill(network: VisionLanguageModel, batch: Batch, max_new_tokens: int) -> DecodeState:
    """Read the prompts of a pack.

    Args:
        network: The model.
        batch: Prompts, one per sample; a padding tail is cut off.
        max_new_tokens: Tokens that will be generated at most, for the size of the cache.

    Returns:
        The state from which :func:`decode_step` goes on.
    """
    batch = _without_tail(batch)
    lengths = [sample.stop - sample.start for sample in batch.samples]
    cache = SequenceCache(len(network.decoder.layers), [length + max_new_tokens for length in lengths])
    output = network(batch, cache=cache)
    cache.advance(lengths)
    last = torch.tensor([sample.stop - 1 for sample in batch.samples], device=batch.tokens.device)
    positions = torch.stack([batch.positions[:, sample.start : sample.stop].max() + 1 for sample in batch.samples])
    return DecodeState(cache=cache, positions=positions, logits=network.decoder.logits(output.hidden[last]))


@torch.no_grad()
def decode_step(network: VisionLanguageModel, state: DecodeState, tokens: Tensor) -> None:
    """Feed one token ``[B]`` per sequence and replace the state's logits by those of the next."""
    decoder = network.decoder
    ones = [1] * tokens.shape[0]
    segments = state.cache.segments_for(ones, tokens.device)
    output = decoder(decoder.embed_tokens(tokens), state.positions.expand(3, -1), segments, cache=state.cache)
    state.cache.advance(ones)
    state.positions = state.positions + 1
    state.logits = decoder.logits(output.hidden)


def stream(
    network: VisionLanguageModel,
    batch: Batch,
    *,
    stop_tokens: Collection[int],
    max_new_tokens: int = 64,
    sampler: Sampler | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Generate step by step.

    Args:
        network: The model.
        batch: Prompts, one per sample.
        stop_tokens: Tokens that end a sequence; they are not yielded.
        max_new_tokens: Longest answer.
        sampler: How tokens are drawn; the most likely one by default.

    Yields:
        For each step, ``(sample, token)`` of every sequence that goes on.
    """
    sampler = sampler or Sampler()
    state = prefill(network, batch, max_new_tokens)
    generator = sampler.generator(state.logits.device)
    alive = list(range(len(batch.samples)))
    for step in range(max_new_tokens):
        tokens = sampler.draw(state.logits, generator)
        drawn = tokens.tolist()
        going = [row for row, token in enumerate(drawn) if token not in stop_tokens]
        yield [(alive[row], drawn[row]) for row in going]
        if not going or step + 1 == max_new_tokens:
            return
        if len(going) < len(alive):
            alive = [alive[row] for row in going]
            state.cache.keep(going)
            state.positions, tokens = state.positions[going], tokens[going]
        decode_step(network, state, tokens)


def generate(
    network: VisionLanguageModel,
    batch: Batch,
    *,
    stop_tokens: Collection[int],
    max_new_tokens: int = 64,
    sampler: Sampler | None = None,
) -> list[list[int]]:
    """Generate all answers of a pack.

    Args:
        network: The model.
        batch: Prompts, one per sample.
        stop_tokens: Tokens that end a sequence; they are not returned.
        max_new_tokens: Longest answer.
        sampler: How tokens are drawn; the most likely one by default.

    Returns:
        The new tokens of each sample.
    """
    answers: list[list[int]] = [[] for _ in batch.samples]
    for step in stream(network, batch, stop_tokens=stop_tokens, max_new_tokens=max_new_tokens, sampler=sampler):
        for sample, token in step:
            answers[sample].append(token)
    return answers


def _without_tail(batch: Batch) -> Batch:
    if not batch.samples:
        raise ValueError("the batch holds no sample to answer")
    stop = batch.samples[-1].stop
    lengths = [sample.stop - sample.start for sample in batch.samples]
    return replace(
        batch,
        tokens=batch.tokens[:stop],
        labels=batch.labels[:stop],
        positions=batch.positions[:, :stop],
        segments=Segments.of(lengths, device=batch.tokens.device),
    )
