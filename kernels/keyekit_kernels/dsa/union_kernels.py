"""Triton kernels that build unions: mark who selected which key, count, and place the keys that somebody selected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyekit_kernels.dsa.launch import call
from keyekit_kernels.dsa.packed_rows import remembered, to_device
from keyekit_kernels.dsa.union import WIDEST_GROUP, Union

__all__ = ["build_blocks", "merge_blocks"]

BITS = tl.constexpr(WIDEST_GROUP)
_SCRATCH_BYTES = 28 * 2**20
"""Scratch of a chunk of blocks: what one half of the cache of an H100 holds. With 48 MiB, marking takes half as long again."""
PACKED = tl.constexpr(4)
"""Parts of a block whose counts share a number of 64 bits."""
_SPAN = 16384
"""Keys of a block that one program counts and places; sixteen bits count them."""
_TILE = {"count": 2048, "place": 1024}
LINE = tl.constexpr(8)
"""Keys of a tile that are counted together."""
_ROOM = 4
"""U / k for which room is made at first; longer unions are placed a second time, in as much room as they were found to need."""


@triton.jit
def mark_rows_kernel(
    indices,  # [T, N] int32
    table,  # [blocks, 4] int32: first query, queries, first key, keys that the last query sees
    words,  # [blocks, stride] int32, zero before
    selected,  # [1] int64, the pairs are added to it
    num_selected,
    stride,
    BLOCK: tl.constexpr,
) -> None:
    """One program per block and query sets the query's bit in the words of its keys."""
    block, query = tl.program_id(0), tl.program_id(1)
    if query < tl.load(table + block * 4 + 1):
        row = indices + (tl.load(table + block * 4) + query).to(tl.int64) * num_selected
        words += block.to(tl.int64) * stride - tl.load(table + block * 4 + 2)
        bit = tl.full([BLOCK], 1, tl.int32) << query
        pairs = tl.zeros([BLOCK], tl.int32)
        for start in range(0, num_selected, BLOCK):
            slot = start + tl.arange(0, BLOCK)
            index = tl.load(row + slot, mask=slot < num_selected, other=-1)
            tl.atomic_or(words + index, bit, mask=index >= 0, sem="relaxed")
            pairs += (index >= 0).to(tl.int32)
        tl.atomic_add(selected, tl.sum(pairs, 0).to(tl.int64), sem="relaxed")


