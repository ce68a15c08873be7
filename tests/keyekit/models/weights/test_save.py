"""Weights go out as they came, bit for bit."""

import errno
import json
import os
import resource
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import fully_shard

from keyekit.models.configuration import network_of
from keyekit.models.pretrained import from_pretrained
from keyekit.models.weights import load_weights, save_weights
from keyekit.models.weights import save as module
from keyekit.testing.checkpoint import tiny_checkpoint
from keyekit.testing.distributed import run_distributed

PACKING = "visual.vision_model.embeddings.packing_position_embedding.weight"


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("family", ["Keye", "KeyeVL1_5", "KeyeVL2"])
@pytest.mark.parametrize(("experts", "shards"), [("fused", 3), ("separate", 4), ("fused", 1)])
def test_folder_to_model_to_folder_is_the_identity(tmp_path, family, experts, shards) -> None:
    tiny_checkpoint(tmp_path / "a", family, experts, shards)
    model, _ = from_pretrained(tmp_path / "a")
    assert not any("packing" in name for name, _ in model.named_parameters())
    save_weights(model, tmp_path / "b", passengers_from=tmp_path / "a")
    assert files(tmp_path / "b") == files(tmp_path / "a")
    if shards > 1:
        indices = [json.loads((tmp_path / f / "model.safetensors.index.json").read_text()) for f in ("a", "b")]
        assert indices[0] == indices[1]


def test_a_folder_is_replaced_by_what_came_from_it(tmp_path) -> None:
    tiny_checkpoint(tmp_path / "a")
    before = files(tmp_path / "a")
    model, _ = from_pretrained(tmp_path / "a")
    with torch.no_grad():
        model.decoder.norm.weight.zero_()
    save_weights(model, tmp_path / "a", passengers_from=tmp_path / "a")
    after = files(tmp_path / "a")
    assert [name for name in before if before[name] != after[name]] == ["model-00003-of-00003.safetensors"]
    assert (tmp_path / "a" / "tokenizer.json").read_text() == "{}"


def test_options_change_shards_experts_and_dtype(tmp_path) -> None:
    tensors = tiny_checkpoint(tmp_path / "a")
    model, _ = from_pretrained(tmp_path / "a", dtype=torch.float32)
    save_weights(model, tmp_path / "b", passengers_from=tmp_path / "a", max_shard_size=20_000, dtype=torch.bfloat16)
    shards = {name: load_file(tmp_path / "b" / name) for name in files(tmp_path / "b")}
    assert {name: t for shard in shards.values() for name, t in shard.items()}.keys() == tensors.keys()
    assert files(tmp_path / "b") == files(tmp_path / "a")  # back in the folder's dtype, the folder's shards
    save_weights(model, tmp_path / "c", max_shard_size=20_000)
    small = [load_file(tmp_path / "c" / name) for name in files(tmp_path / "c")]
    assert len(small) > 3
    assert all(len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= 20_000 for shard in small)
    save_weights(model, tmp_path / "d", experts="separate", dtype=torch.bfloat16)
    separate = load_file(tmp_path / "d" / "model.safetensors")
    gate_up = tensors["model.layers.0.mlp.experts.gate_up_proj"]
    assert torch.equal(separate["model.layers.0.mlp.experts.1.up_proj.weight"], gate_up[1, :, 24:].T)
    assert PACKING not in separate


def test_a_network_that_changed_keeps_what_it_can_of_the_files(tmp_path) -> None:
    tiny_checkpoint(tmp_path / "a", "KeyeVL1_5")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    sparse = {"topk": 4, "indexer_num_heads": 2, "indexer_head_dim": 8}
    model = network_of({**config, "model_type": "KeyeVL2", "sa_config": sparse}).bfloat16()
    load_weights(model, tmp_path / "a")
    save_weights(model, tmp_path / "b", passengers_from=tmp_path / "a")
    before = [name for path in sorted((tmp_path / "a").glob("*.safetensors")) for name in load_file(path)]
    after = load_file(tmp_path / "b" / "model.safetensors")
    assert set(after) - set(before) == {name for name in after if "sa_indexer" in name}
    assert set(before) <= set(after)


def _export_sharded(rank: int, world_size: int, origin, target) -> None:
    with torch.device("meta"):
        model = network_of(json.loads((origin / "config.json").read_text()))
    for layer in model.decoder.layers:
        fully_shard(layer)
    fully_shard(model)
    model.to_empty(device="cpu")
    model.bfloat16()
    load_weights(model, origin, strict=True)
    save_weights(model, target, passengers_from=origin)


def test_two_ranks_export_what_one_process_would(tmp_path) -> None:
    tiny_checkpoint(tmp_path / "a")
    run_distributed(_export_sharded, 2, tmp_path / "a", tmp_path / "b")
    assert files(tmp_path / "b") == files(tmp_path / "a")


def _fail_on_the_first_rank(rank: int, world_size: int, target) -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7))
    fully_shard(model)
    resource.setrlimit(resource.RLIMIT_FSIZE, (450, resource.RLIM_INFINITY))
    try:
        save_weights(model, target)
    except OSError as error:
        return error.strerror or ""
    return "no error"


def test_a_failing_disk_stops_every_rank_instead_of_hanging(tmp_path) -> None:
    problems = run_distributed(_fail_on_the_first_rank, 2, tmp_path / "x")
    assert problems[0] == problems[1]
    assert "File too large while writing 1.weight" in problems[0]
    assert not (tmp_path / "x").exists()


def test_a_full_disk_leaves_the_old_folder(tmp_path, monkeypatch) -> None:
    tiny_checkpoint(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    model, _ = from_pretrained(tmp_path / "a")

    def full(source, layout, folder, advance=None, collective=False):
        (folder / "model-00001-of-00003.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device while writing x", str(folder))

    monkeypatch.setattr(module, "write_shards", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(model, tmp_path / "a", passengers_from=tmp_path / "a")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert not (tmp_path / "a.partial").exists()


def test_a_limit_of_the_system_is_one_error_that_names_file_and_tensor(tmp_path) -> None:
    """The same for a real file, whose writing the system refuses beyond a size."""
    tiny_checkpoint(tmp_path / "a")
    before = files(tmp_path / "a")
    program = """
        import resource, sys
        from keyekit.models.pretrained import from_pretrained
        from keyekit.models.weights import save_weights
        model, _ = from_pretrained(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
        save_weights(model, sys.argv[1], passengers_from=sys.argv[1])
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "a")],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    last = ended.stderr.strip().splitlines()[-1]
    assert "File too large while writing " in last
    assert ".safetensors'" in last
    assert files(tmp_path / "a") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
