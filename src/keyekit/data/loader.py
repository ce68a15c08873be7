"""Loaders of packs: sized, deterministic, and able to continue where a checkpoint left them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch

from keyekit.batch import Batch
from keyekit.data.dataset import ConversationDataset
from keyekit.data.packing import collate, plan_packs

__all__ = ["PackLoader", "StatefulLoader"]


class StatefulLoader:
    """Counts epochs and batches, so that Lightning can save and restore the position.

    Sub-classes say how many batches an epoch has and make the batches of one. Lightning reads ahead only on loaders without
    a length; this one has a length, so the saved position is exact.
    """

    def __init__(self) -> None:
        self._epoch = 0
        self._position = 0

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} must define __len__")

    def batch(self, epoch: int, position: int) -> Any:
        """Make one batch."""
        raise TypeError(f"{type(self).__name__} must define batch()")

    def __iter__(self) -> Iterator[Any]:
        if self._position >= len(self):
            self._epoch, self._position = self._epoch + 1, 0
        while self._position < len(self):
            self._position += 1
            yield self.batch(self._epoch, self._position - 1)

    def state_dict(self) -> dict[str, int]:
        """Epoch and batches handed out in it."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved position."""
        self._epoch, self._position = state["epoch"], state["position"]


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class PackLoader(StatefulLoader):
    """Packs of a dataset, in an order that follows from seed and epoch alone.

    The plan divides *lengths* among packs and is made once, so every epoch has the same number of packs; which samples of
    equal length go where, and the order of the packs, change with every epoch. Under several ranks pack ``i`` goes to rank
    ``i % ranks``; in training, packs from the start of the order fill up the last round, so that all ranks have equally many.

    Args:
        dataset: Encoded samples.
        budget: Tokens of a pack.
        seed: Seed of plan and order.
        shuffle: Whether order and members change with the epoch.
        eyes: What the samples see; see :meth:`ConversationDataset.pictures`.
        patch_size: Side of a patch in pixels.
    """

    def __init__(
        self,
        dataset: ConversationDataset,
        budget: int,
        seed: int = 0,
        shuffle: bool = True,
        eyes: Literal["open", "blank", "swapped"] = "open",
        patch_size: int = 14,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.budget = budget
        self.seed = seed
        self.shuffle = shuffle
        self.eyes: Literal["open", "blank", "swapped"] = eyes
        self.patch_size = patch_size
        lengths = [len(sample) for sample in dataset.encoded]
        self._plan = plan_packs(lengths, budget, seed)
        self._alike: dict[int, list[int]] = defaultdict(list)
        for index, length in enumerate(lengths):
            self._alike[length].append(index)
        self._ordered: tuple[int, list[list[int]]] | None = None

    def __len__(self) -> int:
        rank, world = _rank_and_world()
        if self.shuffle:
            return -(-len(self._plan) // world)
        return len(range(rank, len(self._plan), world))

    def packs(self, epoch: int) -> list[list[int]]:
        """Sample numbers of every pack of an epoch, over all ranks."""
        if not self.shuffle:
            return self._plan
        if self._ordered is None or self._ordered[0] != epoch:
            random = np.random.default_rng((self.seed, epoch))
            exchange = {}
            for alike in self._alike.values():
                exchange.update(zip(alike, random.permutation(alike).tolist(), strict=True))
            order = random.permutation(len(self._plan)).tolist()
            self._ordered = epoch, [[exchange[index] for index in self._plan[pack]] for pack in order]
        return self._ordered[1]

    def batch(self, epoch: int, position: int) -> Batch:
        """Make the pack at a position of an epoch."""
        rank, world = _rank_and_world()
        packs = self.packs(epoch)
        pack = packs[(position * world + rank) % len(packs)]
        samples = [self.dataset.encoded[index] for index in pack]
        pictures = [self.dataset.pictures(index, self.eyes) for index in pack]
        return collate(samples, pictures, self.budget, self.patch_size)
