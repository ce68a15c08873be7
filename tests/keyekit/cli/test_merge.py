"""The command; what merges are is tested in tests/keyekit/models."""

import json

import torch
from safetensors.torch import load_file

from keyekit.cli.main import main
from keyekit.testing.checkpoint import tiny_checkpoint

NORM = "model.norm.weight"


def merge(*words) -> int:
    return main(["merge", *map(str, words)])


def norm(folder) -> torch.Tensor:
    return next(tensors[NORM] for path in folder.glob("*.safetensors") if NORM in (tensors := load_file(path)))


def test_averages_weights_and_task_vectors(tmp_path, capsys) -> None:
    a, b, c = (tiny_checkpoint(tmp_path / n, seed=i, dtype=torch.float32)[NORM] for i, n in enumerate("abc"))
    folders = [tmp_path / name for name in "abc"]
    assert merge(tmp_path / "mean", *folders) == 0
    told = capsys.readouterr().out
    assert "tensors, 0 of them from one model alone" in told
    assert "mean is the merge of 3 models" in told
    torch.testing.assert_close(norm(tmp_path / "mean"), (a + b + c) / 3)
    assert merge(tmp_path / "weighted", *folders, "--weights", "1", "2", "1") == 0
    assert merge(tmp_path / "comma", *folders, "--weights=1,2,1") == 0
    torch.testing.assert_close(norm(tmp_path / "weighted"), (a + 2 * b + c) / 4)
    assert torch.equal(norm(tmp_path / "comma"), norm(tmp_path / "weighted"))
    words = ("--base", folders[0], "--scales=-0.5,1", "--part", "decoder.norm=0,1", "--dtype=bfloat16")
    assert merge(tmp_path / "vectors", *folders[1:], *words) == 0
    assert torch.equal(norm(tmp_path / "vectors"), c.bfloat16())


def test_a_run_stands_for_its_export(tmp_path, capsys) -> None:
    tiny_checkpoint(tmp_path / "run" / "export")
    (tmp_path / "run" / "config.yaml").write_text("")
    tiny_checkpoint(tmp_path / "b", seed=1)
    assert merge(tmp_path / "out", tmp_path / "run", tmp_path / "b", "--max-shard-size=20KB") == 0
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["models"] == [str(tmp_path / "run" / "export"), str(tmp_path / "b")]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3


def test_requests_that_cannot_be_carried_out_are_one_message(tmp_path, capsys) -> None:
    tiny_checkpoint(tmp_path / "a")
    tiny_checkpoint(tmp_path / "b", "KeyeVL1_5", seed=1)
    (tmp_path / "empty").mkdir()
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"

    def told(*words) -> str:
        assert merge(*words) == 2
        return capsys.readouterr().err

    assert "no model.safetensors" in told(out, a, tmp_path / "empty")
    assert "there is no such folder of weights" in told(out, a, tmp_path / "nowhere")
    assert "is one of the models itself" in told(a, a, b, "--overwrite")
    assert "exists: name another target, or replace it with --overwrite" in told(tmp_path / "empty", a, a)
    message = told(out, a, b)
    assert "the models do not fit together" in message
    assert "model.layers.0.mlp.gate.weight: is in" in message
    assert f"but missing in {b}" in message
    assert "give numbers" in told(out, a, a, "--weights", "1", "two")
    assert "weights: 1 numbers [1.0] for 2 models" in told(out, a, a, "--weights=1")
    assert "with a base give scales" in told(out, a, "--base", a)
    assert "write a pattern and one number for each model" in told(out, a, a, "--part", "vision")
    assert "is no regular expression" in told(out, a, a, "--part", "(=1,0")
    assert "matches no tensor" in told(out, a, a, "--part", "ghost=1,0")
    assert "the following arguments are required: models" in told(out)
    assert not out.exists()
