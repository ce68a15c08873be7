"""Packs of a mixture for training: made by any number of processes, and resumed to the sample on any number of ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from keyekit.batch import Batch
from keyekit.data.balance import balance_packs
from keyekit.data.cost import SampleCost
from keyekit.data.decode_pool import Decoding, decoded_ahead
from keyekit.data.draws import Draw
from keyekit.data.encode import EncodedSample, SampleEncoder
from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.loader import rank_and_world
from keyekit.data.long_samples import LongPolicy, fitted
from keyekit.data.pack_stream import PackStream
from keyekit.data.packer import PackBudget
from keyekit.data.packing import collate
from keyekit.data.sample import ContentItem
from keyekit.data.sources.base import Source

__all__ = ["Made", "MixtureLoader", "PackMaker"]


class Made(NamedTuple):
    """A pack on its way from the process that made it.

    Args:
        batch: The pack, without the samples that could not be used.
        problems: Why they could not.
    """

    batch: Batch
    problems: tuple[BadData, ...]


class PackMaker:
    """Reads, encodes and collates the samples of a pack; works in whatever process it is sent to.

    Args:
        sources: The sources by name.
        encoder: Encodes samples and has their pictures.
        cost: Measures encoded samples.
        budget: What a pack may hold.
        tokens: For each source the tokens of its samples as they were planned.
        long_samples: What happens to a sample that exceeds the budget.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        encoder: SampleEncoder,
        cost: SampleCost,
        budget: PackBudget,
        tokens: Mapping[str, Any],
        long_samples: LongPolicy = "refuse",
    ) -> None:
        self.sources = dict(sources)
        self.encoder = encoder
        self.cost = cost
        self.budget = budget
        self.tokens = dict(tokens)
        self.long_samples: LongPolicy = long_samples

    def __getitem__(self, pack: Sequence[Draw]) -> Made:
        """Make a pack; the names of the sources stand in ``meta["source"]`` of the samples."""
        samples, pictures, problems = [], [], []
        for draw in pack:
            try:
                encoded = self._encoded(draw)
                pictures.append(self.encoder.pictures(encoded))
            except BadData as error:
                problems.append(error)
            else:
                samples.append(encoded)
        alone = self.long_samples == "alone" and len(samples) == 1  # the only ones that may have more tokens
        return Made(collate(samples, pictures, self.budget.tokens, self.cost.patch_size, alone=alone), tuple(problems))

    def media(self, pack: Sequence[Draw]) -> list[ContentItem]:
        """The media of a pack, as far as its samples can be read."""
        items: list[ContentItem] = []
        for draw in pack:
            try:
                items += self.encoder.cache.reader.items(self.sources[draw.source][draw.index])
            except BadData:  # told when the pack is made
                continue
        return items

    def _encoded(self, draw: Draw) -> EncodedSample:
        sample = self.sources[draw.source][draw.index]
        sample = replace(sample, meta={**sample.meta, "source": draw.source})
        encoded = fitted(self.encoder.encode(sample), self.cost, self.budget, self.long_samples)
        planned = int(self.tokens[draw.source][draw.index])
        if len(encoded) != planned:
            problem = f"{sample.id} of {draw.source} has {len(encoded)} tokens, but {planned} when the run began"
            raise BadData("changed_sample", f"{problem}: its files have changed; put them back, or begin a new run")
        return encoded


