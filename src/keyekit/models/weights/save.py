"""Weights of a network out, into a folder that is whole or not there."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from keyekit.models.weights.folder import WeightFolder
from keyekit.models.weights.layout import MAX_SHARD_SIZE, Layout
from keyekit.models.weights.names import ExpertForm
from keyekit.models.weights.network import NetworkSource, is_sharded
from keyekit.models.weights.passengers import WithPassengers
from keyekit.models.weights.replacing import replacing
from keyekit.models.weights.source import TensorSource
from keyekit.models.weights.writer import write_shards

__all__ = ["save_weights", "write_weights", "writes_here"]


def save_weights(
    network: nn.Module,
    folder: Path | str,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    experts: ExpertForm | None = None,
    dtype: torch.dtype | None = None,
    passengers_from: Path | str | None = None,
) -> Path:
    """Write all parameters and buffers under official names, as one file or as shards with an index.

    The folder is replaced at once when everything is on the disk; other files in it stay. A tensor shared by two names (tied
    embeddings) is written once, under its first name. If parameters are spread over ranks, all ranks call this together: one
    tensor at a time is gathered, and the first rank writes.

    Args:
        network: The model.
        folder: Where to.
        max_shard_size: Bytes after which a new shard begins.
        experts: ``fused`` writes the stacked experts of the released checkpoint, ``separate`` one matrix each, which
            transformers and vLLM read for Qwen3-MoE. By default the form of ``passengers_from``, or ``fused``.
        dtype: Of the floating-point tensors; their own by default.
        passengers_from: The checkpoint that the network came from. Tensors that it ships and no model uses are copied from
            it bit for bit, and order and shards follow it as far as the network still has the same tensors.

    Returns:
        The folder.

    Raises:
        OSError: If the folder cannot be written, such as on a full disk; what was there before is untouched.
    """
    with replacing(folder) if writes_here(network) else nullcontext() as partial:
        write_weights(
            network,
            partial,
            max_shard_size=max_shard_size,
            experts=experts,
            dtype=dtype,
            passengers_from=passengers_from,
        )
    return Path(folder)


def write_weights(
    network: nn.Module,
    folder: Path | None,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    experts: ExpertForm | None = None,
    dtype: torch.dtype | None = None,
    passengers_from: Path | str | None = None,
) -> None:
    """Write weights into a folder that is being made; :func:`save_weights` without the replacing.

    Args:
        network: The model.
        folder: An empty folder, or ``None`` on a rank that only takes part in the gathering.
        max_shard_size: See :func:`save_weights`, as for the rest.
        experts: Form of the experts.
        dtype: Of the floating-point tensors.
        passengers_from: The checkpoint that the network came from.
    """
    own = NetworkSource(network, dtype)
    source: TensorSource = own
    origin = None if passengers_from is None else WeightFolder(passengers_from)
    if origin is not None:
        source = WithPassengers(own, origin)
    form = experts or ("fused" if origin is None else origin.layout.expert_form)
    layout = _layout(source, origin, form, max_shard_size)
    collective = is_sharded(network)
    problem = None
    try:
        write_shards(source, layout, folder, collective=collective)
    except OSError as error:
        problem = error
    if collective:  # every rank learns what became of the first one's writing
        problems = [problem]
        dist.broadcast_object_list(problems, src=0)
        problem = problems[0]
    if problem is not None:
        raise problem


def writes_here(network: nn.Module) -> bool:
    """Whether this process writes the network's files: the only one, or the first of those that share its parameters."""
    return not is_sharded(network) or dist.get_rank() == 0


def _layout(source: TensorSource, origin: WeightFolder | None, form: ExpertForm, limit: int) -> Layout:
    if origin is None:
        return Layout.plan(source.tensors, form, limit)
    same = all(
        name in origin.tensors and origin.tensors[name].nbytes == stored.nbytes
        for name, stored in source.tensors.items()
    )
    return origin.layout.adapted(source.tensors, form, limit, unchanged=same)
