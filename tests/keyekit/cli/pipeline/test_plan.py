from __future__ import annotations

import os
from pathlib import Path

import pytest

from keyekit.cli.errors import CommandError
from keyekit.cli.pipeline import plan as module
from keyekit.cli.pipeline.plan import default_jobs, plan_run
from keyekit.cli.pipeline.record import Record

STAGES = "a: {recipe: one.yaml}\nb: {from: a, recipe: two.yaml}\nc: {from: a, recipe: two.yaml}\nm: {merge: [b, c]}"
ROOT = Path("runs")


def finish(folder, *names: str) -> None:
    """Leave behind what stages leave that are done."""
    plan = plan_run(folder.pipeline(STAGES), root=ROOT)
    for name in names:
        work = plan.works[name]
        work.record.done = {step.name: 1.0 for step in work.steps}
        work.record.write(work.folder)
        (work.folder / "export").mkdir(exist_ok=True)


def states(folder, stages: str = STAGES, **options) -> dict[str, str]:
    return {name: work.state for name, work in plan_run(folder.pipeline(stages), root=ROOT, **options).works.items()}


def test_what_is_done_stays_and_the_rest_waits(folder):
    assert set(states(folder).values()) == {"waiting"}
    finish(folder, "a", "b")
    assert states(folder) == {"a": "as it was", "b": "as it was", "c": "waiting", "m": "waiting"}
    assert states(folder, first="c") == {"c": "waiting", "m": "waiting"}
    assert states(folder, last="a") == {"a": "as it was"}


def test_a_stage_whose_export_is_gone_is_run_again(folder):
    finish(folder, "a")
    (folder.path / "runs/demo/a/export").rmdir()
    assert states(folder)["a"] == "waiting"


def test_a_folder_of_weights_has_to_be_there_before_anything_runs(folder):
    stages = "b: {from: weights/whole, recipe: two.yaml}"
    plan = plan_run(folder.pipeline(stages), root=ROOT)
    assert plan.absent == [("b", Path("weights/whole"))]
    with pytest.raises(CommandError, match="b starts from weights/whole, which is no folder here"):
        plan.prepare()
    (folder.path / "weights/whole").mkdir(parents=True)
    plan = plan_run(folder.pipeline(stages), root=ROOT)
    assert plan.absent == []
    plan.prepare()


def test_a_need_that_is_neither_chosen_nor_done_is_named(folder):
    with pytest.raises(CommandError, match="b needs a, which is not done"):
        states(folder, first="b")


def test_a_changed_recipe_is_refused_until_somebody_decides(folder):
    finish(folder, "a", "b", "c")
    (folder.path / "two.yaml").write_text("trainer: {max_steps: 9}\n")
    with pytest.raises(CommandError, match=r"b: its recipe or its options are others; c: .*--redo STAGE"):
        states(folder)
    assert states(folder, keep=["b", "c"])["b"] == "as it was"
    assert states(folder, redo=["b"], keep=["c"]) == {
        "a": "as it was",
        "b": "waiting",
        "c": "as it was",
        "m": "waiting",
    }


def test_what_is_made_again_is_put_aside_with_all_that_comes_of_it(folder, capsys):
    finish(folder, "a", "b", "c", "m")
    plan = plan_run(folder.pipeline(STAGES), root=ROOT, redo=["b"])
    plan.prepare()
    names = sorted(path.name for path in (folder.path / "runs/demo").iterdir())
    assert names == ["a", "b.old-1", "c", "m.old-1"]
    assert "b: the former one is in" in capsys.readouterr().out
    assert states(folder)["c"] == "as it was"


def test_a_parent_that_was_made_again_makes_its_children_stale(folder):
    finish(folder, "a", "b", "c")
    record = Record.read(folder.path / "runs/demo/a")
    record.identity = "another"
    record.write(folder.path / "runs/demo/a")
    with pytest.raises(CommandError, match="b: a was made again since; c: a was"):
        states(folder)


def test_a_folder_that_something_else_made_is_left_alone(folder):
    folder.summary("a", status="finished")
    with pytest.raises(CommandError, match=r"a: runs/demo/a was not made by this pipeline"):
        states(folder)


def test_names_and_numbers_that_make_no_sense(folder):
    with pytest.raises(CommandError, match="--redo x: there is no such stage"):
        states(folder, redo=["x"])
    with pytest.raises(CommandError, match="--jobs 0"):
        states(folder, jobs=0)


@pytest.mark.parametrize(
    ("cores", "jobs", "threads"), [(1, 1, [1, 1, 1, 1]), (2, 2, [2, 1, 1, 2]), (16, 8, [16, 8, 8, 16])]
)
def test_cores_are_divided_among_stages_that_may_run_together(folder, monkeypatch, cores, jobs, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores))
    monkeypatch.setattr(module, "_has_gpu", lambda: False)
    assert default_jobs() == jobs
    plan = plan_run(folder.pipeline(STAGES), root=ROOT)
    assert [work.threads for work in plan.works.values()] == threads


def test_reports_check_what_is_done(folder):
    finish(folder, "a")
    folder.summary("a", metrics={"m": 0.5})
    pipeline = folder.pipeline(STAGES.replace("one.yaml}", "one.yaml, check: [{metric: m}]}", 1))
    reports = {report.name: report for report in plan_run(pipeline, root=ROOT).reports(pipeline)}
    assert reports["a"].checks[0].after == "0.5"
    assert reports["b"].checks == ()
