"""Log-probabilities of given next tokens, and entropies, from hidden states: logits exist for a chunk at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from keyekit.batch import IGNORED_LABEL
from keyekit.objectives.chunked_head import add_product, product_dtype
from keyekit.objectives.linear_cross_entropy import chunk_length

__all__ = ["TokenLogProbs", "token_log_probs"]


class TokenLogProbs(NamedTuple):
    """What a model says about the next tokens of a pack.

    Attributes:
        values: ``[T]`` log-probability of each label in nats, float32 or wider; 0 where nothing is to be predicted.
        entropies: ``[T]`` entropy of each prediction in nats, 0 in the same places; ``None`` if it was not asked for.
    """

    values: Tensor
    entropies: Tensor | None


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    num_targets: int,
    temperature: float = 1.0,
    entropies: bool = False,
    chunk_size: int | None = None,
) -> TokenLogProbs:
    """Log-probabilities of the labels under ``softmax(hidden @ weight.T / temperature)``.

    Every token may get a gradient of its own, as policy and preference losses need it. So a chunk's logits are made a second
    time in the backward pass; in between one number a token is kept.

    Args:
        hidden: ``[T, D]`` final hidden states.
        weight: ``[V, D]`` output layer.
        labels: ``[T]`` int64, already shifted, :data:`~keyekit.batch.IGNORED_LABEL` where nothing is to be predicted.
        num_targets: Number of labels that are not ignored, known on the host so that nothing synchronises.
        temperature: Divides the logits; that of the sampler, if its samples are scored.
        entropies: Whether to return entropies too; they have a gradient.
        chunk_size: Positions per chunk; by default :func:`~keyekit.objectives.linear_cross_entropy.chunk_length`.

    Returns:
        Log-probabilities and entropies. They can be differentiated once.

    Raises:
        ValueError: If ``temperature`` is not positive. Greedy decoding has no log-probabilities.

    Example:
        >>> hidden, weight = torch.randn(3, 4), torch.randn(7, 4)
        >>> found = token_log_probs(hidden, weight, torch.tensor([6, -100, 0]), num_targets=2)
        >>> plain = (hidden @ weight.T).log_softmax(-1)
        >>> torch.allclose(found.values, torch.stack([plain[0, 6], torch.tensor(0.0), plain[2, 0]]), atol=1e-5)
        True
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
    targets = torch.nonzero_static(labels != IGNORED_LABEL, size=num_targets)[:, 0]
    size = chunk_size or chunk_length(weight.shape[0], hidden.device.type)
    found = _TokenLogProbs.apply(hidden[targets], weight, labels[targets], 1 / temperature, entropies, size)
    values, spreads = (part.new_zeros(len(labels)).index_copy(0, targets, part) for part in found)
    return TokenLogProbs(values, spreads if entropies else None)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, sharpness: float, entropies: bool, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        kind = product_dtype(hidden, weight)
        wide = torch.promote_types(kind, torch.float32)
        states, matrix = hidden.to(kind), weight.to(kind)
        values, norms, spreads = hidden.new_zeros((3, len(hidden)), dtype=wide)
        for start in range(0, len(hidden), chunk_size):
            rows = slice(start, start + chunk_size)
            scores = functional.linear(states[rows], matrix).to(wide).mul_(sharpness)
            norms[rows] = scores.logsumexp(1)
            values[rows] = scores.gather(1, labels[rows, None])[:, 0] - norms[rows]
            if entropies:  # log-sum-exp less the mean score
                spreads[rows] = norms[rows] - ((scores - norms[rows, None]).exp_().mul_(scores)).sum(1)
        ctx.save_for_backward(hidden, weight, labels, norms, spreads)
        ctx.set_materialize_grads(False)
        ctx.settings = (kind, wide, sharpness, chunk_size)
        return values, spreads

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor | None, entropy_slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, norms, spreads = ctx.saved_tensors
        kind, wide, sharpness, chunk_size = ctx.settings
        states, matrix = hidden.to(kind), weight.to(kind)
        hidden_gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        weight_gradient = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        slopes = torch.zeros_like(norms) if slopes is None else slopes
        for start in range(0, len(hidden), chunk_size):
            rows = slice(start, start + chunk_size)
            scores = functional.linear(states[rows], matrix).to(wide).mul_(sharpness).sub_(norms[rows, None])
            slope = scores.exp()  # probabilities
            if entropy_slopes is None:
                slope.mul_(-slopes[rows, None])
            else:  # an entropy falls where the probability of a frequent word rises
                slope.mul_(-slopes[rows, None] - entropy_slopes[rows, None] * (scores + spreads[rows, None]))
            slope.scatter_add_(1, labels[rows, None], slopes[rows, None])
            slope = slope.mul_(sharpness).to(kind)
            if hidden_gradient is not None:
                hidden_gradient[rows] = slope @ matrix
            if weight_gradient is not None:
                add_product(weight_gradient, slope, states[rows])
        return hidden_gradient, None if weight_gradient is None else weight_gradient.to(weight.dtype), *(None,) * 4
