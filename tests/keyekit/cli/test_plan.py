from __future__ import annotations

import json
from pathlib import Path

import pytest

from keyekit.cli.main import main
from keyekit.cli.plan import plan

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[3]


def test_a_preset_is_planned_at_full_size(capsys) -> None:
    assert main(["plan", "keye_vl_2_30b_a3b", "--devices", "64", "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["parameters"] == {"shipped": 31_122_082_160, "used": 31_084_333_424, "active": 3_150_404_608}
    assert read["state"]["weights"] == pytest.approx(31_084_333_424 * 4 / 64)
    assert read["costs"]["cache"]["key_value"] == 96 * 2**10


def test_a_recipe_brings_its_setting_and_the_command_line_wins() -> None:
    made = plan([str(ROOT / "recipes/quickstart.yaml"), "--model.network.decoder.num_layers=1", "--devices", "2"])
    assert (made.setting.devices, made.setting.sharding, made.setting.precision) == (2, "none", "32-true")
    assert (made.setting.sequence_length, made.setting.frame_tokens) == (1024, 4)
    attention = next(part for part in made.parts if part.name == "attention")
    assert attention.used == 2 * 128 * 128 + 2 * 128 * 64 + 2 * 32


def test_what_a_recipe_freezes_is_not_trained() -> None:
    made = plan([str(ROOT / "recipes/quickstart.yaml"), '--model.groups=[{"pattern": "vision", "frozen": true}]'])
    tower = next(part for part in made.parts if part.name == "vision tower")
    assert made.trainable == made.used - tower.used


@pytest.mark.parametrize(
    ("recipe", "words", "kept"),
    [
        ("rl/gspo", [], False),
        ("rl/gspo", ["--model.objective.init_args.kl_weight=0.1"], True),
        ("rl/gspo", ["--model.objective=ReinforcePlusPlus", "--model.objective.init_args.reward_kl=0.1"], True),
        ("alignment/mpo", ["--model.reference_files=[written.jsonl]"], False),
        ("alignment/mpo", ["--model.reference_files=null"], True),
    ],
)
def test_a_frozen_reference_costs_the_weights_again(recipe, words, kept, capsys) -> None:
    words = [str(ROOT / f"recipes/tiny/{recipe}.yaml"), *words]
    state = plan(words).state
    assert state.frozen_reference == (state.weights if kept else 0.0)
    assert state.total == state.weights * (1 + kept) + state.gradients + state.optimizer + state.gathered
    assert main(["plan", *words]) == 0
    assert ("frozen reference" in capsys.readouterr().out) == kept


def test_a_sharded_strategy_is_full_sharding() -> None:
    made = plan([str(ROOT / "recipes/quickstart.yaml"), "--trainer.strategy=fsdp", "--trainer.devices=4"])
    assert (made.setting.sharding, made.setting.devices) == ("full", 4)


def test_a_piece_is_planned_by_itself() -> None:
    made = plan([str(ROOT / "recipes/_base/models/keye_vl_8b_tiny.yaml"), "--network.decoder.vocab_size=100"])
    assert next(part.used for part in made.parts if part.name == "embedding") == 100 * 128


def test_a_recipe_may_name_a_piece_and_change_it(tmp_path) -> None:
    recipe = tmp_path / "mine.yaml"
    piece = ROOT / "recipes/_base/models/keye_vl_2_30b_a3b_tiny.yaml"
    recipe.write_text(
        f"# A twin in a recipe.\nbase: {ROOT}/recipes/tiny/arithmetic.yaml\nmodel: {{init_args: {{network: {piece}}}}}\n"
    )
    made = plan([str(recipe), "--model.network.decoder.num_layers=2", "--vision-share", "0"])
    parts = {part.name: part.used for part in made.parts}
    assert parts["experts"] == 2 * 32 * 3 * 128 * 24
    assert parts["indexers"] > 0


def test_the_tables_hold_every_number_on_a_narrow_terminal(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", "keye_vl_2_30b_a3b"]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    for number in ("31,122,082,160", "31,084,333,424", "28,991,029,248", "96.00 KiB", "24.00 GiB", "3.19 KiB"):
        assert number in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["keye_vl_2_30b"], "did you mean 'keye_vl_2_30b_a3b'?"),
        (["keye_vl_8b", "--model.x=1"], "a preset takes no --model.x=1"),
        (["keye_vl_8b", "--devices", "0"], "'0' is not a positive whole number"),
        (["keye_vl_8b", "--vision-share", "2"], "'2' is not a share"),
        (["keye_vl_8b", "--sequence-length", "100"], "fewer than the 256 of one frame"),
        (["recipes/nowhere.yaml"], "there is no recipe"),
        (["--devices", "2"], "RECIPE|PRESET"),
    ],
)
def test_mistakes_are_explained(words, told, capsys) -> None:
    assert main(["plan", *words]) == 2
    assert told in capsys.readouterr().err


def test_help(capsys) -> None:
    assert main(["plan", "--help"]) == 0
    assert "--sequence-length" in capsys.readouterr().out
