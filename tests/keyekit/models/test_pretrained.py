"""A folder becomes a network."""

import json

import pytest
import torch

from keyekit.models.configuration import official_config
from keyekit.models.pretrained import continued_config, from_pretrained, read_config
from keyekit.models.weights import CheckpointError, official_name
from keyekit.testing.checkpoint import tiny_checkpoint
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model


@pytest.mark.parametrize("family", ["Keye", "KeyeVL1_5", "KeyeVL2"])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_every_parameter_is_the_folder_s(tmp_path, family, dtype) -> None:
    tensors = tiny_checkpoint(tmp_path, family)
    network, report = from_pretrained(tmp_path, dtype=dtype)
    assert report.missing == report.unexpected == ()
    for name, parameter in network.named_parameters():
        assert parameter.dtype == (dtype or torch.bfloat16)
        assert parameter.requires_grad
        assert torch.equal(parameter.bfloat16(), tensors[official_name(name)])
    assert network(_batch()).hidden.isfinite().all()


def _batch():
    batch = tiny_batch(lengths=(9,), grids=((2, 4),), tail=0)
    batch.tokens.clamp_(max=40)
    return batch


def test_a_dense_folder_described_as_sparse_lists_its_fresh_indexers(tmp_path) -> None:
    tiny_checkpoint(tmp_path, "KeyeVL1_5")
    config = read_config(tmp_path)
    config |= {"model_type": "KeyeVL2", "sa_config": {"topk": 4, "indexer_num_heads": 2, "indexer_head_dim": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    network, report = from_pretrained(tmp_path)
    assert report.missing == report.new_indexers
    assert len(report.missing) == 10
    assert network(_batch()).hidden.isfinite().all()


def test_configs_that_cannot_be_used(tmp_path) -> None:
    tiny_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="model_type='llama'; networks are built for Keye"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is no JSON"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no JSON object"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json beside the weights"):
        from_pretrained(tmp_path)


def test_a_config_continues_what_only_the_checkpoint_knows(tmp_path) -> None:
    tiny_checkpoint(tmp_path)
    before = read_config(tmp_path)
    network, _ = from_pretrained(tmp_path)
    config = continued_config(network, tmp_path)
    assert config["auto_map"] == before["auto_map"]
    assert config["max_position_embeddings"] == 1234
    assert config["sa_config"] == before["sa_config"]
    other = continued_config(tiny_vision_language_model(), tmp_path)  # of another family: nothing to continue
    assert other == official_config(tiny_vision_language_model())
    assert "auto_map" not in other


def test_a_config_does_not_continue_what_the_network_no_longer_is(tmp_path) -> None:
    tiny_checkpoint(tmp_path)
    before = read_config(tmp_path)
    dense = {key: value for key, value in before.items() if key != "sa_config"}
    (tmp_path / "config.json").write_text(json.dumps(dense))
    network, report = from_pretrained(tmp_path)
    assert len(report.unexpected) == 10  # the indexers
    (tmp_path / "config.json").write_text(json.dumps(before))
    assert "sa_config" not in continued_config(network, tmp_path)
