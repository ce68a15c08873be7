"""How fast a validation or test generates its answers."""

from __future__ import annotations

import time
from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["DecodingSpeed"]


class DecodingSpeed(lightning.Callback):
    """Log how long prompts and answers take in validation and test, of this rank.

    Logs ``<stage>/prefill_tokens_per_second``, ``<stage>/decode_tokens_per_second`` (tokens of all sequences that are decoded
    together) and ``<stage>/milliseconds_per_decode_step``. A stage that generates nothing logs nothing. Time runs from the
    first call of the decoder on a batch; whoever draws tokens waits for the device anyway.
    """

    def __init__(self) -> None:
        self._hook: RemovableHandle | None = None
        self._clock = _Clock()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Listen to the decoder."""
        self._listen(pl_module)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop the clock of a batch."""
        self._clock.stop()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Log what was measured."""
        self._log(trainer, "val")

    def on_test_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Listen to the decoder."""
        self._listen(pl_module)

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop the clock of a batch."""
        self._clock.stop()

    def on_test_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Log what was measured."""
        self._log(trainer, "test")

    def _listen(self, pl_module: Any) -> None:
        self._clock = _Clock()
        decoder = getattr(getattr(pl_module, "network", None), "decoder", None)
        if isinstance(decoder, nn.Module):
            self._hook = decoder.register_forward_pre_hook(self._called, with_kwargs=True)

    def _called(self, decoder: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A call of the decoder with a cache reads prompts, or goes on by one token a sequence."""
        if named.get("cache") is not None and not torch.is_grad_enabled():
            segments = inputs[2]
            self._clock.call(segments.total, is_step=not segments.is_square)

    def _log(self, trainer: lightning.Trainer, stage: str) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        values = {f"{stage}/{name}": value for name, value in self._clock.rates().items()}
        for logger in trainer.loggers if values and not trainer.sanity_checking else ():
            logger.log_metrics(values, step=trainer.global_step)


class _Clock:
    """Divides time between reading prompts and decoding: what follows a call of the decoder is that call's."""

    def __init__(self) -> None:
        self.seconds = {True: 0.0, False: 0.0}
        self.tokens = {True: 0, False: 0}
        self.steps = 0
        self._since: tuple[float, bool] | None = None

    def call(self, tokens: int, is_step: bool) -> None:
        self.stop()
        self._since = time.perf_counter(), is_step
        self.tokens[is_step] += tokens
        self.steps += is_step

    def stop(self) -> None:
        if self._since is not None:
            started, is_step = self._since
            self.seconds[is_step] += time.perf_counter() - started
            self._since = None

    def rates(self) -> dict[str, float]:
        found = {}
        if self.seconds[False] > 0:
            found["prefill_tokens_per_second"] = self.tokens[False] / self.seconds[False]
        if self.seconds[True] > 0:
            found["decode_tokens_per_second"] = self.tokens[True] / self.seconds[True]
            found["milliseconds_per_decode_step"] = 1000 * self.seconds[True] / self.steps
        return found
