"""What every video layout has to fulfil."""

from __future__ import annotations

from keyekit.data.template import MediaGrid, Run
from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_every_token_has_a_place", "check_frames_keep_their_grid")
"""Functions of this module that make up the suite."""

_GRID = MediaGrid(rows=2, columns=3, frames=4, timestamps=(0.0, 0.5, 1.0, 1.5), fps=2.0)


def _runs(cls: type) -> list[Run]:
    return [piece for piece in make(cls).pieces(_GRID) if isinstance(piece, Run)]


def check_every_token_has_a_place(cls: type) -> None:
    """There are as many placeholders as vision tokens."""
    expected = _GRID.rows * _GRID.columns * _GRID.frames
    found = sum(run.length for run in _runs(cls))
    assert found == expected, f"{found} placeholders for {expected} vision tokens"


def check_frames_keep_their_grid(cls: type) -> None:
    """Runs have the grid of the frames, all frames appear, and time steps never go back."""
    runs = _runs(cls)
    assert all((run.rows, run.columns) == (_GRID.rows, _GRID.columns) for run in runs), "a run has another grid"
    assert sum(run.frames for run in runs) == _GRID.frames, "the runs do not hold every frame once"
    for run in runs:
        steps = run.time_steps or (0,) * run.frames
        assert len(steps) == run.frames, "a run has another number of time steps than frames"
        assert list(steps) == sorted(steps), "time steps go back"
