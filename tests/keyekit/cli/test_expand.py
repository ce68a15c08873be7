from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from keyekit.cli.expand import expand_recipe
from keyekit.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore")


def test_expand_merges_and_writes_out_every_default(recipe):
    expanded = yaml.safe_load(expand_recipe([str(recipe), "--model.network.attention=DSA"]))
    attention = expanded["model"]["init_args"]["network"]["init_args"]["attention"]
    assert attention["class_path"] == "keyekit.nn.attention.dsa.DSA"
    assert attention["init_args"]["topk"] == 2048
    assert expanded["trainer"]["max_steps"] == 2
    assert len(expanded["trainer"]["callbacks"]) == 2


def test_expanding_leaves_nothing_behind(recipe):
    expand_recipe([str(recipe)])
    assert not Path("runs").exists()


def test_an_expanded_recipe_expands_to_itself(recipe):
    first = expand_recipe([str(recipe)])
    Path("whole.yaml").write_text(first)
    second = expand_recipe(["whole.yaml", "--run.name=child"])
    assert yaml.safe_load(second) == yaml.safe_load(first)


def test_expand_prints(recipe, capsys):
    assert main(["expand", str(recipe)]) == 0
    assert "toy_parts.ToyTask" in capsys.readouterr().out
