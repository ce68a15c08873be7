from __future__ import annotations

import pytest

from keyekit.cli.errors import CommandError
from keyekit.cli.pipeline.record import Record, fingerprint, read_json, set_aside


def test_a_record_comes_back(tmp_path):
    record = Record(recipe="r", parents={"a": "1"}, done={"fit": 2.5}, seconds=3.0)
    record.write(tmp_path / "new")
    assert Record.read(tmp_path / "new") == record
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["stage.json"]
    assert Record.read(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"other": 1}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "stage.json").write_text(text)
    with pytest.raises(CommandError, match=r"stage\.json.*move .* away"):
        Record.read(tmp_path)


def test_another_recipe_and_another_making_of_a_parent_are_changes():
    record = Record(recipe="r", parents={"a": "1"})
    assert record.changes("r", {"a": "1", "b": "2"}) is None
    assert "recipe" in str(record.changes("s", {"a": "1"}))
    assert record.changes("r", {"a": "2"}) == "a was made again since"
    assert Record(recipe="r").identity != Record(recipe="r").identity


def test_the_fingerprint_follows_what_a_recipe_says_and_not_its_comments(folder):
    def of(stages: str, name: str = "a") -> str:
        return fingerprint(folder.pipeline(stages).stages[name])

    first = of("a: {recipe: one.yaml, options: {x: 1, y: 2}}")
    recipe = folder.path / "one.yaml"
    recipe.write_text("# a comment\n" + recipe.read_text())
    assert of("a: {recipe: one.yaml, options: {y: 2, x: 1}}") == first
    assert of("a: {recipe: one.yaml, options: {y: 2, x: 3}}") != first
    recipe.write_text(recipe.read_text().replace("max_steps: 3", "max_steps: 4"))
    assert of("a: {recipe: one.yaml, options: {x: 1, y: 2}}") != first
    merges = "a: {recipe: one.yaml}\nb: {recipe: one.yaml}\nm: {merge: [a, b]}"
    assert of(merges, "m") != of(merges.replace("[a, b]", "[b, a]"), "m")


def test_former_folders_are_numbered(tmp_path):
    for number in (1, 2):
        (tmp_path / "a").mkdir()
        assert set_aside(tmp_path / "a").name == f"a.old-{number}"
    assert read_json(tmp_path / "none.json") is None
