"""Sequence parallelism: the tokens of each pack divided among ranks, which share the heads around attention instead."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from keyekit.batch import Batch
from keyekit.distributed.collectives import exchange_rows, gather_rows
from keyekit.distributed.pack_division import divide_pack
from keyekit.distributed.part_plan import RankError
from keyekit.models.decoder import Decoder
from keyekit.nn.attention.base import Attention
from keyekit.nn.moe.base import Router

__all__ = ["SequenceParallel", "install_sequence_parallel"]


class SequenceParallel:
    """A :class:`~keyekit.nn.attention.exchange.ContextExchange` over the ranks of a group (Ulysses, arXiv:2309.14509).

    Two exchanges surround attention: queries, keys and values go out together, the mixed values come back. What needs keys of
    all tokens for own queries (the indexer of DSA and its loss) gathers them.

    Args:
        group: The ranks; rank ``r`` has the ``r``-th run of tokens and the ``r``-th part of the heads.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.ranks = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def to_heads(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """``[T / ranks, heads, …]`` to ``[T, heads / ranks, …]``; several travel together, in the widest of their dtypes."""
        split = [
            part.unflatten(1, (self.ranks, -1)).movedim(1, 0) for part in parts
        ]  # [ranks, T / ranks, heads / ranks, …]
        received = self._exchange(torch.cat(split, dim=2)).flatten(0, 1)  # ranks in order are tokens in order
        pieces = received.split([part.shape[2] for part in split], dim=1)
        return tuple(piece.to(part.dtype) for piece, part in zip(pieces, parts, strict=True))

    def to_tokens(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """``[T, heads / ranks, …]`` to ``[T / ranks, heads, …]``."""
        split = [part.unflatten(0, (self.ranks, -1)) for part in parts]
        received = self._exchange(torch.cat(split, dim=2)).movedim(0, 1)  # [T / ranks, ranks, heads / ranks, …]
        pieces = received.split([part.shape[2] for part in split], dim=2)
        return tuple(piece.flatten(1, 2).to(part.dtype) for piece, part in zip(pieces, parts, strict=True))

    def gather(self, rows: Tensor) -> Tensor:
        """``[T, …]`` of own ``[T / ranks, …]``; see :func:`~keyekit.distributed.collectives.gather_rows`."""
        return gather_rows(rows, self.group)

    def own_heads(self, values: Tensor) -> Tensor:
        """This rank's part of ``values [heads, …]``."""
        return values.chunk(self.ranks)[self.rank]

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks, without gradients."""
        summed = values.detach().clone()
        dist.all_reduce(summed, group=self.group)
        return summed

    def divide(self, batch: Batch, merge: int, whole_videos: bool) -> Batch:
        """This rank's run of a pack; see :func:`~keyekit.distributed.pack_division.divide_pack`."""
        return divide_pack(batch, self.rank, self.ranks, merge, whole_videos)

    def _exchange(self, blocks: Tensor) -> Tensor:
        """``[ranks, …]`` blocks for the ranks become blocks from the ranks."""
        ones = [1] * self.ranks
        return exchange_rows(blocks, ones, ones, self.group)


def install_sequence_parallel(network: nn.Module, mesh: DeviceMesh) -> None:
    """Let the ranks of ``mesh`` divide packs among them, in place; call it before FSDP.

    The ranks of the mesh have to be given the same packs in the same order. From then on the network takes parts, which
    :meth:`~keyekit.models.vision_language.VisionLanguageModel.divide` makes, and whole packs as before: evaluation and
    generation give each rank packs of its own.

    Parameters stay as they are. A rank's gradient is that of its tokens; the sum over ranks is the pack's.

    Args:
        network: Has decoders. With one rank nothing is changed.
        mesh: One dimension.

    Raises:
        RankError: If there is no decoder, the mesh has more dimensions, the ranks do not divide the key/value groups, or an
            attention or a router looks at other tokens in a way that cannot be divided.
    """
    if mesh.ndim != 1:
        raise RankError(f"packs are divided over a mesh of one dimension, this one has {mesh.ndim}")
    decoders = [module for module in network.modules() if isinstance(module, Decoder)]
    if not decoders:
        raise RankError("the network has no decoder whose packs could be divided: leave out sequence parallelism")
    for decoder in decoders:
        _check(decoder, mesh.size())
    if mesh.size() == 1:
        return
    for decoder in decoders:
        decoder.exchange = SequenceParallel(mesh.get_group())


def _check(decoder: Decoder, ranks: int) -> None:
    for name, module in decoder.named_modules():
        if isinstance(module, Attention):
            groups = module.spec.num_groups
            if groups % ranks:
                raise RankError(
                    f"{name} has {groups} key/value groups, which {ranks} ranks do not divide: choose a degree of sequence "
                    f"parallelism that divides {groups}"
                )
            if not module.takes_parts:
                raise RankError(
                    f"{name} is a {type(module).__name__}, which cannot divide a pack among ranks: choose Dense, DSA, "
                    "SlidingWindow, BlockTopK, NSA or a scheme with takes_parts = True, or sequence parallelism of degree 1"
                )
        if isinstance(module, Router) and not module.dropless:
            raise RankError(
                f"{name} is a {type(module).__name__}, which chooses among all tokens of a pack: no rank has them under "
                "sequence parallelism; choose a router whose choice depends on the token alone, such as SoftmaxTopK"
            )
