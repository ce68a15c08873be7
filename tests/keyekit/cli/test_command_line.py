from __future__ import annotations

from pathlib import Path

import pytest

from keyekit.cli.command_line import CommandLine, parts_in
from keyekit.cli.errors import CommandError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("model: {class_path: LanguageModeling}\n")
    path = tmp_path / "child.yaml"
    path.write_text("base: base.yaml\nmodel: {init_args: {network: {decoder: {attention: DSA}}}}\n")
    return path


def test_files_come_first_so_that_options_win(recipe):
    parsed = CommandLine.parse(["--seed_everything=3", str(recipe), "--trainer.max_steps", "5"])
    assert parsed.recipes == (recipe,)
    assert parsed.arguments == [
        f"--config={recipe.parent / 'base.yaml'}",
        f"--config={recipe}",
        "--seed_everything=3",
        "--trainer.max_steps",
        "5",
    ]


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"], ["-c", "{}"], ["{}"]])
def test_every_way_to_name_a_recipe(recipe, form):
    parsed = CommandLine.parse([word.format(recipe) for word in form])
    assert parsed.recipes == (recipe,)
    assert parsed.name == "child"


def test_the_value_of_an_option_is_not_a_recipe(recipe):
    parsed = CommandLine.parse([str(recipe), "--model.network.vision", "vision.yaml"])
    assert parsed.recipes == (recipe,)
    assert parsed.options == ("--model.network.vision", "vision.yaml")


def test_negative_values_and_flags_stay_as_they_are(recipe):
    parsed = CommandLine.parse([str(recipe), "--trainer.max_epochs", "-1", "--print_config", "--help"])
    assert parsed.options == ("--trainer.max_epochs", "-1", "--print_config", "--help")


def test_a_stray_word_is_refused():
    with pytest.raises(CommandError, match="'quickstart' is neither an option nor a recipe"):
        CommandLine.parse(["quickstart"])


def test_config_needs_a_file():
    with pytest.raises(CommandError, match="--config needs a recipe"):
        CommandLine.parse(["--config"])


def test_parts_are_found_in_recipes_and_options(recipe):
    parsed = CommandLine.parse([str(recipe), "--model.network.decoder.feed_forward=MixtureOfExperts"])
    assert {part.name for part in parts_in(parsed)} == {"LanguageModeling", "DSA", "MixtureOfExperts"}
