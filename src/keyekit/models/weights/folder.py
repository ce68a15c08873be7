"""A folder of safetensors, read under official names whatever names and expert form it uses."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from keyekit.models.weights.layout import INDEX, SINGLE, Layout
from keyekit.models.weights.names import Place, canonical_name, place_of
from keyekit.models.weights.shard import Shard
from keyekit.models.weights.source import CheckpointError, Stored

__all__ = ["WeightFolder"]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tensor of a file and where it belongs."""

    shard: Shard
    name: str  # in the file
    place: Place


class WeightFolder:
    """Tensors of a released checkpoint, an export of ours or any folder with one file or shards with an index.

    Nothing is read but the headers until :meth:`read`. Names of transformers become official ones, single experts one stacked
    tensor.

    Args:
        folder: The folder.

    Attributes:
        path: The folder.
        layout: Files and the official names in them, in their order.
        regrouped: Official names of the tensors that are put together from single experts.

    Raises:
        FileNotFoundError: If the folder, or weights in it, are missing.
        CheckpointError: If the folder is half-written, incomplete, damaged, or names a tensor twice.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder)
        _refuse_half_written(self.path)
        self.layout, shards = _open(self.path)
        self._pieces: dict[str, list[_Piece]] = {}
        for shard in shards:
            for name in shard.tensors:
                place = place_of(canonical_name(name))
                self._pieces.setdefault(place.tensor, []).append(_Piece(shard, name, place))
        self.tensors: Mapping[str, Stored] = {name: _joined(name, pieces) for name, pieces in self._pieces.items()}
        self.regrouped = tuple(name for name, pieces in self._pieces.items() if pieces[0].place.expert is not None)

    def read(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """A region of a tensor; only its pages are touched. It may share them: do not write into it."""
        first, *others = self._pieces[name]
        if first.place.expert is None and not others:
            return first.shard.read(first.name, offset, shape)
        region = torch.empty(shape, dtype=self.tensors[name].dtype)
        for piece in self._pieces[name]:
            _copy_overlap(piece, self.tensors[name].shape, region, offset)
        return region

    def where(self, name: str) -> str:
        """The file of a tensor."""
        return str(self._pieces[name][0].shard.path)


def _copy_overlap(piece: _Piece, whole: tuple[int, ...], region: Tensor, offset: tuple[int, ...]) -> None:
    """Copy what one expert's matrix contributes to ``region``, which begins at ``offset`` in the stacked tensor."""
    begin, size = piece.place.region(whole)
    start = [max(a, b) for a, b in zip(begin, offset, strict=True)]
    stop = [min(a + m, b + n) for a, m, b, n in zip(begin, size, offset, region.shape, strict=True)]
    if any(b <= a for a, b in zip(start, stop, strict=True)):
        return
    target = region
    for axis in range(region.ndim):
        target = target.narrow(axis, start[axis] - offset[axis], stop[axis] - start[axis])
    # The file holds out x in, the stack in x out: its columns are our rows.
    rows, columns = (start[2] - begin[2], start[1] - begin[1]), (stop[2] - start[2], stop[1] - start[1])
    target[0].copy_(piece.shard.read(piece.name, rows, columns).T)


def _joined(name: str, pieces: list[_Piece]) -> Stored:
    """Dtype and shape of a tensor that the pieces make up."""
    first = pieces[0]
    stored = first.shard.tensors[first.name]
    if first.place.expert is None:
        if len(pieces) > 1:
            places = " and ".join(f"{piece.name} in {piece.shard.path}" for piece in pieces)
            raise CheckpointError(f"{name} is there more than once: {places}; keep one of them")
        return stored
    parts = ("down",) if first.place.part == "down" else ("gate", "up")
    experts = 1 + max(piece.place.expert or 0 for piece in pieces)
    there = {(piece.place.expert, piece.place.part) for piece in pieces}
    absent = [(expert, part) for expert in range(experts) for part in parts if (expert, part) not in there]
    if absent or len(pieces) != experts * len(parts):
        lacking = f"{absent[0][1]}_proj of expert {absent[0][0]} is missing" if absent else "an expert is there twice"
        raise CheckpointError(f"{name} in {first.shard.path.parent} cannot be put together: {lacking}")
    for piece in pieces:
        other = piece.shard.tensors[piece.name]
        if other != stored or len(other.shape) != 2:
            raise CheckpointError(
                f"{piece.name} in {piece.shard.path} is {list(other.shape)} of {other.dtype}, but {first.name} is "
                f"{list(stored.shape)} of {stored.dtype}: the experts of a layer have one shape and dtype"
            )
    return Stored(stored.dtype, (experts, stored.shape[1], stored.shape[0] * len(parts)))


def _refuse_half_written(folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    if not folder.is_dir():
        beside = f"; {partial} is what an interrupted export left, it is not whole" if partial.is_dir() else ""
        raise FileNotFoundError(errno.ENOENT, f"there is no such folder of weights{beside}", str(folder))
    if folder.name.endswith(".partial"):
        raise CheckpointError(
            f"{folder} is what an interrupted export left and is not whole: export again and delete it"
        )


def _open(folder: Path) -> tuple[Layout, list[Shard]]:
    """All shards, opened, and which tensors are where."""
    index = folder / INDEX
    if not index.exists():
        single = folder / SINGLE
        if not single.exists():
            problem = f"no {SINGLE} or {INDEX}, name an export/ or checkpoint folder that has one"
            raise FileNotFoundError(errno.ENOENT, problem, str(folder))
        shard = Shard(single)
        return _layout({SINGLE: shard}, {}, indexed=False), [shard]
    described = _read_index(index)
    weight_map: dict[str, str] = described["weight_map"]
    shards: dict[str, Shard] = {}
    for name, file in weight_map.items():
        if Path(file).name != file:
            raise CheckpointError(f"{index} places {name} in {file!r}: shards lie in the folder itself")
        if file not in shards:
            if not (folder / file).is_file():
                raise CheckpointError(
                    f"{folder / file} is missing, which {index.name} names for {name}: the checkpoint is only partly there"
                )
            shards[file] = Shard(folder / file)
        if name not in shards[file].tensors:
            raise CheckpointError(f"{folder / file} lacks {name}, which {index.name} places there: copy the file again")
    ordered = dict(sorted(shards.items()))
    return _layout(ordered, described.get("metadata", {}), indexed=True), list(ordered.values())


def _read_index(index: Path) -> dict:
    try:
        described = json.loads(index.read_text(encoding="utf-8"))
        if not described["weight_map"]:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{index} is no index of shards (JSON with a weight_map): copy the file again") from None
    return described


def _layout(shards: dict[str, Shard], metadata: dict, indexed: bool) -> Layout:
    files = {file: tuple(canonical_name(name) for name in shard.tensors) for file, shard in shards.items()}
    texts = next(iter(shards.values())).metadata
    return Layout(files=files, indexed=indexed, header=texts, index_metadata=metadata)
