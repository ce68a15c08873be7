"""Safetensors written block by block: no file, and no large tensor of a folder, is ever in memory as a whole."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keyekit.models.weights.layout import INDEX, Layout, stored_as
from keyekit.models.weights.names import place_of
from keyekit.models.weights.shard import DTYPES
from keyekit.models.weights.source import Stored, TensorSource

__all__ = ["BLOCK", "row_blocks", "write_shards"]

BLOCK = 64 * 2**20
"""Bytes that are read, and then written, at a time."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_shards(
    source: TensorSource,
    layout: Layout,
    folder: Path | None,
    advance: Callable[[int], None] | None = None,
    collective: bool = False,
) -> None:
    """Write every tensor of a layout.

    Args:
        source: Has the tensors.
        layout: Files and what goes into them.
        folder: Where the files go. ``None`` reads all the same and writes nothing: the part of the other ranks, whose
            shards the first one needs.
        advance: Called with the number of bytes after each block.
        collective: Whether other ranks read along. After a failure the reading then goes on to the end, so that none of them
            waits forever.

    Raises:
        OSError: If something cannot be written, such as on a full disk; it names file and tensor.
    """
    problem: OSError | None = None
    for file, names in layout.files.items():
        output = None if folder is None or problem else _Output(folder / file, names, layout, source)
        for name in names:
            for block in _blocks(source, name):
                if output is not None:
                    output.write(block, name)
                if advance is not None:
                    advance(block.nbytes)
        if output is not None:
            problem = output.close()
        if problem is not None and not collective:
            raise problem
    if problem is not None:
        raise problem
    if folder is not None and layout.indexed:
        (folder / INDEX).write_text(layout.index(source.tensors), encoding="utf-8")


def row_blocks(stored: Stored, limit: int = BLOCK) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offset and shape of consecutive rows of a tensor that take about ``limit`` bytes.

    Example:
        >>> list(row_blocks(Stored(torch.float32, (5, 2)), 16))
        [((0, 0), (2, 2)), ((2, 0), (2, 2)), ((4, 0), (1, 2))]
    """
    if not stored.shape:
        yield (), ()
        return
    rows, *rest = stored.shape
    step = max(limit // max(math.prod(rest) * stored.dtype.itemsize, 1), 1)
    for start in range(0, rows, step):
        yield (start, *(0 for _ in rest)), (min(step, rows - start), *rest)


def _blocks(source: TensorSource, name: str) -> Iterator[Tensor]:
    """A tensor in consecutive pieces, as the file holds it."""
    place = place_of(name)
    stored = source.tensors[place.tensor]
    if place.expert is not None:
        yield source.read(place.tensor, *place.region(stored.shape))[0].T.contiguous()
        return
    for offset, shape in row_blocks(stored):
        yield source.read(name, offset, shape).contiguous()


class _Output:
    """A file that is being written; after a failure it takes, and drops, the rest."""

    def __init__(self, path: Path, names: Sequence[str], layout: Layout, source: TensorSource) -> None:
        self.path = path
        self.problem: OSError | None = None
        self._file: io.FileIO | None = None
        with self._noting("its header"):
            self._file = io.FileIO(path, "w")
            self._append(_header(names, layout, source))

    def write(self, block: Tensor, name: str) -> None:
        """Append the bytes of a tensor."""
        if self.problem is None and block.numel():
            with self._noting(name):
                self._append(block.reshape(-1).view(torch.uint8).numpy())

    def close(self) -> OSError | None:
        """Bring everything to the disk; what went wrong, if anything did."""
        with self._noting("its end"):
            if self._file is not None:
                os.fsync(self._file.fileno())
        if self._file is not None:
            self._file.close()
        return self.problem

    def _append(self, content: Any) -> None:
        assert self._file is not None
        remaining = memoryview(content)
        while remaining:  # the system may take less than it is given
            remaining = remaining[self._file.write(remaining) :]

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            text = f"{error.strerror} while writing {what}; a folder that was there before is left as it is"
            self.problem = self.problem or OSError(error.errno, text, str(self.path))


def _header(names: Sequence[str], layout: Layout, source: TensorSource) -> bytes:
    """Length and description at the start of a file; the data begins at a multiple of eight bytes."""
    described: dict[str, object] = {"__metadata__": dict(layout.header)} if layout.header else {}
    end = 0
    for name in names:
        stored = stored_as(name, source.tensors)
        begin, end = end, end + stored.nbytes
        shape = list(stored.shape)
        described[name] = {"dtype": _NAMES[stored.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
