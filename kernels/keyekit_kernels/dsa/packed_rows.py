"""Rows of a pack: which keys each query sees, tiles of queries that never straddle sequences, chunks that fit a budget."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Chunk", "check_lengths", "cut_chunks", "cut_tiles", "remembered", "to_device", "visible_keys"]

Made = TypeVar("Made")
_REMEMBERED = 8
"""Results of a function that are remembered: packs of training and of validation, and chunks of both."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive packed queries whose scores are held at the same time.

    Args:
        start: First packed query.
        stop: One past the last.
        width: Columns of the scores, enough for the keys that the last scored query sees; 0 if none is scored.
    """

    start: int
    stop: int
    width: int


def check_lengths(query_lengths: Sequence[int], key_lengths: Sequence[int], num_queries: int, num_keys: int) -> None:
    """Refuse lengths that do not describe the pack.

    Raises:
        ValueError: If a sequence has more queries than keys, a length is negative, or the sums differ from T and S.
    """
    if len(query_lengths) != len(key_lengths):
        raise ValueError(f"query_lengths has {len(query_lengths)} sequences, key_lengths has {len(key_lengths)}")
    for sequence, (queries, keys) in enumerate(zip(query_lengths, key_lengths, strict=True)):
        if not 0 <= queries <= keys:
            raise ValueError(
                f"sequence {sequence} has {queries} queries and {keys} keys: the queries are its last positions, "
                "so 0 <= query_lengths[i] <= key_lengths[i]"
            )
    if sum(query_lengths) != num_queries:
        raise ValueError(f"query_lengths add up to {sum(query_lengths)}, query has {num_queries} rows")
    if sum(key_lengths) != num_keys:
        raise ValueError(f"key_lengths add up to {sum(key_lengths)}, key has {num_keys} rows")


def visible_keys(
    query_lengths: Sequence[int], key_lengths: Sequence[int], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Keys that each packed query sees: ``visible`` rows from ``first_key`` on.

    Returns:
        Two int32 tensors ``[T]``.

    Example:
        >>> [x.tolist() for x in visible_keys([2, 1], [3, 4])]
        [[2, 3, 4], [0, 0, 3]]
    """
    origins, shifts = [], []
    for first_query, _, first_key, shift in _sequences(query_lengths, key_lengths):
        origins.append(first_key)
        shifts.append(shift - first_query)
    lengths = to_device(query_lengths, torch.int64, device)
    total = sum(query_lengths)
    both = to_device([origins, shifts], torch.int32, device).reshape(2, -1)
    first_key, shift = both.repeat_interleave(lengths, dim=1, output_size=total)
    return shift + torch.arange(total, dtype=torch.int32, device=device), first_key


def cut_tiles(
    query_lengths: Sequence[int], key_lengths: Sequence[int], block: int, skip: int = 0, rows: range | None = None
) -> list[tuple[int, int, int, int]]:
    """Cut queries into tiles of at most ``block`` queries of one sequence.

    Args:
        query_lengths: Queries of each sequence.
        key_lengths: Keys of each sequence.
        block: Most queries of a tile.
        skip: Leave out queries that see at most so many keys.
        rows: Packed queries to cover; all by default.

    Returns:
        Per tile its first packed query, its number of queries, its first key, and the keys that its first query sees.

    Example:
        >>> cut_tiles([3, 1], [3, 2], block=2)
        [(0, 2, 0, 1), (2, 1, 0, 3), (3, 1, 3, 2)]
    """
    rows = range(sum(query_lengths)) if rows is None else rows
    tiles = []
    for first_query, queries, first_key, shift in _sequences(query_lengths, key_lengths):
        begin = max(first_query + max(skip + 1 - shift, 0), rows.start)
        end = min(first_query + queries, rows.stop)
        for start in range(begin, end, block):
            tiles.append((start, min(block, end - start), first_key, shift + start - first_query))
    return tiles


def cut_chunks(
    query_lengths: Sequence[int], key_lengths: Sequence[int], budget: int, multiple: int, skip: int = 0
) -> list[Chunk]:
    """Cut queries into chunks of at most ``budget`` scores, so that no matrix of all queries and keys exists.

    Early queries see few keys, so their chunks are narrow and hold more rows.

    Args:
        query_lengths: Queries of each sequence.
        key_lengths: Keys of each sequence.
        budget: Most scores of a chunk; a chunk of a single query may exceed it.
        multiple: Widths are rounded up to it.
        skip: Queries that see at most so many keys are not scored and need no columns.

    Example:
        >>> cut_chunks([8], [8], budget=16, multiple=2)
        [Chunk(start=0, stop=4, width=4), Chunk(start=4, stop=6, width=6), Chunk(start=6, stop=8, width=8)]
    """

    def columns(visible: int) -> int:
        return 0 if visible <= skip else -(-visible // multiple) * multiple

    chunks = []
    start = stop = width = 0
    for first_query, queries, _, shift in _sequences(query_lengths, key_lengths):
        end = first_query + queries
        while stop < end:
            before, seen, rows = width, shift + stop - first_query, stop - start
            cost = [before, rows, seen]

            def scores(more: int, cost: list[int] = cost) -> int:
                return (cost[1] + more) * max(cost[0], columns(cost[2] + more - 1))

            fitting = bisect_right(range(1, end - stop + 1), budget, key=scores)
            if fitting == 0 and rows:
                chunks.append(Chunk(start, stop, width))
                start, width = stop, 0
                continue
            fitting = max(fitting, 1)
            width = max(before, columns(seen + fitting - 1))
            stop += fitting
    if stop > start:
        chunks.append(Chunk(start, stop, width))
    return chunks


def to_device(values: Sequence, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A tensor of host numbers on a device, without waiting for it."""
    tensor = torch.tensor(values, dtype=dtype)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def remembered(make: Callable[..., Made]) -> Callable[..., Made]:
    """Remember what a function makes on a device out of lengths, which are the same in all layers of a model.

    Args:
        make: Its arguments are hashable, the last one is the device.

    Example:
        >>> ask = remembered(lambda length, device: torch.arange(length, device=device))
        >>> ask(3, torch.device("cpu")) is ask(3, torch.device("cpu"))
        True
    """

    @lru_cache(maxsize=_REMEMBERED)
    def kept(stream: int, *arguments: object) -> Made:  # what one stream has copied, another one would have to wait for
        with torch.inference_mode(False):
            return make(*arguments)

    @wraps(make)
    def ask(*arguments: object) -> Made:
        device = arguments[-1]
        assert isinstance(device, torch.device)
        if device.type != "cuda":
            return kept(0, *arguments)
        if torch.cuda.is_current_stream_capturing():  # memory of a graph is its own
            return make(*arguments)
        return kept(torch.cuda.current_stream(device).cuda_stream, *arguments)

    return ask


def _sequences(query_lengths: Sequence[int], key_lengths: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Per sequence its first query, its number of queries, its first key, and the keys that its first query sees."""
    query, key = 0, 0
    for queries, keys in zip(query_lengths, key_lengths, strict=True):
        yield query, queries, key, keys - queries + 1
        query, key = query + queries, key + keys
