"""What every world has to fulfil."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_building_twice_changes_nothing", "check_answers_are_known")
"""Functions of this module that make up the suite."""

_SMALL = {"train": {"count": 2}, "heldout": {"count": 1}, "workers": 1}


def _build(cls: type, folder: str) -> Any:
    world = make(cls, root=folder, **_SMALL)
    world.build(progress=lambda done, total: None)
    return world


def check_building_twice_changes_nothing(cls: type) -> None:
    """A world that is there is not built again."""
    with tempfile.TemporaryDirectory() as folder:
        _build(cls, folder)
        before = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*.*") if path.is_file()}
        assert before, "building wrote no file"
        _build(cls, folder)
        after = {path: path.stat().st_mtime_ns for path in before}
        assert before == after, "building again rewrote files"


def check_answers_are_known(cls: type) -> None:
    """Every sample has an answer, and its media exist."""
    with tempfile.TemporaryDirectory() as folder:
        world = _build(cls, folder)
        for split in ("train", "heldout"):
            for sample in world.samples("count", split):
                assert sample["answer"], f"sample {sample['id']} has no answer"
                for item in (item for message in sample["messages"] for item in message["content"]):
                    media = item.get("video") or item.get("image")
                    exists = media is None or (world.files.path("count", split).parent / media).is_file()
                    assert exists, f"{media} of sample {sample['id']} does not exist"
