"""Samples that come again after a run was resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

import lightning

from keyekit.batch import Batch, SampleInfo
from keyekit.callbacks.alarms.base import Alarm

__all__ = ["RepeatedSamples"]

_MOST = 0.5
"""The share of repeated samples may rise by this much over what it was before."""
_FEWEST = 8
"""Samples after which a share means something."""


class RepeatedSamples(Alarm):
    """Sounds when a resumed run begins with samples that it had before the checkpoint, in the same epoch.

    A checkpoint holds eight bytes for each of the last samples of rank 0. The first packs after a resume are compared with
    them: if far more of them repeat than did before, the position of the data was not restored. Data that repeats within an
    epoch anyway, like a mixture whose small source comes round often, only counts for what it does beyond that.

    Args:
        memory: Samples that are remembered.
        packs: Packs that are compared after a resume.
        action: ``stop`` ends the run, ``warn`` says once what is wrong.

    Raises:
        ValueError: If ``memory`` or ``packs`` is not positive.
    """

    meaning = (
        "the run trains twice on the samples at the beginning and never on those at the end of the epoch, and its "
        "losses are not those of a run that was not interrupted"
    )
    remedy = (
        "resume with the datamodule and the settings of the first run (--ckpt_path, the same seed); a loader of your "
        "own needs state_dict() and load_state_dict() as keyekit.data.loader.StatefulLoader has them"
    )

    def __init__(self, memory: int = 65536, packs: int = 16, action: Literal["stop", "warn"] = "stop") -> None:
        super().__init__(action)
        if memory < 1 or packs < 1:
            raise ValueError(f"memory={memory} and packs={packs} must be at least 1")
        self.memory = memory
        self.packs = packs
        self._epoch = 0
        self._seen: dict[bytes, None] = {}
        self._samples = self._repeats = 0
        self._before: frozenset[bytes] = frozenset()
        self._former_share = 0.0
        self._compared = self._again = self._left = 0

    def state_dict(self) -> dict[str, Any]:
        """Epoch, what was seen in it, and how much of it repeated."""
        return {
            "epoch": self._epoch,
            "seen": b"".join(self._seen),
            "samples": self._samples,
            "repeats": self._repeats,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the packs to come with a state."""
        seen: bytes = state_dict["seen"]
        self._epoch = state_dict["epoch"]
        self._seen = dict.fromkeys(seen[start : start + 8] for start in range(0, len(seen), 8))
        self._samples, self._repeats = state_dict["samples"], state_dict["repeats"]
        self._before = frozenset(self._seen)
        self._former_share = self._repeats / max(self._samples, 1)
        self._compared = self._again = 0
        self._left = self.packs if self._seen else 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """A new epoch may show everything again."""
        if trainer.current_epoch != self._epoch:
            self._epoch = trainer.current_epoch
            self._forget()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Compare and remember the samples of a pack; host work alone."""
        if not isinstance(batch, Batch):
            return
        marks = list(_marks(batch.samples))
        if self._left:
            self._compare(trainer, batch, marks)
        self._samples += len(marks)
        self._repeats += sum(mark in self._seen for mark in marks)
        for mark in marks:
            self._seen.pop(mark, None)  # the latest stand at the end
            self._seen[mark] = None
        while len(self._seen) > self.memory:
            del self._seen[next(iter(self._seen))]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forget an epoch that is over before a checkpoint holds it: resumed from there, the epoch has its old number still."""
        if trainer.is_last_batch:
            self._forget()

    def _forget(self) -> None:
        self._seen, self._samples, self._repeats, self._left = {}, 0, 0, 0

    def _compare(self, trainer: lightning.Trainer, batch: Batch, marks: list[bytes]) -> None:
        self._left -= 1
        self._compared += len(marks)
        self._again += sum(mark in self._before for mark in marks)
        share = self._again / max(self._compared, 1)
        if self._compared >= _FEWEST and share - self._former_share > _MOST:
            known = [sample.id for sample, mark in zip(batch.samples, marks, strict=True) if mark in self._before]
            self._left = 0
            self.sound(
                trainer,
                f"{self._again} of the first {self._compared} samples after the resume came before the checkpoint, in the same "
                f"epoch (such as {', '.join(known[:3])}); before it {self._former_share:.0%} of the samples repeated",
            )


def _marks(samples: Iterable[SampleInfo]) -> Iterable[bytes]:
    """Eight bytes for each sample; names are unique within a source."""
    for sample in samples:
        name = f"{sample.meta.get('source', '')}\0{sample.id}"
        yield hashlib.blake2b(name.encode(), digest_size=8).digest()
