"""The best words of a teacher and their log-probabilities: what is stored, or sent by a server, instead of all logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from keyekit.objectives.linear_cross_entropy import chunk_length

__all__ = ["TopK", "log_complement", "score_topk", "take_topk"]


@dataclass(slots=True, kw_only=True)
class TopK:
    """Log-probabilities of N words at each token.

    They are those of the whole vocabulary: their probabilities do not add up to 1, and what is missing is the tail.

    Args:
        indices: ``[T, N]`` int64 ids of the words, different within a row.
        log_probs: ``[T, N]`` in nats; rows of tokens that are no targets hold anything.
        tail: ``[T]`` logarithm of the probability of all other words; computed from the rest by default.
        temperature: That of the softmax they come from. It cannot be changed afterwards, since the words left out are unknown.

    Raises:
        ValueError: If the shapes do not fit or the temperature is not positive.
    """

    indices: Tensor
    log_probs: Tensor
    tail: Tensor | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.indices.shape != self.log_probs.shape or self.indices.dim() != 2:
            raise ValueError(
                f"indices {tuple(self.indices.shape)} and log_probs {tuple(self.log_probs.shape)} must both be [T, N]"
            )
        if self.tail is not None and self.tail.shape != self.indices.shape[:1]:
            raise ValueError(
                f"tail {tuple(self.tail.shape)} must have one number for each of {len(self.indices)} tokens"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be positive")

    def rows(self, which: Tensor | slice) -> TopK:
        """The entries of some tokens, by their positions."""
        tail = None if self.tail is None else self.tail[which]
        return TopK(
            indices=self.indices[which], log_probs=self.log_probs[which], tail=tail, temperature=self.temperature
        )

    def best(self, topk: int) -> TopK:
        """The likeliest ``topk`` words of every token; what falls away joins the tail."""
        if topk >= self.indices.shape[-1]:
            return self
        kept = self.log_probs.topk(topk, dim=-1)
        indices = self.indices.gather(-1, kept.indices)
        return TopK(indices=indices, log_probs=kept.values, temperature=self.temperature)

    def tail_log_probs(self) -> Tensor:
        """``[T]`` logarithm of the probability of all words that are not listed."""
        return log_complement(self.log_probs) if self.tail is None else self.tail

    def check(self, vocab_size: int) -> None:
        """Refuse entries that no model with this vocabulary can have made; for loaders, on the host.

        Raises:
            ValueError: If an id lies outside the vocabulary, or probabilities add up to more than 1.
        """
        if self.indices.numel() == 0:
            return
        low, high = int(self.indices.min()), int(self.indices.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"ids run from {low} to {high}, the student knows {vocab_size} words: the teacher has another vocabulary"
            )
        mass = float(self.log_probs.double().exp().sum(-1).max())
        if mass > 1.001:
            raise ValueError(
                f"the probabilities of a token add up to {mass:.3f}: they are no log-probabilities in nats"
            )


def take_topk(
    hidden: Tensor, weight: Tensor, topk: int, temperature: float = 1.0, chunk_size: int | None = None
) -> TopK:
    """The best words of every token, from hidden states; logits exist for a chunk at a time.

    What a teacher computes once to be stored, or a server to be sent.

    Args:
        hidden: ``[T, D]`` final hidden states.
        weight: ``[V, D]`` output layer.
        topk: Words N to keep; all of them if there are no more.
        temperature: Divides the logits.
        chunk_size: Positions per chunk.

    Example:
        >>> kept = take_topk(torch.eye(2), torch.tensor([[3.0, 0.0], [1.0, 4.0], [0.0, 0.0]]), topk=1)
        >>> kept.indices.tolist()
        [[0], [1]]
    """
    if topk < 1:
        raise ValueError(f"topk={topk} must be at least 1")
    topk = min(topk, weight.shape[0])
    pieces = [scores.topk(topk, dim=-1) for scores in _scores(hidden, weight, temperature, chunk_size)]
    if not pieces:
        return TopK(
            indices=torch.zeros(0, topk, dtype=torch.int64, device=hidden.device),
            log_probs=hidden.new_zeros(0, topk, dtype=torch.promote_types(hidden.dtype, torch.float32)),
            temperature=temperature,
        )
    return TopK(
        indices=torch.cat([piece.indices for piece in pieces]),
        log_probs=torch.cat([piece.values for piece in pieces]),
        temperature=temperature,
    )


def score_topk(
    hidden: Tensor, weight: Tensor, indices: Tensor, temperature: float = 1.0, chunk_size: int | None = None
) -> TopK:
    """Log-probabilities of words that somebody else chose: a teacher that scores its student's best words.

    Args:
        hidden: ``[T, D]`` final hidden states.
        weight: ``[V, D]`` output layer.
        indices: ``[T, N]`` int64 ids of the words.
        temperature: Divides the logits.
        chunk_size: Positions per chunk.
    """
    found, start = [hidden.new_zeros(0, indices.shape[1], dtype=torch.promote_types(hidden.dtype, torch.float32))], 0
    for scores in _scores(hidden, weight, temperature, chunk_size):
        found.append(scores.gather(-1, indices[start : start + len(scores)]))
        start += len(scores)
    return TopK(indices=indices, log_probs=torch.cat(found), temperature=temperature)


def log_complement(log_probs: Tensor) -> Tensor:
    """``log(1 - sum(exp(log_probs)))`` over the last axis, held above the rounding of the sum.

    Example:
        >>> log_complement(torch.tensor([0.5, 0.25]).log()).exp()
        tensor(0.2500)
    """
    mass = log_probs.logsumexp(-1).clamp(max=-torch.finfo(log_probs.dtype).eps)
    return torch.log(-torch.expm1(mass))


@torch.no_grad()
def _scores(hidden: Tensor, weight: Tensor, temperature: float, chunk_size: int | None) -> Iterator[Tensor]:
    size = chunk_size or chunk_length(weight.shape[0], hidden.device.type)
    for start in range(0, len(hidden), size):
        logits = functional.linear(hidden[start : start + size], weight)
        yield (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
