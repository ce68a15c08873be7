"""The numbered folder of a run, ``runs/<name>/<n>/``, and how far the run in it has come."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from keyekit.cli.errors import CommandError
from keyekit.distributed.whole import newest_whole

__all__ = ["EarlierRun", "RunOptions", "create_run_folder", "find_earlier_run"]


@dataclass(kw_only=True)
class RunOptions:
    """Where a run writes, and whether a fit ends with a test.

    Args:
        root: Folder of all runs.
        name: Folder inside it; the recipe's file name by default.
        folder: Exactly this folder instead of the next number, for example to continue a run in place.
        test: Whether a fit is followed by a test of the trained model, so that one command gives numbers.
        resume: Whether a fit goes on with the newest run of the recipe (or with the one in ``folder``) from its last whole
            checkpoint. A run without a checkpoint begins again in its folder; a finished one is left alone; without any,
            a new one begins.
    """

    root: str = "runs"
    name: str = "run"
    folder: str | None = None
    test: bool = False
    resume: bool = False


def create_run_folder(options: RunOptions) -> Path:
    """Make the next numbered folder (or the one that is asked for) and return it.

    Two processes that start together get different numbers.
    """
    if options.folder is not None:
        folder = Path(options.folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    parent = Path(options.root) / options.name
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        taken = [int(entry.name) for entry in parent.iterdir() if entry.name.isdecimal()]
        folder = parent / str(max(taken, default=0) + 1)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierRun:
    """A run that a fit may go on with.

    Args:
        folder: Its folder.
        state: ``cut`` in the fit, ``untested`` if the test that the recipe wants is all that is missing, or ``finished``.
        checkpoint: Its last whole checkpoint.
    """

    folder: Path
    state: Literal["cut", "untested", "finished"]
    checkpoint: Path | None


def find_earlier_run(options: RunOptions, export: str | None, warn: bool = True) -> EarlierRun | None:
    """The run that ``--run.resume=true`` goes on with.

    Args:
        options: Say where to look.
        export: Folder that a finished fit leaves in the run, if the recipe exports.
        warn: Whether to name checkpoints that are not whole.

    Returns:
        ``None`` if there is no earlier run.

    Raises:
        CommandError: If the run's ``summary.json`` cannot be read.
    """
    folder = _newest(options)
    if folder is None:
        return None
    summary = _summary(folder)
    completed = summary.get("completed", [])
    fitted = "fit" in completed and (export is None or (folder / export).is_dir())
    if fitted and ("test" in completed or not options.test):
        return EarlierRun(folder=folder, state="finished", checkpoint=None)
    checkpoint = newest_whole(folder / "checkpoints", warn)
    at_the_end = checkpoint is not None and _step(checkpoint) == summary.get("steps", -1)
    return EarlierRun(folder=folder, state="untested" if fitted and at_the_end else "cut", checkpoint=checkpoint)


def _newest(options: RunOptions) -> Path | None:
    if options.folder is not None:
        return Path(options.folder) if Path(options.folder).is_dir() else None
    parent = Path(options.root) / options.name
    numbers = [int(entry.name) for entry in parent.iterdir() if entry.name.isdecimal()] if parent.is_dir() else []
    return parent / str(max(numbers)) if numbers else None


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CommandError(
            f"{path} is not JSON ({error}): move the run away, or begin another without --run.resume"
        ) from None


def _step(checkpoint: Path) -> int | None:
    found = re.search(r"step=(\d+)", checkpoint.name)
    return int(found[1]) if found else None
