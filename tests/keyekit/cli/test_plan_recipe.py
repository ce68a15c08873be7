from __future__ import annotations

from pathlib import Path

import pytest

from keyekit.cli.errors import CommandError
from keyekit.cli.plan_recipe import read_piece, read_recipe
from keyekit.models.placement import Placement

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[3]


def test_a_precision_without_known_memory_is_an_error() -> None:
    with pytest.raises(CommandError, match="64-true"):
        read_recipe(str(ROOT / "recipes/quickstart.yaml"), ["--trainer.precision=64-true"])


def test_planning_a_recipe_leaves_nothing_behind(recipe) -> None:
    with pytest.raises(CommandError, match=r"needs a task of keyekit\.tasks"):
        read_recipe(str(recipe), [])
    assert not Path("runs").exists()


def test_other_names_of_a_precision_are_as_wide() -> None:
    found = read_recipe(str(ROOT / "recipes/quickstart.yaml"), ["--trainer.precision=16-mixed"])
    assert found.setting["precision"] == "bf16-mixed"


def test_a_wrong_argument_of_a_piece_names_the_class_and_the_closest() -> None:
    with pytest.raises(CommandError, match=r"Decoder takes .*did you mean 'num_layers'"):
        read_piece(str(ROOT / "recipes/_base/models/keye_vl_8b_tiny.yaml"), ["--network.decoder.num_layer=2"])


def test_a_sharded_strategy_brings_the_placement_of_every_part() -> None:
    words = [
        "--trainer.strategy=Sharded",
        "--trainer.devices=8",
        "--trainer.num_nodes=2",
        "--trainer.strategy.init_args.sequence_parallel=2",
        "--trainer.strategy.init_args.vision={sharding: replicate}",
        "--trainer.strategy.init_args.decoder={activation_checkpointing: true, parameter_dtype: bfloat16}",
    ]
    found = read_recipe(str(ROOT / "recipes/quickstart.yaml"), words).setting
    assert (found["devices"], found["sequence_ranks"], found["expert_ranks"]) == (16, 2, 1)
    assert found["precision"] == "bf16-gathered"
    assert found["parts"]["vision"] == Placement(shards=1)
    assert found["parts"]["decoder"] == Placement(recomputed=True, gathered=2)
