"""The network as training found it, kept beside the one that learns, for objectives that compare the two."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TypeVar

import lightning
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from keyekit.batch import Batch
from keyekit.distributed.meta import fill_shards, is_on_meta
from keyekit.distributed.strategy import Sharded
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.models.weights import load_weights

__all__ = ["FrozenReference"]

Read = TypeVar("Read")


class FrozenReference:
    """A frozen network with the weights of a folder, of the same parts as a task's and spread over the same ranks.

    It is no module of the task: no optimizer, checkpoint, export or gradient norm knows of it, and a resumed run takes it from
    the folder again. Each rank holds as much of it as of the network, by the strategy's plans, and gathers it block by block.

    A task keeps one as an attribute, calls :meth:`copy` in ``setup`` and :meth:`place` in ``configure_model``.
    """

    def __init__(self) -> None:
        self._network: VisionLanguageModel | None = None
        self._is_placed = False

    def __bool__(self) -> bool:
        return self._network is not None

    @property
    def network(self) -> VisionLanguageModel:
        """The copy."""
        if self._network is None:
            raise RuntimeError("there is no reference: nothing was copied")
        return self._network

    def copy(self, network: VisionLanguageModel) -> None:
        """Copy a network, with memory or without; nothing happens the second time.

        Raises:
            ValueError: If the ranks have divided the network already: what they hold cannot be copied.
        """
        if self:
            return
        if isinstance(network, FSDPModule):
            raise ValueError(
                "the ranks have divided the network before a reference could be copied from it: fit before anything else is "
                "done with a network (validate, test, another task), or build a new one"
            )
        self._network = deepcopy(network).eval().requires_grad_(False)

    def place(self, trainer: lightning.Trainer, folder: Path | str) -> None:
        """Spread the copy over the ranks as the strategy spreads the network, and load it; the second time it is there already.

        Tensors that the folder lacks are those that the network began with: copied with it, or drawn in the same way if it has
        no memory yet.

        Args:
            trainer: Its strategy knows the ranks and devices, its precision the type of the weights.
            folder: With weights.
        """
        strategy = trainer.strategy
        if not self._is_placed:
            if isinstance(strategy, Sharded):
                strategy.shard(self.network)
            if isinstance(strategy, Sharded) and is_on_meta(self.network):
                strategy.materialize(self.network)
                report = fill_shards(self.network, folder)
            else:
                report = load_weights(self.network, folder)
            rank_zero_info("reference, %s: %s", folder, report)
            trainer.precision_plugin.convert_module(self.network)
            self._is_placed = True
        if not isinstance(strategy, Sharded):  # shards are where their plan wants them
            self.network.to(strategy.root_device)

    @torch.no_grad()
    def ask(self, batch: Batch, read: Callable[[Batch, VisionLanguageModel, Tensor], Read]) -> Read:
        """Run the reference on a pack; ranks that share its weights ask together.

        Args:
            batch: The pack.
            read: Takes what is wanted from the pack, the reference and its hidden states ``[T, D]``.
        """
        found = read(batch, self.network, self.network(batch).hidden)
        for module in self.network.modules():
            if isinstance(module, FSDPModule):  # what is kept for a backward pass, which never comes
                module.reshard()
        return found
