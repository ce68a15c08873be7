"""What each stage moved: numbers from every place they may come from, and tensors to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from keyekit.cli.pipeline.checks import CheckResult, check_stage


def checked(folder, check: str, parents: str = "from: a, recipe: two.yaml") -> CheckResult:
    pipeline = folder.pipeline(f"a: {{recipe: one.yaml}}\nb: {{recipe: one.yaml}}\ns: {{{parents}, check: [{check}]}}")
    (result,) = check_stage(pipeline.stages["s"], pipeline, Path("runs"))
    return result


@pytest.fixture
def runs(folder):
    folder.summary("a", metrics={"m": 0.5, "x": 0.7}, final_loss=3.0)
    folder.summary("b", metrics={"m": 0.7})
    folder.summary("s", metrics={"m": 0.75, "blind": 0.25, "broken": "nan"}, final_loss=2.0, status="finished")
    folder.summary("s/before", metrics={"m": 0.125})
    return folder


@pytest.mark.parametrize(
    ("check", "before", "met"),
    [
        ("{metric: m}", "0.5", None),
        ("{metric: m, expect: after >= before + 0.25}", "0.5", True),
        ("{metric: m, expect: [after >= 0.8, after >= before]}", "0.5", False),
        ("{metric: m, before: {metric: blind}, expect: after >= before + 0.5}", "0.25", True),
        ("{metric: m, before: {stage: b}, expect: after >= before}", "0.7", True),
        ("{metric: m, before: {stage: a, metric: x}, expect: after <= before}", "0.7", False),
        ("{metric: m, before: [{stage: a}, {stage: b}, 0.9], expect: after >= before}", "0.7", True),
        ("{metric: m, before: start, expect: after > before}", "0.125", True),
        ("{metric: m, before: 0.1}", "0.1", None),
        ("{metric: final_loss, expect: after < before}", "3", True),
        ("{metric: broken, before: 0, expect: after >= before}", "0", False),
    ],
)
def test_where_the_value_before_comes_from(runs, check, before, met):
    result = checked(runs, check)
    assert (result.before, result.met) == (before, met)


def test_the_mean_of_the_parents_of_a_merge(runs):
    result = checked(runs, "{metric: m, expect: after >= before}", "merge: [a, b], recipe: two.yaml")
    assert (result.before, result.after, result.met) == ("0.6", "0.75", True)
    assert result.note == "before: mean of a, b"


def test_a_metric_that_is_missing_misses_its_bar_and_says_so(runs):
    result = checked(runs, "{metric: blnd, before: 0, expect: after >= before}")
    assert result.met is False
    assert "no metric 'blnd', did you mean 'blind'" in result.note
    assert checked(runs, "{metric: status}").after == ""
    unknown = checked(runs, "{metric: blind, expect: after >= before}")
    assert (unknown.met, unknown.note) == (False, "blind is not known of a")
    assert checked(runs, "{metric: blind}").note == ""


def exports(folder, new: dict) -> None:
    old = {
        "visual.a": torch.tensor([1.0, 2.0]),
        "mlp_AR.linear_1.weight": torch.ones(2, 2),
        "lm_head.weight": torch.zeros(3),
    }
    folder.export("a", **old)
    folder.export("s", **{name: tensor for name, tensor in {**old, **new}.items() if tensor is not None})


def test_only_the_part_that_may_move_moved(folder):
    exports(folder, {"mlp_AR.linear_1.weight": torch.full((2, 2), 2.0)})
    result = checked(folder, "{only_moves: projector}")
    assert result.met, result
    assert result.after == "1 of 1 moved, 0 of 2 others"


@pytest.mark.parametrize(
    ("new", "note"),
    [
        ({}, "nothing moved"),
        ({"lm_head.weight": torch.tensor([0.0, 0.0, -0.0])}, "moved as well: lm_head.weight"),
        ({"lm_head.weight": torch.zeros(3, dtype=torch.bfloat16)}, "moved as well: lm_head.weight"),
        ({"visual.a": None}, "moved as well: visual.a"),
        ({"visual.new": torch.zeros(1)}, "moved as well: visual.new"),
    ],
)
def test_every_other_difference_is_named(folder, new, note):
    exports(folder, {"mlp_AR.linear_1.weight": torch.full((2, 2), 2.0), **new} if new else {})
    result = checked(folder, "{only_moves: projector}")
    assert result.met is False
    assert note in result.note


def test_a_pattern_of_no_tensor_and_a_missing_export(folder):
    exports(folder, {})
    assert "no tensor is called nothing" in checked(folder, "{only_moves: nothing}").note
    result = checked(folder, "{only_moves: projector, since: b}")
    assert result.met is False
    assert "no such folder" in result.note
