"""The stages of the two tiny pipelines, one from the other's export on a world of a few samples: in each the loss falls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
import pytest
from safetensors.torch import load_file

from keyekit.cli.lightning import KeyeCLI, run
from keyekit.cli.pipeline.description import Stage
from keyekit.cli.pipeline.parser import read_pipeline
from keyekit.models.merged_folder import merge_folders

TINY = Path(__file__).parent.parent.parent / "recipes" / "tiny"
FILES = {"keye_vl_8b": "keye_vl_8b", "keye_vl_2": "keye_vl_2_pretrain"}
STEPS = 16
SKIPPED = {"keye_vl_8b": {"anneal_b", "anneal_c", "stage_2_long"}, "keye_vl_2": {"stage_2_long"}}
"""Stages of a recipe that another one has, or that train nothing."""


class Losses(lightning.Callback):
    """Keeps every loss."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(outputs["loss"].item())


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder that world, cache and runs of all stages share."""
    return tmp_path_factory.mktemp("desk")


def arguments(stage: Stage, data: dict[str, Any], folders: dict[str, Path]) -> list[str]:
    """The recipe of a stage, whose data are given as it has them, with few samples and steps."""
    counts = data["world"]["init_args"]
    few = {split: {task: 32 if "placed" in task else 16 for task in counts[split]} for split in ("train", "heldout")}
    words = [f"--data.world.{split}={json.dumps(tasks)}" for split, tasks in few.items()]
    words += [f"--{key}={value}" for key, value in stage.options.items() if not key.startswith("data.tokenizer")]
    words += [f"--trainer.max_steps={STEPS}", "--model.schedule.warmup_steps=4", "--data.world.workers=1"]
    words += [f"--run.folder={folders[stage.name]}", "--run.test=false"]
    if "batch_size" in data:
        return [str(stage.recipe), *words, "--data.batch_size=16", "--trainer.check_val_every_n_epoch=8"]
    if stage.name == "dsa_sparse":
        words.append("--model.learning_rate=3e-3")  # its own rate changes a trained model slowly
    if stage.name.startswith("dsa_"):  # packs of one task: between tasks losses differ by more than they fall
        words.append('--data.train={"needle": 1}')
    if stage.parents:
        words.append(f"--model.init_from={folders[stage.parents[0]] / 'export'}")
        words.append(f"--data.tokenizer={folders['text'] / 'export'}")
    return [str(stage.recipe), *words, "--data.pack_tokens=512", "--data.evaluation_tokens=1024"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["keye_vl_8b", "keye_vl_2"])
def test_every_stage_learns_from_the_one_before(name, desk, merged, monkeypatch):
    monkeypatch.chdir(desk)
    pipeline = read_pipeline(TINY / f"{FILES[name]}.yaml")
    folders = {stage: desk / name / stage for stage in pipeline.stages}
    for stage in pipeline.stages.values():
        if stage.name in SKIPPED[name] or (stage.kind == "merge" and stage.recipe is not None):
            continue
        if stage.kind == "merge":
            merge_folders(
                folders[stage.name] / "export",
                [folders[parent] / "export" for parent in stage.parents],
                weights=[1.0, 0.0],
                parts={"vision": [0.0, 1.0]},
                like=folders["text"] / "export",
            )
            continue
        losses = Losses()
        monkeypatch.setattr(KeyeCLI, "before_fit", _watching(losses), raising=False)
        run("fit", arguments(stage, merged(stage.recipe)["data"]["init_args"], folders))
        assert len(losses.values) == STEPS, stage.name
        assert sum(losses.values[-4:]) < 0.99 * sum(losses.values[:4]), (stage.name, losses.values)
    _check_frozen(folders, name)


def _watching(losses: Losses):
    return lambda cli: cli.trainer.callbacks.append(losses)


def _check_frozen(folders: dict[str, Path], name: str) -> None:
    """What stages of one part leave alone is the same to the bit."""
    aligned = {"keye_vl_8b": ("start", "stage_1"), "keye_vl_2": ("start", "stage_0")}[name]
    assert _moved(folders, *aligned) == {"mlp_AR"}
    metrics = json.loads((folders[aligned[1]] / "summary.json").read_text())["metrics"]
    assert metrics["val/answer_loss"] < metrics["val/answer_loss_before"]
    if name == "keye_vl_2":
        assert _moved(folders, "stage_3", "dsa_warmup") == set()
        metrics = json.loads((folders["dsa_warmup"] / "summary.json").read_text())["metrics"]
        assert all(f"val/dsa_recall/{layer}" in metrics for layer in range(4))
    tower = json.loads((folders["stage_0" if name == "keye_vl_8b" else "vit"] / "summary.json").read_text())["metrics"]
    assert 0 <= tower["val/recall_at_1"] <= 1


def _moved(folders: dict[str, Path], before: str, after: str) -> set[str]:
    """First words of the tensors of one export that are not those of another."""
    old, new = (load_file(folders[stage] / "export" / "model.safetensors") for stage in (before, after))
    return {key.split(".")[0] for key in old if not old[key].equal(new[key])}
