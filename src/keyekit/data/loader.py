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

__all__ = ["PackLoader", "StatefulLoader", "rank_and_world"]


class StatefulLoader:
    """Counts epochs and batches, so that Lightning can save and restore the position.

    Sub-classes say how many batches an epoch has for each rank and make the batches of one. Lightning reads ahead only on
    loaders without a length; this one has a length, so the saved position is exact. A position counts rounds, in which every
    rank takes one batch: resumed on another number of ranks, a run goes on with the round that was not finished.

    Args:
        shuffle: Whether epochs differ. An epoch that was left early goes on when it is iterated again if they do (Lightning
            ends epochs early with ``limit_train_batches``); otherwise every iteration begins at the start.
    """

    def __init__(self, shuffle: bool = True) -> None:
        self.shuffle = shuffle
        self._epoch = 0
        self._position = 0
        self._resumed = False

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} must define __len__")

    @property
    def num_batches(self) -> int:
        """Batches of an epoch over all ranks, as planned."""
        return len(self)

    def batch(self, epoch: int, position: int) -> Any:
        """Make one batch."""
        raise TypeError(f"{type(self).__name__} must define batch()")

    def __iter__(self) -> Iterator[Any]:
        if self._position >= len(self):
            self._epoch, self._position = self._epoch + 1, 0
        elif not self.shuffle and not self._resumed:
            self._position = 0
        self._resumed = False
        while self._position < len(self):
            self._position += 1
            yield self.batch(self._epoch, self._position - 1)

    def state_dict(self) -> dict[str, int]:
        """Epoch, batches handed out in it to each rank, number of ranks, and batches of an epoch over all ranks."""
        ranks = rank_and_world()[1]
        return {"epoch": self._epoch, "position": self._position, "ranks": ranks, "batches": self.num_batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved position.

        Raises:
            ValueError: If epochs had another number of batches when the position was saved.
        """
        if state["batches"] != self.num_batches:
            raise ValueError(
                f"the checkpoint was saved in epochs of {state['batches']} batches, now there are {self.num_batches}: data, "
                "budget or skipped samples changed, so its position means nothing; go on with the former data, or begin a new "
                "run from the exported weights"
            )
        self._epoch = state["epoch"]
        self._position = state["position"] * state["ranks"] // rank_and_world()[1]
        self._resumed = True


def rank_and_world() -> tuple[int, int]:
    """Number of this process and of all processes that train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class PackLoader(StatefulLoader):
    """Packs of a dataset, in an order that follows from seed and epoch alone.

    The plan divides *lengths* among packs and is made once, so every epoch has the same number of packs; which samples of
    equal length go where, and the order of the packs, change with every epoch. Under several ranks pack ``i`` goes to rank
    ``i % ranks``, and all ranks have equally many: when the order is shuffled, packs from its start are repeated to fill up
    the last round; when it is not (evaluation), the packs with most samples are divided until the rounds are full, so that
    every sample comes exactly once (packs are repeated only where there are fewer samples than ranks).

    Args:
        dataset: Encoded samples.
        budget: Tokens of a pack.
        seed: Seed of plan and order.
        shuffle: Whether order and members change with the epoch.
        eyes: What the samples see; see :meth:`ConversationDataset.pictures`.
    """

    def __init__(
        self,
        dataset: ConversationDataset,
        budget: int,
        seed: int = 0,
        shuffle: bool = True,
        eyes: Literal["open", "blank", "swapped"] = "open",
    ) -> None:
        super().__init__(shuffle)
        self.dataset = dataset
        self.budget = budget
        self.seed = seed
        self.eyes: Literal["open", "blank", "swapped"] = eyes
        self.patch_size = dataset.encoder.cache.reader.geometry.patch_size
        lengths = [len(sample) for sample in dataset.encoded]
        self._plan = plan_packs(lengths, budget, seed)
        self._alike: dict[int, list[int]] = defaultdict(list)
        for index, length in enumerate(lengths):
            self._alike[length].append(index)
        self._ordered: tuple[int, list[list[int]]] | None = None

    def __len__(self) -> int:
        return -(-len(self.packs(self._epoch)) // rank_and_world()[1])

    @property
    def num_batches(self) -> int:
        """Packs of an epoch, as planned."""
        return len(self._plan)

    def packs(self, epoch: int) -> list[list[int]]:
        """Sample numbers of every pack of an epoch, over all ranks."""
        if not self.shuffle:
            return _divided(self._plan, rank_and_world()[1])
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
        rank, world = rank_and_world()
        packs = self.packs(epoch)
        pack = packs[(position * world + rank) % len(packs)]
        samples = [self.dataset.encoded[index] for index in pack]
        pictures = [self.dataset.pictures(index, self.eyes) for index in pack]
        return collate(samples, pictures, self.budget, self.patch_size)


def _divided(packs: list[list[int]], world: int) -> list[list[int]]:
    """The same samples in so many packs that they can be dealt evenly, as far as there are enough samples."""
    packs = list(packs)
    while len(packs) % world:
        fullest = max(range(len(packs)), key=lambda index: len(packs[index]))
        pack = packs[fullest]
        if len(pack) < 2:
            break
        packs[fullest : fullest + 1] = [pack[: len(pack) // 2], pack[len(pack) // 2 :]]
    return packs
