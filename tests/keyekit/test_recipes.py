from __future__ import annotations

from pathlib import Path

import pytest

from keyekit.recipes import RecipeError, expand, expand_all, scalars


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def test_a_recipe_without_base_is_itself(tmp_path):
    write(tmp_path, a="x: 1")
    assert expand(tmp_path / "a.yaml") == [tmp_path / "a.yaml"]


def test_parents_come_first_over_two_levels_and_from_their_own_folder(tmp_path):
    write(tmp_path, child="base: _base/parent.yaml", _base__parent="base: ../grand.yaml", grand="x: 1")
    assert names(expand(tmp_path / "child.yaml")) == ["grand", "parent", "child"]


def test_a_list_of_parents_keeps_its_order_and_a_shared_one_counts_once(tmp_path):
    write(tmp_path, child="base: [b.yaml, c.yaml]", b="base: d.yaml", c="base: d.yaml", d="x: 1")
    assert names(expand(tmp_path / "child.yaml")) == ["d", "b", "c", "child"]


def test_expand_all_joins_recipes(tmp_path):
    write(tmp_path, a="base: d.yaml", b="base: d.yaml", d="x: 1")
    assert names(expand_all([tmp_path / "a.yaml", tmp_path / "b.yaml"])) == ["d", "a", "b"]


def test_a_missing_base_says_which_recipe_asked_for_it_and_what_is_near(tmp_path):
    write(tmp_path, child="base: paren.yaml", parent="x: 1")
    with pytest.raises(
        RecipeError, match=r"child.yaml asks for the base recipe .*paren.yaml.*did you mean 'parent.yaml'"
    ):
        expand(tmp_path / "child.yaml")


def test_a_missing_recipe_names_the_closest(tmp_path):
    write(tmp_path, quickstart="x: 1")
    with pytest.raises(RecipeError, match=r"there is no recipe .*quikstart.yaml, did you mean 'quickstart.yaml'"):
        expand(tmp_path / "quikstart.yaml")


def test_a_folder_is_not_a_recipe(tmp_path):
    write(tmp_path, a="x: 1")
    with pytest.raises(RecipeError, match=r"is a folder.*a\.yaml"):
        expand(tmp_path)


def test_a_circle_is_refused_with_its_path(tmp_path):
    write(tmp_path, a="base: b.yaml", b="base: a.yaml")
    with pytest.raises(RecipeError, match=r"circle: .*a.yaml -> .*b.yaml -> .*a.yaml"):
        expand(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: [1", r"a\.yaml:\d+: not valid YAML"),
        ("- 1", "a recipe is a mapping"),
        ("base: {x: 1}", r"a\.yaml:1: base is a recipe file or a list"),
    ],
)
def test_a_broken_recipe_names_file_and_line(tmp_path, text, message):
    write(tmp_path, a=text)
    with pytest.raises(RecipeError, match=message):
        expand(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["", "base:", "base: null"])
def test_no_base_is_allowed(tmp_path, text):
    write(tmp_path, a=text)
    assert names(expand(tmp_path / "a.yaml")) == ["a"]


def test_scalars_carry_their_path_and_line(tmp_path):
    write(tmp_path, a="model:\n  class_path: LM\n  parts+:\n  - class_path: A\n")
    found = [(".".join(s.path), s.text, s.is_key, s.line) for s in scalars(tmp_path / "a.yaml")]
    assert ("model.class_path", "LM", False, 2) in found
    assert ("model.parts", "parts+", True, 3) in found
    assert ("model.parts.class_path", "A", False, 4) in found


def test_scalars_of_a_file_that_a_value_names_are_found_there(tmp_path):
    write(tmp_path, a="base: b.yaml\nmodel:\n  vision: tower.yaml\n  text: missing.yaml\n", b="x: 1")
    (tmp_path / "tower.yaml").write_text("class_path: KeyeViT\ninner: tower.yaml\n")  # a circle ends
    found = [(s.file.name, ".".join(s.path), s.text, s.line) for s in scalars(tmp_path / "a.yaml")]
    assert ("tower.yaml", "model.vision.class_path", "KeyeViT", 1) in found
    assert ("a.yaml", "model.text", "missing.yaml", 4) in found
    assert not any(file == "b.yaml" for file, *_ in found)