class MixtureLoader:
    """Hands out the packs of a stream, in rounds in which every rank takes one.

    Every rank plans the same packs and takes its own, so nothing is communicated, and the position of all ranks is one state:
    where the stream stands after the packs that were handed out, not after those that were made ahead. Saved on some number of
    ranks it is loaded on any other; with weights that change by step, what is drawn from then on follows the new number of
    samples in a step.

    An epoch is a number of packs and nothing else: the stream goes on. Where the stream's sizes hold operations, the packs of
    a round exchange samples until all ranks have equally much to do (:func:`~keyekit.data.balance.balance_packs`); which
    samples a round has, and so the state, does not depend on that. If the sources are used up in the middle of a round, the
    ranks that get nothing have an empty pack, or what the exchange gives them.

    Args:
        stream: The packs.
        maker: Makes them.
        epoch_packs: Packs of all ranks that count as an epoch.
        policy: What a sample does that could be used when it was measured, but not now.
        workers: Processes that make packs ahead; 0 makes them when they are asked for.
        decode_workers: Processes that decode media of packs to come that are not in the cache; 0 decodes where packs are made.
        service: Decodes them instead of processes here.
        accumulate: Packs of a rank in an optimizer step.
        at_end: Called when the last pack of a bounded mixture is handed out.
        sharing: Consecutive ranks that take the same packs, as sequence parallelism wants.
    """

    def __init__(
        self,
        stream: PackStream,
        maker: PackMaker,
        epoch_packs: int,
        policy: ErrorPolicy,
        workers: int = 0,
        decode_workers: int = 0,
        accumulate: int = 1,
        at_end: Callable[[], None] | None = None,
        sharing: int = 1,
        service: Decoding | None = None,
    ) -> None:
        self.service = service
        self.stream = stream
        self.maker = maker
        self.epoch_packs = epoch_packs
        self.policy = policy
        self.workers = workers
        self.decode_workers = decode_workers
        self.accumulate = accumulate
        self.at_end = at_end
        self.sharing = sharing
        self._state: dict[str, Any] = {"epoch": 0, "taken": 0, "rounds": 0, "stream": stream.state_dict()}

    def __len__(self) -> int:
        return -(-self.epoch_packs // rank_and_world(self.sharing)[1])

    def __iter__(self) -> Iterator[Batch]:
        if self._state["taken"] >= self.epoch_packs:
            self._state = {**self._state, "epoch": self._state["epoch"] + 1, "taken": 0}
        # What was planned ahead, but not handed out, is planned again.
        self.stream.load_state_dict(self._state["stream"])
        if self.stream.used_up:
            raise ValueError(
                "the mixture is used up: every source came as often as max_epochs says; raise it, or let the run end before"
            )
        planned: deque[dict[str, Any]] = deque()
        cache = self.maker.encoder.cache
        ahead = decoded_ahead(self._rounds(planned), self.maker.media, cache, self.decode_workers, service=self.service)
        with closing(ahead) as packs:
            for batch, problems in self._made(packs):
                for problem in problems:
                    self.policy.handle(problem)
                self._state = planned.popleft()
                if self._state.pop("last") and self.at_end is not None:
                    self.at_end()
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what of the epoch is done."""
        return {**self._state, "accumulate": self.accumulate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: If the sources were others, or held other numbers of samples.
        """
        self.stream.load_state_dict(state["stream"])
        steps = state["rounds"] // state["accumulate"]
        self._state = {
            "epoch": state["epoch"],
            "taken": state["taken"],
            "rounds": steps * self.accumulate,
            "stream": state["stream"],
        }

    def _made(self, packs: Iterator[list[Draw]]) -> DataLoader[Made]:
        """Packs as they come from the processes that make them, in order."""
        return DataLoader(
            self.maker,  # pyright: ignore[reportArgumentType]
            batch_size=None,
            sampler=packs,  # pyright: ignore[reportArgumentType]
            num_workers=self.workers,
            collate_fn=_as_it_is,  # pyright: ignore[reportArgumentType]
        )

    def _rounds(self, planned: deque[dict[str, Any]]) -> Iterator[list[Draw]]:
        """This rank's packs of what is left of the epoch; notes for each where everything stands behind it."""
        rank, world = rank_and_world(self.sharing)
        state = self._state
        while state["taken"] < self.epoch_packs and not self.stream.used_up:
            step = state["rounds"] // self.accumulate
            packs = [pack for pack in (self.stream.next(step) for _ in range(world)) if pack is not None]
            state = {
                "epoch": state["epoch"],
                "taken": state["taken"] + world,
                "rounds": state["rounds"] + 1,
                "stream": self.stream.state_dict(),
            }
            planned.append({**state, "last": self.stream.used_up})
            yield self._balanced(packs, world)[rank]

    def _balanced(self, packs: list[list[Draw]], world: int) -> list[list[Draw]]:
        """The packs of a round, one for each rank, with equally much to do."""
        packs = packs + [[]] * (world - len(packs))
        if world == 1:
            return packs
        sizes = {draw: self.stream.size(draw) for pack in packs for draw in pack}
        return balance_packs(packs, sizes, self.stream.budget)


def _as_it_is(made: Made) -> Made:
    return made
