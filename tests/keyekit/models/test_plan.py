from __future__ import annotations

import json
from dataclasses import replace

import pytest
from torch import nn

from keyekit.models.placement import Placement
from keyekit.models.plan import Setting, make_plan
from keyekit.models.presets import keye_vl_2_30b_a3b_tiny
from keyekit.testing.tiny import tiny_vision_language_model

SHORT = Setting(sequence_length=64, frame_tokens=4, precision="32-true", sharding="none")


def test_frozen_parameters_have_no_gradient_nor_moments() -> None:
    network = tiny_vision_language_model()
    network.vision.requires_grad_(False)
    made = make_plan("tiny", network, SHORT)
    assert made.trainable < made.used
    assert made.state.weights == 4 * made.used
    assert made.state.gradients == 4 * made.trainable
    assert made.state.optimizer == 8 * made.trainable


def test_vision_tokens_come_in_whole_frames() -> None:
    assert Setting(sequence_length=100, vision_share=0.5, frame_tokens=16).frames == 3
    made = make_plan("tiny", tiny_vision_language_model(), Setting(sequence_length=100, vision_share=0.0))
    assert made.costs is not None
    assert made.costs.forward.vision == 0
    with pytest.raises(ValueError, match="fewer than the 256 of one frame"):
        make_plan("tiny", tiny_vision_language_model(), Setting(sequence_length=100))


def test_numbers_for_programs() -> None:
    made = make_plan("tiny", keye_vl_2_30b_a3b_tiny(), SHORT)
    read = json.loads(json.dumps(made.as_dict()))
    assert made.costs is not None
    assert read["parameters"]["used"] == 2_281_784
    assert read["costs"]["training"]["total"] == made.costs.training.total > made.costs.forward.total
    assert read["costs"]["reference"]["total"] > read["costs"]["activations"]["total"]
    assert read["state"]["total"] == 16 * 2_281_784


def test_of_a_foreign_network_parameters_and_state_are_known() -> None:
    made = make_plan("line", nn.Linear(3, 1), SHORT)
    assert (made.used, made.costs) == (4, None)
    assert "not of Linear" in made.notes[0]


def test_parts_that_are_recomputed_and_packs_that_are_shared() -> None:
    network = tiny_vision_language_model()
    parts = {"vision": Placement(shards=1), "decoder": Placement(recomputed=True)}
    alone, shared = (
        make_plan("tiny", network, replace(SHORT, devices=4, parts=parts, sequence_ranks=ranks)).costs
        for ranks in (1, 2)
    )
    assert alone is not None
    assert shared is not None
    assert alone.planned.decoder == alone.checkpointed.decoder < alone.activations.decoder
    assert alone.planned.vision == alone.activations.vision
    assert shared.planned.decoder == alone.planned.decoder / 2
    assert shared.planned.vision == alone.planned.vision / 2
    assert shared.forward == alone.forward  # of the whole pack
