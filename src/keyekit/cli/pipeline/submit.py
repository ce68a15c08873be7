"""Stages that SLURM runs: their scripts, and whether the jobs are done."""

from __future__ import annotations

from pathlib import Path

from keyekit.cli.pipeline.commands import BEFORE, Step, sbatch_script
from keyekit.cli.pipeline.description import Pipeline
from keyekit.cli.pipeline.plan import JOB, RunPlan
from keyekit.cli.pipeline.record import read_json

__all__ = ["submit_scripts"]

_SCRIPT = "submit.sh"


def submit_scripts(pipeline: Pipeline, plan: RunPlan, submit: bool) -> None:
    """Write the scripts of the stages that are left, unless their jobs have ended well by now.

    Without ``submit`` such a stage is printed and waits for somebody to submit it; the pipeline goes on with the others, and
    with those that need it when it is run again.

    Args:
        pipeline: The pipeline.
        plan: Its run; stages become ``as it was`` or ``to submit``, or get ``sbatch --wait`` as their process.
        submit: Whether to submit.
    """
    for name, work in plan.works.items():
        stage = pipeline.stages[name]
        if stage.launch.sbatch is None or work.state != "waiting" or stage.recipe is None:
            continue
        if all(_is_done(step, work.folder) for step in work.steps):
            work.record.done[JOB] = 0.0
            work.record.write(work.folder)
            work.state = "as it was"
            continue
        work.folder.mkdir(parents=True, exist_ok=True)
        work.log.parent.mkdir(parents=True, exist_ok=True)
        work.record.write(work.folder)
        script = work.folder / _SCRIPT
        job = f"{pipeline.name}/{name}"
        left = [step for step in work.steps if not _is_done(step, work.folder)]
        script.write_text(sbatch_script(left, stage, work.log.absolute(), job, Path.cwd()), encoding="utf-8")
        if submit:
            program = ("sbatch", "--wait", str(script))
            work.steps = [Step(name=JOB, words=("pipeline",), launch=stage.launch, program=program)]
        else:
            print(f"{name}: sbatch {script}", flush=True)
            work.state = "to submit"


def _is_done(step: Step, folder: Path) -> bool:
    """Whether a process, wherever it ran, left what it leaves."""
    if step.name == "merge":
        return (folder / "export").is_dir()
    summary = read_json((folder / BEFORE if step.name == BEFORE else folder) / "summary.json") or {}
    if step.name == "fit":
        return summary.get("status") == "finished" and (folder / "export").is_dir()
    return "test" in summary.get("completed", [])
