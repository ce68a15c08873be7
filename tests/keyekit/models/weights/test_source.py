"""What sources have in common."""

import torch

from keyekit.models.weights.folder import WeightFolder
from keyekit.models.weights.network import NetworkSource
from keyekit.models.weights.source import CheckpointError, Stored, TensorSource
from keyekit.testing.checkpoint import tiny_checkpoint


def test_sizes_in_bytes() -> None:
    assert Stored(torch.bfloat16, (3, 5)).nbytes == 30
    assert Stored(torch.float32, ()).nbytes == 4
    assert Stored(torch.float32, (0, 5)).nbytes == 0


def test_folders_and_networks_are_sources(tmp_path) -> None:
    tiny_checkpoint(tmp_path)
    for source in (WeightFolder(tmp_path), NetworkSource(torch.nn.Linear(2, 2))):
        assert isinstance(source, TensorSource)
        assert all(source.where(name) for name in source.tensors)
    assert not isinstance(str(tmp_path), TensorSource)


def test_problems_are_value_errors() -> None:
    assert issubclass(CheckpointError, ValueError)
