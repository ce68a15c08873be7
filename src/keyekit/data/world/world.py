"""The world: a folder of clips, images and questions that one seed describes completely."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from keyekit.data.processes import require_main_guard
from keyekit.data.world.chance import constant_score
from keyekit.data.world.draw import SPLITS
from keyekit.data.world.families import FAMILIES
from keyekit.data.world.files import locked, write_json, write_lines
from keyekit.data.world.production import Chunk, make_samples, produce
from keyekit.data.world.stage import Stage

__all__ = ["World", "WorldFiles"]

GENERATOR_VERSION = 3
"""Raised whenever the same arguments give other files, so that old folders are built again."""

_CHUNK = 50
_MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldFiles:
    """Where the files of a built world are.

    Args:
        root: Folder of the world.
        tasks: Task families of each split.
    """

    root: Path
    tasks: dict[str, tuple[str, ...]]

    def path(self, task: str, split: str) -> Path:
        """The JSONL file of a task and split.

        Raises:
            ValueError: If the world has no such file.
        """
        if task not in self.tasks.get(split, ()):
            have = "; ".join(f"{name}: {', '.join(tasks) or 'none'}" for name, tasks in self.tasks.items())
            raise ValueError(f"the world in {self.root} has no task {task!r} in split {split!r}; it has {have}")
        return self.root / f"{task}.{split}.jsonl"

    def texts(self, split: str = "train") -> Iterator[str]:
        """Every text of a split's conversations, for example to train a tokenizer on."""
        for task in self.tasks[split]:
            with self.path(task, split).open(encoding="utf-8") as lines:
                for line in lines:
                    for message in json.loads(line)["messages"]:
                        yield from (part["text"] for part in message["content"] if part["type"] == "text")


