"""Loaders of packs: sized, deterministic, and able to continue where a checkpoint left them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from keyekit.batch import Batch
from keyekit.data.balance import balance_packs
from keyekit.data.dataset import ConversationDataset, Eyes
from keyekit.data.decode_pool import Decoding, decoded_ahead
from keyekit.data.packer import PackBudget
from keyekit.data.packing import collate, plan_packs
from keyekit.data.sample import ContentItem

__all__ = ["PackLoader", "StatefulLoader", "rank_and_world"]


class StatefulLoader:
    """Counts epochs and batches, so that Lightning can save and restore the position.

    Sub-classes say how many batches an epoch has for each rank and make the batches of one. Lightning reads ahead only on
    loaders without a length; this one has a length, so the saved position is exact. A position counts rounds, in which every
    rank takes one batch: resumed on another number of ranks, a run goes on with the round that was not finished.

    Args:
        shuffle: Whether epochs differ. An epoch that was left early goes on when it is iterated again if they do (Lightning
            ends epochs early with ``limit_train_batches``); otherwise every iteration begins at the start.
        sharing: Consecutive ranks that take the same batches, as sequence parallelism wants.
    """

    def __init__(self, shuffle: bool = True, sharing: int = 1) -> None:
        self.shuffle = shuffle
        self.sharing = sharing
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

    def prepared(self, epoch: int, positions: Iterable[int]) -> Iterator[int]:
        """Positions whose batches can be made, in order; a sub-class may prepare those that follow meanwhile."""
        yield from positions

    def __iter__(self) -> Iterator[Any]:
        if self._position >= len(self):
            self._epoch, self._position = self._epoch + 1, 0
        elif not self.shuffle and not self._resumed:
            self._position = 0
        self._resumed = False
        for position in self.prepared(self._epoch, range(self._position, len(self))):
            self._position = position + 1
            yield self.batch(self._epoch, position)

    def state_dict(self) -> dict[str, int]:
        """Epoch, batches handed out in it to each rank, number of ranks, and batches of an epoch over all ranks."""
        ranks = rank_and_world(self.sharing)[1]
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
        self._position = state["position"] * state["ranks"] // rank_and_world(self.sharing)[1]
        self._resumed = True


def rank_and_world(sharing: int = 1) -> tuple[int, int]:
    """Number of this process and of all processes that train together.

    Args:
        sharing: Consecutive processes that count as one.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() // sharing, torch.distributed.get_world_size() // sharing
    return 0, 1


class PackLoader(StatefulLoader):
    """Packs of a dataset, in an order that follows from seed and epoch alone.

    The plan divides *sizes* among packs and is made once, so every epoch has the same number of packs; which samples of
    equal size go where, and the order of the packs, change with every epoch. Under several ranks pack ``i`` goes to rank
    ``i % ranks``, and all ranks have equally many: when the order is shuffled, packs from its start are repeated to fill up
    the last round; when it is not (evaluation), the packs with most samples are divided until the rounds are full, so that
    every sample comes exactly once (packs are repeated only where there are fewer samples than ranks).

    Where the dataset's cost knows operations, the packs of a round exchange samples until ranks have equally much to do
    (:func:`~keyekit.data.balance.balance_packs`); which samples a round has stays as it is.

    Args:
        dataset: Encoded samples.
        budget: Tokens of a pack, or all that it may hold.
        seed: Seed of plan and order.
        shuffle: Whether order and members change with the epoch.
        eyes: What the samples see; see :meth:`ConversationDataset.pictures`.
        decode_workers: Processes that decode media of packs to come that are not in the cache; 0 decodes in place.
        service: Decodes them instead of processes here.
        alone: Whether a sample that exceeds the budget becomes a pack of its own; otherwise it is an error.
        sharing: Consecutive ranks that take the same packs.
    """

    def __init__(
        self,
        dataset: ConversationDataset,
        budget: int | PackBudget,
        seed: int = 0,
        shuffle: bool = True,
        eyes: Eyes = "open",
        decode_workers: int = 0,
        alone: bool = False,
        sharing: int = 1,
        service: Decoding | None = None,
    ) -> None:
        super().__init__(shuffle, sharing)
        self.service = service
        self.dataset = dataset
        self.budget = budget if isinstance(budget, PackBudget) else PackBudget(tokens=budget)
        self.seed = seed
        self.eyes: Eyes = eyes
        self.decode_workers = decode_workers
        self.patch_size = dataset.encoder.cache.reader.geometry.patch_size
        self.alone = alone
        self._sizes = dataset.sizes
        self._plan = plan_packs(self._sizes, self.budget, seed, alone=alone)
        self._alike: dict[tuple[float, ...], list[int]] = defaultdict(list)
        for index, size in enumerate(self._sizes):
            self._alike[self.budget.limited(size)].append(index)
        self._ordered: tuple[int, list[list[int]]] | None = None

    def __len__(self) -> int:
        return -(-len(self.packs(self._epoch)) // rank_and_world(self.sharing)[1])

    @property
    def num_batches(self) -> int:
        """Packs of an epoch, as planned."""
        return len(self._plan)

    def packs(self, epoch: int) -> list[list[int]]:
        """Sample numbers of every pack of an epoch, over all ranks."""
        if not self.shuffle:
            return _divided(self._plan, rank_and_world(self.sharing)[1])
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
        pack = self._own(epoch, position)
        samples, pictures = zip(*(m for index in pack for m in self.dataset.members(index, self.eyes)), strict=True)
        too_long = self.alone and len(pack) == 1 and sum(map(len, samples)) > self.budget.tokens
        return collate(samples, pictures, None if too_long else self.budget.tokens, self.patch_size)

    def prepared(self, epoch: int, positions: Iterable[int]) -> Iterator[int]:
        """Positions whose media are in the cache; those of the packs that follow are decoded meanwhile."""
        looks = self.eyes == "open"
        workers, service = (self.decode_workers, self.service) if looks else (0, None)
        cache = self.dataset.encoder.cache
        return decoded_ahead(positions, lambda position: self._media(epoch, position), cache, workers, service=service)

    def _own(self, epoch: int, position: int) -> list[int]:
        """Sample numbers of this rank's pack."""
        rank, world = rank_and_world(self.sharing)
        packs = self.packs(epoch)
        start = position * world
        if not self.shuffle or world == 1 or start + world > len(packs):  # repeated packs are as they were
            return packs[(start + rank) % len(packs)]
        return balance_packs(packs[start : start + world], self._sizes, self.budget)[rank]

    def _media(self, epoch: int, position: int) -> list[ContentItem]:
        samples = (self.dataset.encoded[index].sample for index in self._own(epoch, position))
        return [item for sample in samples for item in self.dataset.encoder.cache.reader.items(sample)]


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
