"""Attention of one query per sequence to selected positions of paged keys and values: in splits, then combined."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyekit_kernels.dsa.attention_tiles import EMPTY, LOG2E, fold_keys, gather_keys, query_rows, softmax_result
from keyekit_kernels.dsa.indexer import WIDTHS
from keyekit_kernels.dsa.launch import Launch, next_power_of_two
from keyekit_kernels.dsa.quantization import PAGE_TOKENS

__all__ = ["check_table", "paged_attention"]

PAGE = tl.constexpr(PAGE_TOKENS)

_LAUNCH = Launch(128, 4, 2)
# Splits of one row's keys: enough programs to fill the device, each with at least one block (dsa-kernels sheet 3.8).
_PROGRAMS = 128
_LEAST_SPLITS = 8
"""Short splits overlap their gathers, also where the device is full: 59 us against 125 for 32 sequences on an H200."""


@triton.jit
def paged_attention_kernel(
    query,  # [B, groups * PER_GROUP, WIDTH]
    key,  # [slots, groups, WIDTH]
    value,  # [slots, groups, WIDTH]
    indices,  # [B, num_selected] int32 positions, ascending, -1 tail
    page_table,  # [B, table_width] int32
    lengths,  # [B] int32
    partial,  # [B, splits, groups * PER_GROUP, WIDTH] float32
    partial_lse,  # [B, splits, groups * PER_GROUP] float32
    num_selected,
    table_width,
    span,  # selected keys of a split, a multiple of BLOCK
    scale,  # times log2(e)
    PER_GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per sequence, split and group: its heads are the rows of a tile, padded to a tensor core's sixteen."""
    sequence, split, group = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    groups = tl.num_programs(2)
    real, head, heads = query_rows(sequence, group, groups, PER_GROUP, ROWS, WIDTH)
    q = tl.load(query + heads, mask=real[:, None], other=0.0)
    state = tl.full([ROWS], EMPTY, tl.float32), tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)
    count = tl.minimum(tl.load(lengths + sequence), num_selected)
    begin = split * span
    for start in range(begin, tl.minimum(begin + span, count), BLOCK):
        slot = start + tl.arange(0, BLOCK)
        chosen = slot < count
        position = tl.load(indices + sequence * num_selected + slot, mask=chosen, other=0)
        page = tl.load(page_table + sequence * table_width + position // PAGE, mask=chosen, other=0).to(tl.int64)
        _, k, v = gather_keys(key, value, page * PAGE + position % PAGE, chosen, group, groups, WIDTH)
        state = fold_keys(state, q, k, v, chosen[None, :] & real[:, None], scale)
    mixed, row_lse = softmax_result(state)
    # [B, H] becomes [B, splits, H]: behind the heads of the sequences before come those of the splits before.
    ahead = (sequence * (tl.num_programs(1) - 1) + split) * groups * PER_GROUP
    tl.store(partial + ahead * WIDTH + heads, mixed, mask=real[:, None])
    tl.store(partial_lse + ahead + head, row_lse, mask=real)


@triton.jit
def combine_kernel(
    partial,  # [B, splits, H, WIDTH] float32
    partial_lse,  # [B, splits, H] float32
    output,  # [B, H, WIDTH]
    lse,  # [B, H] float32
    num_splits,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """One program per sequence and head: the splits' outputs, weighted by their share of the softmax."""
    sequence, head, num_heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    split, channel = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    real = split < num_splits
    place = (sequence * num_splits + split) * num_heads + head
    logs = tl.load(partial_lse + place, mask=real, other=EMPTY)
    peak = tl.max(logs, 0)
    share = tl.where(real, tl.exp(logs - peak), 0.0)
    total = tl.sum(share, 0)
    parts = tl.load(partial + place[:, None] * WIDTH + channel[None, :], mask=real[:, None], other=0.0)
    mixed = tl.sum(parts * share[:, None], 0) / total  # pyright: ignore[reportOperatorIssue]
    out = sequence * num_heads + head
    tl.store(output + out * WIDTH + channel, mixed.to(output.dtype.element_ty))
    tl.store(lse + out, peak + tl.log(total))


@torch.no_grad()
def paged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    indices: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    scale: float,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend to selected positions of paged keys and values, one query per sequence.

    Args:
        query: ``[B, H, K]`` contiguous.
        key: ``[slots, G, K]`` contiguous, ``slots`` a multiple of 64.
        value: ``[slots, G, K]`` contiguous.
        indices: ``[B, N]`` int32 contiguous positions in the sequence, ascending, ``min(N, length)`` of them, -1 tail.
        page_table: ``[B, P]`` int32 contiguous pages of each sequence in order.
        lengths: ``[B]`` int32 cached tokens of each sequence.
        scale: Factor on the dot products.
        splits: Programs that share the keys of one sequence and group; as many as fill the device by default.

    Returns:
        Output ``[B, H, K]`` in the query's dtype and natural log-sum-exp ``[B, H]``; zeros and -1e30 for an empty sequence.

    Raises:
        ValueError: If an argument does not fit.
    """
    _check_attention(query, key, value, indices)
    check_table(page_table, lengths, query.shape[0])
    launch = _LAUNCH
    batch, num_heads, width = query.shape
    groups, num_selected = key.shape[1], indices.shape[1]
    blocks = max(-(-num_selected // launch.block), 1)
    wanted = max(_PROGRAMS // max(batch * groups, 1), _LEAST_SPLITS) if splits is None else splits
    per_split = -(-blocks // min(wanted, blocks))
    splits = -(-blocks // per_split)
    partial = query.new_empty(batch, splits, num_heads, width, dtype=torch.float32)
    partial_lse = query.new_empty(batch, splits, num_heads, dtype=torch.float32)
    output, lse = torch.empty_like(query), query.new_empty(batch, num_heads, dtype=torch.float32)
    if output.numel():
        paged_attention_kernel[(batch, splits, groups)](
            query,
            key,
            value,
            indices,
            page_table,
            lengths,
            partial,
            partial_lse,
            num_selected,
            page_table.shape[1],
            per_split * launch.block,
            scale * LOG2E.value,
            PER_GROUP=num_heads // groups,
            ROWS=max(next_power_of_two(num_heads // groups), 16),
            WIDTH=width,
            BLOCK=launch.block,
            num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
            num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
        )
        combine_kernel[(batch, num_heads)](
            partial,
            partial_lse,
            output,
            lse,
            splits,
            WIDTH=width,
            SPLITS=next_power_of_two(splits),
            num_warps=4,  # pyright: ignore[reportCallIssue]
        )
    return output, lse


def _check_attention(query: Tensor, key: Tensor, value: Tensor, indices: Tensor) -> None:
    """Refuse queries, caches and selections that the kernel cannot take."""
    if query.ndim != 3 or key.ndim != 3 or key.shape != value.shape or query.shape[2] != key.shape[2]:
        raise ValueError(
            f"query is {list(query.shape)}, key {list(key.shape)} and value {list(value.shape)}: [B, H, K] and twice "
            "[slots, G, K] are needed"
        )
    if query.shape[2] not in WIDTHS:
        raise ValueError(f"query has width {query.shape[2]}: the kernels take {WIDTHS}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"query has {query.shape[1]} heads, which {key.shape[1]} groups of keys do not divide")
    if key.shape[0] % PAGE_TOKENS:
        raise ValueError(f"key has {key.shape[0]} slots: a multiple of the page's {PAGE_TOKENS} is needed")
    allowed = (torch.float32, torch.float16, torch.bfloat16)
    if query.dtype not in allowed or key.dtype != query.dtype or value.dtype != query.dtype:
        raise ValueError(
            f"query, key and value are {query.dtype}, {key.dtype}, {value.dtype}: one of {allowed} is needed"
        )
    if indices.ndim != 2 or indices.shape[0] != query.shape[0] or indices.dtype != torch.int32:
        raise ValueError(f"indices is {list(indices.shape)} {indices.dtype}: int32 [{query.shape[0]}, N] is needed")
    for name, tensor in (("query", query), ("key", key), ("value", value), ("indices", indices)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous: pass {name}.contiguous()")


def check_table(page_table: Tensor, lengths: Tensor, batch: int) -> None:
    """Refuse page tables and lengths of another shape or dtype.

    Raises:
        ValueError: If one is not contiguous int32 of ``[batch, P]`` or ``[batch]``.
    """
    for name, tensor, dims in (("page_table", page_table, 2), ("lengths", lengths, 1)):
        if tensor.ndim != dims or tensor.shape[0] != batch or tensor.dtype != torch.int32 or not tensor.is_contiguous():
            wanted = f"[{batch}, P]" if dims == 2 else f"[{batch}]"
            raise ValueError(f"{name} is {list(tensor.shape)} {tensor.dtype}: contiguous int32 {wanted} is needed")
