"""Folders under whatever names, whole and not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from keyekit.models.weights.folder import WeightFolder
from keyekit.models.weights.source import CheckpointError
from keyekit.testing.checkpoint import tiny_checkpoint

INDEX = "model.safetensors.index.json"


def whole(folder: WeightFolder, name: str) -> torch.Tensor:
    shape = folder.tensors[name].shape
    return folder.read(name, (0,) * len(shape), shape)


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_there(tmp_path, shards: int) -> None:
    tensors = tiny_checkpoint(tmp_path, shards=shards)
    folder = WeightFolder(tmp_path)
    assert folder.tensors.keys() == tensors.keys()
    assert all(torch.equal(whole(folder, name), tensor) for name, tensor in tensors.items())
    assert folder.regrouped == ()
    assert folder.layout.indexed == (shards > 1)


def test_names_of_transformers_are_understood(tmp_path) -> None:
    tensors = tiny_checkpoint(tmp_path / "a", "KeyeVL1_5")
    renamed = {}
    for name, tensor in tensors.items():
        for official, theirs in (
            ("visual.", "model.visual."),
            ("mlp_AR.", "model.mm_projector."),
            ("model.", "model.language_model."),
        ):
            if name.startswith(official):
                renamed[theirs + name.removeprefix(official)] = tensor
                break
        else:
            renamed[name] = tensor
    (tmp_path / "b").mkdir()
    save_file(renamed, tmp_path / "b" / "model.safetensors")
    folder = WeightFolder(tmp_path / "b")
    assert folder.tensors.keys() == tensors.keys()
    assert all(torch.equal(whole(folder, name), tensor) for name, tensor in tensors.items())


def test_single_experts_are_stacked_transposed_and_any_region_is_read(tmp_path) -> None:
    tensors = tiny_checkpoint(tmp_path, experts="separate")
    folder = WeightFolder(tmp_path)
    stem = "model.layers.1.mlp.experts"
    single = {
        part: torch.stack([tensors[f"{stem}.{e}.{part}_proj.weight"].T for e in range(3)])
        for part in ("gate", "up", "down")
    }
    stacked = torch.cat([single["gate"], single["up"]], dim=2)
    assert torch.equal(whole(folder, f"{stem}.gate_up_proj"), stacked)
    assert torch.equal(whole(folder, f"{stem}.down_proj"), single["down"])
    assert torch.equal(folder.read(f"{stem}.gate_up_proj", (1, 3, 15), (2, 7, 11)), stacked[1:3, 3:10, 15:26])
    assert folder.regrouped == tuple(name for name in folder.tensors if ".experts." in name)
    assert folder.layout.expert_form == "separate"


def test_a_missing_or_foreign_expert_is_named(tmp_path) -> None:
    tensors = tiny_checkpoint(tmp_path, experts="separate", shards=1)
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    path = tmp_path / "model.safetensors"
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, path)
    with pytest.raises(
        CheckpointError, match=r"layers\.0\.mlp\.experts\.gate_up_proj in .*up_proj of expert 1 is missing"
    ):
        WeightFolder(tmp_path)
    save_file({**tensors, name: torch.zeros(21, 32, dtype=torch.bfloat16)}, path)
    with pytest.raises(CheckpointError, match=r"experts\.1\.up_proj\.weight in .*model\.safetensors is \[21, 32\]"):
        WeightFolder(tmp_path)


def test_both_forms_or_both_names_of_a_tensor_are_refused(tmp_path) -> None:
    tensor = torch.zeros(2)
    save_file(
        {"model.norm.weight": tensor, "model.language_model.norm.weight": tensor + 1}, tmp_path / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is there more than once: .* and .*; keep one"):
        WeightFolder(tmp_path)


def test_a_checkpoint_that_is_only_partly_there(tmp_path) -> None:
    tiny_checkpoint(tmp_path)
    second = tmp_path / "model-00002-of-00003.safetensors"
    kept = load_file(second)
    gone = sorted(kept)[0]
    save_file({name: tensor for name, tensor in kept.items() if name != gone}, second)
    with pytest.raises(CheckpointError, match=f"model-00002-of-00003.safetensors lacks {gone}"):
        WeightFolder(tmp_path)
    second.unlink()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00003\.safetensors is missing, which .* names for .*only partly"
    ):
        WeightFolder(tmp_path)


def test_half_written_folders_are_refused(tmp_path) -> None:
    tiny_checkpoint(tmp_path / "export.partial")
    with pytest.raises(CheckpointError, match=r"export\.partial is what an interrupted export left"):
        WeightFolder(tmp_path / "export.partial")
    with pytest.raises(FileNotFoundError, match=r"no such folder of weights; .*export\.partial is what an interrupted"):
        WeightFolder(tmp_path / "export")


def test_indices_are_checked(tmp_path) -> None:
    tiny_checkpoint(tmp_path)
    for text in ("", "[]", "{}", json.dumps({"weight_map": {}})):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(CheckpointError, match="is no index of shards"):
            WeightFolder(tmp_path)
    shutil.copy(tmp_path / "model-00001-of-00003.safetensors", tmp_path.parent / "outside.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"places x in '\.\./outside\.safetensors'"):
        WeightFolder(tmp_path)
