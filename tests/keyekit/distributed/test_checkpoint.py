"""Distributed checkpoints against torch's own reader and writer."""

import pickle
import resource

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.fsdp import fully_shard

from keyekit.distributed import checkpoint as module
from keyekit.distributed.checkpoint import DistributedFolder, write_distributed
from keyekit.models.pretrained import from_pretrained
from keyekit.models.weights import CheckpointError, WeightFolder, load_weights, own_name
from keyekit.testing.checkpoint import tiny_checkpoint
from keyekit.testing.distributed import run_distributed

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def whole(source, name: str) -> torch.Tensor:
    shape = source.tensors[name].shape
    return source.read(name, (0,) * len(shape), shape)


@pytest.mark.parametrize("experts", ["fused", "separate"])
@pytest.mark.parametrize("chunk", [100, 2**26])
def test_torch_reads_what_we_write(tmp_path, monkeypatch, experts, chunk) -> None:
    tiny_checkpoint(tmp_path / "hf", experts=experts)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    written = []
    source = WeightFolder(tmp_path / "hf")
    write_distributed(source, tmp_path / "dcp", written.append)
    assert sum(written) == sum(stored.nbytes for stored in source.tensors.values())
    network, _ = from_pretrained(tmp_path / "hf")
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    dcp.load(network.state_dict(), checkpoint_id=tmp_path / "dcp", no_dist=True)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_one_chunk_is_in_memory_at_a_time(tmp_path, monkeypatch) -> None:
    """Torch's writer would keep the last chunk of every tensor, which adds up to gigabytes in a real checkpoint."""
    tiny_checkpoint(tmp_path / "hf", experts="separate")
    chunks, held = [], []
    resolve = module._FromSource.resolve_data

    def watched(planner, write_item) -> torch.Tensor:
        chunks.append(resolve(planner, write_item))
        held.append(sum(chunk.untyped_storage().nbytes() for chunk in chunks))
        return chunks[-1]

    monkeypatch.setattr(module._FromSource, "resolve_data", watched)
    source = WeightFolder(tmp_path / "hf")
    write_distributed(source, tmp_path / "dcp")
    assert max(held) == max(stored.nbytes for stored in source.tensors.values())
    assert len(chunks) == len(source.tensors)
    assert torch.equal(
        whole(DistributedFolder(tmp_path / "dcp"), "model.norm.weight"), whole(source, "model.norm.weight")
    )


def _save_sharded(rank: int, world_size: int, origin, target) -> None:
    network, _ = from_pretrained(origin)
    for layer in network.decoder.layers:
        fully_shard(layer)
    fully_shard(network)
    optimizer = {"step": torch.tensor(3.0), "note": "not a tensor"}
    dcp.save(
        {"state_dict": {f"network.{n}": t for n, t in network.state_dict().items()}, "optimizer": optimizer},
        checkpoint_id=target,
    )


def test_we_read_what_torch_writes_from_two_ranks(tmp_path) -> None:
    tensors = tiny_checkpoint(tmp_path / "hf")
    run_distributed(_save_sharded, 2, tmp_path / "hf", tmp_path / "dcp")
    folder = DistributedFolder(tmp_path / "dcp")
    assert folder.tensors.keys() == {name for name in tensors if "packing" not in name}
    assert folder.left_out == ("optimizer.step", "optimizer.note")
    for name in folder.tensors:
        assert torch.equal(whole(folder, name), tensors[name]), name
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert torch.equal(folder.read(name, (1, 3, 15), (2, 7, 11)), tensors[name][1:3, 3:10, 15:26])
    network, _ = from_pretrained(tmp_path / "hf")
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    report = load_weights(network, folder, strict=True)  # any source of tensors will do
    assert len(report.loaded) == len(network.state_dict())
    assert torch.equal(network.decoder.lm_head.weight, tensors["lm_head.weight"])


class _Evil:
    """Would make a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.code = f"open({str(path)!r}, 'w')"

    def __reduce__(self):
        return eval, (self.code,)


def test_a_description_that_is_more_than_one_is_not_run(tmp_path) -> None:
    touched = tmp_path / "touched"
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(_Evil(touched)))
    with pytest.raises(CheckpointError, match=r"asks for builtins\.eval, which no description of tensors contains"):
        DistributedFolder(tmp_path / "dcp")
    assert not touched.exists()


def test_folders_that_are_not_whole_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="this is no distributed checkpoint"):
        DistributedFolder(tmp_path)
    tiny_checkpoint(tmp_path / "hf")
    write_distributed(WeightFolder(tmp_path / "hf"), tmp_path / "dcp")
    data = tmp_path / "dcp" / "__0_0.distcp"
    content = data.read_bytes()
    data.write_bytes(content[:-1000])
    with pytest.raises(
        CheckpointError, match=r"__0_0\.distcp is cut off at .* among others: the checkpoint is only partly"
    ):
        DistributedFolder(tmp_path / "dcp")
    data.write_bytes(bytes(200) + content[200:])
    folder = DistributedFolder(tmp_path / "dcp")
    first = next(iter(folder.tensors))
    with pytest.raises(
        CheckpointError, match=rf"{first} in .*dcp cannot be read as a tensor: the checkpoint is damaged"
    ):
        whole(folder, first)
    data.unlink()
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is missing; it holds "):
        DistributedFolder(tmp_path / "dcp")
    (tmp_path / "dcp" / ".metadata").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be read"):
        DistributedFolder(tmp_path / "dcp")


def _write_beyond_a_limit(rank: int, world_size: int, origin, target) -> tuple[str, str]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        write_distributed(WeightFolder(origin), target)
    except OSError as error:
        return error.strerror or "", error.filename
    return "no error", ""


def test_a_disk_that_takes_no_more_names_folder_and_tensor(tmp_path) -> None:
    tiny_checkpoint(tmp_path / "hf")
    [(problem, name)] = run_distributed(_write_beyond_a_limit, 1, tmp_path / "hf", tmp_path / "dcp")
    expected = (
        "File too large while writing visual.vision_model.embeddings.patch_embedding.weight; a folder that was there"
    )
    assert problem.startswith(expected)  # 28 KB, the first tensor that is larger than the limit
    assert name == str(tmp_path / "dcp")


def test_names_in_the_file_are_the_network_s(tmp_path) -> None:
    tensors = tiny_checkpoint(tmp_path / "hf")
    write_distributed(WeightFolder(tmp_path / "hf"), tmp_path / "dcp")
    keys = dcp.FileSystemReader(tmp_path / "dcp").read_metadata().state_dict_metadata.keys()
    assert keys == {own_name(name) for name in tensors}
