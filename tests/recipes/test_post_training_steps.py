"""The stages of the tiny post-training pipelines, one from the other's export on a few samples: each takes two steps."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from safetensors.torch import load_file

from keyekit.cli.align.main import read_round
from keyekit.cli.lightning import KeyeCLI, run
from keyekit.cli.main import main
from keyekit.cli.pipeline.commands import Step, steps_of
from keyekit.cli.pipeline.description import Pipeline, Stage
from keyekit.cli.pipeline.parser import read_pipeline
from keyekit.data.world.world import World
from keyekit.rewards.base import Reward, RewardOutcome
from keyekit.rollout.engine import RolloutEngine, RolloutSpec
from keyekit.rollout.native import NativeEngine
from keyekit.tasks.policy import PolicyOptimization

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "recipes" / "tiny"
RUNS = Path("runs")
STEPS = 2
FEW = 8
PIPELINES = {
    "keye_vl_8b_post": "keye_vl_8b",
    "keye_vl_1_5_post": "keye_vl_8b",
    "keye_vl_2": "keye_vl_2_pretrain",
    "mopd": None,
}
"""Pipelines with the pre-training that they go on from, whose stages test_pretraining_recipes.py steps."""
REPEATED = {"keye_vl_1_5_post": {"sft", "pairs_0", "mpo"}, "mopd": {"printed"}}
"""Stages that another pipeline or stage has with the same recipe."""
ALONE = ("alignment/rl", "tools/second_look")
"""Recipes that are in no pipeline of ``keyekit pipeline``'s."""
FROZEN = {"video_rl": ("visual", "mlp_AR")}
"""First words of the tensors that a stage leaves as they are."""


class Varied(Reward):
    """The reward of a recipe with a little that hangs on the letters, since a model that knows nothing earns nothing.

    Answers without a hint are worth nothing or less, so that hints are given where there are some.
    """

    def __init__(self, reward: Reward, hinted: bool) -> None:
        self.reward = reward
        self.hinted = hinted

    def outcomes(self, samples, answers):
        found = self.reward.score(samples, answers)
        return [
            RewardOutcome(
                outcome.value + self._more(answer) - (2.0 if self.hinted and "hint" not in sample.meta else 0.0),
                outcome.reason,
                outcome.parts,
            )
            for sample, answer, outcome in zip(samples, answers, found, strict=True)
        ]

    @staticmethod
    def _more(answer: str) -> float:
        return crc32(answer.encode()) % 97 / 97

    @classmethod
    def example(cls):
        raise NotImplementedError


