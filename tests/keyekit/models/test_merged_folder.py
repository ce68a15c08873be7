"""Whole folders: weights, the other files, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from keyekit.models.merged_folder import RECORD, merge_folders, refuse_other_settings
from keyekit.models.pretrained import from_pretrained
from keyekit.models.weights import CheckpointError
from keyekit.testing.checkpoint import tiny_checkpoint


def loaded(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def rewrite(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def models(tmp_path):
    """Three models of one architecture, with the tensors that each was written with."""
    tensors = [tiny_checkpoint(tmp_path / f"m{seed}", seed=seed, dtype=torch.float32) for seed in range(3)]
    return [tmp_path / f"m{seed}" for seed in range(3)], tensors


def test_an_average_is_a_checkpoint_like_the_first(models, tmp_path) -> None:
    folders, tensors = models
    (folders[1] / "README.md").write_text("of the second")
    report = merge_folders(tmp_path / "out", folders)
    merged = loaded(tmp_path / "out")
    assert merged.keys() == tensors[0].keys()
    for name, tensor in merged.items():
        exact = sum(each[name].double() for each in tensors) / 3
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*(path.name for path in folders[0].iterdir()), "README.md", RECORD]
    )
    assert report.companions == ("config.json", "tokenizer.json", "README.md")
    assert report.tensors == len(merged)
    assert report.copied == report.incomplete == ()
    assert from_pretrained(tmp_path / "out")[1].missing == ()
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["models"] == list(map(str, folders))
    assert record["coefficients"] == pytest.approx([1 / 3] * 3)


def test_task_vectors_are_added_to_their_base(models, tmp_path) -> None:
    folders, (base, one, two) = models
    merge_folders(tmp_path / "out", folders[1:], base=folders[0], scales=[0.5, -0.2], parts={"vision": [0, 0]})
    for name, tensor in loaded(tmp_path / "out").items():
        b, x, y = (each[name].double() for each in (base, one, two))
        exact = b if name.startswith("visual.") else b + 0.5 * (x - b) - 0.2 * (y - b)
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-6)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["base"] == record["models"][0] == str(folders[0])
    assert record["coefficients"] == pytest.approx([0.7, 0.5, -0.2])
    merge_folders(tmp_path / "one", folders[1:], base=folders[0], scales=[0.25])
    gate = "model.layers.0.mlp.gate.weight"
    exact = 0.5 * base[gate].double() + 0.25 * (one[gate].double() + two[gate].double())
    torch.testing.assert_close(loaded(tmp_path / "one")[gate].double(), exact, rtol=1e-6, atol=1e-6)


def test_dtype_and_form_can_change(models, tmp_path) -> None:
    folders, tensors = models
    sizes, bytes_done = [], []
    merge_folders(
        tmp_path / "out",
        folders[:2],
        dtype=torch.bfloat16,
        experts="separate",
        max_shard_size=20_000,
        sizes=sizes.append,
        advance=bytes_done.append,
    )
    merged = loaded(tmp_path / "out")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    down = (tensors[0]["model.layers.1.mlp.experts.down_proj"] + tensors[1]["model.layers.1.mlp.experts.down_proj"]) / 2
    torch.testing.assert_close(merged["model.layers.1.mlp.experts.2.down_proj.weight"], down[2].T.bfloat16())
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert sizes == [sum(bytes_done)] == [sum(tensor.nbytes for tensor in merged.values())]


def test_models_that_are_described_differently_are_refused_unless_one_counts(models, tmp_path) -> None:
    folders, _ = models
    rewrite(folders[1] / "config.json", rope_theta=8000000, torch_dtype="float16")
    config = json.loads((folders[2] / "config.json").read_text())
    rewrite(folders[2] / "config.json", sa_config={**config["sa_config"], "topk": 9})
    (folders[2] / "tokenizer.json").write_text('{"version": "2"}')
    with pytest.raises(CheckpointError) as caught:
        merge_folders(tmp_path / "out", folders)
    message = str(caught.value)
    assert f"rope_theta is 10000000 in {folders[0] / 'config.json'} but 8000000 in {folders[1]}" in message
    assert "sa_config.topk is 8" in message
    assert "version is absent in" in message
    assert "torch_dtype" not in message
    assert "--like FOLDER" in message
    assert not (tmp_path / "out").exists()
    merge_folders(tmp_path / "out", folders, like=folders[1])
    assert (tmp_path / "out" / "config.json").read_text() == (folders[1] / "config.json").read_text()


def test_a_base_is_compared_too(models, tmp_path) -> None:
    folders, _ = models
    rewrite(folders[0] / "config.json", rms_norm_eps=1e-5)
    refuse_other_settings(folders[1:])
    with pytest.raises(CheckpointError, match="rms_norm_eps"):
        merge_folders(tmp_path / "out", folders[1:], base=folders[0], scales=[1, 1])
    (folders[1] / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is no JSON"):
        merge_folders(tmp_path / "out", folders[:2])


def test_numbers_that_do_not_belong_together(models, tmp_path) -> None:
    folders, _ = models
    with pytest.raises(ValueError, match=r"weights: 2 numbers .* for 3 models"):
        merge_folders(tmp_path / "out", folders, weights=[1, 2])
    with pytest.raises(ValueError, match="scales belong to the differences from a base"):
        merge_folders(tmp_path / "out", folders, scales=[1, 2, 3])
    for numbers in ({}, {"weights": [1, 1]}, {"weights": [1, 1], "scales": [1, 1]}):
        with pytest.raises(ValueError, match="with a base give scales"):
            merge_folders(tmp_path / "out", folders[1:], base=folders[0], **numbers)
    with pytest.raises(ValueError, match="vision: 1 numbers"):
        merge_folders(tmp_path / "out", folders[1:], base=folders[0], scales=[1], parts={"vision": [1]})


def test_a_model_that_breaks_half_way_leaves_the_target_as_it_was(models, tmp_path) -> None:
    folders, _ = models
    last = sorted(folders[1].glob("*.safetensors"))[-1]
    content = bytearray(last.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # a float32 NaN at the end of the last tensor
    last.write_bytes(bytes(content))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"before")
    with pytest.raises(CheckpointError, match=f"holds NaN or infinite values in {last}"):
        merge_folders(tmp_path / "out", folders)
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"before"]
    assert not (tmp_path / "out.partial").exists()


def test_a_merge_of_merges_has_its_own_record(models, tmp_path) -> None:
    folders, _ = models
    merge_folders(tmp_path / "one", folders[:2])
    merge_folders(tmp_path / "two", [tmp_path / "one", folders[2]], weights=[2, 1])
    record = json.loads((tmp_path / "two" / RECORD).read_text())
    assert record["models"] == [str(tmp_path / "one"), str(folders[2])]
