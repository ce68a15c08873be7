"""The keys that adjacent queries select together: what they share is loaded once.

On a GPU a scratch word per key and 32 queries collects their bits; counting and placing the words that are not zero gives the
sorted lists of 8, 16 or 32 queries alike. The scratch is taken in chunks that stay in the cache, and causally: a chunk is no
wider than what its last query sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["WIDEST_GROUP", "Union", "build_union"]

WIDEST_GROUP = 32
"""Bits of a mask."""

_CHUNK_BYTES = 256 * 2**20
"""Scratch of one chunk of blocks in PyTorch: 4 bytes per block and key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Union:
    """Sorted unions of the selections of blocks of adjacent queries, block after block.

    Args:
        keys: ``[U]`` int32 rows of the packed keys, ascending inside a block.
        masks: ``[U]`` int32; bit q is set if query q of the block selected the key.
        starts: ``[blocks + 1]`` int64, where each block's keys begin.
        first: ``[blocks]`` int32, the first query of each block.
        size: ``[blocks]`` int32, queries of each block.
        group: Most queries of a block; blocks never straddle sequences.
        num_queries: Queries of all blocks, T.
        selected: Number of selected (query, key) pairs.
        lengths: Queries and keys of each sequence.
        merged: Keys of the unions of 32 queries, where a GPU counted them.
    """

    keys: Tensor
    masks: Tensor
    starts: Tensor
    first: Tensor
    size: Tensor
    group: int
    num_queries: int
    selected: int
    lengths: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    merged: int = 0

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.first.shape[0]

    @property
    def sharing(self) -> float:
        """U / k: keys of an average union over keys that an average query selects; 1 if all queries of a block agree."""
        return self.keys.shape[0] * self.num_queries / max(self.num_blocks * self.selected, 1)

    def regrouped(self, group: int) -> Union:
        """The union of larger blocks, made from this one; itself where blocks of this size do not divide into them.

        Args:
            group: Queries of the larger blocks, at most :data:`WIDEST_GROUP`.
        """
        if group <= self.group or group % self.group or not self.num_blocks:
            return self
        if self.keys.is_cuda and group == WIDEST_GROUP:
            from keyekit_kernels.dsa.union_kernels import merge_blocks

            return merge_blocks(self)
        queries, keys = self.lengths
        return build_union(self._indices(), queries, keys, group)

    def _indices(self) -> Tensor:
        """The selections that the union was built from, ``[T, N]``, rows padded with -1."""
        block = torch.repeat_interleave(self.starts.diff())
        bit = torch.arange(self.group, device=self.keys.device)
        entry, query = ((self.masks[:, None] >> bit) & 1).nonzero(as_tuple=True)
        row = self.first[block[entry]].long() + query
        order = row.argsort(stable=True)
        row, counts = row[order], torch.bincount(row, minlength=self.num_queries)
        indices = self.keys.new_full((self.num_queries, int(counts.max())), -1)
        slot = torch.arange(row.shape[0], device=row.device) - (counts.cumsum(0) - counts)[row]
        indices[row, slot] = self.keys[entry[order]]
        return indices

    def tiles(self, block: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Cut the unions of blocks ``begin`` to ``end`` into tiles of ``block`` keys, without waiting for the device.

        Returns:
            For each tile its block, and its first key inside the block. There may be more entries than tiles; those name
            the block ``end``.
        """
        tiles = (self.starts[begin : end + 1].diff() + (block - 1)) // block
        ends = tiles.cumsum(0)
        number = torch.arange(self.keys.shape[0] // block + end - begin, device=self.keys.device)
        owner = torch.searchsorted(ends, number, right=True)
        start = (number - (ends - tiles)[owner.clamp(max=end - begin - 1)]) * block
        return (owner + begin).to(torch.int32), start.to(torch.int32)


@torch.no_grad()
def build_union(indices: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int], group: int = 16) -> Union:
    """Merge the selections of each ``group`` adjacent queries of a sequence.

    Waits once for the device, to learn how long the unions are.

    Args:
        indices: ``[T, N]`` int32 rows of the packed keys, -1 for none; on a GPU no key behind the query itself.
        query_lengths: Queries of each sequence, its last positions; together T.
        key_lengths: Keys of each sequence.
        group: Queries per block, 1 to 32.

    Raises:
        ValueError: If ``group`` is out of range.

    Example:
        >>> union = build_union(torch.tensor([[0, -1], [0, 1], [0, 2]], dtype=torch.int32), [3], [3], group=2)
        >>> union.keys.tolist(), union.masks.tolist(), union.starts.tolist()
        ([0, 1, 0, 2], [3, 2, 1, 1], [0, 2, 4])
    """
    if not 1 <= group <= WIDEST_GROUP:
        raise ValueError(f"group={group}: a block holds 1 to {WIDEST_GROUP} queries")
    if indices.is_cuda and WIDEST_GROUP % group == 0:
        from keyekit_kernels.dsa.union_kernels import build_blocks

        return build_blocks(indices, query_lengths, key_lengths, group)
    first, size, origin, span = _blocks(query_lengths, key_lengths, group)
    device = indices.device
    counts, keys, masks = [], [], []
    longest = max(span, default=0)
    step = max(_CHUNK_BYTES // (4 * max(longest, 1)), 1)
    for start in range(0, len(first), step):
        chunk = slice(start, start + step)
        rows = _rows(indices, first[chunk], size[chunk], group)
        origins = torch.tensor(origin[chunk], device=device)
        found = _scatter(rows, origins, longest, group)
        block, key = found.nonzero(as_tuple=True)
        counts.append(torch.bincount(block, minlength=rows.shape[0]))
        masks.append(found[block, key])
        keys.append((key + origins[block]).to(torch.int32))
    ends = torch.cat(counts).cumsum(0) if counts else torch.zeros(0, dtype=torch.int64, device=device)
    empty = torch.zeros(0, dtype=torch.int32, device=device)
    return Union(
        keys=torch.cat(keys) if keys else empty,
        masks=torch.cat(masks) if masks else empty,
        starts=torch.cat([ends.new_zeros(1), ends]),
        first=torch.tensor(first, dtype=torch.int32, device=device),
        size=torch.tensor(size, dtype=torch.int32, device=device),
        group=group,
        num_queries=indices.shape[0],
        selected=int((indices >= 0).sum()),
        lengths=(tuple(query_lengths), tuple(key_lengths)),
    )


def _blocks(
    query_lengths: Sequence[int], key_lengths: Sequence[int], group: int
) -> tuple[list[int], list[int], list[int], list[int]]:
    """First query, number of queries, first key and number of keys of every block."""
    first, size, origin, span = [], [], [], []
    query, key = 0, 0
    for queries, keys in zip(query_lengths, key_lengths, strict=True):
        for start in range(0, queries, group):
            first.append(query + start)
            size.append(min(group, queries - start))
            origin.append(key)
            span.append(keys)
        query, key = query + queries, key + keys
    return first, size, origin, span


def _rows(indices: Tensor, first: list[int], size: list[int], group: int) -> Tensor:
    """The selections of each block, ``[blocks, group, N]``, -1 where a block has fewer queries."""
    place = torch.tensor(first, device=indices.device)[:, None] + torch.arange(group, device=indices.device)
    absent = torch.arange(group, device=indices.device) >= torch.tensor(size, device=indices.device)[:, None]
    return indices[place.clamp(max=indices.shape[0] - 1)].masked_fill(absent[..., None], -1)


def _scatter(rows: Tensor, origins: Tensor, longest: int, group: int) -> Tensor:
    """Bit masks ``[blocks, longest]`` int32 of the queries that selected each key of their sequence."""
    # A query selects a key once, so adding its bit sets it.
    bits = (1 << torch.arange(group, dtype=torch.int32, device=rows.device))[None, :, None].expand_as(rows)
    local = torch.where(rows < 0, longest, rows - origins[:, None, None])
    found = rows.new_zeros(rows.shape[0], longest + 1)
    return found.scatter_add_(1, local.flatten(1).long(), bits.flatten(1))[:, :longest]