@triton.jit
def mark_unions_kernel(
    keys,  # [U] int32
    masks,  # [U] int32
    starts,  # [narrow blocks + 1] int64
    narrow,  # [blocks] int32, the first narrow block of each block
    table,
    words,
    stride,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per block and narrow block in it moves the masks of the narrow block to their place in the words."""
    block, part = tl.program_id(0), tl.program_id(1)
    if part * GROUP < tl.load(table + block * 4 + 1):
        words += block.to(tl.int64) * stride - tl.load(table + block * 4 + 2)
        begin = tl.load(starts + tl.load(narrow + block) + part)
        count = (tl.load(starts + tl.load(narrow + block) + part + 1) - begin).to(tl.int32)
        for start in range(0, count, BLOCK):
            slot = start + tl.arange(0, BLOCK)
            index = tl.load(keys + begin + slot, mask=slot < count, other=0)
            bits = tl.load(masks + begin + slot, mask=slot < count, other=0) << (part * GROUP)
            tl.atomic_or(words + index, bits, mask=slot < count, sem="relaxed")


@triton.jit
def count_kernel(
    words,
    counts,  # [blocks, PARTS, segments] int32
    merged,  # [1] int64, zero before
    stride,
    span,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """One program per block and span of keys: how many of them each ``GROUP`` queries selected together, and how many all."""
    block, segment, segments = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    words += block.to(tl.int64) * stride
    begin, end = segment * span, tl.minimum((segment + 1) * span, stride)
    for first in tl.static_range(0, PARTS, PACKED):  # pyright: ignore[reportGeneralTypeIssues]
        total, anybody = tl.zeros([TILE], tl.int64), tl.zeros([TILE], tl.int32)
        for start in range(begin, end, TILE):
            place = start + tl.arange(0, TILE)
            word = tl.load(words + place, mask=place < end, other=0)
            total += _packed(word, first, GROUP, PARTS)
            anybody += (word != 0).to(tl.int32)
        everybody = tl.sum(total, 0)
        for part in tl.static_range(first, min(first + PACKED, PARTS)):  # pyright: ignore[reportGeneralTypeIssues]
            count = _unpacked(everybody, part - first)
            tl.store(counts + (block * PARTS + part) * segments + segment, count)
        if first == 0:
            tl.atomic_add(merged, tl.sum(anybody, 0).to(tl.int64), sem="relaxed")


@triton.jit
def place_kernel(
    words,  # zero after
    counts,
    ends,  # [blocks, PARTS, segments] int64, sums of the counts up to and with each
    table,
    keys,  # [capacity] int32
    masks,  # [capacity] int32
    stride,
    span,
    capacity,
    GROUP: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """One program per block and span of keys writes those that were selected, and clears the words for the next chunk."""
    block, segment, segments = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    words += block.to(tl.int64) * stride
    first_key = tl.load(table + block * 4 + 2)
    begin, end = segment * span, tl.minimum((segment + 1) * span, stride)
    for first in tl.static_range(0, PARTS, PACKED):  # pyright: ignore[reportGeneralTypeIssues]
        done = tl.full([], 0, tl.int64)
        # Loads run ahead of what is done with them.
        for start in tl.range(begin, end, TILE, num_stages=2):  # pyright: ignore[reportGeneralTypeIssues]
            place = start + tl.arange(0, TILE // LINE)[:, None] * LINE + tl.arange(0, LINE)[None, :]
            word = tl.load(words + place, mask=place < end, other=0)
            packed = _packed(word, first, GROUP, PARTS)
            line = tl.sum(packed, 1)
            reached = (done + tl.cumsum(line, 0) - line)[:, None] + tl.cumsum(packed, 1)  # one scan serves all parts
            done += tl.sum(line, 0)
            for part in tl.static_range(first, min(first + PACKED, PARTS)):  # pyright: ignore[reportGeneralTypeIssues]
                slot = (block * PARTS + part) * segments + segment
                bits = _bits(word, part, GROUP)
                to = tl.load(ends + slot) - tl.load(counts + slot) + _unpacked(reached, part - first) - 1
                fits = (bits != 0) & (to < capacity)
                tl.store(keys + to, first_key + place, mask=fits)
                tl.store(masks + to, bits, mask=fits)
    tl.debug_barrier()
    for start in range(begin, end, TILE):
        place = start + tl.arange(0, TILE)
        tl.store(words + place, tl.zeros([TILE], tl.int32), mask=place < end)


@triton.jit
def _packed(word, first: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr):
    """Whether somebody of each part selected a key: a count of sixteen bits for each of :data:`PACKED` parts."""
    packed = tl.zeros(word.shape, tl.int64)
    for part in tl.static_range(first, min(first + PACKED, PARTS)):  # pyright: ignore[reportGeneralTypeIssues]
        packed += (_bits(word, part, GROUP) != 0).to(tl.int64) << (16 * (part - first))
    return packed


@triton.jit
def _unpacked(packed, place: tl.constexpr):
    """One of the counts of :func:`_packed`."""
    return ((packed >> (16 * place)) & 0xFFFF).to(tl.int32)


@triton.jit
def _bits(word, part: tl.constexpr, GROUP: tl.constexpr):
    """Bits of the queries of one part of a block."""
    if GROUP == BITS:  # noqa: SIM108, which the compiler of kernels cannot take apart
        bits = word
    else:
        bits = (word >> (part * GROUP)) & ((1 << GROUP) - 1)  # pyright: ignore[reportOperatorIssue]
    return bits


@torch.no_grad()
def build_blocks(indices: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int], group: int) -> Union:
    """:func:`~keyekit_kernels.dsa.union.build_union` on a device, for a ``group`` that divides 32.

    Args:
        indices: ``[T, N]`` int32; no query selects keys behind itself.
        query_lengths: Queries of each sequence, its last positions.
        key_lengths: Keys of each sequence.
        group: Queries per block.
    """
    layout = _layout(tuple(query_lengths), tuple(key_lengths), group, _SCRATCH_BYTES // 4, indices.device)
    indices = indices.contiguous()
    selected = torch.zeros(1, dtype=torch.int64, device=indices.device)

    def mark(table: Tensor, words: Tensor, stride: int, _: slice) -> None:
        if indices.shape[1]:
            mark_rows_kernel[(table.shape[0], BITS.value)](
                indices,
                table,
                words,
                selected,
                indices.shape[1],
                stride,
                BLOCK=256,
                num_warps=2,  # pyright: ignore[reportCallIssue]
            )

    room = _ROOM * indices.shape[1] * layout.first.shape[0]
    keys, masks, starts, merged = _build(layout, mark, room)
    union = layout.union(keys, masks, starts)  # before the host waits: the device must not wait for the host afterwards
    total, pairs, merged = torch.cat([starts[-1:], selected, merged]).tolist()
    if total > room:
        keys, masks, _, _ = _build(layout, mark, total)
    lists = {"keys": keys[:total].clone(), "masks": masks[:total].clone()}
    return replace(union, **lists, selected=pairs, merged=merged)


@torch.no_grad()
def merge_blocks(union: Union) -> Union:
    """The union of 32 queries from one of fewer that :func:`build_blocks` built, without waiting for the device."""
    layout = _layout(*union.lengths, WIDEST_GROUP, _SCRATCH_BYTES // 4, union.keys.device)
    narrow = to_device(layout.narrow(union.group), torch.int32, union.keys.device)

    def mark(table: Tensor, words: Tensor, stride: int, chunk: slice) -> None:
        mark_unions_kernel[(table.shape[0], WIDEST_GROUP // union.group)](
            union.keys,
            union.masks,
            union.starts,
            narrow[chunk],
            table,
            words,
            stride,
            GROUP=union.group,
            BLOCK=1024,
            num_warps=4,  # pyright: ignore[reportCallIssue]
        )

    keys, masks, starts, _ = _build(layout, mark, union.merged)
    return replace(layout.union(keys, masks, starts), selected=union.selected, merged=union.merged)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Blocks of 32 queries, and which parts of ``group`` queries in them exist.

    Args:
        blocks: Per block its first query, its queries, its first key and the keys that its last query sees.
        table: The same on the device.
        chunks: Ranges of blocks whose scratch exists at the same time, and their stride.
        real: ``[parts]`` int64 numbers of the parts that hold queries, or None if all do.
        first: ``[parts]`` int32 first query of each of those.
        size: ``[parts]`` int32 queries of each of those.
        group: Queries of a part.
        lengths: Queries and keys of each sequence.
    """

    blocks: list[tuple[int, int, int, int]]
    table: Tensor
    chunks: list[tuple[slice, int]]
    real: Tensor | None
    first: Tensor
    size: Tensor
    group: int
    lengths: tuple[tuple[int, ...], tuple[int, ...]]

    def narrow(self, group: int) -> list[int]:
        """Number of the first block of ``group`` queries in each block."""
        numbers, number = [], 0
        for _, size, _, _ in self.blocks:
            numbers.append(number)
            number += -(-size // group)
        return numbers

    def union(self, keys: Tensor, masks: Tensor, starts: Tensor) -> Union:
        """The union whose pairs are not counted yet. Parts without queries are left out; nothing is in them."""
        return Union(
            keys=keys,
            masks=masks,
            starts=starts if self.real is None else torch.cat([starts[self.real], starts[-1:]]),
            first=self.first,
            size=self.size,
            group=self.group,
            num_queries=sum(self.lengths[0]),
            selected=0,
            lengths=self.lengths,
        )


@remembered
def _layout(
    query_lengths: tuple[int, ...], key_lengths: tuple[int, ...], group: int, words: int, device: torch.device
) -> _Layout:
    """The layout of packed sequences, in chunks of at most so many words of scratch."""
    blocks, real = [], []
    query, key, width, parts = 0, 0, BITS.value, BITS.value // group
    for queries, keys in zip(query_lengths, key_lengths, strict=True):
        for start in range(0, queries, width):
            size = min(width, queries - start)
            real += range(len(blocks) * parts, len(blocks) * parts + -(-size // group))
            blocks.append((query + start, size, key, keys - queries + start + size))
        query, key = query + queries, key + keys
    table = to_device(blocks, torch.int32, device).view(-1, 4)
    number = to_device(real, torch.int64, device)
    offset = number % parts * group
    first, size = table[number // parts, :2].unbind(1)
    return _Layout(
        blocks=blocks,
        table=table,
        chunks=list(_chunks(blocks, words)),
        real=None if len(real) == len(blocks) * parts else number,
        first=(first + offset).to(torch.int32),
        size=(size - offset).clamp(max=group).to(torch.int32),
        group=group,
        lengths=(query_lengths, key_lengths),
    )


def _chunks(blocks: list[tuple[int, int, int, int]], words: int) -> Iterator[tuple[slice, int]]:
    """Ranges of blocks and their stride, whose scratch has at most so many words, or a single block."""
    begin, widest = 0, 0
    for number, (_, _, _, seen) in enumerate(blocks):
        wider = max(widest, seen)
        if number > begin and (number + 1 - begin) * _aligned(wider) > words:
            yield slice(begin, number), _aligned(widest)
            begin, wider = number, seen
        widest = wider
    if begin < len(blocks):
        yield slice(begin, len(blocks)), _aligned(widest)


def _aligned(width: int) -> int:
    return -(-width // 16) * 16


def _build(
    layout: _Layout, mark: Callable[[Tensor, Tensor, int, slice], None], capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lists of all parts.

    Returns:
        Keys and masks ``[capacity]``, as far as they fit; where each part begins and the last one ends; the number of keys
        if parts of 32 queries were merged.
    """
    device, group, parts = layout.table.device, layout.group, BITS.value // layout.group
    size = max(((chunk.stop - chunk.start) * stride for chunk, stride in layout.chunks), default=0)
    words = torch.zeros(size, dtype=torch.int32, device=device)
    keys, masks = (torch.empty(capacity, dtype=torch.int32, device=device) for _ in range(2))
    zero, merged = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
    starts = [zero]
    for chunk, stride in layout.chunks:
        blocks, segments = chunk.stop - chunk.start, -(-stride // _SPAN)
        counts = torch.empty(blocks * parts * segments, dtype=torch.int32, device=device)
        mark(layout.table[chunk], words, stride, chunk)
        shape = {"GROUP": group, "PARTS": parts}
        grid, span = (blocks, segments), (stride, _SPAN)
        call(count_kernel, grid, words, counts, merged, *span, **shape, TILE=_TILE["count"])
        ends = counts.cumsum(0) + starts[-1][-1]
        lists = layout.table[chunk], keys, masks
        call(place_kernel, grid, words, counts, ends, *lists, *span, capacity, **shape, TILE=_TILE["place"])
        starts.append(ends.view(-1, segments)[:, -1])
    return keys, masks, torch.cat(starts), merged