class Ending(RolloutEngine):
    """The native engine, whose answers end: a model that knows nothing does not end them, and pairs need whole answers."""

    def __init__(self, spec: RolloutSpec) -> None:
        super().__init__(spec)
        self.native = NativeEngine(spec)

    def rollout(self, prompts, responses, seed):
        stop = min(self.spec.stop_tokens)
        return [
            [
                replace(said, tokens=(*said.tokens[:-1], stop), end="stop_token") if said.end == "length" else said
                for said in group
            ]
            for group in self.native.rollout(prompts, responses, seed)
        ]


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder that worlds, caches and runs of all stages share, with what pre-training leaves there."""
    return tmp_path_factory.mktemp("desk")


@pytest.fixture
def at_desk(desk, monkeypatch) -> Path:
    """The working directory, with the files that recipes read beside their own world."""
    monkeypatch.chdir(desk)
    few = dict.fromkeys(("order", "captions_placed"), FEW)
    World(root="data/world/keye_vl_tiny", train=few, heldout=few, workers=1).build(lambda done, all_of_them: None)
    if not (desk / "data/alignment").is_dir():
        described = importlib.util.spec_from_file_location("alignment_data", ROOT / "docs/generate/alignment_data.py")
        assert described is not None
        assert described.loader is not None
        generator = importlib.util.module_from_spec(described)
        described.loader.exec_module(generator)
        generator.write()
    return desk


def smaller(recipe: dict[str, Any]) -> list[str]:
    """Options that make a recipe small: few samples, prompts, answers, and short ones."""
    data, model = recipe["data"]["init_args"], recipe["model"]
    words = [f"--trainer.max_steps={STEPS}", "--run.test=false", "--trainer.limit_val_batches=0"]
    words += ["--model.schedule.warmup_steps=1", "--trainer.accelerator=cpu"]
    counts = data.get("world", {}).get("init_args", {})
    for split in ("train", "heldout"):
        if split in counts:
            words.append(f"--data.world.{split}={json.dumps(dict.fromkeys(counts[split], FEW))}")
    words += ["--data.world.workers=1"] if counts else []
    if "batch_size" in data:
        return [*words, "--data.batch_size=8"]
    words += ["--data.pack_tokens=256", "--data.workers=1", "--trainer.accumulate_grad_batches=1"]
    if model["class_path"] in ("PolicyOptimization", "OnPolicyDistillation"):
        words += ["--model.prompts_per_round=2", "--model.responses=3", "--model.max_new_tokens=16"]
    return [*words, "--trainer.max_epochs=2"] if model["class_path"] == "PreferenceOptimization" else words


def carry_out(step: Step, stage: Stage, recipe: dict[str, Any], more: Sequence[str] = ()) -> Any:
    """One process of a stage in this one, made small."""
    command, *words = step.words
    if command == "fit":
        return run("fit", [*words, *smaller(recipe), *more])
    if command == "align":
        made, described = read_round([*words, f"--limit={FEW}", "--max_new_tokens=16", "--accept=-9", "--min_margin=0"])
        made.reward, made.engine = Varied(made.reward, hinted=False), Ending
        return made.run(described)
    if command == "data":
        words += [word for word in smaller(recipe) if word.startswith(("--data.pack", "--data.workers"))]
    if command != "test":
        assert main([command, *words]) == 0, (stage.name, step)
    return None


def step_through(pipeline: Pipeline, stages: Sequence[Stage], merged) -> dict[str, Any]:
    """What each fit of some stages left: the command, when it was over."""
    left = {}
    for stage in stages:
        recipe = {} if stage.kind == "align" or stage.recipe is None else merged(stage.recipe)
        parents = [pipeline.weights_of(parent, RUNS) for parent in stage.parents]
        more = ["--model.init_from=null"] if parents and not parents[0].is_dir() else []
        for step in steps_of(stage, pipeline, RUNS):
            found = carry_out(step, stage, recipe, more)
            if step.words[0] == "fit":
                left[stage.name] = found
                assert found.trainer.global_step == STEPS, stage.name
                check_weights(found.run_folder / "export", parents[0] if parents and not more else None, stage.name)
                check_packs(found, recipe, stage.name)
            if step.words[0] == "align":
                assert min(found["pairs"], found["examples"]) > 1, stage.name
    return left


def check_packs(fitted: KeyeCLI, recipe: dict[str, Any], name: str) -> None:
    """A round as the recipe has it fits its packs, however long answers get."""
    if not isinstance(fitted.model, PolicyOptimization):
        return
    model = recipe["model"]["init_args"]
    longest = max(map(len, fitted.trainer.train_dataloader.prompts.encoded))
    longest += model["max_new_tokens"] * (2 if model.get("hints") else 1)  # a hint is as long as an answer
    packs = model.get("steps_per_round", 1) * recipe["trainer"].get("accumulate_grad_batches", 1)
    assert model["prompts_per_round"] * model["responses"] * longest <= packs * model["pack_tokens"], name


def check_weights(after: Path, before: Path | None, name: str) -> None:
    """Weights are numbers, and those that a stage trains have moved."""
    new = load_file(after / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in new.values()), name
    if before is None:
        return
    old = load_file(before / "model.safetensors")
    moved = {key for key in old.keys() & new.keys() if not old[key].equal(new[key])}
    frozen = {key for key in new if key.startswith(FROZEN.get(name, ()))}
    assert bool(moved), name
    assert not moved & frozen, name
    assert bool(frozen) == (name in FROZEN), name


@pytest.fixture
def watched(monkeypatch) -> None:
    """Rewards of reinforcement learning tell answers apart."""

    def vary(cli: KeyeCLI) -> None:
        if isinstance(cli.model, PolicyOptimization):
            cli.model.reward = Varied(cli.model.reward, hinted=cli.model.hints is not None)

    monkeypatch.setattr(KeyeCLI, "before_fit", vary, raising=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PIPELINES)
def test_every_stage_of_post_training_takes_two_steps(name, at_desk, merged, watched):
    pipeline = read_pipeline(TINY / f"{name}.yaml")
    before = PIPELINES[name]
    pretrained = set() if before is None else set(read_pipeline(TINY / f"{before}.yaml").stages)
    stages = [stage for key, stage in pipeline.stages.items() if key not in pretrained | REPEATED.get(name, set())]
    if pretrained:
        begin(pipeline, merged)
    left = step_through(pipeline, stages, merged)
    losses = [
        cli.trainer.callback_metrics["train/loss"]
        for cli in left.values()
        if "train/loss" in cli.trainer.callback_metrics
    ]
    assert all(torch.isfinite(loss) for loss in losses)
    if "hinted_rl" in left:
        assert left["hinted_rl"].trainer.callback_metrics["rollout/helped_groups"] > 0


def begin(pipeline: Pipeline, merged) -> None:
    """What post-training needs of pre-training: a tokenizer, and for Keye-VL's a model; that of 2.0 begins at random."""
    text = pipeline.folder_of("text", RUNS) / "export"
    if text.is_dir():
        return
    recipe = TINY / "keye_vl_8b/text.yaml"
    fitted = run("fit", [str(recipe), *smaller(merged(recipe)), f"--run.folder={RUNS / 'start' / pipeline.name}"])
    shutil.copytree(fitted.run_folder / "export", text)
    if "merged" in pipeline.stages:
        shutil.copytree(text, pipeline.folder_of("merged", RUNS) / "export")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ALONE)
def test_a_recipe_of_no_pipeline_takes_two_steps(name, at_desk, merged, watched):
    recipe = TINY / f"{name}.yaml"
    words = ["--model.init_from=null", "--data.tokenizer=null", f"--run.root={RUNS}"]
    fitted = run("fit", [str(recipe), *words, *smaller(merged(recipe))])
    assert fitted.trainer.global_step == STEPS
    check_weights(fitted.run_folder / "export", None, name)
    check_packs(fitted, merged(recipe), name)
