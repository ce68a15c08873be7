"""Which tensor goes into which file, in which order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keyekit.models.weights.names import ExpertForm, expert_names, place_of
from keyekit.models.weights.source import Stored

__all__ = ["INDEX", "LAYOUT", "MAX_SHARD_SIZE", "SINGLE", "Layout", "stored_as"]

SINGLE = "model.safetensors"
"""The file of a checkpoint that is not sharded."""

INDEX = "model.safetensors.index.json"
"""Which shard holds which tensor."""

LAYOUT = "layout.json"
"""In a distributed checkpoint, the files that it was converted from."""

MAX_SHARD_SIZE = 5_000_000_000
"""Bytes after which a new shard begins: that of the released 13 shards of Keye-VL-2.0 (sheet 2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Files of a checkpoint.

    Args:
        files: Names of the tensors of each file, in their order; experts in the form that the files use.
        indexed: Whether an index lists them.
        header: Texts in the header of every file.
        index_metadata: What the index tells beside the list.
    """

    files: Mapping[str, Sequence[str]]
    indexed: bool
    header: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})
    index_metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All names in order."""
        return [name for names in self.files.values() for name in names]

    @property
    def expert_form(self) -> ExpertForm:
        """How the files hold experts; ``fused`` without any."""
        return "separate" if any(place_of(name).expert is not None for name in self.names) else "fused"

    @classmethod
    def plan(cls, tensors: Mapping[str, Stored], form: ExpertForm = "fused", limit: int = MAX_SHARD_SIZE) -> Layout:
        """Fill one file after the other up to ``limit`` bytes.

        Args:
            tensors: What is to be written, in order, experts stacked.
            form: Form of the experts in the files.
            limit: A file is at most this large, unless a single tensor is larger.
        """
        shapes = {name: stored.shape for name, stored in tensors.items()}
        return cls._filled(list(expert_names(shapes, form)), tensors, limit)

    def adapted(self, tensors: Mapping[str, Stored], form: ExpertForm, limit: int, unchanged: bool) -> Layout:
        """This layout for another set of tensors.

        Order is kept, and new tensors follow the one that precedes them. Files are kept too if nothing came, went or
        changed its size.

        Args:
            tensors: What is to be written, in order, experts stacked.
            form: Form of the experts in the files.
            limit: Bytes of a file, where files change.
            unchanged: Whether every tensor has the size that it had here.
        """
        wanted = list(expert_names({name: stored.shape for name, stored in tensors.items()}, form))
        if unchanged and set(wanted) == set(self.names):
            return self
        order = [name for name in self.names if name in set(wanted)]
        known = set(order)
        for before, name in zip([None, *wanted], wanted, strict=False):
            if name not in known:
                order.insert(0 if before is None else order.index(before) + 1, name)
        return type(self)._filled(order, tensors, limit)

    @classmethod
    def _filled(cls, names: list[str], tensors: Mapping[str, Stored], limit: int) -> Layout:
        groups: list[list[str]] = [[]]
        filled = 0
        for name in names:
            size = stored_as(name, tensors).nbytes
            if groups[-1] and filled + size > limit:
                groups.append([])
                filled = 0
            groups[-1].append(name)
            filled += size
        # Wide elements first, so that each begins at a multiple of its size.
        groups = [sorted(group, key=lambda name: -stored_as(name, tensors).dtype.itemsize) for group in groups]
        if len(groups) == 1:
            return cls(files={SINGLE: groups[0]}, indexed=False)
        files = {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, start=1)}
        return cls(files=files, indexed=True)

    def index(self, tensors: Mapping[str, Stored]) -> str:
        """The text of the index file."""
        total = sum(stored_as(name, tensors).nbytes for name in self.names)
        weight_map = {name: file for file, names in self.files.items() for name in names}
        described = {
            "metadata": {**self.index_metadata, "total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        }
        return json.dumps(described, indent=2) + "\n"

    def dumps(self) -> str:
        """As JSON, so that a distributed checkpoint can remember the files that it came from."""
        described = {
            "files": {file: list(names) for file, names in self.files.items()},
            "indexed": self.indexed,
            "header": dict(self.header),
            "index_metadata": dict(self.index_metadata),
        }
        return json.dumps(described, indent=1) + "\n"

    @classmethod
    def loads(cls, text: str) -> Layout:
        """The inverse of :meth:`dumps`."""
        return cls(**json.loads(text))


def stored_as(name: str, tensors: Mapping[str, Stored]) -> Stored:
    """Dtype and shape of a tensor as the files hold it, given the stacked tensors."""
    place = place_of(name)
    stored = tensors[place.tensor]
    return Stored(stored.dtype, place.stored_shape(stored.shape))
