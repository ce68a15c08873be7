from __future__ import annotations

from pathlib import Path

import pytest

from keyekit.cli.errors import CommandError
from keyekit.cli.expand import expand_recipe

pytestmark = pytest.mark.filterwarnings("ignore")


def failure(recipe: Path, *options: str) -> str:
    with pytest.raises(CommandError) as caught:
        expand_recipe([str(recipe), *options])
    return str(caught.value)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--model.network.attention=Dens", ["command line: ", "Dense, DSA", "did you mean 'Dense'?"]),
        ("--model.network.widht=3", ["command line: ", "'widht'", "ToyNetwork takes width, attention", "'width'?"]),
        ("--model.network.width=wide", ["model.network.width must be int, got wide"]),
        ("--model=LanguageModelling", ["LanguageModeling, ContrastivePretraining", "did you mean 'LanguageModeling'?"]),
        ("--trainer.max_stepss=3", ["trainer has no key 'max_stepss', did you mean 'max_steps'?"]),
        ("--data.sise=3", ["data has no argument 'sise': ToyData takes size, did you mean 'size'?"]),
        ("--trainer.callbacks+=ModelCheckpointt", ["did you mean 'ModelCheckpoint'?", "RunSummary"]),
        ("--modle=3", ["a recipe has no key 'modle', did you mean 'model'?"]),
    ],
)
def test_a_wrong_word_on_the_command_line(recipe, option, expected):
    message = failure(recipe, option)
    assert all(piece in message for piece in expected), message


def test_a_wrong_argument_of_a_factory_names_its_own_arguments(recipe):
    message = failure(recipe, "--model.network.attention=DSA", "--model.network.attention.topkk=3")
    assert "DSA takes topk, num_indexer_heads" in message
    assert "did you mean 'topk'?" in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("width: 3", "widht: 3", ["child.yaml:6: ", "did you mean 'width'?"]),
        ("width: 3", "attention: Dens", ["child.yaml:6: ", "did you mean 'Dense'?"]),
        ("width: 3", "width: wide", ["child.yaml:6: ", "must be int, got wide"]),
        ("width: 3", "attention: layers.yaml", ["child.yaml:6: there is no file layers.yaml"]),
        ("data:", "dada:", ["child.yaml:7: ", "did you mean 'data'?"]),
        ("LearningRateMonitor", "LearningRateMoniter", ["child.yaml:10: ", "did you mean 'LearningRateMonitor'?"]),
        ("data: toy_parts.ToyData\n", "", ["the recipe lacks data"]),
        ("    network:\n      width: 3\n", "    learning_rate: 1.0\n", ["child.yaml:2: ", "model lacks network"]),
    ],
)
def test_a_wrong_word_in_a_recipe_is_found_with_its_line(recipe, old, new, expected):
    recipe.write_text(recipe.read_text().replace(old, new))
    message = failure(recipe)
    assert all(piece in message for piece in expected), message


def test_a_wrong_word_in_a_base_is_found_there(recipe):
    Path("parent.yaml").write_text(Path("parent.yaml").read_text().replace("max_steps", "max_stps"))
    assert "parent.yaml:3: trainer has no key 'max_stps'" in failure(recipe)
