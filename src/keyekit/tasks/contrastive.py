"""Image–text matching: stage 0 of the pipelines."""

from __future__ import annotations

import torch
from torch import Tensor

from keyekit.batch import ContrastiveBatch
from keyekit.distributed.ring import Ring
from keyekit.metrics.retrieval import RecallAtOne
from keyekit.models.contrastive import ContrastiveModel
from keyekit.objectives.siglip import SigLIP
from keyekit.optim.groups import ParameterGroup
from keyekit.optim.optimizers import Optimizer
from keyekit.optim.schedules import Schedule
from keyekit.tasks.base import Task

__all__ = ["ContrastivePretraining"]


class ContrastivePretraining(Task):
    """Teach a vision tower to match images with captions by the sigmoid loss (Keye-VL 8B sheet 4.2, stage 0).

    Under several ranks every image is compared with the captions of all of them; see :class:`SigLIP`. Whether the text tower
    was trained or frozen is not published: ``groups: [{pattern: text, frozen: true}]`` freezes it.

    Args:
        network: Vision and text towers.
        objective: The loss over image–caption pairs.
        learning_rate: Peak learning rate.
        weight_decay: Decay of matrices.
        betas: AdamW's averaging factors, where no optimizer is named.
        groups: Learning rates, decay and freezing by name pattern; the first match decides.
        schedule: Learning-rate schedule; warm-up and cosine by default.
        init_from: Folder with weights to start from.
        optimizer: How gradients become steps; AdamW by default, Muon by its name.
    """

    network: ContrastiveModel

    def __init__(
        self,
        network: ContrastiveModel,
        objective: SigLIP | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.95),
        groups: list[ParameterGroup] | None = None,
        schedule: Schedule | None = None,
        init_from: str | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        super().__init__(network, learning_rate, weight_decay, betas, groups or (), schedule, init_from, optimizer)
        self.objective = objective or SigLIP()
        self.recall_at_1 = RecallAtOne()
        self._ring: Ring | None = None

    def setup(self, stage: str) -> None:
        """See :class:`Task`; and join the ranks in a circle."""
        super().setup(stage)
        self._ring = Ring() if self.trainer.world_size > 1 else None

    def training_step(self, batch: ContrastiveBatch, batch_idx: int) -> Tensor:
        """Loss of the global batch of pairs."""
        loss, accuracy = self._match(batch, *self.network(batch))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.segments))
        self.log("train/accuracy", accuracy, batch_size=len(batch.segments))
        return loss

    def validation_step(self, batch: ContrastiveBatch, batch_idx: int) -> None:
        """Log the loss and how often the best caption of an image fits it: of its own batch, and of all that is held out."""
        images, captions = self.network(batch)
        loss, accuracy = self._match(batch, images, captions)
        self.recall_at_1.update(images, captions, batch.identities)
        self.log("val/recall_at_1", self.recall_at_1, on_epoch=True)
        values = {"val/loss": loss, "val/accuracy": accuracy}
        self.log_dict(values, prog_bar=True, batch_size=len(batch.segments), sync_dist=True)

    def _match(self, batch: ContrastiveBatch, images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        scale, bias = self.network.logit_scale.exp().squeeze(), self.network.logit_bias.squeeze()
        loss = self.objective(images, captions, scale, bias, batch.identities, self._ring)
        with torch.no_grad():
            best = (images @ captions.T).argmax(dim=1)
            accuracy = (batch.identities[best] == batch.identities).float().mean()
        return loss, accuracy
