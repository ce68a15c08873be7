"""Weights into a network, tensor by tensor, whatever is spread over ranks or still on the meta device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from keyekit.models.weights.folder import WeightFolder
from keyekit.models.weights.materialize import initialize, materialize
from keyekit.models.weights.names import is_passenger
from keyekit.models.weights.network import local_part, network_tensors, tied_names
from keyekit.models.weights.source import CheckpointError, Stored, TensorSource

__all__ = ["LoadReport", "compare", "load_weights"]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What :func:`load_weights` did, in official names.

    Args:
        loaded: Tensors that were copied.
        missing: Tensors of the model that the folder lacks; they keep, or get, initial values.
        unexpected: Tensors of the folder that the model lacks and that are no passengers.
        passengers: Tensors of the folder that released checkpoints ship and no released model uses.
        converted: Loaded tensors whose dtype changed, as ``name: from -> to``.
        regrouped: Loaded tensors that were put together from the matrices of single experts.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    passengers: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()
    regrouped: tuple[str, ...] = ()

    @property
    def new_indexers(self) -> tuple[str, ...]:
        """Missing tensors of lightning indexers: a dense checkpoint begins its life with sparse attention."""
        return tuple(name for name in self.missing if ".sa_indexer." in name)

    def __str__(self) -> str:
        parts = [
            f"loaded {len(self.loaded)} tensors ({_parts(self.loaded)})",
            f"kept {len(self.missing)} initial ({_parts(self.missing)})",
            f"ignored {len(self.unexpected)} of the folder ({_parts(self.unexpected)})",
        ]
        if self.new_indexers:
            layers = len({name.partition(".sa_indexer.")[0] for name in self.new_indexers})
            parts.append(f"the sparse attention of {layers} layers starts with freshly initialised indexers")
        if self.passengers:
            parts.append(f"{len(self.passengers)} shipped but unused ({_some(self.passengers)})")
        if self.converted:
            parts.append(f"{len(self.converted)} changed dtype ({_some(self.converted)})")
        if self.regrouped:
            parts.append(f"{len(self.regrouped)} put together from single experts")
        return "; ".join(parts)


@torch.no_grad()
def load_weights(
    network: nn.Module,
    folder: Path | str | TensorSource,
    *,
    strict: bool = False,
    convert: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> LoadReport:
    """Copy every tensor that ``network`` shares with ``folder`` (one file, or shards with an index).

    Everything is checked before the first value changes. Tensors are copied one by one, and of a parameter that is spread
    over ranks each rank reads its own part alone. Parameters on the meta device get their memory here.

    Args:
        network: The model to fill.
        folder: An export of ours, a released checkpoint's folder, or another source of tensors.
        strict: Whether a missing or unexpected tensor is an error.
        convert: Whether floating-point tensors may change their dtype to that of the parameter; the report lists them.
        dtype: Of the floating-point parameters that are on the meta device; that of the folder by default.
        device: Of the parameters that are on the meta device.

    Returns:
        Which tensors were loaded, missing and unexpected, and what was done to them.

    Raises:
        FileNotFoundError: If the folder holds no safetensors.
        CheckpointError: If the folder is incomplete or damaged, a shape or dtype does not fit, or nothing matches.

    Example:
        >>> import tempfile
        >>> from keyekit.models.weights import save_weights
        >>> folder = save_weights(torch.nn.Linear(2, 3), tempfile.mkdtemp())
        >>> load_weights(torch.nn.Linear(2, 3), folder, strict=True).loaded
        ('weight', 'bias')
    """
    source = folder if isinstance(folder, TensorSource) else WeightFolder(folder)
    report = compare(network, source)
    if not report.loaded:
        raise CheckpointError(f"no tensor in {folder} belongs to this model; it holds {_parts(report.unexpected)}")
    if strict and (report.missing or report.unexpected):
        raise CheckpointError(
            f"{folder} and the model differ: missing are {_some(report.missing)}; unexpected are {_some(report.unexpected)}"
        )
    own = network_tensors(network)
    on_meta = {name for name, tensor in own.items() if tensor.is_meta}
    tied = tied_names(network)
    if on_meta:
        common = _common_dtype(source, report.loaded)
        materialize(network, device, lambda name, tensor: _new_dtype(source.tensors.get(name), tensor, dtype, common))
        own = network_tensors(network)
        initialize(network, on_meta.intersection(report.missing))
    converted = _check_dtypes(source, report, own, tied, convert)
    _check_ties(source, report.loaded, tied)
    for name in report.loaded:
        _fill(source, name, own[tied.get(name, name)])
    regrouped = set(getattr(source, "regrouped", ())).intersection(report.loaded)
    return LoadReport(
        loaded=report.loaded,
        missing=report.missing,
        unexpected=report.unexpected,
        passengers=report.passengers,
        converted=tuple(converted),
        regrouped=tuple(sorted(regrouped)),
    )


def compare(network: nn.Module, source: TensorSource) -> LoadReport:
    """What loading would do, from names and shapes alone; ``loaded`` is what would be.

    Raises:
        CheckpointError: If a shape differs.
    """
    own, tied = network_tensors(network), tied_names(network)
    names = {**{name: name for name in own}, **tied}
    loaded = [name for name in source.tensors if name in names]
    for name in loaded:
        there, here = source.tensors[name].shape, tuple(own[names[name]].shape)
        if there != here:
            raise CheckpointError(
                f"{name} is {list(there)} in {source.where(name)} but {list(here)} in the model: "
                "the recipe's sizes differ from those the weights were made with"
            )
    filled = {names[name] for name in loaded}
    others = [name for name in source.tensors if name not in names]
    return LoadReport(
        loaded=tuple(loaded),
        missing=tuple(name for name in own if name not in filled),
        unexpected=tuple(name for name in others if not is_passenger(name)),
        passengers=tuple(name for name in others if is_passenger(name)),
    )


def _new_dtype(stored: Stored | None, tensor: Tensor, dtype: torch.dtype | None, common: torch.dtype) -> torch.dtype:
    """Of a tensor on meta: as asked for, as in the folder, or like the folder's others."""
    if not tensor.is_floating_point():
        return tensor.dtype
    if dtype is not None:
        return dtype
    return stored.dtype if stored is not None and stored.dtype in _FLOATS else common


