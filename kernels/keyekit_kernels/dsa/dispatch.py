"""Which implementation an operation takes: chosen by name, said in the log, never changed in silence."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec

import torch

__all__ = ["announce_variant", "choose", "resolve_implementation"]

_log = logging.getLogger(__name__)
_IMPLEMENTATIONS = ("torch", "triton")
_HAS_TRITON = find_spec("triton") is not None

_said: set[str] = set()
"""Choices that the log has."""
_variants: dict[str, tuple[str, int]] = {}
"""The last variant of each operation, and how often it has changed."""


def choose(operation: str, implementation: str, device: str, obstacle: str | None = None) -> str:
    """The implementation that an operation takes. The log says it once; ``torch.compile`` traces the choice without the log.

    Args:
        operation: Its name, for messages.
        implementation: ``"auto"`` (Triton on GPUs where nothing stands in the way), ``"triton"`` or ``"torch"``.
        device: Type of the tensors' device.
        obstacle: Why the Triton kernels cannot take these tensors, if so. ``"auto"`` then warns and takes PyTorch.

    Returns:
        ``"triton"`` or ``"torch"``.

    Raises:
        ValueError: If the name is unknown, or Triton is demanded where it cannot run.
    """
    if implementation != "auto" and implementation not in _IMPLEMENTATIONS:
        raise ValueError(f"unknown DSA implementation {implementation!r}: choose 'auto' or one of {_IMPLEMENTATIONS}")
    if implementation == "torch":
        return "torch"
    if not _HAS_TRITON:
        obstacle = "the package triton is not installed: pip install triton"
    if implementation == "triton":
        if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            obstacle = (
                f"it needs a GPU, the tensors are on {device}; TRITON_INTERPRET=1 interprets the kernels on a processor"
            )
        if obstacle is not None:
            raise ValueError(
                f"{operation} with implementation='triton': {obstacle}. Otherwise choose 'torch' or 'auto'"
            )
        return "triton"
    taken = "triton" if device == "cuda" and obstacle is None else "torch"
    if not torch.compiler.is_compiling():
        _say(operation, taken, device, obstacle if device == "cuda" else None)
    return taken


def resolve_implementation(implementation: str, device: str) -> str:
    """What ``implementation`` means on a type of device, for tensors that the kernels take; see :func:`choose`.

    Raises:
        ValueError: If the name is unknown, or Triton is demanded where it cannot run.
    """
    return choose("DSA", implementation, device)


def announce_variant(operation: str, variant: str, reason: str) -> None:
    """Log a variant when it differs from the operation's last one: at the first, second, fourth, eighth … such change.

    Layers that disagree would otherwise fill the log.
    """
    last, changes = _variants.get(operation, (None, 0))
    if variant == last:
        return
    changes += 1
    _variants[operation] = variant, changes
    if changes & (changes - 1) == 0:
        _log.info("%s runs %s: %s", operation, variant, reason)


def _say(operation: str, taken: str, device: str, obstacle: str | None) -> None:
    """Log a choice once; as a warning where the device could have done better."""
    message = f"{operation} on {device} uses the {taken!r} implementation"
    message = f"{message}: {obstacle}" if obstacle else message
    if message not in _said:
        _said.add(message)
        _log.log(logging.WARNING if obstacle else logging.INFO, message)
