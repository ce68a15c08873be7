"""Checkpoints of torch.distributed as a source and a target of weights, in bounded memory.

A folder that is written here holds a network's ``state_dict()`` under its own names: ``torch.distributed.checkpoint.load``
reads it into a network with any sharding.
"""

from __future__ import annotations

import errno
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from keyekit.models.weights.names import official_name, own_name
from keyekit.models.weights.source import CheckpointError, Stored, TensorSource
from keyekit.models.weights.writer import row_blocks

__all__ = ["METADATA", "DistributedFolder", "write_distributed"]

METADATA = ".metadata"
"""The file that makes a folder a distributed checkpoint."""

_CHUNK = 64 * 2**20  # bytes of a stored chunk; reading one region reads the chunks that it touches as a whole
_NETWORK_PREFIXES = ("state_dict.network.", "model.network.", "network.", "")
"""Where a network stands in a checkpoint: Lightning's, a task's, ours."""

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {
        "Size",
        *(str(dtype).removeprefix("torch.") for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)),
    },
    "pathlib": {"PosixPath", "PurePosixPath", "Path", "WindowsPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "Path", "WindowsPath", "PureWindowsPath"},
    "collections": {"OrderedDict"},
}


class DistributedFolder:
    """The network of a distributed checkpoint, region by region, in one process.

    Args:
        folder: What ``torch.distributed.checkpoint.save`` or a Lightning fit with sharded checkpoints wrote.

    Attributes:
        path: The folder.
        left_out: Entries that are not the network's, such as optimizer states.

    Raises:
        FileNotFoundError: If it is no distributed checkpoint.
        CheckpointError: If its description is damaged or is more than a description.
    """

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder)
        self._reader = dcp.FileSystemReader(self.path)
        metadata = _read_metadata(self.path)
        entries = metadata.state_dict_metadata
        prefix = next(p for p in _NETWORK_PREFIXES if any(key.startswith(p) for key in entries) or not p)
        self._entries: dict[str, tuple[str, TensorStorageMetadata]] = {
            official_name(key.removeprefix(prefix)): (key, entry)
            for key, entry in entries.items()
            if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
        self.left_out = tuple(key for key in entries if official_name(key.removeprefix(prefix)) not in self._entries)
        self.tensors: Mapping[str, Stored] = {
            name: Stored(entry.properties.dtype, tuple(entry.size)) for name, (_, entry) in self._entries.items()
        }
        if not self.tensors:
            raise CheckpointError(f"{self.path} is a distributed checkpoint without a tensor")
        self._check_files(metadata)
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)

    def read(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """A region of a tensor; the stored chunks that it touches are read one after the other."""
        key, entry = self._entries[name]
        region = torch.empty(shape, dtype=entry.properties.dtype)
        chunk = ChunkStorageMetadata(torch.Size(offset), torch.Size(shape))
        items = create_read_items_for_chunk_list(key, entry, [chunk])
        try:
            self._reader.read_data(LoadPlan(items), _IntoRegion(region)).wait()
        except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
            # Torch's own text advises to load without safety, which helps nobody whose file is damaged.
            raise CheckpointError(
                f"{name} in {self.path} cannot be read as a tensor: the checkpoint is damaged, copy it again"
            ) from error
        return region

    def where(self, name: str) -> str:
        """The folder."""
        return str(self.path)

    def _check_files(self, metadata: Metadata) -> None:
        needed: dict[str, tuple[int, str]] = {}
        for index, place in (metadata.storage_data or {}).items():
            end = place.offset + place.length
            if end > needed.get(place.relative_path, (0, ""))[0]:
                needed[place.relative_path] = end, index.fqn
        for file, (end, key) in needed.items():
            path = self.path / file
            there = path.stat().st_size if path.is_file() else None
            if there is None or there < end:
                state = "is missing" if there is None else f"is cut off at {there:,} of {end:,} bytes"
                raise CheckpointError(
                    f"{path} {state}; it holds {key}, among others: the checkpoint is only partly there"
                )


def write_distributed(source: TensorSource, folder: Path, advance: Callable[[int], None] | None = None) -> None:
    """Write a distributed checkpoint from one process, chunk by chunk.

    Args:
        source: Has the tensors.
        folder: Where the files go.
        advance: Called with the number of bytes of each chunk.

    Raises:
        OSError: If something cannot be written, such as on a full disk; it names the folder and the tensor.
    """
    planner = _FromSource(source, advance)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            writer = dcp.FileSystemWriter(folder, per_thread_copy_ahead=0)  # one chunk after the other, on any machine
            dcp.save({}, storage_writer=writer, planner=planner, no_dist=True)
        except (dcp.CheckpointException, OSError, RuntimeError, CheckpointError) as error:
            cause = _cause(error)
            if isinstance(cause, CheckpointError):  # the source's problem, not the target's
                raise cause from error
            said = cause.strerror if isinstance(cause, OSError) else str(cause).splitlines()[0]
            text = f"{said} while writing {planner.current}; a folder that was there before is left as it is"
            raise OSError(getattr(cause, "errno", errno.EIO), text, str(folder)) from error


def _cause(error: BaseException) -> BaseException:
    """The first thing that went wrong, inside what torch and its archive writer made of it."""
    if isinstance(error, dcp.CheckpointException):
        error = next(iter(error.failures.values()))[0]
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError | CheckpointError):
            return inner
        inner = inner.__cause__ or inner.__context__
    return error


class _FromSource(DefaultSavePlanner):
    """Plans chunks from descriptions alone, and reads each when it is about to be written."""

    def __init__(self, source: TensorSource, advance: Callable[[int], None] | None) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.source = source
        self.advance = advance
        self.current = "the first tensor"
        self._chunk = torch.empty(0)
        self._regions: dict[MetadataIndex, tuple[str, tuple[int, ...], tuple[int, ...]]] = {}

    def create_local_plan(self) -> SavePlan:
        items = []
        for name, stored in self.source.tensors.items():
            properties = TensorProperties(dtype=stored.dtype)
            for offset, shape in row_blocks(stored, _CHUNK):
                index = MetadataIndex(own_name(name), offset)
                self._regions[index] = name, offset, shape
                chunk = ChunkStorageMetadata(torch.Size(offset), torch.Size(shape))
                data = TensorWriteData(chunk=chunk, properties=properties, size=torch.Size(stored.shape))
                items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        self.current, offset, shape = self._regions[write_item.index]
        # The writer has stored the chunk before, yet keeps the last one of every tensor to the end: take its memory back.
        self._chunk.untyped_storage().resize_(0)
        self._chunk = self.source.read(self.current, offset, shape).clone()
        if self.advance is not None:
            self.advance(self._chunk.nbytes)
        return self._chunk


class _IntoRegion(DefaultLoadPlanner):
    """Gives the reader one tensor to fill."""

    def __init__(self, region: Tensor) -> None:
        super().__init__()
        self.region = region

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.region

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing is left to do: the reader has copied into :attr:`region` itself."""


class _MetadataUnpickler(pickle.Unpickler):
    """Makes the records of a description and nothing else; torch's own reader would run whatever the file says."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(f"it asks for {module}.{name}, which no description of tensors contains: do not trust it")


def _read_metadata(folder: Path) -> Metadata:
    path = folder / METADATA
    if folder.name.endswith(".partial"):
        raise CheckpointError(
            f"{folder} is what an interrupted conversion left and is not whole: convert again, delete it"
        )
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no .metadata in it: this is no distributed checkpoint", str(folder))
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise TypeError(f"it holds a {type(metadata).__name__}")
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    metadata.storage_meta = metadata.storage_meta or StorageMeta()
    return metadata
