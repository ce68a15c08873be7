from __future__ import annotations

import pytest
import torch

from keyekit.callbacks.alarms import SilentVision, TrainingFault
from keyekit.optim.groups import ParameterGroup


@pytest.mark.parametrize(("cut", "silent"), [("vision", "vision"), ("projector", "vision")])
def test_features_that_are_cut_off_stop_the_run(watched, task, cut, silent) -> None:
    model = task()
    getattr(model.network, cut).register_forward_hook(lambda module, inputs, features: features.detach())
    with pytest.raises(TrainingFault, match=f"SilentVision at step 3: the {silent} has no gradient, 3 looks in a row"):
        watched(SilentVision(), model)


def test_features_that_nobody_reads_stop_the_run(watched, task) -> None:
    model = task()
    model.network.projector.register_forward_hook(lambda module, inputs, features: torch.zeros_like(features))
    with pytest.raises(TrainingFault, match="has no gradient"):
        watched(SilentVision(), model)


def test_text_alone_frozen_parts_and_a_pack_without_targets_are_no_fault(watched, task, packs) -> None:
    assert watched(SilentVision(), task()).global_step == 6
    assert watched(SilentVision(), task(), [packs(seed, grids=(None, None)) for seed in range(6)]).global_step == 6
    frozen = [ParameterGroup(pattern="vision", frozen=True)]
    assert watched(SilentVision(), task(groups=frozen)).global_step == 6
    unlabelled = []
    for seed in range(6):
        pack = packs(seed)
        pack.labels.fill_(-100)
        object.__setattr__(pack, "num_targets", 0)
        unlabelled.append(pack)
    assert watched(SilentVision(), task(), unlabelled).global_step == 6


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="looks=0"):
        SilentVision(looks=0)
