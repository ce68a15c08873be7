"""The dense feed-forward of the decoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from keyekit.batch import Segments
from keyekit.nn.moe.base import FeedForward, FeedForwardOutput
from keyekit.nn.spec import LayerSpec

__all__ = ["SwiGLU"]


class SwiGLU(FeedForward):
    """``down(silu(gate(x)) * up(x))`` without biases (Qwen3, Keye-VL 8B sheet 1.2).

    Args:
        spec: Sizes of the layer, filled in by the decoder; the inner width is its ``hidden_dim``.
    """

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.gate_proj = nn.Linear(spec.dim, spec.hidden_dim, bias=False)
        self.up_proj = nn.Linear(spec.dim, spec.hidden_dim, bias=False)
        self.down_proj = nn.Linear(spec.hidden_dim, spec.dim, bias=False)

    def forward(
        self,
        hidden: Tensor,
        num_tokens: int | None = None,
        selection: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        segments: Segments | None = None,
    ) -> FeedForwardOutput:
        """Transform ``hidden [T, D]``; see :class:`FeedForward`."""
        inner = functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        return FeedForwardOutput(hidden=self.down_proj(inner))
