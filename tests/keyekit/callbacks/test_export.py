"""The export at the end of a fit."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from keyekit.callbacks.export import Export
from keyekit.data.tokenizer import train_tokenizer
from keyekit.models.pretrained import from_pretrained
from keyekit.models.weights import CheckpointError, load_weights
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.moe.routers import SigmoidBias
from keyekit.testing.checkpoint import tiny_checkpoint
from keyekit.testing.tiny import tiny_vision_language_model


def trainer(folder, **data) -> SimpleNamespace:
    return SimpleNamespace(default_root_dir=str(folder), datamodule=SimpleNamespace(**data), is_global_zero=True)


def test_weights_config_and_processor_are_written(tmp_path) -> None:
    network = tiny_vision_language_model()
    tokenizer = train_tokenizer(["system user assistant"], tmp_path / "tokenizer", 300)

    def export_processor(folder) -> None:
        (folder / "preprocessor_config.json").write_text("{}")

    run = trainer(tmp_path, export_processor=export_processor, tokenizer=tokenizer)
    Export("out").on_fit_end(run, SimpleNamespace(network=network))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors", "preprocessor_config.json"]
    other, report = from_pretrained(tmp_path / "out")
    assert report.missing == ()
    assert torch.equal(other.decoder.lm_head.weight, network.decoder.lm_head.weight)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "KeyeVL1_5"
    assert config["video_token_id"] == tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert config["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_other_ranks_of_a_replicated_network_write_nothing(tmp_path) -> None:
    run = trainer(tmp_path)
    run.is_global_zero = False
    Export().on_fit_end(run, SimpleNamespace(network=tiny_vision_language_model()))
    assert not list(tmp_path.iterdir())


def test_what_only_the_first_checkpoint_holds_goes_on(tmp_path) -> None:
    tensors = tiny_checkpoint(tmp_path / "released")
    for name in ("modeling_keye.py", "generation_config.json", "vocab.json"):
        (tmp_path / "released" / name).write_text("released")
    network, _ = from_pretrained(tmp_path / "released", dtype=torch.float32)
    task = SimpleNamespace(network=network, init_from=str(tmp_path / "released"))
    Export(dtype="bfloat16").on_fit_end(trainer(tmp_path), task)
    export = tmp_path / "export"
    for path in (tmp_path / "released").glob("*.safetensors"):
        assert (export / path.name).read_bytes() == path.read_bytes()
    assert (export / "modeling_keye.py").is_file()
    assert (export / "generation_config.json").is_file()
    assert not (export / "vocab.json").exists()  # the tokenizer is the run's own
    config = json.loads((export / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "configuration_keye.KeyeConfig"}
    assert config["torch_dtype"] == "bfloat16"
    assert len(tensors) == sum(len(load_file(path)) for path in export.glob("*.safetensors"))


def test_a_network_without_official_config_says_so(tmp_path, caplog) -> None:
    def experts(spec):
        return MixtureOfExperts(spec, num_experts=4, active_experts=2, expert_dim=8, router=SigmoidBias)

    network = tiny_vision_language_model(feed_forward=experts)
    with caplog.at_level(logging.WARNING):
        Export().on_fit_end(trainer(tmp_path), SimpleNamespace(network=network, init_from=str(tmp_path / "gone")))
    assert "config.json is not an official one: the router SigmoidBias has no counterpart" in caplog.text
    assert "gone is gone" in caplog.text
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["model_type"] == "keyekit"
    assert config["keyekit"]["official"] is False
    assert "SigmoidBias" in config["keyekit"]["reason"]
    with pytest.raises(CheckpointError, match=r"model_type='keyekit' .*SigmoidBias.* build any other from its recipe"):
        from_pretrained(tmp_path / "export")
    other = tiny_vision_language_model(feed_forward=experts)
    assert load_weights(other, tmp_path / "export").missing == ()


def test_a_failing_description_leaves_the_old_export(tmp_path) -> None:
    Export().on_fit_end(trainer(tmp_path), SimpleNamespace(network=tiny_vision_language_model()))
    before = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}

    def full(folder) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Export().on_fit_end(
            trainer(tmp_path, export_processor=full), SimpleNamespace(network=tiny_vision_language_model())
        )
    assert {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()} == before


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="choose 'float32', 'bfloat16'"):
        Export(dtype="fp8")
