from __future__ import annotations

from keyekit.cli.recipe_changes import recipe_changes


def test_equal_recipes_differ_in_nothing():
    recipe = {"trainer": {"callbacks": [{"class_path": "A"}], "plugins": []}, "seed_everything": 0}
    assert recipe_changes(recipe, {**recipe}) == ""


def test_where_a_run_writes_is_no_change():
    assert recipe_changes({"run": {"folder": "a"}, "ckpt_path": None}, {"run": {"folder": "b"}, "ckpt_path": "x"}) == ""


def test_values_in_lists_and_keys_that_came_or_went_are_named():
    before = {"trainer": {"callbacks": [{"class_path": "A"}, {"class_path": "B"}], "plugins": None}}
    after = {"trainer": {"callbacks": [{"class_path": "A"}], "plugins": None, "devices": 2}}
    assert recipe_changes(before, after) == "trainer.callbacks.1.class_path B -> absent, trainer.devices absent -> 2"


def test_many_changes_are_counted():
    assert recipe_changes({str(n): 0 for n in range(9)}, {str(n): 1 for n in range(9)}).endswith("and 3 more")
