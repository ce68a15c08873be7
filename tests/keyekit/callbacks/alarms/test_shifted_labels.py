from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from keyekit.batch import IGNORED_LABEL
from keyekit.callbacks.alarms import ShiftedLabels, TrainingFault
from keyekit.tasks.language_modeling import LanguageModeling


def shifted(batch, by: int):
    """The same pack with labels so many places too late or too early."""
    labels = torch.full_like(batch.labels, IGNORED_LABEL)
    for sample in batch.samples:
        own = batch.labels[sample.start : sample.stop].roll(by)
        own[-1] = IGNORED_LABEL
        own[0] = IGNORED_LABEL
        labels[sample.start : sample.stop] = own
    return replace(batch, labels=labels, num_targets=int((labels != IGNORED_LABEL).sum()))


@pytest.mark.parametrize(
    ("by", "message"), [(1, "are the token at the same place"), (-1, "are the token after the next")]
)
def test_packs_whose_labels_are_shifted_wrongly_stop_the_run(watched, task, packs, by, message) -> None:
    with pytest.raises(TrainingFault, match=rf"ShiftedLabels at step 1: \d+ of \d+ labels of the pack {message}"):
        watched(ShiftedLabels(), task(), [shifted(packs(seed), by) for seed in range(6)])


class ShiftsAgain(LanguageModeling):
    """Like a task that does what transformers' models do by themselves."""

    def training_step(self, batch, batch_idx):
        return super().training_step(shifted(batch, -1), batch_idx)


class CutsOff(LanguageModeling):
    """The same by hidden states without the last and labels without the first."""

    def training_step(self, batch, batch_idx):
        output = self.network(batch)
        labels = batch.labels[1:]
        targets = int((labels != IGNORED_LABEL).sum())
        return self.objective(output.hidden[:-1], self.network.decoder.lm_head.weight, labels, targets) / targets


@pytest.mark.parametrize("kind", [ShiftsAgain, CutsOff])
def test_tasks_that_shift_again_stop_the_run(watched, task, kind) -> None:
    with pytest.raises(
        TrainingFault, match=r"labels that the objective gets are the token after the next, and only \d"
    ):
        watched(ShiftedLabels(), task(kind))


def test_sound_labels_and_text_that_repeats_itself_are_no_fault(watched, task, packs) -> None:
    assert watched(ShiftedLabels(), task()).global_step == 6
    same = []
    for seed in range(6):
        pack = packs(seed)
        labels = torch.where(pack.labels == IGNORED_LABEL, IGNORED_LABEL, 7)
        same.append(replace(pack, tokens=torch.full_like(pack.tokens, 7), labels=labels))
    assert watched(ShiftedLabels(), task(), same).global_step == 6
