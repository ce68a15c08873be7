"""What a word on the command line stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyekit.cli.data.subject import CommandParser
from keyekit.cli.errors import CommandError

ROOT = Path(__file__).parents[4]


def parser() -> CommandParser:
    made = CommandParser("stats", "for a test")
    made.add_argument("subject")
    return made


def test_a_folder_is_all_its_files(folder: Path) -> None:
    _, subject = parser().subject([str(folder)])
    assert {name: len(source) for name, source in subject.sources.items()} == {"deep/more.json": 2, "pictures.jsonl": 7}
    assert subject.data.policy.mode == "skip"
    assert subject.cost.sizes is None


def test_a_file_like_a_recipe(folder: Path) -> None:
    recipe = str(ROOT / "recipes/tiny/temporal.yaml")
    words = [str(folder / "pictures.jsonl"), "--like", recipe, "--data.pack_tokens=640", "--cache", "mine"]
    _, subject = parser().subject(words)
    assert list(subject.sources) == ["pictures.jsonl"]
    assert subject.data.pack_tokens == 640
    assert subject.data.reader.max_frame_tokens == 4
    assert subject.cost.sizes is not None
    assert Path("mine/media").is_dir()


def test_a_recipe_over_files(folder: Path) -> None:
    recipe = Path("mine.yaml")
    recipe.write_text(
        f"base: {ROOT}/recipes/tiny/arithmetic.yaml\n"
        "data: {init_args: {world: null, heldout: [never.jsonl], cache: mine, train: [samples/pictures.jsonl]}}\n"
    )
    _, subject = parser().subject([str(recipe), "--cost", "keye_vl_8b_tiny"])
    assert {name: len(source) for name, source in subject.sources.items()} == {"samples/pictures.jsonl": 7}
    assert subject.cost.sizes is not None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "neither a recipe nor a file or folder with samples"),
        (["nowhere.yaml"], "there is no recipe"),
        (["samples/0.png"], "samples come from .jsonl, .json, .parquet, .tar files"),
        (["samples", "--data.seed=1"], "only a recipe takes changes; name one with --like"),
        (["samples", "--format", "Lava"], "none called 'Lava'"),
        (["samples", "--cost", "keye"], "--cost: there is no preset 'keye'"),
        ([], "subject"),
    ],
)
def test_mistakes_are_explained(folder: Path, words: list[str], told: str) -> None:
    with pytest.raises((CommandError, ValueError)) as caught:
        parser().subject(words)
    assert told in str(caught.value)
