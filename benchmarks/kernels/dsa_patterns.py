"""Synthetic selections for timing: how much adjacent queries agree decides the speed of sparse attention.

Every pattern gives the last rows of one causal sequence, ``[rows, k]`` int32, ascending.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["random_keys", "shared_unions", "window_and_sinks"]

_BLOCKS = 64  # blocks made at a time


def shared_unions(
    length: int, rows: int, k: int, ratio: float, drift: float = 0.9, group: int = 16, device="cpu"
) -> Tensor:
    """Each ``group`` queries choose k of the same ``ratio * k`` keys; the next ones keep the share ``drift`` of them.

    The keys of a block are a window of a fixed random order, restricted to what its first query sees. Where that is less, it
    is all the block's keys; queries that see no more than k keys take them all.
    """
    generator = torch.Generator(device=device).manual_seed(0)
    order = torch.randperm(length, device=device, generator=generator)
    size, start = int(ratio * k), length - rows
    step = round((1 - drift) * size)
    window = torch.arange(size, device=device)
    chosen = torch.empty(-(-rows // group) * group, k, dtype=torch.int32, device=device)
    numbers = range(chosen.shape[0] // group)
    for first in range(0, len(numbers), _BLOCKS):
        part = numbers[first : first + _BLOCKS]
        unions, there = [], []
        for number in part:
            seen = order[order <= start + number * group]
            unions.append(seen[(number * step + window) % seen.shape[0]])
            there.append(window < seen.shape[0])
        union, there = torch.stack(unions)[:, None], torch.stack(there)[:, None]
        chance = torch.rand(len(part), group, size, device=device, generator=generator).masked_fill(~there, -1.0)
        pick = chance.topk(k, dim=2, sorted=False).indices
        keys = union.expand(-1, group, -1).gather(2, pick).sort(dim=2).values
        chosen[part[0] * group : (part[-1] + 1) * group] = keys.flatten(0, 1).to(torch.int32)
    position = torch.arange(start, start + rows, device=device)[:, None]
    all_keys = torch.arange(k, device=device)
    few = torch.where(all_keys <= position, all_keys, -1).to(torch.int32)
    return torch.where(position < k + group, few, chosen[:rows])


def random_keys(length: int, rows: int, k: int, device="cpu") -> Tensor:
    """Every query chooses for itself among all keys that the first of the rows sees."""
    generator = torch.Generator(device=device).manual_seed(0)
    parts = []
    for begin in range(0, rows, 256):
        scores = torch.rand(min(256, rows - begin), length - rows + 1, device=device, generator=generator)
        parts.append(scores.topk(k, dim=1, sorted=False).indices.sort(dim=1).values.to(torch.int32))
    return torch.cat(parts)


def window_and_sinks(length: int, rows: int, k: int, sinks: int = 128, device="cpu") -> Tensor:
    """The first keys of the sequence and the last ones before each query."""
    sinks = min(sinks, k // 2)
    position = torch.arange(length - rows, length, device=device)[:, None]
    window = position - (k - sinks) + 1 + torch.arange(k - sinks, device=device)
    return torch.cat([torch.arange(sinks, device=device).expand(rows, -1), window], dim=1).to(torch.int32)
