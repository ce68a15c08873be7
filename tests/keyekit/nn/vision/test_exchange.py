"""The default exchange encodes at home; without media the tower runs for nothing."""

import pytest
import torch

from keyekit.batch import VisionBatch
from keyekit.nn.vision.exchange import encode_here
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model


def test_media_are_encoded_and_no_media_are_no_features() -> None:
    calls = []
    image = VisionBatch(patches=torch.zeros(4, 3, 14, 14), grids=((2, 2),))
    blank = VisionBatch(patches=torch.ones(4, 3, 14, 14), grids=((2, 2),))

    def encode(vision: VisionBatch) -> torch.Tensor:
        calls.append(vision)
        return vision.patches.mean(dim=(1, 2, 3))[:1, None]

    assert encode_here(image, blank, encode).tolist() == [[0.0]]
    assert encode_here(None, blank, encode).shape == (0, 1)
    assert calls == [image, blank]


def test_a_pack_of_text_gives_the_vision_side_gradients_of_zero() -> None:
    network = tiny_vision_language_model()
    network(tiny_batch(lengths=(9,), grids=(None,))).hidden.sum().backward()
    for part in (network.vision, network.projector):
        for parameter in part.parameters():
            assert parameter.grad is not None
            assert not parameter.grad.any()


@pytest.mark.parametrize("training", [True, False])
def test_only_training_runs_the_tower_for_nothing(training: bool) -> None:
    network, calls = tiny_vision_language_model().train(training), []
    network.vision.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        network(tiny_batch(lengths=(9,), grids=(None,)))
    assert len(calls) == int(training)
