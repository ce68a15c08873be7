"""The three stages of sparse attention, one from the other's export: who learns in which, and who stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from keyekit.cli.lightning import run

RECIPES = Path(__file__).parent.parent.parent / "recipes" / "tiny"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dense_then_warm_up_then_sparse(tmp_path, merged):
    folders = {}
    for stage, start, steps in (("dense", None, 10), ("warmup", "dense", 25), ("sparse", "warmup", 5)):
        options = ["--trainer.accelerator=cpu", "--model.schedule.warmup_steps=5", f"--trainer.max_steps={steps}"]
        export = "null" if start is None else folders[start] / "export"
        options += [f"--model.init_from={export}", *small(tmp_path, merged)]
        recipe = RECIPES / f"dsa_{stage}.yaml"
        folders[stage] = run("fit", [str(recipe), *options, f"--run.root={tmp_path / 'runs'}"]).run_folder
    weights = {stage: load_file(folder / "export" / "model.safetensors") for stage, folder in folders.items()}
    added = weights["warmup"].keys() - weights["dense"].keys()
    assert len(added) == 4 * 5
    assert all("sa_indexer" in name for name in added)
    assert all(weights["warmup"][name].equal(tensor) for name, tensor in weights["dense"].items())
    moved = {name for name, tensor in weights["sparse"].items() if not tensor.equal(weights["warmup"][name])}
    assert moved == weights["sparse"].keys()
    metrics = {stage: json.loads((folder / "summary.json").read_text())["metrics"] for stage, folder in folders.items()}
    for layer in range(4):
        recall, chance = (metrics["warmup"][f"val/dsa_recall{kind}/{layer}"] for kind in ("", "_random"))
        assert recall > chance
        assert f"train/dsa_recall/{layer}" in metrics["sparse"]
    assert "mean/blind_accuracy" in metrics["sparse"]


def small(folder: Path, merged) -> list[str]:
    """Options for a world of a few clips."""
    counts = merged(RECIPES / "dsa_dense.yaml")["data"]["init_args"]["world"]["init_args"]
    options = [f"--data.world.root={folder / 'world'}", f"--data.cache={folder / 'cache'}", "--data.world.workers=1"]
    few = {split: {task: 24 for task in counts[split] if task != "captions"} for split in ("train", "heldout")}
    options += [f"--data.world.{split}={json.dumps(tasks)}" for split, tasks in few.items()]
    return [*options, "--data.pack_tokens=1024", "--data.evaluation_tokens=1024"]
