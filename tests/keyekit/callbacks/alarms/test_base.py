from __future__ import annotations

from collections import Counter
from functools import partial

import lightning
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from keyekit.callbacks import ExpertLoad, GradientNorms, MemoryUse, alarms
from keyekit.callbacks.alarms import Alarm, TrainingFault
from keyekit.nn.moe.mixture import MixtureOfExperts

MIXTURE = partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=16)


class Third(Alarm):
    """Sounds in every step it looks at from the third on."""

    meaning = "it means nothing"
    remedy = "do nothing"

    def __init__(self, action="stop") -> None:
        super().__init__(action)
        self.looked: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.is_due(trainer):
            self.looked.append(trainer.global_step + 1)
            if trainer.global_step >= 2:
                self.sound(trainer, "the third step is here")


def test_a_fault_stops_the_run_and_explains_itself(watched, task) -> None:
    with pytest.raises(TrainingFault) as caught:
        watched(Third(), task())
    assert str(caught.value).splitlines() == [
        "Third at step 3: the third step is here",
        "  what it means: it means nothing",
        "  what to do: do nothing",
        "  to train on regardless: give Third action: warn",
    ]


def test_a_warning_comes_once_and_the_run_goes_on(watched, task, caplog) -> None:
    alarm = Third("warn")
    assert watched(alarm, task()).global_step == 6
    assert [record.getMessage().splitlines()[0] for record in caplog.records if "Third" in record.getMessage()] == [
        "Third at step 3: the third step is here"
    ]
    assert alarm.looked == [1, 2, 3, 4, 6]  # the first three, and those that the trainer logs


def test_every_alarm_explains_itself_and_refuses_other_actions() -> None:
    kinds = [getattr(alarms, name) for name in alarms.__all__]
    kinds = [kind for kind in kinds if issubclass(kind, Alarm) and kind is not Alarm]
    assert len(kinds) == 7
    for kind in kinds:
        assert len(kind.meaning) > 60
        assert len(kind.remedy) > 60
    with pytest.raises(ValueError, match="action='ignore'"):
        Alarm("ignore")  # pyright: ignore[reportArgumentType]


def everything_that_watches() -> list[lightning.Callback]:
    kinds = [getattr(alarms, name) for name in alarms.__all__ if name not in ("Alarm", "TrainingFault")]
    return [kind() for kind in (*kinds, GradientNorms, ExpertLoad, MemoryUse)]


def test_watching_changes_no_training(make_trainer, loader, task, packs) -> None:
    """With all alarms and reports the weights are bit for bit those without, and nothing stays behind."""
    weights = []
    for callbacks in ([], everything_that_watches()):
        model = task(feed_forward=MIXTURE)
        make_trainer(*callbacks).fit(model, loader([packs(seed) for seed in range(4)]))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert torch.equal(*weights)


class Reads(TorchDispatchMode):
    """Counts the tensors whose value the host asks for, by step: on a GPU each of them waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[self.step] += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


class Steps(lightning.Callback):
    def __init__(self, reads: Reads) -> None:
        self.reads = reads

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.reads.step = trainer.global_step + 1


def test_nothing_is_read_between_the_steps_that_are_looked_at(make_trainer, loader, task, packs) -> None:
    """But for the loss, which on a processor costs nothing to read, and which a GPU sends by itself."""
    counts = []
    for callbacks in ([], [c for c in everything_that_watches() if not isinstance(c, alarms.NonFiniteLoss)]):
        with Reads() as reads:
            trainer = make_trainer(Steps(reads), *callbacks, max_steps=8)
            trainer.log_every_n_steps = 6
            trainer.fit(task(feed_forward=MIXTURE), loader([packs(seed) for seed in range(8)]))
        counts.append(reads.counts)
    assert all(counts[1][step] > counts[0][step] for step in (1, 2, 3, 6)), "it does look at these"
    assert all(counts[1][step] == counts[0][step] for step in (4, 5, 7))
