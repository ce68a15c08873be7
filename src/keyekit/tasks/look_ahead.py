"""Packs of an optimizer step read before the first of them is used, so that the step's targets are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import lightning

__all__ = ["LookAhead", "StatefulLookAhead", "look_ahead", "targets_of"]


def targets_of(pack: Any) -> int:
    """Targets of a pack, what it counts as in a mean over targets."""
    return getattr(pack, "num_targets", 0)


class LookAhead:
    """Hands out a loader's batches, and knows the targets of all that belong to the same optimizer step.

    With accumulation a mean over targets needs their number before the first backward pass. A step's packs are held on the
    host meanwhile. Behind the last pack of a step the loader stands where it would without this, so its saved position is
    exact.

    Args:
        loader: Any loader with a length; its other attributes, such as its state, show through.
        trainer: Says how many packs make up a step.
        count: What a pack counts as in a mean.
    """

    def __init__(self, loader: Any, trainer: lightning.Trainer, count: Callable[[Any], int] = targets_of) -> None:
        self.loader = loader
        self.trainer = trainer
        self.count = count
        self.targets: tuple[int, ...] = ()
        """What each pack of the step counts as, on this rank."""

    def __iter__(self) -> Iterator[Any]:
        taken = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        batches = iter(self.loader)
        while True:
            stopping = self.trainer.should_stop
            packs = list(islice(batches, self._packs_of_step(taken)))
            # A loader that is used up ends the fit, but not in the middle of a step.
            ends = self.trainer.should_stop and not stopping
            self.trainer.should_stop = stopping
            if not packs:
                return
            self.targets = tuple(self.count(pack) for pack in packs)
            taken += len(packs)
            packs.reverse()
            while packs:
                self.trainer.should_stop |= ends and len(packs) == 1
                yield packs.pop()

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # asked for before there is one, by copying and pickling
            raise AttributeError(name)
        return getattr(self.loader, name)

    def _packs_of_step(self, taken: int) -> int:
        """Packs of the step that begins after so many of the epoch; at its end Lightning steps, however many there are."""
        whole: int = self.trainer.accumulate_grad_batches
        return max(min(whole - taken % whole, int(self.trainer.fit_loop.max_batches) - taken), 1)


class StatefulLookAhead(LookAhead):
    """A :class:`LookAhead` of a loader with a state, which Lightning asks the class for from Python 3.12 on."""

    def state_dict(self) -> dict[str, Any]:
        """The loader's."""
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the loader its state."""
        self.loader.load_state_dict(state_dict)


def look_ahead(trainer: lightning.Trainer, count: Callable[[Any], int] = targets_of) -> LookAhead:
    """Put a :class:`LookAhead` between a fit and its loader; called when training starts.

    Args:
        trainer: Of the fit.
        count: What a pack counts as in a mean.

    Raises:
        TypeError: If the loader has no length, or there are several at once.
        ValueError: If loaders are made anew during the fit.
    """
    if trainer.reload_dataloaders_every_n_epochs:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            "with accumulate_grad_batches one loader serves all epochs: reload_dataloaders_every_n_epochs=0"
        )
    loop = trainer.fit_loop
    combined, fetcher = loop._combined_loader, loop._data_fetcher  # Lightning has no hook between loader and loop
    assert combined is not None
    assert fetcher is not None
    if len(combined.flattened) != 1 or loop.max_batches == float("inf"):
        raise TypeError(
            "accumulate_grad_batches reads the packs of a step ahead: it needs one training loader that has a length"
        )
    loader = combined.flattened[0]
    stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    kind = StatefulLookAhead if stateful else LookAhead
    ahead = kind(loader, trainer, count)
    combined.flattened = [ahead]
    iter(fetcher)  # the iterator that was made before knows nothing of this
    return ahead
