"""Next-token training on packs of conversations, and evaluation by generated answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from keyekit.batch import Batch
from keyekit.data.tokenizer import find_tokenizer
from keyekit.data.vocabulary import Vocabulary
from keyekit.metrics.answers import Prediction
from keyekit.models.decoder import DecoderOutput
from keyekit.models.generation import generate
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.models.weights import CheckpointError, WeightFolder, official_name
from keyekit.nn.moe.base import Router
from keyekit.objectives.cross_entropy import CrossEntropy
from keyekit.objectives.router_balance import (
    balance_loss,
    load_imbalance,
    router_z_loss,
    sequence_balance_loss,
)
from keyekit.optim.groups import ParameterGroup
from keyekit.optim.optimizers import Optimizer
from keyekit.optim.schedules import Schedule
from keyekit.tasks.base import Task

__all__ = ["LanguageModeling"]

_SHOWN = 3


class LanguageModeling(Task):
    """Train a vision-language model on answers (Keye-VL 8B sheet 4.1, stages 1 to 3).

    The loss is the mean over all targets of a step's packs on all ranks, plus whatever losses the attention layers report and,
    with a mixture of experts, the balance loss. Validation and test generate an answer to every prompt.

    Args:
        network: The model to train.
        objective: The summed loss over labelled positions.
        learning_rate: Peak learning rate.
        weight_decay: Decay of matrices.
        betas: AdamW's averaging factors, where no optimizer is named.
        groups: Learning rates, decay and freezing by name pattern; the first match decides.
        schedule: Learning-rate schedule; warm-up and cosine by default.
        router_balance: Factor on the routers' balance loss; routers that balance themselves (``SigmoidBias``) have none.
        router_z: Factor on the routers' z-loss, which keeps their logits small.
        router_sequence_balance: Factor on the balance loss of each sequence by itself, for any router with probabilities.
        max_new_tokens: Longest generated answer.
        init_from: Folder with weights to start from, such as a contrastive run's ``export``.
        optimizer: How gradients become steps; AdamW by default, Muon by its name.
    """

    network: VisionLanguageModel

    def __init__(
        self,
        network: VisionLanguageModel,
        objective: CrossEntropy | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.95),
        groups: list[ParameterGroup] | None = None,
        schedule: Schedule | None = None,
        router_balance: float = 0.001,
        router_z: float = 0.0,
        router_sequence_balance: float = 0.0,
        max_new_tokens: int = 32,
        init_from: str | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        super().__init__(network, learning_rate, weight_decay, betas, groups or (), schedule, init_from, optimizer)
        self.objective = objective or CrossEntropy()
        self.router_balance = router_balance
        self.router_z = router_z
        self.router_sequence_balance = router_sequence_balance
        self.max_new_tokens = max_new_tokens
        self._expert_load: list[Tensor] = []
        self._routers = [module for module in network.modules() if isinstance(module, Router)]  # one per mixture layer

    def setup(self, stage: str) -> None:
        """Check that the tokenizer fits the model and the weights to start from, then see :class:`Task`.

        Raises:
            ValueError: If the tokenizer knows more tokens than the decoder's embedding has rows.
            CheckpointError: If an id means something else in it than in the tokenizer beside an embedding that is to be loaded
                (``init_from``).
        """
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        rows = self.network.decoder.vocab_size
        if tokenizer is not None and len(tokenizer) > rows:
            raise ValueError(
                f"the tokenizer knows {len(tokenizer)} tokens, the decoder {rows}: raise decoder.vocab_size"
            )
        if tokenizer is not None and self.init_from is not None and not self._initialised:
            _check_meanings(tokenizer, self.init_from)
        super().setup(stage)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Take this rank's part of a training pack, on the host: all of it, unless packs are divided among ranks."""
        return self.network.divide(batch) if self.trainer.training else batch

    def global_targets(self, num_targets: int) -> Tensor | float:
        """Targets of a step; see :class:`Task`."""
        targets = super().global_targets(num_targets)
        # Packs that were read ahead are whole: all ranks that divide one count all its targets.
        return targets if self._ahead is None else targets / self._ranks_of_a_pack

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one pack; of a pack that is divided, this rank's share, on the scale of a whole one."""
        output = self.network(batch)
        summed = self.objective(output.hidden, self.network.decoder.lm_head.weight, batch.labels, batch.num_targets)
        prediction = summed / self.global_targets(batch.num_targets)
        others, values = self._other_losses(output)
        values = {"train/prediction_loss": prediction.detach()} | values
        # Gradients are averaged over ranks: shares that add up to a pack's loss would count too little.
        loss = prediction + others * self._ranks_of_a_pack
        self.log("train/loss", loss, prog_bar=True, batch_size=batch.num_targets or 1)
        self.log_dict(values, batch_size=batch.num_targets or 1)
        return loss

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then let the routers follow the load of the global batch."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for router, counts in zip(self._routers, self._expert_load, strict=bool(self._expert_load)):
            if self.trainer.world_size > 1:
                torch.distributed.all_reduce(counts)
            router.update(counts)
        self._expert_load = []

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Prediction]]:
        """Answer every prompt of a pack."""
        return self.answer(batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Prediction]]:
        """Answer every prompt of a pack."""
        return self.answer(batch)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[Prediction]:
        """Answer every prompt of a pack."""
        return self.answer(batch)["predictions"]

    def answer(self, batch: Batch) -> dict[str, list[Prediction]]:
        """Generate greedily and pair each answer with its sample."""
        tokenizer = self.trainer.datamodule.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        stop = {tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")}
        answers = generate(self.network, batch, stop_tokens=stop, max_new_tokens=self.max_new_tokens)
        texts = (tokenizer.decode(list(answer.answer)) for answer in answers)
        return {"predictions": [Prediction(info=s, text=text) for s, text in zip(batch.samples, texts, strict=True)]}

    @property
    def _ranks_of_a_pack(self) -> int:
        """Ranks that divide each training pack among them."""
        return self.network.decoder.exchange.ranks

    def _other_losses(self, output: DecoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """What layers and routers add to the loss, and what to log of them."""
        others = sum(output.losses.values(), start=output.hidden.new_zeros(()))
        values = {f"train/{name}": value for name, value in output.meters.items()}
        if output.routing:
            self._remember_load(output)
            routers, router_values = self._router_losses(output)
            others, values = others + routers, values | router_values
        return others, values

    def _router_losses(self, output: DecoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the routers' losses, and what to log of them."""
        balance = balance_loss(output.routing)
        self_balanced = not all(router.needs_balance_loss for router in self._routers)
        terms = {"train/router_balance": (0.0 if self_balanced else self.router_balance, balance)}
        if self.router_z:
            terms["train/router_z"] = (self.router_z, router_z_loss(output.routing))
        if self.router_sequence_balance:
            sequences = sequence_balance_loss(output.routing)
            terms["train/router_sequence_balance"] = (self.router_sequence_balance, sequences)
        total = sum((factor * term for factor, term in terms.values() if factor), start=balance.new_zeros(()))
        values = {name: term.detach() * self._ranks_of_a_pack for name, (_, term) in terms.items()}
        return total, values | {"train/load_imbalance": load_imbalance(output.routing)}

    def _remember_load(self, output: DecoderOutput) -> None:
        """Add up the experts' visits until the next optimizer step."""
        # All ranks that divide a pack know the visits of the whole pack, and are added up later.
        counts = [layer.counts.detach() / self._ranks_of_a_pack for layer in output.routing]
        held = self._expert_load or [torch.zeros_like(count) for count in counts]
        self._expert_load = [before + count for before, count in zip(held, counts, strict=True)]


def _check_meanings(tokenizer: Any, folder: str) -> None:
    """Refuse a tokenizer whose ids mean something else to the embedding in a folder; one that knows more or less may be."""
    if official_name("decoder.embed_tokens.weight") not in WeightFolder(folder).tensors:
        return
    theirs = find_tokenizer(folder)
    if theirs is None:
        return
    own, weights = Vocabulary.of(tokenizer), Vocabulary.of(theirs)
    others = own.other_meanings(weights)
    if others:
        shown = ", ".join(f"{n} ({own.tokens[n]!r} here, {weights.tokens[n]!r} there)" for n in others[:_SHOWN])
        raise CheckpointError(
            f"the tokenizer in {tokenizer.name_or_path or 'use'} is not that of the weights in {folder}: {len(others)} ids "
            f"mean something else, such as {shown}. Take the one of the weights: --data.tokenizer={folder}"
        )
