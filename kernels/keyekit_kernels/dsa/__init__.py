"""DeepSeek Sparse Attention for grouped-query models: indexer, exact top-k, gathered attention, indexer loss."""

from keyekit_kernels.dsa.functional import index_topk, indexer_kl, resolve_implementation, sparse_attention

__all__ = ["index_topk", "indexer_kl", "resolve_implementation", "sparse_attention"]
