"""The two-layer perceptron of encoder blocks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GeluMlp"]


class GeluMlp(nn.Module):
    """Linear, tanh-approximated GELU, linear, with biases (Keye-VL 8B sheet 1.3).

    Args:
        dim: Input and output width.
        hidden_dim: Inner width.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x [..., dim]``."""
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
