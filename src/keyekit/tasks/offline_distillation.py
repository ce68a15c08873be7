"""Distillation on given answers: a student follows a teacher word by word on a data set."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from keyekit.batch import IGNORED_LABEL, Batch
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.objectives.cross_entropy import CrossEntropy
from keyekit.objectives.distillation.attention_maps import AttentionMatching
from keyekit.objectives.distillation.base import DistillationObjective, Head
from keyekit.objectives.distillation.hidden_states import HiddenStateMatching
from keyekit.objectives.distillation.matching import ForwardKL
from keyekit.objectives.distillation.mopd import MOPD
from keyekit.objectives.distillation.topk import TopK
from keyekit.optim.groups import ParameterGroup
from keyekit.optim.optimizers import Optimizer
from keyekit.optim.schedules import Schedule
from keyekit.rollout.lessons import TeachersFailed
from keyekit.rollout.teachers.base import Teacher
from keyekit.rollout.teachers.layers import LayerStates, watched
from keyekit.rollout.teachers.local import LocalTeacher
from keyekit.tasks.distillation import check_vocabularies
from keyekit.tasks.language_modeling import LanguageModeling

__all__ = ["Distillation"]

_MANY = 100  # samples after which a share of unread ones means something


class Distillation(LanguageModeling):
    """Follow a teacher on the answers of a data set.

    A ``LocalTeacher`` is followed in all its words, or in as many as the objective compares; any other teacher in those that it
    lists. Hidden states and attention can be followed of a ``LocalTeacher`` alone.

    Args:
        network: The student.
        teacher: Whom it follows; ``RoutedTeachers`` for several.
        objective: How two distributions are compared; the forward divergence by default.
        topk: Words that a teacher elsewhere lists.
        answer_weight: Weight of the cross-entropy of the answers, beside the objective.
        hidden_states: How hidden states are compared; not by default.
        hidden_layers: Pairs of a layer of the student and the teacher's that it follows, counted from 0.
        hidden_weight: Weight of that loss.
        attention: How attention is compared; not by default.
        attention_layers: Pairs of a layer of the student and the teacher's that it follows.
        attention_weight: Weight of that loss, the mean over pairs.
        max_dropped: Largest share of samples that may go unread, because a teacher is dead or slow.
        learning_rate: Peak learning rate.
        weight_decay: Decay of matrices.
        betas: AdamW's averaging factors, where no optimizer is named.
        groups: Learning rates, decay and freezing by name pattern; the first match decides.
        schedule: Learning-rate schedule; warm-up and cosine by default.
        router_balance: Factor on the routers' balance loss.
        max_new_tokens: Longest answer in evaluation.
        init_from: Folder with weights to start from.
        optimizer: How gradients become steps; AdamW by default.

    Raises:
        ValueError: If a number is out of range, the objective needs answers of the student, or layers are to be followed of a
            teacher that is not in the process.
    """

    def __init__(
        self,
        network: VisionLanguageModel,
        teacher: Teacher,
        objective: DistillationObjective | None = None,
        topk: int = 32,
        answer_weight: float = 0.0,
        hidden_states: HiddenStateMatching | None = None,
        hidden_layers: list[tuple[int, int]] | None = None,
        hidden_weight: float = 1.0,
        attention: AttentionMatching | None = None,
        attention_layers: list[tuple[int, int]] | None = None,
        attention_weight: float = 1.0,
        max_dropped: float = 0.1,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
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
        if isinstance(objective, MOPD):
            raise ValueError("MOPD learns from the student's own answers: take OnPolicyDistillation")
        for name, part, layers in (
            ("hidden", hidden_states, hidden_layers),
            ("attention", attention, attention_layers),
        ):
            if (part is None) != (not layers):
                raise ValueError(f"to follow {name} states both how they are compared and {name}_layers are needed")
            if layers and not isinstance(teacher, LocalTeacher):
                raise ValueError(f"{name}_layers need a teacher in the process (LocalTeacher)")
        if topk < 1 or not 0 <= max_dropped <= 1 or min(answer_weight, hidden_weight, attention_weight) < 0:
            raise ValueError("need topk >= 1, max_dropped from 0 to 1, and weights that are not negative")
        self.distillation = objective or ForwardKL()
        self.topk = topk
        self.answer_weight = answer_weight
        self.hidden_states = hidden_states
        self.hidden_layers = [(own, other) for own, other in hidden_layers or ()]
        self.hidden_weight = hidden_weight
        self.attention = attention
        self.attention_layers = [(own, other) for own, other in attention_layers or ()]
        self.attention_weight = attention_weight
        self.max_dropped = max_dropped
        self.answers = CrossEntropy()
        self._teacher: list[Teacher] = [teacher]  # in a list, so that no checkpoint holds networks
        self._seen = self._unread = 0

    @property
    def teacher(self) -> Teacher:
        """Whom the student follows."""
        return self._teacher[0]

    def setup(self, stage: str) -> None:
        """See :class:`~keyekit.tasks.language_modeling.LanguageModeling`; and refuse a teacher of another vocabulary.

        Raises:
            ValueError: If the teacher knows other tokens than the student.
        """
        super().setup(stage)
        if stage == "fit":
            tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
            check_vocabularies(tokenizer, {type(self.teacher).__name__: self.teacher})

    def on_train_start(self) -> None:
        """See :class:`~keyekit.tasks.base.Task`; and have the teacher where the student is."""
        super().on_train_start()
        self.teacher.move(self.device)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Packs are not divided among ranks: the teacher reads whole ones."""
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one pack."""
        own_layers, other_layers = _sides(self.hidden_layers), _sides(self.attention_layers)
        with watched(self.network.decoder, own_layers[0], other_layers[0]) as own:
            output = self.network(batch)
        teacher, taught, states = self._listen(batch, own_layers[1], other_layers[1])
        total = self.global_targets(batch.num_targets)
        weight = self.network.decoder.lm_head.weight
        learnt = self.distillation(
            Head(hidden=output.hidden, weight=weight), teacher, taught.labels, taught.num_targets, total=total
        )
        others, values = self._other_losses(output)
        values = {f"train/{name}": value for name, value in learnt.meters.items()} | values
        loss = learnt.loss + others
        if self.answer_weight:
            answers = self.answers(output.hidden, weight, batch.labels, batch.num_targets) / total
            values["train/answer_loss"] = answers.detach()
            loss = loss + self.answer_weight * answers
        loss = loss + self._inside(taught, own, states, total, values)
        self.log("train/loss", loss, prog_bar=True, batch_size=batch.num_targets or 1)
        self.log_dict(values, batch_size=batch.num_targets or 1)
        return loss

    def _listen(
        self, batch: Batch, hidden: list[int], attention: list[int]
    ) -> tuple[Head | TopK, Batch, LayerStates | None]:
        """What the teacher says, the pack without the samples that it did not read, and what its layers computed."""
        teacher = self.teacher
        if isinstance(teacher, LocalTeacher):
            with watched(teacher.reading.network.decoder, hidden, attention) as states:
                head = teacher.head(batch)
            assert head is not None
            return head, batch, states
        scores = teacher.score(batch, self.topk)
        self._count(scores.answered)
        if all(scores.answered):
            return scores.words, batch, None
        labels = batch.labels.clone()
        for sample, answered in zip(batch.samples, scores.answered, strict=True):
            if not answered:
                labels[sample.start : sample.stop] = IGNORED_LABEL
        return scores.words, replace(batch, labels=labels, num_targets=int((labels != IGNORED_LABEL).sum())), None

    def _count(self, answered: tuple[bool, ...]) -> None:
        self._seen += len(answered)
        self._unread += len(answered) - sum(answered)
        self.log("train/unread", self._unread / max(self._seen, 1), batch_size=1)
        if self._unread > self.max_dropped * max(self._seen, _MANY):
            raise TeachersFailed(
                f"{self._unread} of {self._seen} samples were read by no teacher, {self.max_dropped:.0%} are allowed "
                "(max_dropped): see the warnings above for which server is dead or slow"
            )

    def _inside(
        self,
        batch: Batch,
        own: LayerStates,
        other: LayerStates | None,
        total: Tensor | float,
        values: dict[str, Tensor],
    ) -> Tensor | float:
        """Losses of hidden states and attention, where layers are followed."""
        if other is None:
            return 0.0
        mask, loss = batch.labels != IGNORED_LABEL, 0.0
        if self.hidden_states is not None:
            first, second = _sides(self.hidden_layers)
            found = self.hidden_states([own.hidden[n] for n in first], [other.hidden[n] for n in second], mask, total)
            values["train/hidden_states"] = found.loss.detach()
            loss = loss + self.hidden_weight * found.loss
        if self.attention is not None:
            pairs = [
                self.attention(own.attention[a], other.attention[b], batch.segments, mask, total).loss
                for a, b in self.attention_layers
            ]
            mean = torch.stack(pairs).mean()
            values["train/attention_divergence"] = mean.detach()
            loss = loss + self.attention_weight * mean
        return loss


def _sides(pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [own for own, _ in pairs], [other for _, other in pairs]
