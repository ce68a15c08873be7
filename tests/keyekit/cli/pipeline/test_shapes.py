from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keyekit.cli.errors import CommandError
from keyekit.cli.pipeline.shapes import Question, answer, ask
from keyekit.models.weights import CheckpointError

ROOT = Path(__file__).parents[4]
RECIPE = str(ROOT / "recipes/tiny/arithmetic.yaml")


def test_another_process_reads_recipes_and_exports(folder):
    folder.export("a", **{"visual.x": torch.zeros(2, 3)})
    options = ("--model.network.decoder.num_layers=1",)
    found = ask(
        [
            Question(key="recipe", recipe=RECIPE, options=options),
            Question(key="export", export="runs/demo/a/export"),
        ]
    )
    assert found["export"] == {"visual.x": (2, 3)}
    assert found["recipe"]["model.embed_tokens.weight"] == (512, 128)
    assert any(name.startswith("visual.") for name in found["recipe"])
    assert {name.split(".")[2] for name in found["recipe"] if name.startswith("model.layers.")} == {"0"}


def test_what_is_wrong_with_a_recipe_or_an_export_is_told(folder, monkeypatch):
    assert ask([]) == {}
    with pytest.raises(CommandError, match="widht"):
        answer(Question(key="x", recipe=RECIPE, options=("--model.network.decoder.widht=3",)))
    (folder.path / "broken").mkdir()
    (folder.path / "broken/model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cut off"):
        answer(Question(key="x", export="broken"))
