"""The processes of a stage: what each is called, what it runs, and the SLURM script that can run it elsewhere."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keyekit.cli.pipeline.description import Launch, Pipeline, Stage, filled
from keyekit.recipes import expand, scalars

__all__ = ["BEFORE", "Step", "arguments_of", "sbatch_script", "steps_of"]

BEFORE = "before"
"""Folder, inside a stage's, of the test of what the stage starts from."""

_REQUEUED = "SIGUSR1"
"""SLURM sends it before time is up; the fit saves, ends with status 128 + 10, and the script queues the job again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One process of a stage.

    Args:
        name: What it does.
        words: The words after ``keyekit``.
        launch: How it is started.
        program: Another program to start instead, such as one that submits a script.
    """

    name: str
    words: tuple[str, ...]
    launch: Launch = field(default_factory=Launch)
    program: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """The process to start here."""
        return list(self.program) or [*_launched(self.launch.words), *self.words]

    def __str__(self) -> str:
        return shlex.join(self.program or [*self.launch.words, "keyekit", *self.words])


def steps_of(stage: Stage, pipeline: Pipeline, root: Path) -> list[Step]:
    """The processes of a stage, in order.

    Args:
        stage: The stage.
        pipeline: The pipeline it belongs to.
        root: Folder of all runs.
    """
    folder = pipeline.folder_of(stage.name, root)
    folders = {name: pipeline.folder_of(name, root) for name in pipeline.stages}
    options = arguments_of(filled(stage.options, folders))
    exports = [str(pipeline.weights_of(parent, root)) for parent in stage.parents]
    recipe = str(stage.recipe)
    if stage.kind == "merge":
        own = str(folder / "export")
        merging = arguments_of(filled(stage.merge_options, folders), separate=True)
        steps = [Step(name="merge", words=("merge", own, *exports, *merging, "--overwrite"))]
        if stage.recipe is not None:
            steps.append(_tested("test", recipe, own, folder, options, stage.launch))
        return steps
    if stage.kind == "align":
        words = ("align", recipe, *options, f"--source={exports[0]}", f"--output={folder}")
        return [Step(name="align", words=words, launch=stage.launch)]
    if stage.kind == "evaluate":
        return [_tested("test", recipe, exports[0], folder, options, stage.launch)]
    start = [f"--model.init_from={exports[0]}"] if exports else []
    fit = Step(
        name="fit",
        words=("fit", recipe, *options, *start, f"--run.folder={folder}", "--run.resume=true"),
        launch=stage.launch,
    )
    before: list[Step] = []
    if stage.reference:
        asked = ("data", "reference", recipe, *options, *start, "--model.reference_files=null")
        before.append(Step(name="reference", words=asked, launch=stage.launch))
    if stage.tests_start:
        before.append(_tested(BEFORE, recipe, exports[0], folder / BEFORE, options, stage.launch))
    return [*before, fit]


def arguments_of(options: Mapping[str, Any], separate: bool = False) -> list[str]:
    """Options as words.

    Args:
        options: Values by key, without dashes.
        separate: Whether a value is a word of its own, a list repeats the option, and an option without a value is ``true``.

    Example:
        >>> arguments_of({"trainer.max_steps": 3, "data.train": ["count"], "run.test": True})
        ['--trainer.max_steps=3', '--data.train=["count"]', '--run.test=true']
        >>> arguments_of({"part": ["vision=1,0", "decoder=0,1"]}, separate=True)
        ['--part', 'vision=1,0', '--part', 'decoder=0,1']
    """
    if not separate:
        return [f"--{key}={_text(value)}" for key, value in options.items()]
    words: list[str] = []
    for key, value in options.items():
        name = f"--{key.replace('_', '-')}"
        for inner in value if isinstance(value, list) else [value]:
            words += [name] if inner is True else [name, _text(inner)] if inner is not False else []
    return words


def sbatch_script(steps: Sequence[Step], stage: Stage, log: Path, job: str, directory: Path) -> str:
    """A script for ``sbatch`` that runs a stage; a fit saves before time is up, and the script queues itself again.

    Nodes and tasks per node are those of the recipe's trainer, unless the stage says otherwise.

    Args:
        steps: The processes to run.
        stage: Its stage, whose ``launch.sbatch`` gives the options.
        log: Where output is appended.
        job: Name of the job.
        directory: Working directory.
    """
    given = {"job-name": job, "output": str(log), "open-mode": "append", "signal": f"{_REQUEUED}@180", **_size(stage)}
    options = {**given, **{str(key): value for key, value in (stage.launch.sbatch or {}).items()}}
    head = [f"#SBATCH --{key}={value}" for key, value in options.items()]
    commands = [
        ("" if step.name in ("merge", "align") else "srun ") + shlex.join([*_launched(()), *step.words]) + " || end"
        for step in steps
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            *head,
            "#SBATCH --requeue",
            "end() {",
            "  status=$?",
            "  # saved before the time was up: the same command goes on where it stopped",
            '  if [ "$status" -eq 138 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            '  exit "$status"',
            "}",
            f"cd {shlex.quote(str(directory))} || exit 2",
            *commands,
            "",
        ]
    )


def _tested(name: str, recipe: str, export: str, folder: Path, options: Sequence[str], launch: Launch) -> Step:
    words = ("test", recipe, *options, f"--model.init_from={export}", f"--run.folder={folder}")
    return Step(name=name, words=words, launch=launch)


def _launched(words: Sequence[str]) -> list[str]:
    module = ["-m", "keyekit.cli.main"]
    if words[:1] == ("torchrun",):  # that of this environment, whatever the path holds
        return [sys.executable, "-m", "torch.distributed.run", *words[1:], *module]
    return [*words, sys.executable, *module]


def _size(stage: Stage) -> dict[str, str]:
    """Nodes and tasks per node, as the recipe or the stage's options have them."""
    assert stage.recipe is not None
    found = {s.path: s.text for file in expand(stage.recipe) for s in scalars(file) if not s.is_key}
    size = {}
    for option, key in (("nodes", "num_nodes"), ("ntasks-per-node", "devices")):
        value = str(stage.options.get(f"trainer.{key}", found.get(("trainer", key), "")))
        if value.isdigit():
            size[option] = value
    return size


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
