"""Builds any part at a tiny size."""

from __future__ import annotations

from typing import Any

from keyekit.registry import constructor_parameters

__all__ = ["make"]

_SMALL: dict[str, Any] = {
    "topk": 4,
    "num_indexer_heads": 2,
    "indexer_head_dim": 8,
    "window": 3,
    "sinks": 1,
    "block_size": 2,
    "topk_blocks": 3,
    "compress_block": 2,
    "compress_stride": 1,
    "select_block": 2,
    "compressor_dim": 8,
    "num_experts": 6,
    "active_experts": 2,
    "expert_dim": 16,
    "dim": 32,
    "vision_dim": 32,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 48,
    "image_size": 56,
}


def make(cls: type, *specs: Any, **arguments: Any) -> Any:
    """Construct a part, shrinking the sizes that the toolkit's own parts have; others keep their defaults.

    A foreign part whose defaults are too large for a test, or which has required arguments of its own, may define a class
    method ``tiny_arguments() -> dict`` with what to pass instead.

    Args:
        cls: The class.
        *specs: Positional arguments, such as a layer spec.
        **arguments: Arguments that this check needs.
    """
    parameters = constructor_parameters(cls)
    chosen = {name: value for name, value in _SMALL.items() if name in parameters}
    tiny = getattr(cls, "tiny_arguments", None)
    return cls(*specs, **(chosen | (tiny() if tiny is not None else {}) | arguments))
