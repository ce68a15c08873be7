"""The numbered folder of a run: ``runs/<name>/<n>/``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["RunOptions", "create_run_folder"]


@dataclass(kw_only=True)
class RunOptions:
    """Where a run writes, and whether a fit ends with a test.

    Args:
        root: Folder of all runs.
        name: Folder inside it; the recipe's file name by default.
        folder: Exactly this folder instead of the next number, for example to continue a run in place.
        test: Whether a fit is followed by a test of the trained model, so that one command gives numbers.
    """

    root: str = "runs"
    name: str = "run"
    folder: str | None = None
    test: bool = False


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
