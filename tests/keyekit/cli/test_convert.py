"""The command on small folders; benchmarks/checkpoint_memory.py measures a large one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp

from keyekit.cli.main import main
from keyekit.models.pretrained import from_pretrained
from keyekit.testing.checkpoint import tiny_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def convert(*words) -> int:
    return main(["convert", *map(str, words)])


@pytest.mark.parametrize("family", ["Keye", "KeyeVL1_5", "KeyeVL2"])
@pytest.mark.parametrize(("experts", "shards"), [("fused", 3), ("separate", 1)])
def test_there_and_back_gives_the_same_files(tmp_path, capsys, family, experts, shards) -> None:
    tiny_checkpoint(tmp_path / "a", family, experts, shards)
    (tmp_path / "a" / "modeling_keye.py").write_text("remote code")
    assert convert(tmp_path / "a", tmp_path / "b") == 0
    told = capsys.readouterr().out
    assert f"are those of the {family} network" in told
    assert "shipped but unused: visual.vision_model.embeddings.packing_position_embedding.weight" in told
    assert "copied config.json, modeling_keye.py, tokenizer.json" in told
    assert not list((tmp_path / "b").glob("*.safetensors"))
    assert convert(tmp_path / "b", tmp_path / "c") == 0
    before, after = contents(tmp_path / "a"), contents(tmp_path / "c")
    assert before.keys() == after.keys()
    for name in before:
        if name.endswith("index.json"):
            assert json.loads(before[name]) == json.loads(after[name])
        else:
            assert before[name] == after[name], name


def test_a_training_checkpoint_becomes_a_whole_folder_with_what_another_ships(tmp_path, capsys) -> None:
    tiny_checkpoint(tmp_path / "a")
    network, _ = from_pretrained(tmp_path / "a")
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    dcp.save(
        {"state_dict": state, "optimizer_0": {"x": torch.zeros(3)}}, checkpoint_id=tmp_path / "last.ckpt", no_dist=True
    )
    assert convert(tmp_path / "last.ckpt", tmp_path / "alone") == 0
    told = capsys.readouterr().out
    assert "left out 1 entries that are no weights of the network, first optimizer_0.x" in told
    assert "without a config.json nothing was compared" in told
    assert convert(tmp_path / "last.ckpt", tmp_path / "b", "--like", tmp_path / "a") == 0
    assert contents(tmp_path / "b").keys() == contents(tmp_path / "a").keys()
    for path in (tmp_path / "a").glob("*.safetensors"):
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_shards_and_form_of_experts_can_be_changed(tmp_path, capsys) -> None:
    tensors = tiny_checkpoint(tmp_path / "a")
    assert convert(tmp_path / "a", tmp_path / "b", "--to=hf", "--experts=separate", "--max-shard-size=20KB") == 0
    shards = [load_file(path) for path in (tmp_path / "b").glob("*.safetensors")]
    assert len(shards) > 3
    assert all(len(shard) == 1 or sum(t.nbytes for t in shard.values()) <= 20_000 for shard in shards)
    separate = {name: tensor for shard in shards for name, tensor in shard.items()}
    down = tensors["model.layers.1.mlp.experts.down_proj"]
    assert torch.equal(separate["model.layers.1.mlp.experts.2.down_proj.weight"], down[2].T)
    assert from_pretrained(tmp_path / "b")[1].missing == ()


def test_what_differs_from_the_network_is_listed(tmp_path, capsys) -> None:
    tensors = tiny_checkpoint(tmp_path / "a", shards=1)
    del tensors["model.norm.weight"]
    save_file({**tensors, "mtp.weight": torch.zeros(2)}, tmp_path / "a" / "model.safetensors")
    assert convert(tmp_path / "a", tmp_path / "b") == 0
    told = capsys.readouterr().out
    assert "missing: model.norm.weight" in told
    assert "unexpected: mtp.weight" in told


def test_requests_that_cannot_be_carried_out_are_one_message(tmp_path, capsys, monkeypatch) -> None:
    tiny_checkpoint(tmp_path / "a")
    (tmp_path / "exists").mkdir()

    def told(*words) -> str:
        assert convert(*words) == 2
        return capsys.readouterr().err

    assert "no model.safetensors" in told(tmp_path / "exists", tmp_path / "b")
    assert "exists exists: name another target" in told(tmp_path / "a", tmp_path / "exists")
    assert "is the source itself" in told(tmp_path / "a", tmp_path / "a", "--overwrite")
    assert "write a number of bytes" in told(tmp_path / "a", tmp_path / "b", "--to=hf", "--max-shard-size=huge")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    assert "model_type='llava'; networks are built for Keye" in told(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    assert "model.embed_tokens.weight is [41, 32] in " in told(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    shard = tmp_path / "a" / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert "model-00002-of-00003.safetensors is cut off" in told(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "exists"]


def test_a_full_disk_leaves_the_target_as_it_was(tmp_path, capsys, monkeypatch) -> None:
    tiny_checkpoint(tmp_path / "a")
    tiny_checkpoint(tmp_path / "b", seed=1)
    before = contents(tmp_path / "b")

    def full(source, layout, folder, advance) -> None:
        raise OSError(28, "No space left on device while writing model.norm.weight", str(folder / "x.safetensors"))

    monkeypatch.setattr("keyekit.models.weights.writer.write_shards", full)
    assert convert(tmp_path / "a", tmp_path / "b", "--to=hf", "--overwrite") == 2
    assert "x.safetensors: No space left on device while writing model.norm.weight" in capsys.readouterr().err
    assert contents(tmp_path / "b") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
