"""Divergence of a policy from its reference: three estimates from sampled tokens, and the exact sum over the vocabulary."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["LARGEST_LOG_RATIO", "KLForm", "full_kl", "kl_estimate"]

KLForm = Literal["k1", "k2", "k3", "full"]
"""How a divergence is taken; see :func:`kl_estimate` and :func:`full_kl`."""

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are held within this, in nats: beyond, an exponential says nothing but overflows."""


def kl_estimate(log_probs: Tensor, reference: Tensor, form: KLForm = "k3") -> Tensor:
    """Estimate ``KL(policy || reference)`` from tokens that the policy sampled, one by one.

    With ``r = log pi - log pi_ref``: ``k1 = r``, ``k2 = r^2 / 2``, ``k3 = exp(-r) - 1 + r``. The values of k1 and k3 are right
    on average, k3 with less noise and never below 0. Their *gradients* are another matter: that of k1 is 0 on average, because
    the samples' own dependence on the policy is missing; that of k2 is right; that of k3 is right to first order in ``r``. So
    k1 belongs into a reward, k2 and k3 into a loss.

    Args:
        log_probs: Log-probabilities of the sampled tokens under the policy.
        reference: The same under the reference.
        form: ``k1``, ``k2`` or ``k3``.

    Returns:
        A tensor of their shape.

    Raises:
        ValueError: If the form is none of the three.

    Example:
        >>> policy, reference = torch.tensor(-1.0), torch.tensor(-1.5)
        >>> [round(kl_estimate(policy, reference, form).item(), 3) for form in ("k1", "k2", "k3")]
        [0.5, 0.125, 0.107]
    """
    ratio = (log_probs - reference).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    if form == "k1":
        return ratio
    if form == "k2":
        return ratio.square() / 2
    if form == "k3":
        return torch.expm1(-ratio) + ratio
    raise ValueError(f"form={form!r} is no estimate from samples: choose k1, k2 or k3, or take full_kl")


def full_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """``KL(policy || reference)`` summed over the vocabulary, with the exact gradient.

    For hidden states, whose logits must not be held whole, take
    :func:`~keyekit.objectives.policy.chunked_kl.chunked_kl` instead.

    Args:
        logits: ``[T, V]`` of the policy.
        reference_logits: ``[T, V]`` of the reference; no gradient flows there.

    Returns:
        ``[T]`` in float32 or wider.
    """
    kind = torch.promote_types(logits.dtype, torch.float32)
    policy = logits.to(kind).log_softmax(-1)
    reference = reference_logits.detach().to(kind).log_softmax(-1)
    return (policy.exp() * (policy - reference)).sum(-1)
