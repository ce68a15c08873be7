"""What every task shares: initial weights, freezing, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from keyekit.distributed.gradients import clip_gradients
from keyekit.distributed.meta import fill_shards, is_on_meta
from keyekit.distributed.progress import rescale_progress
from keyekit.distributed.strategy import Sharded
from keyekit.models.weights import CheckpointError, load_weights
from keyekit.optim.groups import ParameterGroup, freeze, group_parameters
from keyekit.optim.optimizers import AdamW, Optimizer
from keyekit.optim.schedules import Schedule, WarmupCosine
from keyekit.tasks.look_ahead import LookAhead, look_ahead, targets_of

__all__ = ["Task"]


_DATA_RANKS = "data_ranks"  # in checkpoints


class Task(lightning.LightningModule):
    """Base of the tasks.

    Args:
        network: The model to train.
        learning_rate: Peak learning rate.
        weight_decay: Decay of matrices; vectors and scalars are never decayed.
        betas: AdamW's averaging factors, where no optimizer is named.
        groups: Learning rates, decay and freezing by name pattern; the first match decides.
        schedule: Learning-rate schedule; warm-up and cosine by default.
        init_from: Folder with weights to start from, such as another run's ``export``. Tensors that the network does not
            have are ignored, tensors that the folder does not have keep their initial values, and both are logged.
        optimizer: How gradients become steps; AdamW by default.
    """

    learns_from: Literal["answers", "pairs", "prompts"] = "answers"
    """What a data module hands over: conversations with their answers, pairs of a chosen and a rejected answer, or prompts that
    the task answers itself (``rollout_loader``)."""

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        groups: Sequence[ParameterGroup],
        schedule: Schedule | None,
        init_from: str | None,
        optimizer: Optimizer | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.groups = tuple(groups)
        self.schedule = schedule or WarmupCosine()
        self.init_from = init_from
        self.optimizer = optimizer or AdamW(betas=self.betas)
        self._initialised = False
        self._without_values = False
        self._ahead: LookAhead | None = None

    @property
    def keeps_reference(self) -> bool:
        """Whether a frozen copy of the network lies beside it in training."""
        return False

    def setup(self, stage: str) -> None:
        """Load initial weights, once, and freeze; a checkpoint that is resumed overwrites the weights afterwards."""
        if not is_on_meta(self.network):  # such a network gets its weights once it is sharded
            if self.init_from is not None and not self._initialised:
                rank_zero_info("%s: %s", self.init_from, load_weights(self.network, self.init_from))
            self._initialised = True
        if stage == "fit":
            freeze(self.network, self.groups)

    def configure_model(self) -> None:
        """Spread the network over the ranks, if the strategy does that; one that was built on meta gets its weights here."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, Sharded):
            return
        strategy.shard(self.network)
        if not is_on_meta(self.network):
            return
        strategy.materialize(self.network)
        if self.init_from is None:  # a checkpoint to resume from is not known yet
            self._without_values = True
            return
        rank_zero_info("%s: %s", self.init_from, fill_shards(self.network, self.init_from))
        self._initialised = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note how many ranks had packs of their own."""
        checkpoint[_DATA_RANKS] = self._data_ranks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on at the same place with another number of ranks."""
        former = checkpoint.get(_DATA_RANKS, self._data_ranks)
        rescale_progress(checkpoint, former, self._data_ranks, self.trainer.accumulate_grad_batches)

    @property
    def _data_ranks(self) -> int:
        replicas = self.trainer.distributed_sampler_kwargs
        return 1 if replicas is None else replicas["num_replicas"]

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer over the parameter groups, with the schedule applied at every step."""
        groups = group_parameters(self.network, self.groups, self.learning_rate, self.weight_decay)
        # The fused step undoes a gradient scaler's scale by itself, too late for clipping.
        fused = getattr(self.trainer.precision_plugin, "scaler", None) is None
        optimizer = self.optimizer.build(self.network, _by_part(groups, self.network), fused=fused)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients on all ranks, whatever they are sharded on; by value as Lightning does."""
        if gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            clip_gradients(parameters, gradient_clip_val, self.device)

    def on_train_start(self) -> None:
        """With accumulation, read the packs of a step before its first backward pass.

        Raises:
            CheckpointError: If the network was built on meta and nothing gave it values.
        """
        self.check_values()
        scheduled = any(isinstance(callback, GradientAccumulationScheduler) for callback in self.trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
        accumulates = scheduled or self.trainer.accumulate_grad_batches > 1
        self._ahead = look_ahead(self.trainer, self.pack_count) if accumulates else None

    def check_values(self) -> None:
        """Refuse a network without values, before anything is learnt; for tasks whose training starts otherwise.

        Raises:
            CheckpointError: If the network was built on meta and nothing gave it values.
        """
        if self._without_values and self.trainer.ckpt_path is None:
            raise CheckpointError(
                "the network was built without memory (meta: true), and nothing gives it values: name a folder with weights "
                "(model.init_from), resume from a checkpoint, or build it with memory (meta: false)"
            )

    def pack_count(self, pack: Any) -> int:
        """What a pack counts as in the mean over a step: its targets."""
        return targets_of(pack)

    def backward(self, loss: Tensor, *args: Any) -> None:
        """Make the mean over a step's packs one over those that there are: an epoch may end in the middle of a step."""
        if self._ahead is not None:  # Lightning has divided by the number of packs that a step should have
            loss = loss * (self.trainer.accumulate_grad_batches / len(self._ahead.targets))
        loss.backward()

    def global_targets(self, num_targets: int) -> Tensor | float:
        """Targets of all packs of this optimizer step, on all ranks, divided by the number of packs.

        Dividing each pack's summed loss by this makes the average over all packs equal to the mean over all targets: a step
        over ranks and accumulated packs is the step of one large batch.

        Args:
            num_targets: Targets of the pack at hand.
        """
        targets = (num_targets,) if self._ahead is None else self._ahead.targets
        packs = len(targets) * self.trainer.world_size
        if self.trainer.world_size == 1:
            return max(sum(targets), 1) / packs
        total = torch.tensor(float(sum(targets)), device=self.device)
        torch.distributed.all_reduce(total)
        return total.clamp(min=1.0) / packs


def _by_part(groups: Sequence[dict[str, Any]], network: nn.Module) -> list[dict[str, Any]]:
    """The same groups, with sharded parameters divided by part and into experts and others.

    Parts may be sharded on different meshes, and one fused step cannot mix these. The division does not depend on the number
    of ranks, so that a checkpoint suits any.
    """
    if not any(isinstance(parameter, DTensor) for parameter in network.parameters()):
        return list(groups)
    names = {parameter: name for name, parameter in network.named_parameters()}
    divided = []
    for group in groups:
        parts: dict[str, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            part, _, rest = names[parameter].partition(".")
            parts.setdefault(f"{part}.experts" if ".experts." in rest else part, []).append(parameter)
        divided += [
            {**group, "params": parameters, "name": f"{group['name']}/{part}"} for part, parameters in parts.items()
        ]
    return divided
