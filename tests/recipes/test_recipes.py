"""Every recipe parses, with every part it names; the tiny ones run."""

from __future__ import annotations

import json
from pathlib import Path

import lightning
import pytest
import yaml

from keyekit.cli.lightning import KeyeCLI, prepare, run
from keyekit.cli.pipeline.parser import read_pipeline

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if "_base" not in path.parts)
RECIPES = [
    path for path in FILES if not {"stages", "prompts"} & yaml.safe_load(path.read_text(encoding="utf-8")).keys()
]
"""No pipelines, and no rounds of ``keyekit align``."""
TINY = [path for path in RECIPES if path.parent.name == "tiny" and not path.stem.startswith(("dsa_", "modes"))]
"""Those of one task; test_dsa_recipes.py runs the stages of sparse attention one after the other, test_modes.py the modes."""
STAGES = {
    stage.recipe.resolve()
    for name in ("keye_vl_8b_post", "keye_vl_1_5_post", "keye_vl_2", "mopd")
    for stage in read_pipeline(ROOT / f"recipes/tiny/{name}.yaml").stages.values()
    if stage.recipe is not None and stage.name not in ("anneal_b", "anneal_c")
}
"""Those that test_pretraining_recipes.py and test_post_training_steps.py run."""
ALONE = [ROOT / f"recipes/tiny/{name}.yaml" for name in ("alignment/rl", "tools/second_look")]
"""Those that test_post_training_steps.py runs, though no pipeline has them."""
DSA = [ROOT / f"recipes/tiny/dsa_{stage}.yaml" for stage in ("dense", "warmup", "sparse")]
UNTRIED = [path for path in RECIPES if path not in (*TINY, *DSA, *ALONE) and path.resolve() not in STAGES]
"""Those that no test runs; a parser takes a second and more for each."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", UNTRIED, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_every_recipe_that_no_test_runs_parses_and_names_a_model_and_data(recipe):
    parsed = Parsed("fit", prepare([str(recipe)])).config["fit"]
    assert parsed.model.class_path.startswith("keyekit.tasks.")
    assert parsed.data.class_path.startswith("keyekit.data.")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_every_recipe_says_in_its_first_line_what_it_is(recipe):
    assert recipe.read_text(encoding="utf-8").startswith("# ")


class Parsed(KeyeCLI):
    """A recipe that is parsed; nothing is built."""

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def _set_seed(self) -> None:
        pass


class Losses(lightning.Callback):
    """Keeps every loss."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(outputs["loss"].item())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", TINY, ids=lambda path: path.stem)
def test_every_tiny_recipe_learns_in_a_few_steps(recipe, merged, tmp_path, monkeypatch):
    losses = Losses()
    monkeypatch.setattr(KeyeCLI, "before_fit", lambda cli: cli.trainer.callbacks.append(losses), raising=False)
    counts = merged(recipe)["data"]["init_args"]["world"]["init_args"]
    few = {split: dict.fromkeys(counts[split], 24) for split in ("train", "heldout")}
    options = [
        f"--data.world.root={tmp_path / 'world'}",
        f"--data.cache={tmp_path / 'cache'}",
        "--data.world.workers=1",
    ]
    options += [f"--data.world.{split}={json.dumps(tasks)}" for split, tasks in few.items()]
    options += ["--data.pack_tokens=512", "--data.evaluation_tokens=1024", "--model.init_from=null"]
    options += ["--trainer.max_steps=30", "--trainer.accelerator=cpu", "--model.schedule.warmup_steps=5"]
    cli = run("fit", [str(recipe), *options, f"--run.root={tmp_path / 'runs'}"])
    assert len(losses.values) == 30
    assert sum(losses.values[-5:]) < 0.7 * sum(losses.values[:5])
    metrics = json.loads((cli.run_folder / "summary.json").read_text())["metrics"]
    assert any(name.startswith(f"{recipe.stem}/blind_") for name in metrics)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tower", ["vision_timm", "vision_siglip"])
def test_another_tower_learns_to_match_captions(tower, tmp_path, monkeypatch):
    losses = Losses()
    monkeypatch.setattr(KeyeCLI, "before_fit", lambda cli: cli.trainer.callbacks.append(losses), raising=False)
    options = [f"--data.world.root={tmp_path / 'world'}", f"--data.cache={tmp_path / 'cache'}", "--data.batch_size=16"]
    options += ["--data.world.workers=1", *(f"--data.world.{split}={{captions: 32}}" for split in ("train", "heldout"))]
    options += ["--trainer.max_steps=20", "--trainer.accelerator=cpu", "--model.schedule.warmup_steps=5"]
    run("fit", [str(ROOT / "recipes" / "ablations" / f"{tower}.yaml"), *options, f"--run.root={tmp_path / 'runs'}"])
    assert len(losses.values) == 20
    assert sum(losses.values[-3:]) < 0.9 * sum(losses.values[:3])
