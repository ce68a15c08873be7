"""Checkpoints to go on from: every so many steps, when a run is told to stop, and at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from keyekit.distributed.random_states import gather_random_states, restore_random_states
from keyekit.distributed.whole import newest_whole, problem_of, remove_partial

__all__ = ["RunCheckpoints"]

_RANDOM = "random_states"


class RunCheckpoints(Checkpoint):
    """Save ``<run>/checkpoints/step=00000200.ckpt`` and so on, from which the run goes on to the bit.

    A checkpoint holds what Lightning's does (weights, optimizers, schedules, loops, positions of the loaders, callbacks) and
    the random states of every rank. It appears when it is whole. ``last.ckpt`` points to the newest whole one; older ones are
    removed once enough newer ones are whole, so that at every moment at least one is there.

    It saves after an optimizer step, never between two: every ``every_n_steps``, when the run is told to stop
    (:class:`~keyekit.callbacks.StopOnSignal`), and after the last step. An error saves nothing, since the step that failed
    is neither done nor undone; the message names the checkpoint to go on from. To keep the best model by some metric, add
    Lightning's ``ModelCheckpoint``.

    Args:
        every_n_steps: Optimizer steps between two checkpoints.
        keep: How many whole ones are kept.
        at_end: Whether the last step is saved, so that a kill between the fit and its test costs nothing.
        folder: Name of the folder inside the run.
    """

    def __init__(
        self, every_n_steps: int = 200, keep: int = 2, at_end: bool = True, folder: str = "checkpoints"
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep", keep)):
            if value < 1:
                raise ValueError(f"{name}={value}: at least 1")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.at_end = at_end
        self.folder = folder
        self._saved = 0
        self._random: list[dict[str, Any]] | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Remove what a killed process left half written."""
        self._saved = 0  # nothing has to be saved before the first step
        if stage == "fit" and trainer.is_global_zero:
            remove_partial(self._path(trainer))

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the random states; every rank takes part."""
        checkpoint[_RANDOM] = gather_random_states()

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the random states until training begins."""
        self._random = checkpoint.get(_RANDOM)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Restore the random states after everything that draws numbers while a run is set up."""
        self._saved = trainer.global_step
        if self._random is not None:
            restore_random_states(self._random)
            self._random = None

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        """Save if it is time or the last opportunity."""
        due = trainer.global_step % self.every_n_steps == 0
        if (due or trainer.received_sigterm) and trainer.global_step != self._saved:
            self._save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Save the last step."""
        if self.at_end and trainer.global_step != self._saved:
            self._save(trainer)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """The strategy has waited for what was being written."""
        self._tidy(trainer)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Say where the run can go on."""
        if trainer.is_global_zero and trainer.state.fn == "fit":
            newest = newest_whole(self._path(trainer), warn=False)
            if newest is not None:
                note = f"the last whole checkpoint is {newest}; the same command with --run.resume=true goes on from it"
                exception.add_note(note)
                rank_zero_info(note)

    def _save(self, trainer: lightning.Trainer) -> None:
        if trainer.fast_dev_run or trainer.sanity_checking:  # pyright: ignore[reportAttributeAccessIssue]
            return
        self._saved = trainer.global_step
        trainer.save_checkpoint(self._path(trainer) / f"step={trainer.global_step:08}.ckpt")
        self._tidy(trainer)

    def _tidy(self, trainer: lightning.Trainer) -> None:
        """Point ``last.ckpt`` to the newest whole checkpoint, and remove old ones."""
        if not trainer.is_global_zero:
            return
        whole = [path for path in sorted(self._path(trainer).glob("step=*.ckpt")) if problem_of(path) is None]
        if not whole:
            return
        link = self._path(trainer) / "last.ckpt"
        new = link.with_name("last.ckpt.link")
        new.unlink(missing_ok=True)
        try:
            new.symlink_to(whole[-1].name)
            os.replace(new, link)  # noqa: PTH105
        except (
            OSError
        ) as error:  # a system without links, or a folder of another callback: the step's name serves as well
            rank_zero_info("last.ckpt is not renewed: %s", error)
        for path in whole[: -self.keep]:
            trainer.strategy.remove_checkpoint(path)

    def _path(self, trainer: lightning.Trainer) -> Path:
        return Path(trainer.default_root_dir) / self.folder
