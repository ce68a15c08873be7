"""The lightning indexer: a small attention that decides which keys the real attention reads."""

from __future__ import annotations

from torch import Tensor, nn

from keyekit.nn.norm import RMSNorm
from keyekit.nn.rope.rotary import Rotary
from keyekit_kernels.dsa.quantization import fake_quantize

__all__ = ["LightningIndexer"]


class LightningIndexer(nn.Module):
    """Queries, keys and head gates of DeepSeek Sparse Attention's indexer (Keye-VL-2.0 sheet 4.1).

    The Hadamard rotation of the released inference code cancels in exact arithmetic (it serves fp8), so it is left out unless
    ``eight_bit`` asks for what the rounding leaves; weights are interchangeable.

    Args:
        dim: Model width D.
        num_heads: Indexer heads I.
        head_dim: Width of an indexer head.
        eps: Epsilon of both norms.
        eight_bit: Whether queries and keys are rotated and rounded to e4m3 as in the released inference code (sheet 4.1 items
            4 and 5); gradients pass straight through.
    """

    def __init__(
        self, dim: int, num_heads: int = 16, head_dim: int = 64, eps: float = 1e-6, eight_bit: bool = False
    ) -> None:
        super().__init__()
        if eight_bit and head_dim & (head_dim - 1):
            raise ValueError(f"eight_bit needs an indexer width that is a power of two, got {head_dim}")
        self.eight_bit = eight_bit
        self.num_heads = num_heads
        self.head_dim = head_dim
        # Keye-VL-2.0 sheet 4.1 item 1: the last num_heads rows of q_proj are the gates.
        self.q_proj = nn.Linear(dim, num_heads * head_dim + num_heads, bias=False)
        self.k_proj = nn.Linear(dim, head_dim, bias=False)
        self.q_norm = RMSNorm(head_dim, eps)
        self.k_norm = nn.LayerNorm(head_dim, eps)

    def forward(self, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Project detached hidden states.

        Args:
            hidden: ``[T, D]``; the caller detaches it, so that the indexer trains apart from the model.
            rotary: Positions, shared with the main attention.

        Returns:
            ``query [T, I, indexer_dim]``, ``key [T, indexer_dim]``, ``gate [T, I]``.
        """
        query, gate = self.q_proj(hidden).split([self.num_heads * self.head_dim, self.num_heads], dim=-1)
        query = rotary(self.q_norm(query.unflatten(-1, (self.num_heads, self.head_dim))))
        if self.eight_bit:
            query = fake_quantize(query)
        return query, self.keys(hidden, rotary), gate

    def keys(self, hidden: Tensor, rotary: Rotary) -> Tensor:
        """The keys ``[T, indexer_dim]`` alone: all that a sequence needs which is still too short for a choice."""
        projected = self.k_proj(hidden)
        key = self.k_norm(projected).to(projected.dtype)  # under autocast the norm leaves float32 behind
        key = rotary(key[:, None])[:, 0]
        return fake_quantize(key) if self.eight_bit else key
