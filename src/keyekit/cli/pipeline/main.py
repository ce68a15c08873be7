"""``keyekit pipeline``: run the stages of a file, or go on where they were cut, and say what each moved."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from keyekit.cli.pipeline.compatibility import check_compatibility
from keyekit.cli.pipeline.description import Pipeline
from keyekit.cli.pipeline.display import display
from keyekit.cli.pipeline.lock import locked
from keyekit.cli.pipeline.parser import read_pipeline
from keyekit.cli.pipeline.plan import RunPlan, plan_run
from keyekit.cli.pipeline.report import StageReport, table_of, write_report
from keyekit.cli.pipeline.runner import run_stages
from keyekit.cli.pipeline.submit import submit_scripts

__all__ = ["main"]

_UNFINISHED = 3

_EPILOG = """\
Stages that are done are skipped, one that was cut goes on: the same command works after a kill. Status: 0 all done and all
bars met, 1 a bar missed, 2 a stage failed or the request makes no sense, 3 stages wait for a job of SLURM, 128 + n stopped
by signal n. docs/how-to/pipeline.md describes the file.
"""


def main(arguments: Sequence[str]) -> int:
    """Run a pipeline.

    Args:
        arguments: Words after ``keyekit pipeline``.

    Returns:
        Exit status.

    Raises:
        CommandError: If the file makes no sense, or stages cannot follow each other.
        RecipeError: If a recipe is missing.
    """
    options = _parser().parse_args(arguments)
    pipeline = read_pipeline(options.file)
    if options.dry_run:
        plan = _plan(pipeline, options)
        check_compatibility(pipeline, plan)
        _print_plan(plan)
        return 0
    with locked(options.root / pipeline.name) as lock:
        plan = _plan(pipeline, options)
        plan.prepare()
        check_compatibility(pipeline, plan)
        submit_scripts(pipeline, plan, submit=options.submit)
        with display() as watcher:
            number = run_stages(plan.works, plan.jobs, watcher, inherited=[lock])
        reports = plan.reports(pipeline)
        write_report(plan.folder, reports, _facts(pipeline, options))
    return _close(plan, reports, number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyekit pipeline",
        description="Run stages that start from each other's exports, or go on where they were cut.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="the pipeline, such as recipes/tiny/keye_vl_8b.yaml")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="folder of all runs (runs)")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="only this stage and what comes of it")
    parser.add_argument("--until", dest="last", metavar="STAGE", help="only this stage and what it needs")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and run nothing")
    parser.add_argument(
        "--jobs", type=int, help="most stages at a time (half of the cores, at least two; one with a GPU)"
    )
    parser.add_argument(
        "--redo", action="append", default=[], metavar="STAGE", help="make this stage, and what comes of it, again"
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="STAGE",
        help="take this stage as it is, though its recipe or its parents changed",
    )
    parser.add_argument("--submit", action="store_true", help="hand SLURM scripts to sbatch and wait for them")
    return parser


def _plan(pipeline: Pipeline, options: argparse.Namespace) -> RunPlan:
    return plan_run(
        pipeline,
        root=options.root,
        first=options.first,
        last=options.last,
        jobs=options.jobs,
        redo=options.redo,
        keep=options.keep,
    )


def _print_plan(plan: RunPlan) -> None:
    print(f"{plan.folder}: up to {plan.jobs} at a time")
    for work in plan.works.values():
        threads = "" if work.threads is None else f", {work.threads} threads"
        print(f"{work.name}: {work.state}{threads}")
        for step in work.left if work.state != "as it was" else ():
            print(f"  {step}")
    for name, given in plan.absent:
        print(f"{name} cannot begin yet: there is no folder {given}; put the weights there, or name another")


def _facts(pipeline: Pipeline, options: argparse.Namespace) -> dict[str, Any]:
    return {"name": pipeline.name, "file": str(options.file), "commit": _commit(), "cores": os.cpu_count()}


def _commit() -> str | None:
    """Of the working directory, with a plus if files differ from it."""
    words = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _close(plan: RunPlan, reports: Sequence[StageReport], number: int | None) -> int:
    """Print the table and what went wrong, and give the status."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table_of(reports))
    failed = [work for work in plan.works.values() if work.state == "failed"]
    for work in failed:
        print(f"{work.name} failed with status {work.status}; the end of {work.log}:", file=sys.stderr)
        print("\n".join(f"    {line}" for line in work.tail(20)), file=sys.stderr)
    states = {work.state for work in plan.works.values()}
    missed = sum(report.missed for report in reports)
    told = ", ".join(filter(None, [f"{missed} bars missed" if missed else "", _counted(plan)]))
    print(f"{plan.folder / 'pipeline.md'}: {told or 'all stages done, all bars met'}")
    if number is not None:
        return 128 + number
    if failed:
        return 2
    if "stopped" in states:
        status = next(work.status or 0 for work in plan.works.values() if work.state == "stopped")
        return status if status > 0 else 128 - status
    if states & {"to submit", "blocked"}:
        return _UNFINISHED
    return 1 if missed else 0


def _counted(plan: RunPlan) -> str:
    """Stages by the states in which something is left to do."""
    states = [work.state for work in plan.works.values()]
    kinds = ("failed", "stopped", "to submit", "blocked")
    return ", ".join(f"{states.count(kind)} {kind}" for kind in kinds if kind in states)
