"""A task, network and data of a few numbers, shaped like the real ones, for tests of the command line."""

from __future__ import annotations

from collections.abc import Callable

import lightning
import torch
from torch import nn

from keyekit.nn.attention.base import Attention
from keyekit.nn.attention.dense import Dense
from keyekit.nn.spec import LayerSpec
from keyekit.testing.tiny import tiny_layer_spec


class ToyNetwork(nn.Module):
    """Two attention layers.

    Args:
        width: Ignored number.
        attention: Which attention.
    """

    def __init__(self, width: int = 4, attention: Callable[[LayerSpec], Attention] = Dense) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(attention(tiny_layer_spec(layer)) for layer in range(2))
        self.weight = nn.Parameter(torch.ones(1))


class ToyTask(lightning.LightningModule):
    """Shrinks one weight.

    Args:
        network: Network.
        learning_rate: Step.
    """

    def __init__(self, network: ToyNetwork, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Square of the weight."""
        loss = self.network.weight.square().sum()
        self.log("train/loss", loss)
        return loss

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        """Log the weight."""
        self.log("weight", self.network.weight.sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain descent."""
        return torch.optim.SGD(self.parameters(), self.learning_rate)


class ToyData(lightning.LightningDataModule):
    """Numbers.

    Args:
        size: How many.
    """

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size = size

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """All numbers."""
        return torch.utils.data.DataLoader(torch.arange(self.size))  # pyright: ignore[reportArgumentType]

    test_dataloader = train_dataloader
