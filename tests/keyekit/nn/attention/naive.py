"""Every attention scheme from its definition: one sequence, all scores, a mask; slow, and right in float64.

A twin shares the parameters of a layer and nothing of how the layer attends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyekit.nn.attention.base import Attention, GroupedQueryProjection
from keyekit.nn.attention.block_topk import BlockTopK
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.attention.nsa import NSA
from keyekit.nn.attention.sliding_window import SlidingWindow
from keyekit.nn.rope.rotary import Rotary


def twin(layer: Attention, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, dict[str, Tensor]]:
    """Output ``[L, D]`` and losses of a layer for one sequence ``hidden [L, D]``."""
    if isinstance(layer, NSA):
        return _nsa(layer, hidden, rotary), {}
    query, key, value = _projected(layer.projection, hidden, rotary)
    scores = _scores(query, key)
    losses = {}
    if isinstance(layer, Dense):
        mixed = _mix(scores, value, _past(len(hidden)))
    elif isinstance(layer, SlidingWindow):
        mixed = _mix(scores, value, _window(len(hidden), layer.window, layer.sinks), layer.sink_logits)
    elif isinstance(layer, BlockTopK):
        mixed = _mix(scores, value, _chosen_blocks(layer, query, key))
    elif isinstance(layer, DSA):
        mixed, losses = _dsa(layer, hidden, rotary, scores, value)
    else:
        raise TypeError(f"no twin of {type(layer).__name__}")
    return layer.o_proj(mixed.flatten(1)), losses


def _projected(projection: GroupedQueryProjection, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values repeated for the heads that share them, all ``[L, H, K]``."""
    query, key, value = projection(hidden, rotary)
    repeats = query.shape[1] // key.shape[1]
    return query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """``[H, L, S]``."""
    return torch.einsum("lhk,shk->hls", query, key) / query.shape[-1] ** 0.5


def _mix(scores: Tensor, value: Tensor, seen: Tensor, sink: Tensor | None = None) -> Tensor:
    """Softmax of ``scores [H, L, S]`` over ``seen [L, S]`` or ``[H, L, S]``; rows that see nothing give zeros."""
    weights = scores.exp() * seen
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        total = total + sink.exp()[:, None, None]
    return torch.einsum("hls,shk->lhk", weights / total.where(total > 0, 1.0), value)


def _past(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def _window(length: int, window: int, sinks: int) -> Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]
    return _past(length) & ((distance < window) | (torch.arange(length) < sinks))