def _common_dtype(source: TensorSource, names: Sequence[str]) -> torch.dtype:
    """The floating-point dtype that most of the tensors have."""
    counts = Counter(source.tensors[name].dtype for name in names if source.tensors[name].dtype in _FLOATS)
    return counts.most_common(1)[0][0] if counts else torch.get_default_dtype()


def _check_dtypes(
    source: TensorSource, report: LoadReport, own: dict[str, Tensor], tied: dict[str, str], convert: bool
) -> list[str]:
    """The conversions that loading makes."""
    converted = []
    for name in report.loaded:
        there, here = source.tensors[name].dtype, own[tied.get(name, name)].dtype
        if there == here:
            continue
        if there not in _FLOATS or here not in _FLOATS:
            raise CheckpointError(
                f"{name} is {there} in {source.where(name)} but {here} in the model: only float64, float32, float16 and "
                "bfloat16 convert into each other; a quantised checkpoint has to be dequantised first"
            )
        if not convert:
            raise CheckpointError(
                f"{name} is {there} in {source.where(name)} but {here} in the model, and convert=False"
            )
        converted.append(f"{name}: {_short(there)} -> {_short(here)}")
    return converted


def _check_ties(source: TensorSource, loaded: Sequence[str], tied: dict[str, str]) -> None:
    """A checkpoint with two tensors where the network has one must have them equal."""
    for name, original in tied.items():
        if name not in loaded or original not in loaded:
            continue
        shape = source.tensors[name].shape
        start = (0,) * len(shape)
        if not torch.equal(source.read(name, start, shape), source.read(original, start, shape)):
            raise CheckpointError(
                f"{name} and {original} in {source.where(name)} differ, but the model shares one tensor for both: "
                "build it with tie_embeddings=False"
            )


def _fill(source: TensorSource, name: str, tensor: Tensor) -> None:
    part = local_part(name, tensor)
    if part.tensor.numel():  # a rank may have no row of a small tensor
        part.tensor.copy_(source.read(name, part.offset, tuple(part.tensor.shape)))


def _parts(names: Sequence[str]) -> str:
    """Top-level parts of some tensor names."""
    return ", ".join(sorted({name.split(".")[0] for name in names})) or "none"


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
