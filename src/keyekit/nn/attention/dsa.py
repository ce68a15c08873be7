"""DeepSeek Sparse Attention for grouped-query models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.nn.attention.base import Attention, AttentionOutput, GroupedQueryProjection, LayerContext
from keyekit.nn.attention.cached import cached_attention
from keyekit.nn.attention.indexer import LightningIndexer
from keyekit.nn.attention.segmented import segmented_attention
from keyekit.nn.spec import LayerSpec
from keyekit_kernels import dsa

__all__ = ["DSA"]


class DSA(Attention):
    """Each token attends to the ``topk`` earlier tokens that a learned indexer selects (Keye-VL-2.0 sheet 4).

    The indexer sees detached hidden states and learns from its own loss alone: the divergence from the attention that the
    selected keys receive, averaged over heads (sheet 9.3; the paper's sum over key/value groups has the same gradient times
    the number of groups).

    Where no sequence has more than ``topk`` keys, nothing is scored: every query reads all earlier tokens (sheet 4.2).

    Args:
        spec: Sizes of the layer, filled in by the decoder.
        topk: Keys selected per query, N.
        num_indexer_heads: Heads of the indexer, I.
        indexer_head_dim: Width of an indexer head.
        kl_weight: Factor on the indexer's loss; 0 skips it.
        implementation: ``auto`` (Triton on GPUs), ``triton``, or ``torch`` for the reference.
        eight_bit: Whether the indexer rounds its queries and keys as the released inference code does (sheet 4.1).
    """

    def __init__(
        self,
        spec: LayerSpec,
        topk: int = 2048,
        num_indexer_heads: int = 16,
        indexer_head_dim: int = 64,
        kl_weight: float = 1.0,
        implementation: str = "auto",
        eight_bit: bool = False,
    ) -> None:
        super().__init__(spec)
        if topk < 1:
            raise ValueError(f"topk={topk}: a query needs at least one key")
        spec.rope.scaled_section(
            indexer_head_dim
        )  # an indexer width that does not fit the rope fails here, not in training
        self.topk = topk
        self.kl_weight = kl_weight
        self.implementation = implementation
        self.scale = spec.head_dim**-0.5
        self.projection = GroupedQueryProjection(spec)
        self.o_proj = nn.Linear(spec.num_heads * spec.head_dim, spec.dim, bias=False)
        self.sa_indexer = LightningIndexer(spec.dim, num_indexer_heads, indexer_head_dim, eight_bit=eight_bit)

    def forward(self, hidden: Tensor, context: LayerContext) -> AttentionOutput:
        """Select, attend and, in training, compare the indexer with the attention; see :class:`Attention`."""
        query, key, value = self.projection(hidden, context.rotary)
        query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast the norms leave float32 behind
        learns = bool(self.kl_weight) and torch.is_grad_enabled()
        if context.selection is None and context.segments.key_maximum <= self.topk and not learns:
            return self._attend_to_all(hidden, query, key, value, context)
        index_query, index_key, gate = self.sa_indexer(hidden.detach(), context.rotary)
        if context.cache is not None:
            key = context.cache.extend("key", key, context.segments)
            value = context.cache.extend("value", value, context.segments)
            index_key = context.cache.extend("index_key", index_key, context.segments)
        selection = context.selection
        lengths, key_lengths = context.segments.lengths, context.segments.key_lengths
        if selection is None:
            selection = dsa.index_topk(
                index_query, index_key, gate, lengths, key_lengths, self.topk, self.implementation
            )
        mixed, lse = dsa.sparse_attention(
            query, key, value, selection, self.scale, self.implementation, lengths, key_lengths
        )
        output = self._output(mixed, selection, context)
        if learns:
            real = slice(0, context.num_tokens)
            divergence = dsa.indexer_kl(
                index_query[real],
                index_key,
                gate[real],
                query[real],
                key,
                selection[real],
                self.scale,
                self.implementation,
                lse.detach()[real],
            )
            divergence = divergence.sum() / max(context.num_tokens, 1)
            output.losses["indexer_kl"] = self.kl_weight * divergence
            output.meters["indexer_kl"] = divergence.detach()
        return output

    def _attend_to_all(
        self, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, context: LayerContext
    ) -> AttentionOutput:
        """The same for short sequences without scores: of the indexer only its keys are needed, by longer sequences later."""
        selection = _all_visible(context.segments)
        if context.cache is not None:
            context.cache.append("index_key", self.sa_indexer.keys(hidden.detach(), context.rotary))
            mixed = cached_attention(query, key, value, context.cache, context.segments)
        elif torch.is_grad_enabled():  # training rounds alike, however long the longest sequence of a pack is
            segments = context.segments
            mixed, _ = dsa.sparse_attention(
                query, key, value, selection, self.scale, self.implementation, segments.lengths, segments.key_lengths
            )
        else:
            mixed = segmented_attention(query, key, value, context.segments, causal=True)
        return self._output(mixed, selection, context)

    def _output(self, mixed: Tensor, selection: Tensor, context: LayerContext) -> AttentionOutput:
        return AttentionOutput(
            hidden=self.o_proj(mixed.flatten(1)),
            selection=selection,
            meters={"selected_share": self._share(selection, context)},
        )

    def _share(self, selection: Tensor, context: LayerContext) -> Tensor:
        """Selected keys over visible keys, over the queries of all samples."""
        visible, queries = 0, 0
        for length, keys in zip(context.segments.lengths, context.segments.key_lengths, strict=True):
            if queries + length > context.num_tokens:
                break  # the tail that pads the pack
            visible += length * (2 * keys - length + 1) // 2
            queries += length
        return (selection[:queries] >= 0).sum() / max(visible, 1)


def _all_visible(segments: Segments) -> Tensor:
    """``[T, N]`` int32 rows of all keys that each query sees, ascending, -1 tail: what any scores select if N is enough."""
    device = segments.offsets.device
    owner = torch.repeat_interleave(
        torch.arange(len(segments), device=device), segments.offsets.diff(), output_size=segments.total
    )
    # The queries of a segment are its last positions: as many keys as follow a query in its segment are hidden from it.
    following = segments.offsets[owner + 1] - 1 - torch.arange(segments.total, device=device)
    visible = segments.key_offsets.diff()[owner] - following
    column = torch.arange(segments.key_maximum, device=device)
    rows = segments.key_offsets[owner][:, None] + column
    return torch.where(column < visible[:, None], rows, -1).int()
