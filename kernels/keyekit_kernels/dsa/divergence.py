"""What makes a divergence of the indexer differentiable, over selected or over all keys: its gradients come with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from keyekit_kernels.dsa.checks import check_divergence, obstacle_to_kernels

__all__ = ["IndexerKL", "check_divergence_inputs", "scaled_gradients"]


class IndexerKL(torch.autograd.Function):
    """Divergences ``[T]`` whose gradients are computed beside them.

    The forward pass takes the gradients of the *sum*. Where the backward pass receives one factor for all rows, as it does
    after ``sum()`` and ``mean()``, it multiplies by that. Otherwise the rows' shares of the key's gradient cannot be told
    apart any more: the kernel runs once more, with the factors as row weights. Both are exact, and which it is the device
    finds out for itself: for one factor the second run gets weights of zero, at which its programs end at once. So nothing
    waits for the device; after ``sum()`` the strides tell, and there is no second launch at all. To weigh rows or leave
    them out without a second run, pass ``row_weight`` and take the sum.
    """

    @staticmethod
    def forward(
        ctx,
        launch: Callable,
        settings: tuple,
        grad_enabled: bool,
        index_query: Tensor,
        index_key: Tensor,
        gate: Tensor,
        row_weight: Tensor | None,
        *constants: Tensor,
    ) -> Tensor:
        """Divergences, and their gradients if somebody may ask for them."""
        ctx.launch, ctx.settings = launch, settings
        indexer = (index_query, index_key, gate)
        loss, gradients = launch(indexer, constants, settings, row_weight, grad_enabled and any(ctx.needs_input_grad))
        if gradients is not None:
            ctx.save_for_backward(*indexer, row_weight, *gradients, *constants)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients of the forward pass, and compute them anew for rows that weigh differently."""
        saved = ctx.saved_tensors  # unpacked once, as checkpointing demands
        indexer, row_weight, gradients, constants = saved[:3], saved[3], saved[4:7], saved[7:]
        wanted = scaled_gradients(ctx.launch, ctx.settings, indexer, row_weight, gradients, constants, grad_loss)
        return None, None, None, *wanted, None, *(None for _ in constants)


def scaled_gradients(
    launch: Callable,
    settings: tuple,
    indexer: Sequence[Tensor],
    row_weight: Tensor | None,
    gradients: Sequence[Tensor],
    constants: Sequence[Tensor],
    grad_loss: Tensor,
) -> list[Tensor]:
    """The backward pass of :class:`IndexerKL`: gradients of index query, index key and gate in their dtypes."""
    factor = grad_loss[:1].sum()  # that of the first row, or zero where there is no row
    if grad_loss.numel() <= 1 or grad_loss.stride(0) == 0:
        summed = [gradient.float() * factor for gradient in gradients]
    else:
        uniform = (grad_loss == factor).all()
        weight = grad_loss if row_weight is None else grad_loss * row_weight
        again = launch(indexer, constants, settings, weight.masked_fill(uniform, 0.0), True)[1]
        factor = factor.masked_fill(~uniform, 0.0)
        summed = [gradient.float() * factor + other for gradient, other in zip(gradients, again, strict=True)]
    return [gradient.to(tensor.dtype) for gradient, tensor in zip(summed, indexer, strict=True)]


def check_divergence_inputs(
    index_query: Tensor,
    index_key: Tensor,
    gate: Tensor,
    query: Tensor,
    key: Tensor,
    lse: Tensor | None,
    row_weight: Tensor | None,
) -> None:
    """Refuse what the kernels of the divergence cannot take.

    Args:
        index_query: ``[T, I, indexer_dim]``.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]``.
        key: ``[S, G, K]``.
        lse: ``[T, H]`` or None.
        row_weight: ``[T]`` or None.

    Raises:
        ValueError: Naming the argument, what was given and what is allowed.
    """
    check_divergence(index_query, index_key, gate, query, key, lse)
    if row_weight is not None and row_weight.shape != query.shape[:1]:
        raise ValueError(
            f"row_weight is {list(row_weight.shape)}: {list(query.shape[:1])} is needed, one for each query"
        )
    obstacle = obstacle_to_kernels({"index_query": index_query, "query": query})
    if obstacle is not None:
        raise ValueError(obstacle)
    named = {"index_query": index_query, "index_key": index_key, "gate": gate, "query": query, "key": key}
    for name, tensor in (named | {"lse": lse, "row_weight": row_weight}).items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}: make it contiguous")
