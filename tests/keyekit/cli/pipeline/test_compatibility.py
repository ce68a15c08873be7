"""Stages are compared before anything trains; the recipes themselves are read in test_shapes.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from keyekit.cli.errors import CommandError
from keyekit.cli.pipeline import compatibility
from keyekit.cli.pipeline.compatibility import check_compatibility, differences
from keyekit.cli.pipeline.plan import plan_run

STAGES = "a: {recipe: one.yaml}\nv: {recipe: one.yaml}\nm: {merge: [a, v]}\nb: {from: m, recipe: two.yaml}"
SHAPES = {"one.yaml": {"visual.w": (2, 3), "text.w": (4,)}, "two.yaml": {"visual.w": (2, 3), "mlp_AR.w": (5,)}}


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    keys: list[str] = []

    def ask(questions):
        keys.extend(question.export or Path(question.recipe).name for question in questions)
        return {q.key: SHAPES[Path(q.recipe).name] if q.recipe else {"visual.w": (2, 9)} for q in questions}

    monkeypatch.setattr(compatibility, "ask", ask)
    return keys


def check(folder, stages: str = STAGES) -> None:
    pipeline = folder.pipeline(stages)
    check_compatibility(pipeline, plan_run(pipeline, root=Path("runs")))


def test_stages_that_fit_pass_through_merges_and_are_asked_once(folder, asked):
    (folder.path / "runs/demo").mkdir(parents=True)
    check(folder)
    assert sorted(asked) == ["one.yaml", "two.yaml"]  # two stages of one recipe are one question
    check(folder)
    assert len(asked) == 2
    assert len(json.loads((folder.path / "runs/demo/shapes.json").read_text())) == 2
    (folder.path / "two.yaml").write_text("trainer: {max_steps: 9}\n")
    check(folder)
    assert asked[2:] == ["two.yaml"]


def test_tensors_that_differ_are_named_with_both_stages(folder, asked, monkeypatch):
    monkeypatch.setitem(SHAPES, "two.yaml", {"visual.w": (2, 4), "text.w": (5,), "fresh": (1,)})
    with pytest.raises(CommandError) as caught:
        check(folder)
    text = str(caught.value)
    assert "stage b" in text
    assert "cannot start from a: visual.w is [2, 3] there and [2, 4] here; text.w is [4] there and [5] here" in text
    assert "cannot start from v" in text
    assert "give both recipes the same sizes" in text


def test_an_export_that_is_there_counts_instead_of_its_recipe(folder, asked):
    plan = plan_run(folder.pipeline("a: {recipe: one.yaml}\nb: {from: a, recipe: two.yaml}"), root=Path("runs"))
    folder.export("a", **{"visual.w": torch.zeros(2, 9)})
    plan.works["a"].record.done = {"fit": 1.0}
    plan.works["a"].record.write(plan.works["a"].folder)
    with pytest.raises(CommandError, match=r"visual\.w is \[2, 9\] there and \[2, 3\] here"):
        check(folder, "a: {recipe: one.yaml}\nb: {from: a, recipe: two.yaml}")
    assert sorted(asked) == ["runs/demo/a/export", "two.yaml"]


def test_nothing_is_asked_when_nothing_is_left(folder, asked):
    check(folder, "a: {recipe: one.yaml}\nb: {recipe: one.yaml}\nm: {merge: [a, b]}")
    assert asked == []


def test_nothing_in_common_and_many_differences():
    assert "no tensor in common; there are only other, x" in differences({"x.a": (1,), "other.b": (1,)}, {"y": (1,)})
    assert differences({"x": (1,)}, {"y": (1,)}, alone=False) == ""
    many = {f"t{n}": (n,) for n in range(9)}
    assert differences(many, dict.fromkeys(many, (7, 7))).endswith("and 3 more")
