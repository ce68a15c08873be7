"""Exact divergence of a policy from its reference from the hidden states of both: logits exist for a chunk at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from keyekit.batch import IGNORED_LABEL
from keyekit.objectives.chunked_head import add_product, product_dtype
from keyekit.objectives.linear_cross_entropy import chunk_length

__all__ = ["chunked_kl"]

_NETWORKS = 2


def chunked_kl(
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    labels: Tensor,
    num_targets: int,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> Tensor:
    """``KL(policy || reference)`` over the whole vocabulary at every token that is predicted, with its exact gradient.

    Every token may get a gradient of its own. So the logits of a chunk, of both networks, are made a second time in the
    backward pass; in between, besides what is given, three numbers a token are kept.

    Args:
        hidden: ``[T, D]`` final hidden states of the policy.
        weight: ``[V, D]`` output layer of the policy.
        reference_hidden: ``[T, D]`` of the reference, which may have another width; no gradient flows there.
        reference_weight: ``[V, D]`` of the reference.
        labels: ``[T]`` int64, :data:`~keyekit.batch.IGNORED_LABEL` where nothing is predicted.
        num_targets: Number of labels that are not ignored, known on the host so that nothing synchronises.
        temperature: Divides the logits of both.
        chunk_size: Positions per chunk; by default half of :func:`~keyekit.objectives.linear_cross_entropy.chunk_length`.

    Returns:
        ``[T]`` in nats, float32 or wider; 0 where nothing is predicted. It can be differentiated once.

    Raises:
        ValueError: If ``temperature`` is not positive, or the vocabularies differ in size.

    Example:
        >>> hidden, weight = torch.randn(3, 4), torch.randn(7, 4)
        >>> labels = torch.tensor([6, -100, 0])
        >>> chunked_kl(hidden, weight, hidden, weight, labels, num_targets=2)
        tensor([0., 0., 0.])
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
    if len(weight) != len(reference_weight):
        raise ValueError(
            f"the policy knows {len(weight)} words, the reference {len(reference_weight)}: they must be the same"
        )
    targets = torch.nonzero_static(labels != IGNORED_LABEL, size=num_targets)[:, 0]
    size = chunk_size or max(chunk_length(weight.shape[0], hidden.device.type) // _NETWORKS, 1)
    known = (reference_hidden.detach()[targets], reference_weight.detach())
    found = _ChunkedKL.apply(hidden[targets], weight, *known, 1 / temperature, size)
    return found.new_zeros(len(labels)).index_copy(0, targets, found)


class _ChunkedKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        reference_hidden: Tensor,
        reference_weight: Tensor,
        sharpness: float,
        chunk_size: int,
    ) -> Tensor:
        kind = product_dtype(hidden, weight)
        wide = torch.promote_types(kind, torch.float32)
        heads = ((hidden.to(kind), weight.to(kind)), (reference_hidden.to(kind), reference_weight.to(kind)))
        norms = hidden.new_zeros((_NETWORKS, len(hidden)), dtype=wide)
        values = hidden.new_zeros(len(hidden), dtype=wide)
        for start in range(0, len(hidden), chunk_size):
            rows = slice(start, start + chunk_size)
            own, other = (functional.linear(states[rows], matrix).to(wide).mul_(sharpness) for states, matrix in heads)
            norms[0, rows], norms[1, rows] = own.logsumexp(1), other.logsumexp(1)
            values[rows] = _divergence(own, other, norms[:, rows, None])[2]
        ctx.save_for_backward(hidden, weight, reference_hidden, reference_weight, norms, values)
        ctx.settings = (kind, wide, sharpness, chunk_size)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, reference_hidden, reference_weight, norms, values = ctx.saved_tensors
        kind, wide, sharpness, chunk_size = ctx.settings
        heads = ((hidden.to(kind), weight.to(kind)), (reference_hidden.to(kind), reference_weight.to(kind)))
        hidden_gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        weight_gradient = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), chunk_size):
            rows = slice(start, start + chunk_size)
            own, other = (functional.linear(states[rows], matrix).to(wide).mul_(sharpness) for states, matrix in heads)
            probabilities, gaps, _ = _divergence(own, other, norms[:, rows, None])
            slope = gaps.sub_(values[rows, None]).mul_(probabilities).mul_(slopes[rows, None] * sharpness).to(kind)
            if hidden_gradient is not None:
                hidden_gradient[rows] = slope @ heads[0][1]
            if weight_gradient is not None:
                add_product(weight_gradient, slope, heads[0][0][rows])
        return hidden_gradient, None if weight_gradient is None else weight_gradient.to(weight.dtype), *(None,) * 4


def _divergence(own: Tensor, other: Tensor, norms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The policy's probabilities, log-ratios to the reference and the sum of their products; in the memory of the scores."""
    own.sub_(norms[0])
    gaps = other.sub_(norms[1]).neg_().add_(own)
    probabilities = own.exp_()
    return probabilities, gaps, (probabilities * gaps).sum(1)
