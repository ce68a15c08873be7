"""What chat and predict can load: checkpoint folders in shards and presets; runs are loaded in test_quickstart.py."""

from pathlib import Path

import pytest
import torch
from released import TEXTS, released

from keyekit.cli.assistant import assistant_of
from keyekit.cli.errors import CommandError
from keyekit.data.slow_fast import SlowFast
from keyekit.data.tokenizer import train_tokenizer
from keyekit.models.weights.folder import WeightFolder

LETTERS = "abcdefghijklmnop"


def test_a_checkpoint_in_shards_brings_weights_processing_and_tokenizer(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = released(tmp_path / "checkpoint")
    assert not (folder / "model.safetensors").exists()
    assistant = assistant_of(str(folder))
    assert not assistant.network.training
    assert isinstance(assistant.encoder.cache.reader.frame_sampler, SlowFast), "Keye-VL-1.5 reads slow and fast frames"
    own = dict(assistant.network.named_parameters())["decoder.layers.0.self_attn.o_proj.weight"]
    stored = WeightFolder(folder).read("model.layers.0.self_attn.o_proj.weight", (0, 0), tuple(own.shape))
    assert torch.equal(own, stored)
    assert assistant.decode(assistant.tokenizer.encode("the picture")) == "the picture"
    assert [assistant.tokenizer.convert_ids_to_tokens(t) for t in assistant.stop_tokens] == [
        "<|im_end|>",
        "<|endoftext|>",
    ]


def test_a_preset_warns_that_its_weights_are_random(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    train_tokenizer(TEXTS, tmp_path / "tokenizer", 300)
    assert not assistant_of("keye_vl_2_30b_a3b_tiny", tmp_path / "tokenizer").network.training
    assert "RANDOM weights" in capsys.readouterr().err
    with pytest.raises(CommandError, match="pass --tokenizer"):
        assistant_of("keye_vl_8b_tiny")


def test_what_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match=r"neither a folder nor a preset.*keye_vl_8b"):
        assistant_of("keye_vl_8")
    with pytest.raises(CommandError, match="folder of a finished fit"):
        assistant_of(str(tmp_path))
    folder = released(tmp_path / "checkpoint")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.rename(folder / "elsewhere")
    with pytest.raises(CommandError, match=rf"{shard.name} is missing.*only partly there"):
        assistant_of(str(folder))
    (folder / "elsewhere").rename(shard)
    train_tokenizer((f"{a}{b}{c} " for a in LETTERS for b in LETTERS for c in LETTERS), tmp_path / "large", 900)
    with pytest.raises(CommandError, match="knows 900 tokens, the model 512"):
        assistant_of(str(folder), tmp_path / "large")
