"""Every recipe parses, with every part it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from keyekit.cli.expand import expand_recipe

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if "_base" not in path.parts)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_every_recipe_parses_and_names_a_model_and_data(recipe):
    expanded = yaml.safe_load(expand_recipe([str(recipe)]))
    assert expanded["model"]["class_path"].startswith("keyekit.tasks.")
    assert expanded["data"]["class_path"].startswith("keyekit.data.")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_every_recipe_says_in_its_first_line_what_it_is(recipe):
    assert recipe.read_text(encoding="utf-8").startswith("# ")
