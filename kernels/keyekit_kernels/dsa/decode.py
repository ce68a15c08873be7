"""One decoding step of DeepSeek Sparse Attention on paged caches: score, select, attend in splits, combine.

The index cache holds e4m3 keys and their scales in pages (:func:`keyekit_kernels.dsa.quantization.pack_pages`), the key/value
cache one row per slot; slot = page * 64 + offset in both (Keye-VL-2.0 sheet 4.4). Nothing here waits for the device, and
every launch depends on shapes alone, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyekit_kernels.dsa.indexer import NARROWEST_EIGHT_BIT, WIDTHS
from keyekit_kernels.dsa.launch import Launch, next_power_of_two
from keyekit_kernels.dsa.paged_attention import check_table, paged_attention
from keyekit_kernels.dsa.quantization import PAGE_TOKENS
from keyekit_kernels.dsa.topk import SUB_BLOCK, select_topk

__all__ = ["decode_step", "paged_logits"]

PAGE = tl.constexpr(PAGE_TOKENS)
_LAUNCH = Launch(128, 4, 4)
_PROGRAMS = 1056
"""Eight for each multiprocessor of an H100 or H200; beyond that, programs take several blocks, whose loads overlap."""
_MOST_STEPS = 16


@triton.jit
def paged_logits_kernel(
    query,  # [B, heads, WIDTH] e4m3
    gate,  # [B, heads]
    query_scale,  # [B, heads] float32
    values,  # [pages, 64 * (WIDTH + 4)] the cache as e4m3
    scales,  # [pages, 16 * (WIDTH + 4)] the same bytes as float32
    page_table,  # [B, table_width] int32
    lengths,  # [B] int32
    scores,  # [B, stride] float32
    maxima,  # [B, stride / SUB] float32
    num_heads,
    scale,
    table_width,
    stride,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    SUB: tl.constexpr,
) -> None:
    """One program per sequence and ``STEPS`` blocks of its keys, which are the rows of the product; heads are its columns."""
    sequence = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + sequence)
    channel, head = tl.arange(0, WIDTH), tl.arange(0, HEADS)
    row = sequence * num_heads + head
    q = tl.load(query + row[None, :] * WIDTH + channel[:, None], mask=(head < num_heads)[None, :], other=0.0)
    weight = tl.load(gate + row, mask=head < num_heads, other=0.0).to(tl.float32)
    weight *= tl.load(query_scale + row, mask=head < num_heads, other=0.0)
    begin = tl.program_id(1) * (STEPS * BLOCK)
    for start in range(begin, tl.minimum(begin + STEPS * BLOCK, length), BLOCK):
        position = start + tl.arange(0, BLOCK)
        safe = tl.minimum(position, length - 1)
        page = tl.load(page_table + sequence * table_width + safe // PAGE).to(tl.int64)
        offset = safe % PAGE
        k = tl.load(values + (page * (PAGE * (WIDTH + 4)) + offset * WIDTH)[:, None] + channel[None, :])
        key_scale = tl.load(scales + page * (PAGE // 4 * (WIDTH + 4)) + PAGE // 4 * WIDTH + offset)
        products = tl.maximum(tl.dot(k, q), 0.0, propagate_nan=tl.PropagateNan.ALL)
        found = tl.sum(products * weight[None, :], 1) * (key_scale * scale)
        found = tl.where((position < length) & (found == found), found, float("-inf"))
        tl.store(scores + sequence * stride + position, found)
        group = start // SUB + tl.arange(0, BLOCK // SUB)
        tl.store(maxima + sequence * (stride // SUB) + group, tl.max(tl.reshape(found, [BLOCK // SUB, SUB]), 1))


@torch.no_grad()
def paged_logits(
    query: Tensor, query_scale: Tensor, gate: Tensor, index_pages: Tensor, page_table: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Score the cached keys of each sequence for its one query.

    Args:
        query: ``[B, I, indexer_dim]`` float8_e4m3fn contiguous indexer queries.
        query_scale: ``[B, I]`` float32.
        gate: ``[B, I]`` raw head weights.
        index_pages: ``[pages, 64 * (indexer_dim + 4)]`` uint8 contiguous, as ``pack_pages`` lays it out.
        page_table: ``[B, P]`` int32 contiguous pages of each sequence in order; entries past its length are never read.
        lengths: ``[B]`` int32 cached keys of each sequence, at most ``64 * P``.

    Returns:
        Scores ``[B, width]`` float32 with ``width`` at least ``64 * P`` and their maxima ``[B, width / 8]``. NaN is minus
        infinity; columns past a sequence's length hold anything.

    Raises:
        ValueError: If an argument does not fit.
    """
    _check_index(query, query_scale, gate, index_pages)
    check_table(page_table, lengths, query.shape[0])
    launch = _LAUNCH
    batch, num_heads, width = query.shape
    stride = -(-page_table.shape[1] * PAGE_TOKENS // launch.block) * launch.block
    scores = query.new_empty(batch, stride, dtype=torch.float32)
    maxima = query.new_empty(batch, stride // SUB_BLOCK, dtype=torch.float32)
    if scores.numel():
        blocks = stride // launch.block
        steps = min(next_power_of_two(max(batch * blocks // _PROGRAMS, 1)), _MOST_STEPS)
        paged_logits_kernel[(batch, -(-blocks // steps))](
            query,
            gate.contiguous(),
            query_scale.contiguous(),
            index_pages.view(torch.float8_e4m3fn),
            index_pages.view(torch.float32),
            page_table,
            lengths,
            scores,
            maxima,
            num_heads,
            width**-0.5,  # Keye-VL-2.0 sheet 4.1 items 6 and 7
            page_table.shape[1],
            stride,
            WIDTH=width,
            HEADS=max(next_power_of_two(num_heads), 16),
            BLOCK=launch.block,
            STEPS=steps,
            SUB=SUB_BLOCK,
            num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
            num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
        )
    return scores, maxima


@torch.no_grad()
def decode_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index_query: Tensor,
    query_scale: Tensor,
    gate: Tensor,
    index_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    topk: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One query per sequence: select among its cached keys and attend to them. The caches already hold the query's own token.

    Args:
        query: ``[B, H, K]`` contiguous.
        key: ``[slots, G, K]`` contiguous cache.
        value: ``[slots, G, K]`` contiguous cache.
        index_query: ``[B, I, indexer_dim]`` float8_e4m3fn, rotated and rounded by
            :func:`~keyekit_kernels.dsa.quantization.quantize` of :func:`~keyekit_kernels.dsa.quantization.hadamard`.
        query_scale: ``[B, I]`` float32 scales of the indexer queries.
        gate: ``[B, I]`` raw head weights.
        index_pages: ``[pages, 64 * (indexer_dim + 4)]`` uint8 index cache.
        page_table: ``[B, P]`` int32 pages of each sequence in order.
        lengths: ``[B]`` int32 cached tokens of each sequence.
        topk: Keys to select.
        scale: Factor on the attention's dot products.

    Returns:
        Output ``[B, H, K]``, log-sum-exp ``[B, H]``, and the selected positions ``[B, min(topk, 64 * P)]`` int32.

    Raises:
        ValueError: If an argument does not fit.
    """
    scores, maxima = paged_logits(index_query, query_scale, gate, index_pages, page_table, lengths)
    indices = select_topk(scores, maxima, lengths, min(topk, page_table.shape[1] * PAGE_TOKENS))
    output, lse = paged_attention(query, key, value, indices, page_table, lengths, scale)
    return output, lse, indices


def _check_index(query: Tensor, query_scale: Tensor, gate: Tensor, index_pages: Tensor) -> None:
    """Refuse indexer queries and pages that the kernel cannot take."""
    widths = tuple(width for width in WIDTHS if width >= NARROWEST_EIGHT_BIT)
    if query.ndim != 3 or query.dtype != torch.float8_e4m3fn or query.shape[2] not in widths:
        raise ValueError(
            f"query is {list(query.shape)} {query.dtype}: float8_e4m3fn [B, I, indexer_dim] with indexer_dim in {widths} "
            "is needed"
        )
    if query_scale.shape != query.shape[:2] or gate.shape != query.shape[:2]:
        raise ValueError(
            f"query_scale is {list(query_scale.shape)} and gate {list(gate.shape)}: {list(query.shape[:2])} is needed"
        )
    page_bytes = PAGE_TOKENS * (query.shape[2] + 4)
    if index_pages.ndim != 2 or index_pages.dtype != torch.uint8 or index_pages.shape[1] != page_bytes:
        raise ValueError(
            f"index_pages is {list(index_pages.shape)} {index_pages.dtype}: uint8 [pages, {page_bytes}] is needed"
        )
    for name, tensor in (("query", query), ("index_pages", index_pages)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous: pass {name}.contiguous()")
