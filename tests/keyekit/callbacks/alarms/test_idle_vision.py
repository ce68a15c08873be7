from __future__ import annotations

import pytest

from keyekit.callbacks.alarms import IdleVision, TrainingFault
from keyekit.optim.groups import ParameterGroup


def test_packs_without_pictures_in_a_row_are_counted(watched, task, packs, caplog) -> None:
    text = [packs(seed, grids=(None, None)) for seed in range(6)]
    assert watched(IdleVision(packs=3), task(), text).global_step == 6  # it warns
    assert caplog.text.count("none of the last 3 packs of this rank holds an image or a video") == 1
    with pytest.raises(TrainingFault, match=r"IdleVision at step 3"):
        watched(IdleVision(packs=3, action="stop"), task(), text)


def test_a_picture_now_and_then_or_a_frozen_vision_side_is_no_fault(watched, task, packs) -> None:
    text = [packs(seed, grids=(None, None)) for seed in range(6)]
    mixed = [pack if place % 3 else packs(place) for place, pack in enumerate(text)]
    assert watched(IdleVision(packs=3, action="stop"), task(), mixed).global_step == 6
    frozen = [ParameterGroup(pattern=part, frozen=True) for part in ("vision", "projector")]
    assert watched(IdleVision(packs=3, action="stop"), task(groups=frozen), text).global_step == 6


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="packs=0"):
        IdleVision(packs=0)
