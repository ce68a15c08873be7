"""What a run of a pipeline will do: which stages it is about, how far each is, and how many run at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keyekit.cli.errors import CommandError
from keyekit.cli.pipeline.checks import check_stage
from keyekit.cli.pipeline.commands import Step, steps_of
from keyekit.cli.pipeline.description import Pipeline, Stage
from keyekit.cli.pipeline.graph import beside, descendants, selected
from keyekit.cli.pipeline.record import Record, fingerprint, set_aside
from keyekit.cli.pipeline.report import StageReport
from keyekit.cli.pipeline.work import Work
from keyekit.registry import closest

__all__ = ["JOB", "RunPlan", "default_jobs", "plan_run"]

JOB = "job"
"""In a record, the name of a SLURM job that did all steps of a stage."""


@dataclass(kw_only=True)
class RunPlan:
    """The stages of a run.

    Args:
        folder: Where the pipeline writes.
        root: Folder of all runs.
        works: The stages that it is about, in order.
        jobs: Most of them at a time.
        renewed: Stages whose former folder is put aside.
        absent: Stages and the folders of weights from elsewhere that they start from, of those folders that are not here.
    """

    folder: Path
    root: Path
    works: dict[str, Work]
    jobs: int
    renewed: list[str] = field(default_factory=list)
    absent: list[tuple[str, Path]] = field(default_factory=list)

    def prepare(self) -> None:
        """Put aside what is to be made again, and note what is kept.

        Raises:
            CommandError: If a stage starts from a folder that is not here.
        """
        if self.absent:
            told = "; ".join(f"{name} starts from {given}" for name, given in self.absent)
            raise CommandError(f"{told}, which is no folder here: put the weights there, or name another folder")
        for name in self.renewed:
            if self.works[name].folder.exists():
                print(f"{name}: the former one is in {set_aside(self.works[name].folder)}", flush=True)
        for work in self.works.values():
            if work.folder.exists():
                work.record.write(work.folder)

    def reports(self, pipeline: Pipeline) -> list[StageReport]:
        """What became of every stage, with its checks if it is done."""
        reports = []
        for name, work in self.works.items():
            done = work.state in ("done", "as it was")
            reports.append(
                StageReport(
                    name=name,
                    state=work.state,
                    seconds=work.seconds,
                    commands=tuple(str(step) for step in work.steps),
                    folder=str(work.folder),
                    checks=tuple(check_stage(pipeline.stages[name], pipeline, self.root)) if done else (),
                )
            )
        return reports


def plan_run(
    pipeline: Pipeline,
    *,
    root: Path,
    first: str | None = None,
    last: str | None = None,
    jobs: int | None = None,
    redo: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> RunPlan:
    """Look at what is there and decide what is left.

    Args:
        pipeline: The pipeline.
        root: Folder of all runs.
        first: Begin with this stage.
        last: End with this stage.
        jobs: Most stages at a time; by default those of :func:`default_jobs`.
        redo: Stages to make again, with what comes of them.
        keep: Stages to take as they are, though their description changed.

    Raises:
        CommandError: If a stage does not exist, has changed since it was begun, or needs one that is neither done nor chosen.
    """
    stages = pipeline.stages
    for option, names in (("--redo", redo), ("--keep", keep)):
        for name in names:
            if name not in stages:
                raise CommandError(f"{option} {name}: there is no such stage{closest(name, stages)}")
    if jobs is not None and jobs < 1:
        raise CommandError(f"--jobs {jobs}: at least 1")
    chosen = selected(stages, first, last)
    again = set(redo) | descendants(stages, redo)
    jobs = jobs or default_jobs()
    works: dict[str, Work] = {}
    problems: list[str] = []
    absent: list[tuple[str, Path]] = []
    for name in chosen:
        stage, folder = stages[name], pipeline.folder_of(name, root)
        parents = {need: _identity(need, name, pipeline, root, works) for need in stage.needs}
        former = None if name in again else Record.read(folder)
        record = former or Record(recipe=fingerprint(stage), parents=parents)
        change = record.changes(fingerprint(stage), parents)
        if change is not None and name in keep:
            record.recipe, record.parents = fingerprint(stage), parents
        elif change is not None:
            problems.append(f"{name}: {change}")
        elif former is None and name not in again and folder.exists() and any(folder.iterdir()):
            problems.append(f"{name}: {folder} was not made by this pipeline")
        works[name] = _work(stage, folder, record, steps_of(stage, pipeline, root))
        if works[name].state != "as it was":
            absent += [(name, given) for given in stage.given_folders if not given.is_dir()]
    if problems:
        told = "; ".join(problems)
        raise CommandError(
            f"{told}. Make such a stage and what comes of it again (--redo STAGE; the former one is kept aside), or take it "
            "as it is (--keep STAGE)"
        )
    for name, work in works.items():
        work.threads = _threads(stages[name], min(jobs, beside(stages, name)))
    renewed = [name for name in chosen if name in again]
    return RunPlan(folder=root / pipeline.name, root=root, works=works, jobs=jobs, renewed=renewed, absent=absent)


def default_jobs() -> int:
    """How many stages run at a time: half as many as there are cores, at least two; with a GPU one.

    Two processes of one thread get more done than one of two threads: 1.4 times as much on the two cores where this was
    tried, since much of a small model's step is not parallel.
    """
    if _has_gpu():
        return 1
    cores = _cores()
    return max(min(cores, 2), cores // 2)


def _work(stage: Stage, folder: Path, record: Record, steps: list[Step]) -> Work:
    log = folder.parent / "logs" / f"{stage.name}.log"
    work = Work(name=stage.name, needs=stage.needs, folder=folder, log=log, steps=steps, record=record)
    if stage.has_export and not (folder / "export").is_dir():
        record.done.clear()  # somebody removed it: a fit makes it again from its last checkpoint
    if not work.left or JOB in record.done:
        work.state = "as it was"
    return work


def _identity(need: str, name: str, pipeline: Pipeline, root: Path, works: dict[str, Work]) -> str:
    """Which making of a stage another one needs."""
    if need in works:
        return works[need].record.identity
    folder = pipeline.folder_of(need, root)
    record = Record.read(folder)
    steps = steps_of(pipeline.stages[need], pipeline, root)
    if record is None or (JOB not in record.done and any(step.name not in record.done for step in steps)):
        raise CommandError(f"{name} needs {need}, which is not done: run that first, or without --from")
    return record.identity


def _threads(stage: Stage, at_a_time: int) -> int | None:
    """Threads of a stage's process: the cores are divided among those that may run beside it, whether they do or not.

    A number that changed with the moment would change the rounding of sums, and a resumed run would not repeat itself.
    """
    if stage.launch.words or stage.launch.sbatch is not None or _has_gpu():
        return None
    return max(_cores() // at_a_time, 1)


def _has_gpu() -> bool:
    return Path("/dev/nvidia0").exists()  # asking torch would import it


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
