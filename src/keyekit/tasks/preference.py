"""Preference optimisation: good answers made likelier than bad ones, beside a frozen reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from keyekit.batch import IGNORED_LABEL, Batch
from keyekit.data.preferences import PAIR, PreferenceDataset
from keyekit.data.reference_log_probs import ReferenceLogProbs
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.models.weights.digest import weights_digest
from keyekit.objectives.preference.base import PreferenceObjective, Preferences
from keyekit.objectives.preference.kto import KTO
from keyekit.objectives.preference.mpo import MPO
from keyekit.objectives.token_log_probs import token_log_probs
from keyekit.optim.groups import ParameterGroup
from keyekit.optim.optimizers import Optimizer
from keyekit.optim.schedules import Schedule
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.tasks.reference import FrozenReference

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
        reference_files: What the reference says of the pairs, written before by ``keyekit data reference``; by default a frozen
            copy of the model is kept and asked at every step.
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
        reference_files: list[str] | None = None,
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
        self._reference = FrozenReference()
        self.reference_files = tuple(reference_files or ())
        self._known: ReferenceLogProbs | None = None
        self._rewards: list[Tensor] = []
        one = torch.zeros(1)
        pair = Preferences(chosen=one, rejected=one, chosen_lengths=one, rejected_lengths=one)
        self._count_of_pair = self.preference.count(pair)  # 2 where an objective is a mean over responses

    @property
    def keeps_reference(self) -> bool:
        """See :class:`~keyekit.tasks.base.Task`."""
        return self.preference.needs_reference and not self.reference_files

    def setup(self, stage: str) -> None:
        """See :class:`~keyekit.tasks.language_modeling.LanguageModeling`; and keep the reference, or read what it said.

        Raises:
            ValueError: If the objective compares with a reference but there is no ``init_from`` to take it from,
                ``reference_files`` were made with other weights, or the objective wants what no pack of pairs has.
        """
        super().setup(stage)
        if stage != "fit" or not self.preference.needs_reference:
            return
        if isinstance(self.preference, KTO) and self.preference.reference_point == "mismatched":
            raise ValueError(
                "KTO(reference_point='mismatched') asks for responses to prompts that are not theirs, which packs of pairs "
                "do not have: choose 'batch' or 'zero'"
            )
        if self.init_from is None:
            raise ValueError(
                f"{type(self.preference).__name__} compares with a reference: give the folder that training starts from "
                "as init_from, or choose an objective without one (SimPO)"
            )
        if not self.reference_files:
            self._reference.copy(self.network)
        elif self._known is None:
            self._known = self._read_reference(self.init_from)

    def configure_model(self) -> None:
        """Spread the network over the ranks, and the reference in the same way."""
        super().configure_model()
        if self._reference:
            assert self.init_from is not None
            self._reference.place(self.trainer, self.init_from)

    def on_train_start(self) -> None:
        """See :class:`~keyekit.tasks.base.Task`.

        Raises:
            BadData: If ``reference_files`` lack a pair that is trained on, or it changed since.
        """
        super().on_train_start()
        dataset = getattr(self.trainer.train_dataloader, "dataset", None)
        if self._known is not None and isinstance(dataset, PreferenceDataset):
            self._known.check(dataset.pairs)

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
        total = self.global_targets(pairs) * self._count_of_pair
        found = self.preference(self._pairs(batch, output.hidden), total)
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
        pairs = self._pairs(batch, self.network(batch).hidden)
        meters = self.preference(pairs).meters | pairs.likelier()
        values = {f"val/preference_{name}": value for name, value in meters.items()}
        self.log_dict(values, prog_bar=True, batch_size=self.pack_count(batch), sync_dist=True)
        return None

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Answer every prompt of a pack; of a pack of pairs, say how likely each answer is.

        Returns:
            Answers, or for each pair its digest, its name and the log-probabilities of both answers.
        """
        if not batch.num_targets:
            return super().predict_step(batch, batch_idx, dataloader_idx)
        pairs = self._alone(batch, self.network, self.network(batch).hidden)
        samples = batch.samples[: 2 * self.pack_count(batch) : 2]
        sides = (pairs.chosen.tolist(), pairs.rejected.tolist())
        return [(s.meta[PAIR], s.id, chosen, rejected) for s, chosen, rejected in zip(samples, *sides, strict=True)]

    def _pairs(self, batch: Batch, hidden: Tensor) -> Preferences:
        """The pairs of a pack under the model, and under the reference if the objective wants one."""
        pairs = self._alone(batch, self.network, hidden)
        if self._reference:
            reference = self._reference.ask(batch, self._alone)
            return pairs.compared_with(reference.chosen, reference.rejected)
        if self._known is None:
            return pairs
        chosen = batch.samples[: 2 * self.pack_count(batch) : 2]
        known = torch.tensor([self._known.of(sample.meta[PAIR], sample.id) for sample in chosen]).reshape(-1, 2)
        return pairs.compared_with(*known.to(pairs.chosen).unbind(dim=1))

    def _alone(self, batch: Batch, network: VisionLanguageModel, hidden: Tensor) -> Preferences:
        log_probs = token_log_probs(hidden, network.decoder.lm_head.weight, batch.labels, batch.num_targets).values
        return Preferences.of_pack(log_probs, batch.labels != IGNORED_LABEL, batch.segments, self.pack_count(batch))

    def _read_reference(self, weights: str) -> ReferenceLogProbs:
        known = ReferenceLogProbs.read(self.reference_files)
        first = self.trainer.is_global_zero
        digest = self.trainer.strategy.broadcast(weights_digest(weights) if first else "")
        if digest != known.weights:
            raise ValueError(
                f"{', '.join(self.reference_files)} say what other weights than {weights} make of the pairs: run keyekit data "
                "reference RECIPE again, or leave reference_files out"
            )
        return known
