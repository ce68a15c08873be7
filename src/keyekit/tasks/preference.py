"""Preference optimisation: good answers made likelier than bad ones, beside a frozen reference."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from keyekit.batch import IGNORED_LABEL, Batch
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.objectives.preference.base import PreferenceObjective, PreferenceOutput, Preferences
from keyekit.objectives.preference.mpo import MPO
from keyekit.objectives.token_log_probs import token_log_probs
from keyekit.optim.groups import ParameterGroup
from keyekit.optim.optimizers import Optimizer
from keyekit.optim.schedules import Schedule
from keyekit.tasks.language_modeling import LanguageModeling

__all__ = ["PreferenceOptimization"]


class PreferenceOptimization(LanguageModeling):
    """Learn from pairs of a chosen and a rejected answer (Keye-VL 8B sheet 5.3 and 5.7).

    Validation measures held-out pairs where the data module has them (``heldout_pairs``); the test answers held-out prompts.

    Args:
        network: The model to train.
        objective: The loss over pairs; Keye-VL's mixed preference optimisation by default.
        learning_rate: Peak learning rate (8B sheet 5.3: 5e-6 in the paper on MPO; Keye's own is not published).
        weight_decay: Decay of matrices.
        betas: AdamW's averaging factors, where no optimizer is named.
        groups: Learning rates, decay and freezing by name pattern; the first match decides.
        schedule: Learning-rate schedule; warm-up and cosine by default.
        router_balance: Factor on the routers' balance loss.
        max_new_tokens: Longest answer in evaluation.
        init_from: Folder with weights to start from; they are the reference, too.
        optimizer: How gradients become steps; AdamW by default.
    """

    learns_from = "pairs"

    def __init__(
        self,
        network: VisionLanguageModel,
        objective: PreferenceObjective | None = None,
        learning_rate: float = 5e-6,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        groups: list[ParameterGroup] | None = None,
        schedule: Schedule | None = None,
        router_balance: float = 0.0,
        max_new_tokens: int = 32,
        init_from: str | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        super().__init__(
            network,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            betas=betas,
            groups=groups,
            schedule=schedule,
            router_balance=router_balance,
            max_new_tokens=max_new_tokens,
            init_from=init_from,
            optimizer=optimizer,
        )
        self.preference = objective or MPO()
        self._reference: list[VisionLanguageModel] = []  # in a list, so that no checkpoint holds it
        self._rewards: list[Tensor] = []

    def setup(self, stage: str) -> None:
        """See :class:`~keyekit.tasks.language_modeling.LanguageModeling`; and keep the reference.

        Raises:
            ValueError: If the objective compares with a reference but there is no ``init_from`` to take it from.
        """
        super().setup(stage)
        if stage == "fit" and self.preference.needs_reference and not self._reference:
            if self.init_from is None:
                raise ValueError(
                    f"{type(self.preference).__name__} compares with a reference: give the folder that training starts from "
                    "as init_from, or choose an objective without one (SimPO)"
                )
            self._reference = [deepcopy(self.network).eval().requires_grad_(False)]

    def on_train_start(self) -> None:
        """See :class:`~keyekit.tasks.base.Task`."""
        super().on_train_start()
        self._move_reference()

    def on_validation_start(self) -> None:
        """Have the reference where the batches are."""
        self._move_reference()

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Pairs are not divided among ranks."""
        return batch

    def pack_count(self, pack: Any) -> int:
        """What a pack counts as in the mean over a step: its pairs."""
        return len(pack.samples) // 2

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one pack of pairs."""
        output = self.network(batch)
        pairs = self.pack_count(batch)
        found = self._compare(batch, output.hidden, self.global_targets(pairs))
        rewards = torch.cat([found.chosen_rewards, found.rejected_rewards])
        self._rewards.append(torch.stack([rewards.sum(), rewards.new_tensor(2.0 * pairs)]))
        others, values = self._other_losses(output)
        loss = found.loss + others
        values = {f"train/{name}": value for name, value in found.meters.items()} | values
        self.log("train/loss", loss, prog_bar=True, batch_size=pairs or 1)
        self.log_dict(values, batch_size=pairs or 1)
        return loss

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then let the objective take note of the step's mean reward."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._rewards:
            total = torch.stack(self._rewards).sum(dim=0)
            if self.trainer.world_size > 1:
                torch.distributed.all_reduce(total)
            self.preference.update(total[0] / total[1].clamp(min=1))
        self._rewards = []

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Compare held-out pairs; prompts, where there are no such pairs, are answered."""
        if not batch.num_targets:
            return self.answer(batch)
        found = self._compare(batch, self.network(batch).hidden, None)
        values = {f"val/preference_{name}": value for name, value in found.meters.items()}
        self.log_dict(values, prog_bar=True, batch_size=self.pack_count(batch), sync_dist=True)
        return None

    def _compare(self, batch: Batch, hidden: Tensor, total: Tensor | float | None) -> PreferenceOutput:
        reference = None
        if self._reference:
            with torch.no_grad():
                reference = self._log_probs(self._reference[0], batch, self._reference[0](batch).hidden)
        log_probs = self._log_probs(self.network, batch, hidden)
        mask = batch.labels != IGNORED_LABEL
        pairs = Preferences.of_pack(log_probs, mask, batch.segments, self.pack_count(batch), reference)
        return self.preference(pairs, total)

    def _log_probs(self, network: VisionLanguageModel, batch: Batch, hidden: Tensor) -> Tensor:
        return token_log_probs(hidden, network.decoder.lm_head.weight, batch.labels, batch.num_targets).values

    def _move_reference(self) -> None:
        for reference in self._reference:
            reference.to(self.device)
