"""DeepSeek Sparse Attention for grouped-query models."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from keyekit.batch import Segments
from keyekit.nn.attention.base import Attention, AttentionOutput, GroupedQueryProjection, LayerContext
from keyekit.nn.attention.cached import cached_attention
from keyekit.nn.attention.indexer import LightningIndexer
from keyekit.nn.attention.recall import (
    attention_mass,
    best_keys,
    last_keys,
    random_keys,
    recall,
    sample_rows,
)
from keyekit.nn.attention.segmented import segmented_attention
from keyekit.nn.spec import LayerSpec
from keyekit_kernels import dsa

__all__ = ["DSA"]

_Scores = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and gates of the indexer."""


class DSA(Attention):
    """Each token attends to the ``topk`` earlier tokens that a learned indexer selects (Keye-VL-2.0 sheet 4).

    The indexer sees detached hidden states and learns from its own loss alone: the divergence from the attention, averaged
    over heads (sheet 9.3; the paper's sum over key/value groups has the same gradient times the number of groups). It is
    taught in two stages:

    - ``dense_warmup``: every token attends to all earlier ones, and the indexer follows that whole attention. Freeze all
      the rest with the task's ``groups``, then nothing but indexers is differentiated.
    - ``sparse``: tokens attend to the selected keys, and the indexer follows the attention that those receive.

    Where no sequence has more than ``topk`` keys, nothing is scored: every query reads all earlier tokens (sheet 4.2).

    Training logs ``dsa_recall/<layer>``: the share of the dense attention that the selection keeps, over the share that the
    best ``topk`` keys keep, for queries with more than ``topk`` keys.

    Args:
        spec: Sizes of the layer, filled in by the decoder.
        topk: Keys selected per query, N.
        num_indexer_heads: Heads of the indexer, I.
        indexer_head_dim: Width of an indexer head.
        kl_weight: Factor on the indexer's loss; 0 skips it.
        implementation: ``auto`` (Triton on GPUs), ``triton``, or ``torch`` for the reference.
        eight_bit: Whether the indexer rounds its queries and keys as the released inference code does (sheet 4.1).
        mode: ``sparse``, or ``dense_warmup`` for dense attention that teaches the indexer.
        recall_rows: Queries of a pack on which recall is measured at every training step, each against all keys of the pack;
            0 measures none.
    """

    takes_parts = True

    def __init__(
        self,
        spec: LayerSpec,
        topk: int = 2048,
        num_indexer_heads: int = 16,
        indexer_head_dim: int = 64,
        kl_weight: float = 1.0,
        implementation: str = "auto",
        eight_bit: bool = False,
        mode: Literal["sparse", "dense_warmup"] = "sparse",
        recall_rows: int = 32,
    ) -> None:
        super().__init__(spec)
        if topk < 1:
            raise ValueError(f"topk={topk}: a query needs at least one key")
        if mode not in ("sparse", "dense_warmup"):
            raise ValueError(f"mode={mode!r}: choose 'dense_warmup' (dense attention teaches the indexer) or 'sparse'")
        if recall_rows < 0:
            raise ValueError(f"recall_rows={recall_rows}: a number of queries, 0 for no measurement")
        spec.rope.scaled_section(
            indexer_head_dim
        )  # an indexer width that does not fit the rope fails here, not in training
        self.topk = topk
        self.kl_weight = kl_weight
        self.implementation = implementation
        self.mode = mode
        self.recall_rows = recall_rows
        self.scale = spec.head_dim**-0.5
        self.projection = GroupedQueryProjection(spec)
        self.o_proj = nn.Linear(spec.num_heads * spec.head_dim, spec.dim, bias=False)
        self.sa_indexer = LightningIndexer(spec.dim, num_indexer_heads, indexer_head_dim, eight_bit=eight_bit)

    def forward(self, hidden: Tensor, context: LayerContext) -> AttentionOutput:
        """Select, attend and, in training, compare the indexer with the attention; see :class:`Attention`."""
        query, key, value = self._project(hidden, context)
        learns = bool(self.kl_weight) and torch.is_grad_enabled()
        if self.mode == "dense_warmup" and context.selection is None:
            return self._warm_up(hidden, query, key, value, context, learns)
        if context.selection is None and context.segments.key_maximum <= self.topk and not learns:
            return self._attend_to_all(hidden, query, key, value, context)
        own, (index_query, index_key, gate) = context.own(), self._indexer(hidden, context)
        if context.cache is not None:
            key = context.cache.extend("key", key, context.segments)
            value = context.cache.extend("value", value, context.segments)
            index_key = context.cache.extend("index_key", index_key, context.segments)
        selection = context.selection
        if selection is None:
            lengths, key_lengths = own.segments.lengths, own.segments.key_lengths
            selection = dsa.index_topk(
                index_query, index_key, gate, lengths, key_lengths, self.topk, self.implementation
            )
            selection = _widened(selection, min(self.topk, context.segments.key_maximum))
        mixed, lse = self._attend_to_selected(query, key, value, selection, context)
        output = self._output(mixed, selection, own)
        if learns:
            real = slice(0, own.num_tokens)
            constant_key = context.exchange.gather(key.detach())
            divergence = dsa.indexer_kl(
                index_query[real],
                index_key,
                gate[real],
                query[real],
                constant_key,
                selection[real],
                self.scale,
                self.implementation,
                context.exchange.to_tokens(lse.detach())[0][real],
            )
            self._teach(output, divergence, context)
            self._measure(output, query, constant_key, selection, own)
        return output

    @torch.no_grad()
    def recalls(
        self, hidden: Tensor, context: LayerContext, rows: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Recall of the indexer on a pack, beside that of two selections that need no training.

        Args:
            hidden: ``[T, D]`` what :meth:`forward` would get.
            context: The same; without a cache.
            rows: Most queries to measure.
            generator: Draws the random keys.

        Returns:
            Scalars ``indexer``, ``last`` (the ``topk`` keys before a query) and ``random``; nothing if no query has more than
            ``topk`` keys.
        """
        sampled = sample_rows(context.segments, self.topk, rows, context.num_tokens)
        if sampled is None:
            return {}
        query, key, _ = self._project(hidden, context)
        index_query, index_key, gate = self.sa_indexer(hidden, context.rotary)
        mass = attention_mass(query, key, sampled, self.scale)
        selections = {
            "indexer": best_keys(index_query, index_key, gate, sampled, self.topk),
            "last": last_keys(sampled, self.topk),
            "random": random_keys(sampled, self.topk, key.shape[0], generator),
        }
        return {name: recall(mass, selection, self.topk) for name, selection in selections.items()}

    def _project(self, hidden: Tensor, context: LayerContext) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.projection(hidden, context.rotary)
        return query.to(value.dtype), key.to(value.dtype), value  # under autocast the norms leave float32 behind

    def _indexer(self, hidden: Tensor, context: LayerContext) -> _Scores:
        """Queries and gates of this rank's tokens, keys of all that it may select."""
        index_query, index_key, gate = self.sa_indexer(hidden.detach(), context.rotary)
        return index_query, context.exchange.gather(index_key), gate

    def _attend_to_selected(
        self, query: Tensor, key: Tensor, value: Tensor, selection: Tensor, context: LayerContext
    ) -> tuple[Tensor, Tensor]:
        """Attention over the selected keys: ``[T, H, K]`` for this rank's tokens, and log-sum-exps for its heads."""
        query, key, value = context.exchange.to_heads(query, key, value)
        lengths, key_lengths = context.segments.lengths, context.segments.key_lengths
        selection = context.exchange.gather(selection)
        mixed, lse = dsa.sparse_attention(
            query, key, value, selection, self.scale, self.implementation, lengths, key_lengths
        )
        return context.exchange.to_tokens(mixed)[0], lse

    def _attend_densely(self, query: Tensor, key: Tensor, value: Tensor, context: LayerContext) -> Tensor:
        """Attention ``[T, H, K]`` of this rank's tokens to everything before them."""
        if context.cache is not None:
            return cached_attention(query, key, value, context.cache, context.segments)
        query, key, value = context.exchange.to_heads(query, key, value)
        return context.exchange.to_tokens(segmented_attention(query, key, value, context.segments, causal=True))[0]

    def _warm_up(
        self, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, context: LayerContext, learns: bool
    ) -> AttentionOutput:
        """Attend to everything and let the indexer follow."""
        mixed = self._attend_densely(query, key, value, context)
        output = AttentionOutput(hidden=self.o_proj(mixed.flatten(1)))
        if learns and context.cache is None:
            own, scores = context.own(), self._indexer(hidden, context)
            lengths, key_lengths = _without_tail(own.segments, own.num_tokens)
            constant_key = context.exchange.gather(key.detach())
            divergence = dsa.indexer_kl_dense(
                *scores, query, constant_key, lengths, key_lengths, self.scale, self.implementation
            )
            self._teach(output, divergence, context)
            self._measure(output, query, constant_key, scores, own)
        return output

    def _attend_to_all(
        self, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, context: LayerContext
    ) -> AttentionOutput:
        """The same for short sequences without scores: of the indexer only its keys are needed, by longer sequences later."""
        own = context.own()
        selection = _widened(_all_visible(own.segments), context.segments.key_maximum)
        if context.cache is not None:
            context.cache.append("index_key", self.sa_indexer.keys(hidden.detach(), context.rotary))
        if context.cache is None and torch.is_grad_enabled():
            # Training rounds alike, however long the longest sequence of a pack is.
            mixed, _ = self._attend_to_selected(query, key, value, selection, context)
        else:
            mixed = self._attend_densely(query, key, value, context)
        return self._output(mixed, selection, own)

    def _output(self, mixed: Tensor, selection: Tensor, context: LayerContext) -> AttentionOutput:
        return AttentionOutput(
            hidden=self.o_proj(mixed.flatten(1)),
            selection=selection,
            meters={"selected_share": self._share(selection, context)},
        )

    def _teach(self, output: AttentionOutput, divergence: Tensor, context: LayerContext) -> None:
        """Add the indexer's loss, the mean over the tokens of samples, to what the layer reports.

        Of a pack that is divided, the loss is this rank's share of that mean, and the meter the mean over its own tokens.
        """
        total = divergence.sum()
        output.losses["indexer_kl"] = self.kl_weight * total / max(context.num_tokens, 1)
        output.meters["indexer_kl"] = total.detach() / max(context.own().num_tokens, 1)

    def _measure(
        self, output: AttentionOutput, query: Tensor, key: Tensor, chosen: Tensor | _Scores, context: LayerContext
    ) -> None:
        """Add the recall of a selection, or of the selection that scores would make, to what the layer reports."""
        rows = sample_rows(context.segments, self.topk, self.recall_rows, context.num_tokens)
        if rows is None:
            return
        if isinstance(chosen, Tensor):
            selection = chosen[rows.queries]
        else:
            index_query, index_key, gate = chosen
            selection = best_keys(index_query, index_key, gate, rows, self.topk)
        mass = attention_mass(query, key, rows, self.scale)
        output.meters[f"dsa_recall/{self.spec.layer}"] = recall(mass, selection, self.topk)

    def _share(self, selection: Tensor, context: LayerContext) -> Tensor:
        """Selected keys over visible keys, over the queries of all samples."""
        visible, queries = 0, 0
        for length, keys in zip(context.segments.lengths, context.segments.key_lengths, strict=True):
            if queries + length > context.num_tokens:
                break  # the tail that pads the pack
            visible += length * (2 * keys - length + 1) // 2
            queries += length
        return (selection[:queries] >= 0).sum() / max(visible, 1)


def _without_tail(segments: Segments, num_tokens: int) -> tuple[list[int], list[int]]:
    """Lengths of queries and keys of the sequences, as if there were no tokens behind the first ``num_tokens``."""
    lengths, key_lengths, left = [], [], num_tokens
    for length, keys in zip(segments.lengths, segments.key_lengths, strict=True):
        kept = min(length, left)
        if length > 0 and kept == 0:
            break
        lengths.append(kept)
        key_lengths.append(keys - length + kept)
        left -= kept
    return lengths, key_lengths


def _widened(selection: Tensor, width: int) -> Tensor:
    """``selection [T, N]`` with as many columns as on the other ranks, -1 in the new ones."""
    return functional.pad(selection, (0, width - selection.shape[1]), value=-1)


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
