"""A run that is told to stop ends its step, saves and stops, on all ranks together."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import lightning
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

__all__ = ["StopOnSignal"]

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))

_log = logging.getLogger(__name__)


class StopOnSignal(lightning.Callback):
    """Let a fit end after its step when the process gets SIGTERM, SIGUSR1 or Ctrl-C.

    The step under way is finished, :class:`~keyekit.callbacks.RunCheckpoints` saves, and the process ends with status 128 +
    the number of the signal: 143 after SIGTERM, 138 after SIGUSR1 (which SLURM sends before time is up), 130 after Ctrl-C.
    A second signal ends it at once. A signal to one rank counts for all of them, so that nobody waits for a rank that has
    gone: they agree at every step, where Lightning makes them wait for each other anyway. Handlers that were there before,
    such as that of Ray, which would raise in the middle of a step, are set aside until the fit is over. A signal in a
    validation counts after the next step.

    ``keyekit fit`` adds it to every run.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._former: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Listen from the first step; before it there is nothing to save."""
        if threading.current_thread() is not threading.main_thread():
            _log.warning("signals reach the main thread alone: this fit, in another thread, will not save when stopped")
            return
        self._received = None
        self._former = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        """Agree on stopping; Lightning raises ``SIGTERMException`` at the end of this batch."""
        stop = self._received is not None
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop and not _in_the_middle_of_a_step(trainer):
            # What Lightning's own handler sets, which would be set on one rank alone.
            trainer._signal_connector.received_sigterm = True

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Give signals back."""
        self._restore()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Give signals back, and let the process end with the status that tells which signal it was."""
        if isinstance(exception, SIGTERMException):
            exception.code = 128 + (self._received or signal.SIGTERM)
        self._restore()

    def _note(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if self._received is None:
            self._received = number
            rank_zero_info("%s: stopping after this step; once more to stop at once", name)
        else:
            raise KeyboardInterrupt(f"{name} came twice")

    def _restore(self) -> None:
        former, self._former = self._former, {}
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _in_the_middle_of_a_step(trainer: lightning.Trainer) -> bool:
    """Whether gradients wait for more batches: they are in no checkpoint."""
    return trainer.fit_loop.epoch_loop._should_accumulate()
