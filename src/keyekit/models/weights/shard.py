"""One safetensors file, memory-mapped: regions of its tensors without copies.

The library's own reader checks the same and gives tensors that share one storage, the whole file; whoever stores such a
tensor, like torch's distributed checkpoint, first copies it. Here each tensor is its own storage over the mapped pages.
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keyekit.models.weights.source import CheckpointError, Stored

__all__ = ["DTYPES", "Shard"]

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Element types by the names that the format gives them."""

_LARGEST_HEADER = 100_000_000  # as in the library: a longer one is no header


class Shard:
    """A safetensors file.

    Args:
        path: The file.

    Attributes:
        tensors: Dtype and shape by name, in the order of the data.
        metadata: Texts that the file carries.

    Raises:
        CheckpointError: If the file is not safetensors or is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header, self._start = _header(path)
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
        self.tensors = {name: _stored(path, name, entry) for name, entry in entries}
        self._offsets = {name: entry["data_offsets"][0] for name, entry in entries}
        self._check_length(path.stat().st_size)
        self._map: mmap.mmap | None = None

    def read(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """A region of a tensor, sharing the mapped pages; whole rows are a storage of their own."""
        stored = self.tensors[name]
        if offset[1:] == (0,) * len(offset[1:]) and shape[1:] == stored.shape[1:]:
            return self._view(name, stored.dtype, sum(offset[:1]) * math.prod(shape[1:]), shape)
        tensor = self._view(name, stored.dtype, 0, stored.shape)
        for axis, (start, length) in enumerate(zip(offset, shape, strict=True)):
            tensor = tensor.narrow(axis, start, length)
        return tensor

    def _view(self, name: str, dtype: torch.dtype, first: int, shape: tuple[int, ...]) -> Tensor:
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        start = self._start + self._offsets[name] + first * dtype.itemsize
        if start % dtype.itemsize:  # a foreign writer without padding
            raw = torch.frombuffer(self._map, dtype=torch.uint8, count=count * dtype.itemsize, offset=start)
            return raw.clone().view(dtype).view(shape)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start).view(shape)

    def _check_length(self, length: int) -> None:
        there = length - self._start
        ends = {name: self._offsets[name] + stored.nbytes for name, stored in self.tensors.items()}
        cut = [name for name, end in ends.items() if end > there]
        if cut:
            raise CheckpointError(
                f"{self.path} is cut off: it has {length:,} bytes of {self._start + max(ends.values()):,}, so that {cut[0]}"
                f"{f' and {len(cut) - 1} more tensors are' if cut[1:] else ' is'} incomplete: copy or download the file again"
            )


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The description of all tensors, and where the data begins."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:
            raise CheckpointError(f"{path} is no safetensors file: its first eight bytes are no length of a header")
        text = file.read(length)
    try:
        header = json.loads(text)
        if len(text) < length or not isinstance(header, dict):
            raise ValueError
        return header, 8 + length
    except ValueError:
        raise CheckpointError(
            f"{path} is no safetensors file or is cut off inside its header ({8 + len(text):,} bytes are there): "
            "copy or download the file again"
        ) from None


def _stored(path: Path, name: str, entry: dict[str, Any]) -> Stored:
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(f"{name} in {path} has the dtype {entry['dtype']}; known are {', '.join(DTYPES)}")
    stored = Stored(DTYPES[entry["dtype"]], tuple(entry["shape"]))
    begin, end = entry["data_offsets"]
    if begin < 0 or end - begin != stored.nbytes:
        raise CheckpointError(
            f"{name} in {path} takes {end - begin} bytes, but {list(stored.shape)} of {entry['dtype']} are {stored.nbytes}: "
            "the file is damaged"
        )
    return stored
