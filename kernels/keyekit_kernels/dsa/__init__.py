"""DeepSeek Sparse Attention for grouped-query models: indexer, exact top-k, gathered attention, indexer loss."""

from keyekit_kernels.dsa.functional import (
    index_topk,
    indexer_kl,
    indexer_kl_dense,
    keep_selections,
    resolve_implementation,
    sparse_attention,
)

__all__ = [
    "index_topk",
    "indexer_kl",
    "indexer_kl_dense",
    "keep_selections",
    "resolve_implementation",
    "sparse_attention",
]
