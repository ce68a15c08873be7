"""Post-training at full size: pipelines join those of pre-training, rounds parse, networks are built without memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from torch import nn

from keyekit.cli.align.main import read_round
from keyekit.cli.lightning import RecipeReader, prepare
from keyekit.cli.pipeline.commands import steps_of
from keyekit.cli.pipeline.parser import read_pipeline
from keyekit.data.cache import MediaCache
from keyekit.data.encode import SampleEncoder
from keyekit.data.sample import Sample, parse_sample
from keyekit.data.tokenizer import train_tokenizer
from keyekit.data.world.world import World
from keyekit.rollout.engine import RolloutSpec
from keyekit.rollout.openai_engine import OpenAIEngine
from keyekit.tasks.distillation import OnPolicyDistillation
from keyekit.tasks.policy import PolicyOptimization
from keyekit.tasks.preference import PreferenceOptimization

RECIPES = Path(__file__).parent.parent.parent / "recipes"
JOINED = {
    "keye_vl_8b/post_train.yaml": (
        "merged",
        ["sft", "mpo", "cold_start", "rl", "pairs_1", "aligned_1", "pairs_2", "aligned_2"],
    ),
    "keye_vl_1_5_8b/post_train.yaml": ("stage_3", ["sft", "mpo", "cold_start", "merged", "rl", "rft", "alignment_rl"]),
    "keye_vl_2_30b_a3b/post_train.yaml": ("dsa_sparse", ["sft", "general_rl", "expert_ocr", "video_rl", "mopd"]),
    "tiny/keye_vl_8b_post.yaml": ("merged", ["sft", "pairs_0", "mpo", "cold_start", "rl", "pairs_1", "aligned"]),
    "tiny/keye_vl_1_5_post.yaml": (
        "merged",
        ["sft", "mpo", "long_cold_start", "expert_ocr", "experts_merged", "hinted_rl", "rft", "rl_rft", "alignment_rl"],
    ),
    "tiny/keye_vl_2.yaml": ("dsa_sparse", ["sft", "general_rl", "expert_grounding", "video_rl", "distilled"]),
}
"""Pipelines with what their first stage starts from, and stages in their order."""
ROUNDS = sorted(
    path for path in RECIPES.rglob("*.yaml") if "prompts" in yaml.safe_load(path.read_text(encoding="utf-8"))
)


@pytest.mark.parametrize("name", JOINED)
def test_a_pipeline_goes_on_where_pre_training_ends(name):
    pipeline = read_pipeline(RECIPES / name)
    start, stages = JOINED[name]
    order = list(pipeline.stages)
    assert pipeline.stages["sft"].parents == (start,)
    places = [order.index(stage) for stage in (start, *stages)]
    assert places == sorted(places)
    for stage in pipeline.stages.values():
        assert steps_of(stage, pipeline, Path("runs"))
        assert (stage.kind == "align") == (stage.recipe in ROUNDS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", ROUNDS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_round_of_alignment_parses(recipe):
    made, _ = read_round([str(recipe), "--source=model", "--output=out"])
    assert made.prompts
    assert made.reward.names[0] == "repetition"
    assert recipe.read_text(encoding="utf-8").startswith("# ")


FILMED = {
    "keye_vl_8b/rl": "short_video",
    "keye_vl_2_30b_a3b/video_rl": "timeit",
    "keye_vl_2_30b_a3b/mopd": "video",
}
"""Full-size recipes whose prompts hold videos, with a file of those."""


def test_every_full_size_recipe_whose_prompts_hold_videos_is_known(merged):
    found = set()
    for recipe in sorted(RECIPES.glob("keye_vl_*/*.yaml")):
        content = merged(recipe) if recipe.name not in ("pretrain.yaml", "post_train.yaml") else {}
        if "engine" in content.get("model", {}).get("init_args", {}):
            files = {Path(file).stem for file in content["data"]["init_args"]["train"]}
            name = f"{recipe.parent.name}/{recipe.stem}"
            if "video" in f"{name} {files}":
                assert FILMED.get(name) in files, name
                found.add(name)
    assert found == FILMED.keys()


class Built(RecipeReader):
    """Builds the parts of a recipe, networks without memory."""

    def before_instantiate_classes(self) -> None:
        self.parser.add_instantiator(on_meta, nn.Module, subclasses=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Sample:
    """A question about a clip."""
    root = tmp_path_factory.mktemp("world")
    world = World(root=str(root), train={"count": 1}, heldout={}, workers=1)
    world.build(lambda done, whole: None)
    return parse_sample(world.samples("count", "train")[0], "f:1", root)


def on_meta(kind: type, *arguments: Any, **named: Any) -> Any:
    if issubclass(kind, lightning.LightningModule):
        return kind(*arguments, **named)
    with torch.device("meta"):
        return kind(*arguments, **named)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("recipe", "task", "billions"),
    [
        ("keye_vl_8b/alignment", PreferenceOptimization, 8.6),
        ("keye_vl_8b/rl", PolicyOptimization, 8.6),
        ("keye_vl_2_30b_a3b/video_rl", PolicyOptimization, 31.1),
        ("keye_vl_2_30b_a3b/mopd", OnPolicyDistillation, 31.1),
    ],
)
def test_a_full_size_recipe_is_built_without_memory_and_its_engine_takes_its_prompts(
    recipe, task, billions, clip, tmp_path
):
    options = ["--trainer.callbacks=null", "--trainer.strategy=auto"]
    cli = Built("fit", prepare([str(RECIPES / f"{recipe}.yaml"), *options]))
    assert isinstance(cli.model, task)
    parameters = list(cli.model.network.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    assert sum(parameter.numel() for parameter in parameters) / 1e9 == pytest.approx(billions, abs=0.06)
    if recipe in FILMED:
        data = cli.datamodule
        tokenizer = train_tokenizer([clip.question] * 8, tmp_path / "tokenizer", 400)
        encoder = SampleEncoder(tokenizer, data.template, MediaCache(tmp_path / "cache", data.reader))
        engine = cli.model.engine(RolloutSpec(cli.model.network, [1], 4, encoder=encoder))
        assert isinstance(engine, OpenAIEngine)
        engine.check(encoder.encode(clip, with_answer=False))  # refuses what it cannot send
    else:
        assert task is PreferenceOptimization
