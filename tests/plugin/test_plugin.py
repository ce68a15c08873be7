"""Parts of an installed foreign package are known by their short names everywhere."""

from __future__ import annotations

import yaml

RECIPE = """\
model:
  class_path: LanguageModeling
  init_args:
    network:
      vision: KeyeViT
      projector: {class_path: MergeProjector, init_args: {vision_dim: 32, dim: 32}}
      decoder:
        attention: {class_path: Sliding, init_args: {window: 7}}
data: {class_path: ConversationDataModule, init_args: {train: [x.jsonl]}}
"""


def test_list_shows_foreign_parts_without_importing_them(keyekit):
    done = keyekit("list", "attention")
    assert "Sliding" in done.stdout, done.stderr
    assert "keyekit-gardener" in done.stdout
    broken = keyekit("list", "router")  # its module does not exist: listing must not care
    assert "Uprooted" in broken.stdout


def test_describe_shows_arguments_and_origin(keyekit):
    done = keyekit("describe", "attention", "Sliding")
    assert "window: int = 128" in done.stdout, done.stderr
    assert "keyekit-gardener" in done.stdout


def test_a_broken_part_is_named_with_the_reason(keyekit):
    done = keyekit("describe", "router", "Uprooted")
    assert done.returncode == 2
    assert "router Uprooted of keyekit-gardener" in done.stderr
    assert "No module named 'gardener.missing'" in done.stderr


def test_doctor_reports_it(keyekit):
    done = keyekit("doctor")
    assert done.returncode == 1
    assert "PROBLEM: Uprooted" in done.stdout
    assert "Sliding" in done.stdout


def test_the_short_name_works_in_a_recipe_and_on_the_command_line(keyekit, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = keyekit("expand", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    attention = yaml.safe_load(done.stdout)["model"]["init_args"]["network"]["init_args"]["decoder"]["init_args"][
        "attention"
    ]
    assert attention == {"class_path": "gardener.attention.Sliding", "init_args": {"window": 7}}
    plain = RECIPE.replace("{class_path: Sliding, init_args: {window: 7}}", "Dense")
    (tmp_path / "recipe.yaml").write_text(plain)
    word = "--model.network.decoder.attention"
    done = keyekit("expand", "recipe.yaml", f"{word}=Sliding", f"{word}.window=9")
    assert "class_path: gardener.attention.Sliding" in done.stdout, done.stderr
    assert "window: 9" in done.stdout


def test_a_wrong_argument_of_a_foreign_part_is_explained(keyekit, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("window", "windw"))
    done = keyekit("expand", "recipe.yaml")
    assert done.returncode == 2
    assert "recipe.yaml:8: " in done.stderr
    assert "Sliding takes window, did you mean 'window'?" in done.stderr


def test_check_runs_the_conformance_suite_on_it(keyekit):
    done = keyekit("check", "gardener.attention.Sliding")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok      packed equals unpacked" in done.stdout