class World:
    """A generator of real media files and of questions about them whose answers are known.

    A clip of ``attribute``, ``attribute_many`` and ``order`` carries two questions, of other families one. The splits have
    random streams of their own and share no scene. The same arguments give the same files, whatever the number of workers.

    Args:
        root: Folder to build into; new, empty or an earlier world.
        seed: Seed of everything.
        train: Clips, images or texts per task family of the train split, by default a small video mixture and captions.
        heldout: The same for the held-out split.
        frame_size: Side of the square pictures in pixels; even, at least 28.
        fps: Frames per second of the clips.
        seconds: Length of the clips, at least 3.
        crf: Quality of the clips from 0 (lossless) to 51 (worst).
        workers: Processes that draw and encode.

    Raises:
        ValueError: If a task family is unknown, a number is negative or the stage is too small.

    Example:
        >>> world = World(root="data/world/tiny", train={"count": 4}, heldout={"count": 1})
        >>> sorted(sample["answer"] for sample in world.samples("count", "train"))
        ['1', '2', '3', '4']
    """

    def __init__(
        self,
        root: str = "data/world/quickstart",
        seed: int = 0,
        train: dict[str, int] | None = None,
        heldout: dict[str, int] | None = None,
        frame_size: int = 56,
        fps: float = 4.0,
        seconds: float = 4.0,
        crf: int = 18,
        workers: int = 2,
    ) -> None:
        if train is None:
            train = {"attribute": 2000, "count": 2000, "order": 2000, "captions": 4000}
        if heldout is None:
            heldout = {"attribute": 500, "attribute_many": 250, "count": 1000, "order": 500}
        for tasks in (train, heldout):
            for task, number in tasks.items():
                if task not in FAMILIES:
                    raise ValueError(f"unknown task {task!r}; the tasks of the world are {', '.join(FAMILIES)}")
                if number < 0:
                    raise ValueError(f"task {task!r} asks for {number} items; give 0 or more")
        if frame_size < 28 or frame_size % 2:
            raise ValueError(f"frame_size is {frame_size}; it must be even and at least 28 (yuv420p needs even sides)")
        if seconds < 3 or fps < 2:
            raise ValueError(
                f"clips of {seconds} s at {fps} fps: events need at least 3 seconds and 2 frames per second"
            )
        if workers < 1:
            raise ValueError(f"workers is {workers}; give at least 1")
        self.root = Path(root)
        self.seed = seed
        self.counts = {"train": dict(train), "heldout": dict(heldout)}
        self.stage = Stage(size=frame_size, fps=float(fps), seconds=float(seconds))
        self.crf = crf
        self.workers = workers

    @property
    def files(self) -> WorldFiles:
        """Where the files are, or will be after :meth:`build`."""
        return WorldFiles(root=self.root, tasks={split: tuple(self.counts[split]) for split in SPLITS})

    def samples(self, task: str, split: str) -> list[dict[str, Any]]:
        """The samples of a task and split as they stand in its JSONL file, made without any media file."""
        if task not in self.counts[split]:
            self.files.path(task, split)
        return _with_chance(task, make_samples(self._chunk(task, split, 0, self.counts[split][task])))

    def is_built(self) -> bool:
        """Whether the folder holds exactly this world, completely."""
        try:
            manifest = json.loads((self.root / _MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return manifest.get("world") == self._description() and manifest.get("files") == self._count_files()

    def build(self, progress: Callable[[int, int], None] | None = None) -> WorldFiles:
        """Write the world, unless the folder holds it already.

        Args:
            progress: Called with the numbers of finished and of all items; by default a progress bar is shown.

        Returns:
            Where the files are.

        Raises:
            ValueError: If the folder holds something that is not a world.
            RuntimeError: If a script without a main guard asks for several workers, or one of them dies.
        """
        if self.is_built():
            return self.files
        require_main_guard()
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / ".lock"):
            if not self.is_built():  # another process may have built it while this one waited
                self._clear()
                self._write(progress)
        return self.files

    def _chunk(self, task: str, split: str, start: int, stop: int) -> Chunk:
        return Chunk(task=task, split=split, start=start, stop=stop, seed=self.seed, stage=self.stage, crf=self.crf)

    def _description(self) -> dict[str, Any]:
        return {
            "version": GENERATOR_VERSION,
            "seed": self.seed,
            "counts": self.counts,
            "frame_size": self.stage.size,
            "fps": self.stage.fps,
            "seconds": self.stage.seconds,
            "crf": self.crf,
        }

    def _count_files(self) -> dict[str, int]:
        """Files per media folder and bytes per JSONL file, which tell whether something was deleted or cut."""
        found: dict[str, int] = {}
        for folder in (f"{kind}/{split}" for kind in ("clips", "images") for split in SPLITS):
            if (self.root / folder).is_dir():
                found[folder] = sum(1 for _ in (self.root / folder).iterdir())
        for path in sorted(self.root.glob("*.jsonl")):
            found[path.name] = path.stat().st_size
        return found

    def _clear(self) -> None:
        """Remove an earlier or unfinished world, and only that."""
        entries = {path.name for path in self.root.iterdir()} - {".lock"}
        if entries and not entries & {_MANIFEST, _UNFINISHED}:
            raise ValueError(
                f"{self.root} holds {', '.join(sorted(entries)[:3])} but no {_MANIFEST}, so it is not a world; "
                "choose a new or empty folder as root"
            )
        (self.root / _UNFINISHED).touch()
        (self.root / _MANIFEST).unlink(missing_ok=True)
        for folder in ("clips", "images"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        for path in self.root.glob("*.jsonl"):
            path.unlink()

    def _write(self, progress: Callable[[int, int], None] | None) -> None:
        for split in SPLITS:
            for kind in ("clips", "images"):
                (self.root / kind / split).mkdir(parents=True)
        chunks = [
            self._chunk(task, split, start, min(start + _CHUNK, number))
            for split, counts in self.counts.items()
            for task, number in counts.items()
            for start in range(0, number, _CHUNK)
        ]
        total = sum(chunk.stop - chunk.start for chunk in chunks)
        with _reporting(progress, str(self.root), total) as advance:
            results = produce(chunks, self.root, self.workers, lambda chunk: advance(chunk.stop - chunk.start))
        for split, counts in self.counts.items():
            for task in counts:
                made = [
                    sample
                    for chunk, samples in zip(chunks, results, strict=True)
                    if (chunk.task, chunk.split) == (task, split)
                    for sample in samples
                ]
                write_lines(self.files.path(task, split), _with_chance(task, made))
        write_json(self.root / _MANIFEST, {"world": self._description(), "files": self._count_files()})
        (self.root / _UNFINISHED).unlink()


def _with_chance(task: str, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fill in the chance level of families in which only the split as a whole decides it."""
    if any("chance" not in sample["meta"] for sample in samples):
        chance = constant_score(task, [sample["answer"] for sample in samples])
        for sample in samples:
            sample["meta"]["chance"] = chance
    return samples


@contextmanager
def _reporting(progress: Callable[[int, int], None] | None, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Count finished items towards a callback, or towards a bar with the time left."""
    done = 0
    if progress is not None:

        def call(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        yield call
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"Building the world in {title}: {total} items", soft_wrap=True)
    columns = (TextColumn("Building {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        row = bar.add_task(title, total=total)
        yield lambda count: bar.advance(row, count)
