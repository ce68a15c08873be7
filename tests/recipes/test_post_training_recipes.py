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
    "tiny/keye_vl_2.yaml": ("dsa_sparse", ["sft", "general_rl", "expert_grounding", "distilled"]),
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


class Built(RecipeReader):
    """Builds the parts of a recipe, networks without memory."""

    def before_instantiate_classes(self) -> None:
        self.parser.add_instantiator(on_meta, nn.Module, subclasses=True)


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
        ("keye_vl_2_30b_a3b/mopd", OnPolicyDistillation, 31.1),
    ],
)
def test_a_full_size_recipe_is_built_without_memory(recipe, task, billions):
    options = ["--trainer.callbacks=null", "--trainer.strategy=auto"]
    cli = Built("fit", prepare([str(RECIPES / f"{recipe}.yaml"), *options]))
    assert isinstance(cli.model, task)
    parameters = list(cli.model.network.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    assert sum(parameter.numel() for parameter in parameters) / 1e9 == pytest.approx(billions, abs=0.06)
