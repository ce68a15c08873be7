"""Vision balancing: images travel to the least loaded rank's vision tower, and their features travel back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, chain

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from keyekit.batch import VisionBatch
from keyekit.distributed.collectives import exchange_rows
from keyekit.distributed.part_plan import RankError
from keyekit.distributed.vision_plan import Grids, VisionCost, patches_of, plan_vision
from keyekit.models.sizes import NetworkSizes
from keyekit.models.vision_language import VisionLanguageModel

__all__ = ["VisionBalance", "install_vision_balance"]


class VisionBalance:
    """A :class:`~keyekit.nn.vision.exchange.VisionExchange` over the ranks of a group.

    Ranks tell each other the grids of their images on the host, so that the device is not waited for; all make the same plan.
    Patches travel as they are, features after the projector, where they are smallest; gradients of features travel back. A
    frame is an image of its own unless the tower lets frames see each other.

    Features are bit-equal to those of the own tower where the tower computes a row of a product, and the attention of a
    segment, without regard to what else is in the call: products do on most devices, and segments of one length or of lengths
    that :func:`~keyekit.nn.attention.segmented.segmented_attention` does not pad together.

    Args:
        group: The ranks; moves what is on the device.
        host_group: The same ranks; moves what is on the host.
        cost: What an image costs.
        merge: Side of the square of patches that becomes one token.
        whole_videos: Whether the frames of a video stay together.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        host_group: dist.ProcessGroup,
        cost: Callable[[Grids], float],
        merge: int,
        whole_videos: bool,
    ) -> None:
        self.group = group
        self.host_group = host_group
        self.cost = cost
        self.merge = merge
        self.whole_videos = whole_videos
        self.rank = dist.get_rank(group)
        self.ranks = dist.get_world_size(group)

    def __call__(
        self, vision: VisionBatch | None, blank: VisionBatch, encode: Callable[[VisionBatch], Tensor]
    ) -> Tensor:
        """Features ``[tokens, D]`` of own images; see the protocol."""
        everyone, dtype = self._all_images(vision)
        plan = plan_vision([[self.cost(image) for image in images] for images in everyone])
        # What travels between two ranks: the images of one that the other encodes, in their order.
        leaving = [[i for i, rank in enumerate(plan[self.rank]) if rank == other] for other in range(self.ranks)]
        arriving = [
            [image for image, rank in zip(images, ranks, strict=True) if rank == self.rank]
            for images, ranks in zip(everyone, plan, strict=True)
        ]
        own = everyone[self.rank]
        send = [sum(patches_of(own[i]) for i in images) for images in leaving]
        receive = [sum(map(patches_of, images)) for images in arriving]
        leaves = self._in_order(vision, blank, own, leaving)
        patches = exchange_rows(leaves if dtype is None else leaves.to(dtype), send, receive, self.group)
        features = self._encode(patches, list(chain.from_iterable(arriving)), blank, encode)
        merged = self.merge**2
        returned = exchange_rows(features, [n // merged for n in receive], [n // merged for n in send], self.group)
        return _back_in_order(returned, [patches_of(image) // merged for image in own], leaving)

    def _all_images(self, vision: VisionBatch | None) -> tuple[list[list[Grids]], torch.dtype | None]:
        """The grids of each image of each rank, and the type of the patches that travel; ``None`` if there are none."""
        own: tuple[list[Grids], torch.dtype | None] = [], None
        if vision is not None:
            ends = list(accumulate(vision.frames if self.whole_videos else (1,) * len(vision.grids)))
            images = [vision.grids[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
            own = images, vision.patches.dtype
        everyone: list[tuple[list[Grids], torch.dtype | None]] = [own] * self.ranks
        dist.all_gather_object(everyone, own, group=self.host_group)
        return [images for images, _ in everyone], next((dtype for _, dtype in everyone if dtype is not None), None)

    def _in_order(
        self, vision: VisionBatch | None, blank: VisionBatch, own: list[Grids], leaving: list[list[int]]
    ) -> Tensor:
        """Own patches in the order of the ranks that they go to."""
        if vision is None:
            return blank.patches[:0]
        pieces = vision.patches.split([patches_of(image) for image in own])
        return torch.cat([pieces[i] for images in leaving for i in images])

    def _encode(
        self, patches: Tensor, images: list[Grids], blank: VisionBatch, encode: Callable[[VisionBatch], Tensor]
    ) -> Tensor:
        """Tokens of the images that arrived; the tower runs also if there is none."""
        if not images:
            return encode(blank)[:0]
        grids = tuple(chain.from_iterable(images))
        return encode(VisionBatch(patches=patches, grids=grids, frames=tuple(map(len, images))))


def install_vision_balance(network: VisionLanguageModel, mesh: DeviceMesh) -> None:
    """Let the ranks of ``mesh`` share the work of their vision towers in training, in place.

    A rank's gradient of tower and projector is that of the images that it encoded, for the losses of all ranks.

    Args:
        network: With one rank nothing is changed.
        mesh: One dimension; every rank has the whole tower, or all of them share it (FSDP).

    Raises:
        RankError: If the network has no vision tower, or the mesh has more dimensions.
    """
    if not isinstance(network, VisionLanguageModel):
        raise RankError(
            f"a {type(network).__name__} has no vision tower whose work could be shared: leave out balancing"
        )
    if mesh.ndim != 1:
        raise RankError(f"vision work is shared over a mesh of one dimension, this one has {mesh.ndim}")
    if mesh.size() == 1:
        return
    network.vision_exchange = VisionBalance(
        mesh.get_group(),
        _host_group(mesh),
        VisionCost(NetworkSizes.of(network)),
        network.projector.merge,
        network.vision.mixes_frames,
    )


def _host_group(mesh: DeviceMesh) -> dist.ProcessGroup:
    """The ranks of the mesh over gloo, which moves what is on the host: the mesh's own group, or one more."""
    group = mesh.get_group()
    if dist.get_backend(group) == "gloo":
        return group
    made = dist.new_group(dist.get_process_group_ranks(group), backend="gloo", use_local_synchronization=True)
    assert isinstance(made, dist.ProcessGroup)
    return made


def _back_in_order(returned: Tensor, tokens: list[int], leaving: list[list[int]]) -> Tensor:
    """Features that came back rank by rank, in the order of own images."""
    order = list(chain.from_iterable(leaving))
    if order == sorted(order):
        return returned
    pieces = dict(zip(order, returned.split([tokens[i] for i in order]), strict=True))
    return torch.cat([pieces[i] for i in sorted(order)])
