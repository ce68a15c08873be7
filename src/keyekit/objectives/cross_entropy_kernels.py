"""Foreign fused kernels for output layer and cross-entropy: Liger's and Cut Cross-Entropy's, where they are installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

from torch import Tensor

__all__ = ["KERNELS", "load_kernel", "usable_kernels"]

LinearCrossEntropy = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``hidden [T, D]``, ``weight [V, D]``, ``labels [T]`` to a scalar sum."""

KERNELS: dict[str, tuple[str, str]] = {
    "cce": ("cut_cross_entropy", "cut-cross-entropy"),
    "liger": ("liger_kernel", "liger-kernel"),
}
"""Package to import and distribution to install for each kernel, fastest first (docs/benchmarks.md)."""


def usable_kernels(device: str) -> tuple[str, ...]:
    """Names of the kernels that are installed and run on a type of device; both need a GPU."""
    if device != "cuda":
        return ()
    return tuple(name for name, (package, _) in KERNELS.items() if find_spec(package) is not None)


@cache
def load_kernel(name: str) -> LinearCrossEntropy:
    """Import a kernel.

    Args:
        name: ``cce`` or ``liger``.

    Raises:
        ValueError: If its package is not installed.
    """
    package, distribution = KERNELS[name]
    if find_spec(package) is None:
        raise ValueError(
            f"implementation={name!r} needs the package {distribution}: pip install {distribution}, or choose 'torch'"
        )
    return _liger() if name == "liger" else _cut_cross_entropy()


def _liger() -> LinearCrossEntropy:
    from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
        LigerFusedLinearCrossEntropyLoss,
    )

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return lambda hidden, weight, labels: loss(weight, hidden, labels)


def _cut_cross_entropy() -> LinearCrossEntropy:
    from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

    return lambda hidden, weight, labels: linear_cross_entropy(hidden, weight, labels, reduction="sum")
