from __future__ import annotations

from pathlib import Path

from keyekit.cli.pipeline.plan import plan_run
from keyekit.cli.pipeline.submit import submit_scripts

STAGES = "a: {recipe: one.yaml, launch: {sbatch: {nodes: 2}}}\nb: {from: a, recipe: two.yaml}"


def submitted(folder, submit: bool = False):
    pipeline = folder.pipeline(STAGES)
    plan = plan_run(pipeline, root=Path("runs"))
    submit_scripts(pipeline, plan, submit=submit)
    return plan.works["a"]


def test_a_script_is_written_and_its_stage_waits_for_somebody(folder, capsys):
    work = submitted(folder)
    assert work.state == "to submit"
    assert capsys.readouterr().out == "a: sbatch runs/demo/a/submit.sh\n"
    assert "srun" in (folder.path / "runs/demo/a/submit.sh").read_text()


def test_it_is_submitted_and_waited_for_if_that_is_wanted(folder):
    work = submitted(folder, submit=True)
    assert work.state == "waiting"
    assert work.left[0].command == ["sbatch", "--wait", "runs/demo/a/submit.sh"]


def test_a_job_that_has_ended_well_is_done_and_stays_so(folder):
    submitted(folder)
    folder.summary("a", status="finished", completed=["fit"])
    assert submitted(folder).state == "to submit"  # the export is not there yet
    (folder.path / "runs/demo/a/export").mkdir()
    assert submitted(folder).state == "as it was"
    assert plan_run(folder.pipeline(STAGES), root=Path("runs"), first="b").works["b"].state == "waiting"
