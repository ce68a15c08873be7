from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from keyekit.batch import PackPart
from keyekit.callbacks.alarms import FlatPositions, TrainingFault


def flat(batch):
    return replace(batch, positions=torch.arange(batch.tokens.shape[0]).expand(3, -1))


def test_one_dimensional_positions_of_pictures_stop_the_run(watched, task, packs) -> None:
    with pytest.raises(TrainingFault, match="the 2 vision tokens of the pack have equal positions on all three axes"):
        watched(FlatPositions(), task(), [flat(packs(seed)) for seed in range(6)])


def test_faults_that_come_late_are_found_at_logged_steps(watched, task, packs) -> None:
    with pytest.raises(TrainingFault, match="FlatPositions at step 6"):
        watched(FlatPositions(), task(), [packs(seed) if seed < 4 else flat(packs(seed)) for seed in range(6)])


def test_sound_positions_text_and_pictures_of_one_token_are_no_fault(watched, task, packs) -> None:
    text = [flat(packs(seed, grids=(None, None))) for seed in range(2)]
    dots = [flat(packs(seed, grids=((2, 2), (2, 2)))) for seed in range(2)]
    assert watched(FlatPositions(), task(), [*text, *dots, packs(0), packs(1)]).global_step == 6


def test_of_a_divided_pack_the_tokens_of_this_rank_count(make_trainer, packs) -> None:
    pack = packs(0)
    part = PackPart(
        segments=pack.segments,
        num_tokens=23,
        held=pack.segments,
        queries=pack.segments,
        num_queries=3,
        num_visual=1,
        begun_media=0,
    )
    here = replace(pack, tokens=pack.tokens[:3], positions=pack.positions[:, :3], part=part)
    trainer, alarm = make_trainer(), FlatPositions()
    with pytest.raises(TrainingFault, match="the 2 vision tokens"):
        alarm.on_train_batch_start(trainer, None, flat(here), 0)
    cut = replace(here, tokens=pack.tokens[:2], positions=pack.positions[:, :2])
    alarm.on_train_batch_start(trainer, None, flat(cut), 0)  # of the picture there is one token