def _dsa(layer: DSA, hidden: Tensor, rotary: Rotary, scores: Tensor, value: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    length = len(hidden)
    query, key, gate = layer.sa_indexer(hidden.detach(), rotary)
    index = (torch.einsum("lid,sd->lis", query, key).relu() * gate[:, :, None]).sum(1) / query.shape[-1] ** 0.5
    index = index.masked_fill(~_past(length), -torch.inf)
    seen = torch.zeros(length, length, dtype=torch.bool)
    for row in range(length):
        ranked = sorted(range(row + 1), key=lambda key: -float(index[row, key].detach()))  # the earlier of equals first
        seen[row, ranked[: layer.topk]] = True
    attention = (scores.exp() * seen).detach()
    teacher = (attention / attention.sum(-1, keepdim=True)).mean(0)
    student = index.masked_fill(~seen, -torch.inf).log_softmax(-1)
    divergence = (teacher * (teacher.log() - student))[seen].sum() / length
    return _mix(scores, value, seen), {"indexer_kl": layer.kl_weight * divergence}


def _chosen_blocks(layer: BlockTopK, query: Tensor, key: Tensor) -> Tensor:
    """``[H, L, L]``: the own block and the best of the past ones by the mean of their keys."""
    length, heads, _ = query.shape
    size, groups = layer.block_size, layer.spec.num_groups
    seen = torch.zeros(heads, length, length, dtype=torch.bool)
    query, key = query.detach(), key.detach()
    for head in range(heads):
        members = (
            [head]
            if layer.choose_per == "head"
            else [h for h in range(heads) if h * groups // heads == head * groups // heads]
        )
        for row in range(length):
            own = row // size
            pooled = [key[block * size : (block + 1) * size, head].mean(0) for block in range(own)]
            worth = [float(sum(query[row, h] @ mean for h in members)) for mean in pooled]
            best = sorted(range(own), key=lambda block: -worth[block])[: layer.topk_blocks - 1]
            for block in (*best, own):
                seen[head, row, block * size : min((block + 1) * size, row + 1)] = True
    return seen


def _nsa(layer: NSA, hidden: Tensor, rotary: Rotary) -> Tensor:
    length, heads = len(hidden), layer.spec.num_heads
    query, key, value = _projected(layer.projection, hidden, rotary)
    repeats = heads // layer.spec.num_groups
    raw_key, raw_value = _key_value(layer.compression or layer.projection, hidden)
    slide_key, slide_value = _key_value(layer.sliding or layer.projection, hidden)
    slide_key = rotary(slide_key)
    ends = list(range(layer.compress_block - 1, length, layer.compress_stride))
    probabilities = torch.zeros(heads, length, len(ends), dtype=hidden.dtype)
    compressed = torch.zeros_like(query)
    if ends:
        blocks = [slice(end - layer.compress_block + 1, end + 1) for end in ends]
        keys = torch.stack([_compress(layer.key_compressor, raw_key[block]) for block in blocks])
        values = torch.stack([_compress(layer.value_compressor, raw_value[block]) for block in blocks])
        keys = layer.compressed_norm(keys)
        keys = Rotary(rotary.rope, rotary.positions[:, ends])(keys)
        scores = _scores(query, keys.repeat_interleave(repeats, 1))
        seen = torch.tensor(ends)[None] <= torch.arange(length)[:, None]
        weights = scores.exp() * seen
        total = weights.sum(-1, keepdim=True)
        probabilities = (weights / total.where(total > 0, 1.0)).detach()
        compressed = _mix(scores, values.repeat_interleave(repeats, 1), seen)
    selected = _mix(_scores(query, key), value, _important_blocks(layer, probabilities, ends, length))
    slide_key, slide_value = (x.repeat_interleave(repeats, 1) for x in (slide_key, slide_value))
    sliding = _mix(_scores(query, slide_key), slide_value, _window(length, layer.window, 0))
    gates = torch.sigmoid(hidden @ layer.gate_proj.weight.T).view(length, 3, heads, 1)
    mixed = gates[:, 0] * compressed + gates[:, 1] * selected + gates[:, 2] * sliding
    return layer.o_proj(mixed.flatten(1))


def _key_value(projection, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Keys before rotation and values ``[L, G, K]``."""
    shape = (len(hidden), -1, projection.head_dim)
    return projection.k_norm(projection.k_proj(hidden).view(shape)), projection.v_proj(hidden).view(shape)


def _compress(compressor, block: Tensor) -> Tensor:
    """``[l, G, K]`` to ``[G, K]``."""
    placed = (block + compressor.position[:, None]).transpose(0, 1).flatten(1)
    inner = torch.nn.functional.gelu(placed @ compressor.enter.weight.T)
    return inner @ compressor.leave.weight.T


def _important_blocks(layer: NSA, probabilities: Tensor, ends: list[int], length: int) -> Tensor:
    """``[H, L, L]``: first, local and best blocks by the attention to the compressed blocks that overlap them."""
    heads, groups, size = layer.spec.num_heads, layer.spec.num_groups, layer.select_block
    seen = torch.zeros(heads, length, length, dtype=torch.bool)
    for group in range(groups):
        members = range(group * heads // groups, (group + 1) * heads // groups)
        mass = probabilities[list(members)].sum(0)
        for row in range(length):
            own = row // size
            worth = []
            for block in range(own + 1):
                tokens = set(range(block * size, (block + 1) * size))
                share = [
                    len(tokens & set(range(end - layer.compress_block + 1, end + 1))) / layer.compress_stride
                    for end in ends
                ]
                important = sum(float(mass[row, i]) * share[i] for i in range(len(ends)))
                fixed = block < layer.initial_blocks or block > own - layer.local_blocks
                worth.append(float("inf") if fixed else important)
            best = sorted(range(own + 1), key=lambda block: -worth[block])[: layer.topk_blocks]
            for head in members:
                for block in best:
                    seen[head, row, block * size : min((block + 1) * size, row + 1)] = True
    return seen
