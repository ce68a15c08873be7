"""What the operations refuse, whichever implementation runs: a message names the argument, what was given, what is allowed.

Shapes and dtypes are looked at on every call. Values of indices are read only while ``KEYEKIT_DSA_CHECK=1`` is set, since
that waits for the device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from keyekit_kernels.dsa.packed_rows import check_lengths, visible_keys

__all__ = [
    "DTYPES",
    "WIDTHS",
    "check_attention",
    "check_divergence",
    "check_indexer_tensors",
    "check_indices",
    "check_selection",
    "checks_indices",
    "obstacle_to_kernels",
]

WIDTHS = (16, 32, 64, 128)
"""Head widths that the kernels take."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Floating types that the kernels take; the PyTorch implementation takes float64 too."""


def obstacle_to_kernels(tensors: Mapping[str, Tensor]) -> str | None:
    """Why the Triton kernels cannot take these heads: a width or a type. None if they can.

    Example:
        >>> obstacle_to_kernels({"query": torch.zeros(2, 4, 24)})
        'query has heads of width 24, the kernels take 16, 32, 64, 128'
    """
    for name, tensor in tensors.items():
        if tensor.shape[-1] not in WIDTHS:
            return f"{name} has heads of width {tensor.shape[-1]}, the kernels take {', '.join(str(width) for width in WIDTHS)}"
        if tensor.dtype not in DTYPES:
            return f"{name} is {tensor.dtype}, the kernels take float32, float16, bfloat16"
        if tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu":
            return f"{name} is bfloat16 on the processor, where Triton's interpreter rounds wrongly: use float32"
    return None


def check_attention(query: Tensor, key: Tensor, value: Tensor, indices: Tensor) -> None:
    """Refuse attention inputs that do not fit each other.

    Args:
        query: ``[T, H, K]``.
        key: ``[S, G, K]``.
        value: ``[S, G, K]``.
        indices: ``[T, N]`` int32.

    Raises:
        ValueError: Naming the argument, what was given and what is allowed.
    """
    _check_heads(query, key)
    if value.shape != key.shape:
        raise ValueError(f"value is {list(value.shape)}: {list(key.shape)} is needed, the shape of key")
    _check_floating({"query": query, "key": key, "value": value})
    check_indices(indices, query.shape[0])


def check_indices(indices: Tensor, num_queries: int) -> None:
    """Refuse indices of another type or number.

    Raises:
        ValueError: If they are not int32 rows for that many queries.
    """
    if indices.dtype != torch.int32 or indices.ndim != 2 or indices.shape[0] != num_queries:
        raise ValueError(f"indices is {list(indices.shape)} {indices.dtype}: give [{num_queries}, N] int32")


def check_indexer_tensors(
    query: Tensor,
    key: Tensor,
    gate: Tensor,
    names: tuple[str, str, str] = ("query", "key", "gate"),
) -> None:
    """Refuse indexer tensors that do not fit each other.

    Args:
        query: ``[T, I, indexer_dim]``.
        key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        names: What the messages call them.

    Raises:
        ValueError: Naming the argument, what was given and what is allowed.
    """
    if query.ndim != 3 or key.ndim != 2 or query.shape[2] != key.shape[1]:
        raise ValueError(
            f"{names[0]} is {list(query.shape)} and {names[1]} {list(key.shape)}: [T, I, indexer_dim] and "
            "[S, indexer_dim] are needed"
        )
    if gate.shape != query.shape[:2]:
        raise ValueError(
            f"{names[2]} is {list(gate.shape)}: {list(query.shape[:2])} is needed, a weight per query and head"
        )
    _check_floating({names[0]: query, names[1]: key})


def check_divergence(
    index_query: Tensor, index_key: Tensor, gate: Tensor, query: Tensor, key: Tensor, lse: Tensor | None = None
) -> None:
    """Refuse inputs of a divergence that do not fit each other.

    Args:
        index_query: ``[T, I, indexer_dim]``.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]``.
        key: ``[S, G, K]``.
        lse: ``[T, H]``.

    Raises:
        ValueError: Naming the argument, what was given and what is allowed.
    """
    check_indexer_tensors(index_query, index_key, gate, ("index_query", "index_key", "gate"))
    _check_heads(query, key)
    _check_floating({"query": query, "key": key})
    for name, mine, partner, other in (
        ("index_query", index_query, "query", query),
        ("index_key", index_key, "key", key),
    ):
        if mine.shape[0] != other.shape[0]:
            raise ValueError(f"{name} has {mine.shape[0]} rows, but {partner} has {other.shape[0]}")
    if lse is not None and lse.shape != query.shape[:2]:
        raise ValueError(f"lse is {list(lse.shape)}: {list(query.shape[:2])} is needed, one for each query and head")


def checks_indices() -> bool:
    """Whether the values of indices are checked: only while ``KEYEKIT_DSA_CHECK=1`` is set, and not in compiled graphs."""
    return not torch.compiler.is_compiling() and os.environ.get("KEYEKIT_DSA_CHECK") == "1"


def check_selection(
    indices: Tensor,
    num_keys: int,
    query_lengths: Sequence[int] | None = None,
    key_lengths: Sequence[int] | None = None,
) -> None:
    """Refuse indices that no selection makes. Reads them on the host, so for tests and debugging.

    Args:
        indices: ``[T, N]`` int32 rows of the packed keys, -1 for none.
        num_keys: Packed keys.
        query_lengths: Queries of each sequence, its last positions; without lengths the future cannot be told.
        key_lengths: Keys of each sequence.

    Raises:
        ValueError: If a row names a key that does not exist, or that its query cannot see, repeats one, is not ascending, or
            has a gap before its end.
    """
    used = indices >= 0
    later, sooner = indices[:, 1:], indices[:, :-1]
    both = used[:, 1:] & used[:, :-1]
    problems = {
        "below -1, which alone says that there is no key": indices < -1,
        f"out of range: there are {num_keys} keys": indices >= num_keys,
        "not compact: -1 stands before a key": used[:, 1:] & ~used[:, :-1],
        "not unique: a key stands there twice": both & (later == sooner),
        "not ascending": both & (later < sooner),
    }
    if query_lengths is not None and key_lengths is not None:
        check_lengths(query_lengths, key_lengths, indices.shape[0], num_keys)
        visible, first_key = visible_keys(query_lengths, key_lengths, indices.device)
        local = indices - first_key[:, None]
        problems["of another sequence"] = used & (local < 0)
        problems["in the future of their query"] = used & (local >= visible[:, None])
    for problem, where in problems.items():
        if where.any():
            row = int(where.any(dim=1).nonzero()[0])
            raise ValueError(f"indices of query {row} are {problem}: {indices[row].tolist()}")


def _check_heads(query: Tensor, key: Tensor) -> None:
    if query.ndim != 3 or key.ndim != 3 or query.shape[2] != key.shape[2]:
        raise ValueError(
            f"query is {list(query.shape)} and key {list(key.shape)}: [T, H, K] and [S, G, K] are needed, of one width K"
        )
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(f"query has {query.shape[1]} heads, which do not divide into the {key.shape[1]} groups of key")


def _check_floating(tensors: Mapping[str, Tensor]) -> None:
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
        given = ", ".join(f"{name} is {tensor.dtype}" for name, tensor in tensors.items())
        raise ValueError(f"{given}: give all in one floating type, such as float32, float16 or bfloat16")
