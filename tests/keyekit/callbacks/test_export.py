"""The export at the end of a fit."""

from types import SimpleNamespace

import torch

from keyekit.callbacks.export import Export
from keyekit.models.weights import load_weights
from keyekit.testing.tiny import tiny_vision_language_model


def test_weights_and_processor_are_written(tmp_path) -> None:
    written = []
    network = tiny_vision_language_model()
    trainer = SimpleNamespace(
        default_root_dir=str(tmp_path), datamodule=SimpleNamespace(export_processor=written.append), global_rank=0
    )
    Export("out").on_fit_end(trainer, SimpleNamespace(network=network))
    assert written == [tmp_path / "out"]
    other = tiny_vision_language_model()
    torch.nn.init.zeros_(other.decoder.lm_head.weight)
    assert load_weights(other, tmp_path / "out").missing == ()
    assert torch.equal(other.decoder.lm_head.weight, network.decoder.lm_head.weight)
