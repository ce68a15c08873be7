"""DeepSeek Sparse Attention for grouped-query models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keyekit.nn.attention.base import Attention, AttentionOutput, GroupedQueryProjection, LayerContext
from keyekit.nn.attention.indexer import LightningIndexer
from keyekit.nn.spec import LayerSpec
from keyekit_kernels import dsa

__all__ = ["DSA"]


class DSA(Attention):
    """Each token attends to the ``topk`` earlier tokens that a learned indexer selects (Keye-VL-2.0 sheet 4).

    The indexer sees detached hidden states and learns from its own loss alone: the divergence from the attention that the
    selected keys receive, averaged over heads (sheet 9.3; the paper's sum over key/value groups has the same gradient times
    the number of groups).

    Args:
        spec: Sizes of the layer, filled in by the decoder.
        topk: Keys selected per query, N.
        num_indexer_heads: Heads of the indexer, I.
        indexer_head_dim: Width of an indexer head.
        kl_weight: Factor on the indexer's loss; 0 skips it.
        implementation: ``auto``, or ``torch`` for the reference.
    """

    def __init__(
        self,
        spec: LayerSpec,
        topk: int = 2048,
        num_indexer_heads: int = 16,
        indexer_head_dim: int = 64,
        kl_weight: float = 1.0,
        implementation: str = "auto",
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
        self.sa_indexer = LightningIndexer(spec.dim, num_indexer_heads, indexer_head_dim)

    def forward(self, hidden: Tensor, context: LayerContext) -> AttentionOutput:
        """Select, attend and, in training, compare the indexer with the attention; see :class:`Attention`."""
        query, key, value = self.projection(hidden, context.rotary)
        index_query, index_key, gate = self.sa_indexer(hidden.detach(), context.rotary)
        if context.cache is not None:
            key = context.cache.extend("key", key, context.segments)
            value = context.cache.extend("value", value, context.segments)
            index_key = context.cache.extend("index_key", index_key, context.segments)
        selection = context.selection
        if selection is None:
            lengths, key_lengths = context.segments.lengths, context.segments.key_lengths
            selection = dsa.index_topk(
                index_query, index_key, gate, lengths, key_lengths, self.topk, self.implementation
            )
        mixed, _ = dsa.sparse_attention(query, key, value, selection, self.scale, self.implementation)
        output = AttentionOutput(
            hidden=self.o_proj(mixed.flatten(1)),
            selection=selection,
            meters={"selected_share": self._share(selection, context)},
        )
        if self.kl_weight and torch.is_grad_enabled():
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
            ).mean()
            output.losses["indexer_kl"] = self.kl_weight * divergence
            output.meters["indexer_kl"] = divergence.detach()
        return output

    def _share(self, selection: Tensor, context: LayerContext) -> Tensor:
        """Selected keys over visible keys, over the queries of all samples."""
        visible, queries = 0, 0
        for length, keys in zip(context.segments.lengths, context.segments.key_lengths, strict=True):
            if queries + length > context.num_tokens:
                break  # the tail that pads the pack
            visible += length * (2 * keys - length + 1) // 2
            queries += length
        return (selection[:queries] >= 0).sum() / max(visible, 1)
