"""How often an image finds its own caption among many."""

from __future__ import annotations

from typing import cast

import torch
import torchmetrics
from torch import Tensor

__all__ = ["RecallAtOne"]

_ROWS = 1024


class RecallAtOne(torchmetrics.Metric):
    """Image–text recall@1 over everything that was added: the share of images whose best caption is their own.

    Batches are kept until the end, so that each image competes with all captions and not with those of its batch. Captions of
    one identity compete once, as the first of them. Correct under several ranks.

    Example:
        >>> recall = RecallAtOne()
        >>> recall.update(torch.eye(3), torch.eye(3)[[0, 2, 1]], torch.tensor([7, 8, 9]))
        >>> recall.compute().item(), recall.candidates
        (0.3333333432674408, 3)
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    images: list[Tensor]
    captions: list[Tensor]
    identities: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("images", "captions", "identities"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.candidates = 0
        """Different captions of the last :meth:`compute`: one over this is chance."""

    def update(self, images: Tensor, captions: Tensor, identities: Tensor) -> None:
        """Add pairs.

        Args:
            images: Embeddings of unit length, ``[B, dim]``.
            captions: The same of each image's caption.
            identities: ``[B]`` int64, equal where captions are.

        Raises:
            ValueError: If the numbers of images, captions and identities differ.
        """
        if not images.shape[0] == captions.shape[0] == identities.shape[0]:
            raise ValueError(
                f"{images.shape[0]} images, {captions.shape[0]} captions and {identities.shape[0]} identities: "
                "give one caption and identity for every image"
            )
        self.images.append(images.detach().float())
        self.captions.append(captions.detach().float())
        self.identities.append(identities)

    def compute(self) -> Tensor:
        """Recall between 0 and 1; NaN of nothing."""
        if not sum(part.numel() for part in self.identities):
            return torch.tensor(float("nan"), device=self.device)
        # A list of batches on one rank, one tensor after the states of several were put together.
        images, captions, identities = (
            torch.cat(state) if isinstance(state, list) else cast(Tensor, state)
            for state in (self.images, self.captions, self.identities)
        )
        names, inverse = identities.unique(return_inverse=True)
        place = torch.arange(len(identities), device=identities.device)
        first = place.new_full((len(names),), len(identities)).scatter_reduce(0, inverse, place, "amin")
        self.candidates = len(names)
        best = torch.cat([(rows @ captions[first].T).argmax(dim=1) for rows in images.split(_ROWS)])
        return (best == inverse).float().mean()
