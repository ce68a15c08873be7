"""What every task shares: initial weights, freezing, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from keyekit.models.weights import load_weights
from keyekit.optim.groups import ParameterGroup, freeze, group_parameters
from keyekit.optim.schedules import Schedule, WarmupCosine

__all__ = ["Task"]


class Task(lightning.LightningModule):
    """Base of the tasks.

    Args:
        network: The model to train.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Decay of matrices; vectors and scalars are never decayed.
        betas: AdamW's averaging factors.
        groups: Learning rates, decay and freezing by name pattern; the first match decides.
        schedule: Learning-rate schedule; warm-up and cosine by default.
        init_from: Folder with weights to start from, such as another run's ``export``. Tensors that the network does not
            have are ignored, tensors that the folder does not have keep their initial values, and both are logged.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        groups: Sequence[ParameterGroup],
        schedule: Schedule | None,
        init_from: str | None,
    ) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.groups = tuple(groups)
        self.schedule = schedule or WarmupCosine()
        self.init_from = init_from
        self._initialised = False

    def setup(self, stage: str) -> None:
        """Load initial weights, once, and freeze; a checkpoint that is resumed overwrites the weights afterwards."""
        if self.init_from is not None and not self._initialised:
            rank_zero_info("%s: %s", self.init_from, load_weights(self.network, self.init_from))
        self._initialised = True
        if stage == "fit":
            freeze(self.network, self.groups)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW over the parameter groups, with the schedule applied at every step."""
        groups = group_parameters(self.network, self.groups, self.learning_rate, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=True)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def global_targets(self, num_targets: int) -> Tensor | int:
        """Targets of all ranks' packs of this step, divided by the number of ranks.

        Dividing a rank's summed loss by this makes the average over ranks equal to the mean over all targets. Packs that
        are accumulated count equally, whatever their targets.
        """
        if self.trainer.world_size == 1:
            return max(num_targets, 1)
        total = torch.tensor(float(num_targets), device=self.device)
        torch.distributed.all_reduce(total)
        return total.clamp(min=1.0) / self.trainer.world_size
