"""Loss of held-out answers before the first step and after the last."""

from __future__ import annotations

from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from keyekit.data.dataset import ConversationDataset
from keyekit.data.errors import ErrorPolicy
from keyekit.data.loader import PackLoader

__all__ = ["HeldOutLoss"]


class HeldOutLoss(lightning.Callback):
    """Measure the mean loss of the known answers to held-out questions before a fit and after it.

    Validation generates answers and compares texts; a loss moves long before a text is right, as in stage 1, where nothing but
    the projector trains. Logs ``val/answer_loss_before`` and ``val/answer_loss``, in nats per token of the answers, and
    ``val/answer_loss_blank``, the last one with blank pictures: what of the improvement is not due to looking.

    Args:
        tasks: Task families to ask; all held-out ones by default.
        samples: Most questions to ask, spread evenly over those.

    Raises:
        ValueError: If ``samples`` is not positive.
    """

    def __init__(self, tasks: list[str] | None = None, samples: int = 256) -> None:
        if samples < 1:
            raise ValueError(f"samples={samples}: give at least 1")
        self.tasks = tasks
        self.samples = samples
        self._dataset: ConversationDataset | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Measure before anything is learnt."""
        self._dataset = self._answers(trainer)
        self._log(trainer, {"val/answer_loss_before": self._measure(trainer, pl_module, "open")})

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Measure what came out."""
        values = {
            "val/answer_loss": self._measure(trainer, pl_module, "open"),
            "val/answer_loss_blank": self._measure(trainer, pl_module, "blank"),
        }
        self._log(trainer, values)
        self._dataset = None

    def _answers(self, trainer: lightning.Trainer) -> ConversationDataset:
        """The held-out questions with their answers.

        Raises:
            MisconfigurationException: If the datamodule holds no such question.
        """
        data: Any = getattr(trainer, "datamodule", None)
        prompts = data.predict_dataloader().dataset if getattr(data, "heldout_sources", ()) else None
        chosen = [
            encoded.sample
            for encoded in (() if prompts is None else prompts.encoded)
            if encoded.sample.answer is not None and (self.tasks is None or encoded.sample.task in self.tasks)
        ]
        if prompts is None or not chosen:
            raise MisconfigurationException(
                f"HeldOutLoss finds no held-out question with a known answer of tasks {self.tasks or 'of any name'}: "
                "name them in the data's heldout"
            )
        tokens = data.evaluation_tokens
        return ConversationDataset(chosen, prompts.encoder, ErrorPolicy("raise"), tokens).spread(self.samples)

    @torch.no_grad()
    def _measure(self, trainer: lightning.Trainer, pl_module: Any, eyes: Literal["open", "blank"]) -> float:
        assert self._dataset is not None
        network, budget = pl_module.network, trainer.datamodule.evaluation_tokens  # pyright: ignore[reportAttributeAccessIssue]
        training = network.training
        network.eval()
        summed, targets = torch.zeros((), dtype=torch.float64, device=pl_module.device), 0
        for batch in PackLoader(self._dataset, budget, shuffle=False, eyes=eyes):
            batch = trainer.strategy.batch_to_device(batch, pl_module.device)
            hidden = network(batch).hidden
            summed += pl_module.objective(hidden, network.decoder.lm_head.weight, batch.labels, batch.num_targets)
            targets += batch.num_targets
        network.train(training)
        both = torch.stack([summed, summed.new_tensor(targets)])
        total = trainer.strategy.reduce(both, reduce_op="sum")  # ranks hold different packs
        return float(total[0] / total[1])

    @staticmethod
    def _log(trainer: lightning.Trainer, values: dict[str, float]) -> None:
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
