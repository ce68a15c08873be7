"""Make the items of a world, with or without their media files, in this process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keyekit.data.processes import run_in_processes
from keyekit.data.world.draw import Draw
from keyekit.data.world.families import FAMILIES, Item
from keyekit.data.world.files import write_image, write_video
from keyekit.data.world.render import render
from keyekit.data.world.stage import Stage

__all__ = ["Chunk", "make_samples", "produce", "produce_chunk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive items of one task and split: the unit of work of a process.

    Args:
        task: Name of the task family.
        split: ``"train"`` or ``"heldout"``.
        start: First item.
        stop: One past the last item.
        seed: Seed of the world.
        stage: Picture size, frame rate and length.
        crf: Quality of the clips, see :func:`~keyekit.data.world.files.write_video`.
    """

    task: str
    split: str
    start: int
    stop: int
    seed: int
    stage: Stage
    crf: int = 18


def _media(chunk: Chunk, index: int, item: Item) -> tuple[str, str]:
    if item.scene is None:
        return "", ""
    kind, folder = ("video", "clips") if item.suffix == ".mp4" else ("image", "images")
    return kind, f"{folder}/{chunk.split}/{chunk.task}-{index:05d}{item.suffix}"


def _samples(chunk: Chunk, index: int, item: Item) -> Iterator[dict[str, Any]]:
    kind, path = _media(chunk, index, item)
    for question in item.questions:
        content: list[dict[str, str]] = [{"type": kind, kind: path}] if kind else []
        content.append({"type": "text", "text": question.text})
        meta = {"split": chunk.split, **question.record()}
        if item.scene is not None:
            meta["scene"] = item.scene.record()
        ending = f"-{question.kind}" if question.kind else ""
        yield {
            "id": f"{chunk.task}-{chunk.split}-{index:05d}{ending}",
            "task": "caption" if chunk.task == "captions" else chunk.task,
            "messages": [
                {"role": "user", "content": content},
                *question.turns(_shown(path)),
            ],
            "answer": question.answer,
            "meta": meta,
        }


def _shown(path: str) -> str:
    """File of the part of a picture that a tool shows."""
    stem, _, ending = path.rpartition(".")
    return f"{stem}-closer.{ending}"


def _part(pixels: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """A part of a picture, cut as the image tool does it."""
    height, width, _ = pixels.shape
    left, top, right, bottom = (edge / 1000 for edge in box)
    return pixels[int(top * height) : round(bottom * height), int(left * width) : round(right * width)]


def _items(chunk: Chunk) -> Iterator[tuple[int, Item]]:
    build = FAMILIES[chunk.task]
    for index in range(chunk.start, chunk.stop):
        yield index, build(Draw(chunk.seed, chunk.task, chunk.split, index), chunk.stage)


def make_samples(chunk: Chunk) -> list[dict[str, Any]]:
    """The samples of a chunk as JSON objects, without drawing or writing anything."""
    return [sample for index, item in _items(chunk) for sample in _samples(chunk, index, item)]


def produce_chunk(chunk: Chunk, root: str) -> list[dict[str, Any]]:
    """Write the media files of a chunk under ``root`` and return its samples."""
    samples: list[dict[str, Any]] = []
    for index, item in _items(chunk):
        if item.scene is not None:
            path = Path(root) / _media(chunk, index, item)[1]
            frames = render(item.scene)
            if item.suffix == ".mp4":
                write_video(path, frames, item.scene.fps, chunk.crf)
            else:
                write_image(path, frames[0])
                for box in {question.closer for question in item.questions if question.closer is not None}:
                    write_image(Path(_shown(str(path))), _part(frames[0], box))
        samples.extend(_samples(chunk, index, item))
    return samples


def produce(
    chunks: list[Chunk], root: Path, workers: int, advance: Callable[[Chunk], None]
) -> list[list[dict[str, Any]]]:
    """Produce every chunk; the result does not depend on the number of workers.

    Args:
        chunks: What to make.
        root: Folder of the world; the folders of the media files exist.
        workers: Number of processes; one, or a single chunk, stays in this process.
        advance: Called after each finished chunk.

    Returns:
        The samples of each chunk, in the order of the chunks.
    """
    results: list[list[dict[str, Any]]] = [[] for _ in chunks]
    if workers <= 1 or len(chunks) <= 1:
        for index, chunk in enumerate(chunks):
            results[index] = produce_chunk(chunk, str(root))
            advance(chunk)
        return results
    for outcome in run_in_processes(partial(produce_chunk, root=str(root)), dict(enumerate(chunks)), workers):
        chunk = chunks[outcome.key]
        if outcome.died:
            raise RuntimeError(
                f"the process that made {chunk.task} {chunk.start} to {chunk.stop} of {root} died, by a crash or for want of "
                "memory: ask for fewer workers"
            )
        results[outcome.key] = outcome.result
        advance(chunk)
    return results
