"""On-policy distillation: a student learns on its own answers from the teachers of their kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from keyekit.batch import Batch
from keyekit.data.dataset import ConversationDataset
from keyekit.data.vocabulary import Vocabulary
from keyekit.models.sampling import Sampler
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.objectives.distillation.base import DistillationObjective, Head, OnPolicy
from keyekit.objectives.distillation.matching import Matching
from keyekit.objectives.distillation.mopd import MOPD
from keyekit.optim.groups import ParameterGroup
from keyekit.optim.optimizers import Optimizer
from keyekit.optim.schedules import Schedule
from keyekit.rewards.base import Reward
from keyekit.rollout.categories import TokenCategories
from keyekit.rollout.collapse import CollapseDetector
from keyekit.rollout.engine import RolloutEngine, RolloutSpec
from keyekit.rollout.lessons import Lesson, LessonLoader, Lessons
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.teachers.base import Teacher
from keyekit.rollout.teachers.routing import RoutedTeachers
from keyekit.tasks.language_modeling import LanguageModeling

__all__ = ["OnPolicyDistillation", "check_vocabularies"]


class OnPolicyDistillation(LanguageModeling):
    """The student answers prompts, teachers read its answers, and it learns what they would have said (2.0 sheet 10.7).

    Answers come from a loader as in :class:`~keyekit.tasks.policy.PolicyOptimization`; the state of a round, what the teachers
    said included, is part of checkpoints. Validation and test answer held-out prompts greedily.

    Args:
        network: The student.
        teachers: Teacher by pattern of modality and domain; see :class:`~keyekit.rollout.teachers.routing.RoutedTeachers`.
        objective: How what they say becomes a loss; MOPD with credit to words by default (docs/decisions/0008).
        topk: Words that teachers list; as many as the objective compares by default, else 32 (2.0 sheet 15).
        categories: Regular expression of each category of tokens, by the names that the objective has factors for.
        detector: Finds answers that begin to repeat themselves, for the objective's penalty.
        max_dropped: Largest share of a round's answers that may go unread, because a teacher is dead or slow.
        reward: Rewards answers for the log alone.
        prompts_per_round: Prompts that each rank asks in a round.
        responses: Responses to each prompt.
        steps_per_round: Optimizer steps of a round; the packs of a step are ``accumulate_grad_batches``.
        temperature: Of the rollouts.
        engine: What draws responses; the process that trains does by default.
        pack_tokens: Most tokens of a pack of responses, and of what teachers read at a time.
        seed: Seed of prompts and responses.
        learning_rate: Peak learning rate.
        weight_decay: Decay of matrices.
        betas: AdamW's averaging factors, where no optimizer is named.
        groups: Learning rates, decay and freezing by name pattern; the first match decides.
        schedule: Learning-rate schedule; warm-up and cosine by default.
        router_balance: Factor on the routers' balance loss.
        max_new_tokens: Longest answer, in rollouts and in evaluation.
        init_from: Folder with weights to start from.
        optimizer: How gradients become steps; AdamW by default.

    Raises:
        ValueError: If a number is out of range, or categories and factors have different names.
    """

    learns_from = "prompts"

    def __init__(
        self,
        network: VisionLanguageModel,
        teachers: dict[str, Teacher],
        objective: DistillationObjective | None = None,
        topk: int | None = None,
        categories: dict[str, str] | None = None,
        detector: CollapseDetector | None = None,
        max_dropped: float = 0.1,
        reward: Reward | None = None,
        prompts_per_round: int = 64,
        responses: int = 1,
        steps_per_round: int = 1,
        temperature: float = 1.0,
        engine: Callable[[RolloutSpec], RolloutEngine] = NativeEngine,
        pack_tokens: int = 8192,
        seed: int = 0,
        learning_rate: float = 1e-6,
        weight_decay: float = 0.0,
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
        if not 0 <= max_dropped <= 1:
            raise ValueError(f"max_dropped={max_dropped} is a share: give a number from 0 to 1")
        if topk is not None and topk < 1:
            raise ValueError(f"topk={topk}: teachers list at least 1 word")
        self.distillation = objective or MOPD(credit="words")
        self.topk = topk or getattr(self.distillation, "topk", None) or 32
        self.categories = dict(categories or {})
        _check_objective(self.distillation, self.categories)
        self.detector = detector or CollapseDetector()
        self.max_dropped = max_dropped
        self.reward = reward
        self.prompts_per_round = prompts_per_round
        self.responses = responses
        self.steps_per_round = steps_per_round
        self.temperature = temperature
        self.engine = engine
        self.pack_tokens = pack_tokens
        self.seed = seed
        self._teacher: list[Teacher] = [RoutedTeachers(teachers)]  # in a list, so that no checkpoint holds networks

    @property
    def teacher(self) -> Teacher:
        """All teachers as one."""
        return self._teacher[0]

    def setup(self, stage: str) -> None:
        """See :class:`~keyekit.tasks.language_modeling.LanguageModeling`; and refuse teachers of another vocabulary.

        Raises:
            ValueError: If a teacher knows other tokens than the student.
        """
        super().setup(stage)
        if stage == "fit":
            tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
            routes = self.teacher.routes if isinstance(self.teacher, RoutedTeachers) else {"teacher": self.teacher}
            check_vocabularies(tokenizer, routes)

    def rollout_loader(self, prompts: ConversationDataset, tokenizer: Any) -> LessonLoader:
        """The loader of a fit; the data module asks for it.

        Args:
            prompts: Conversations without their answers.
            tokenizer: Turns tokens into text, and knows which of them end an answer.

        Raises:
            ValueError: If a prompt has no teacher.
        """
        self.teacher.check(encoded.info(0) for encoded in prompts.encoded)
        self.teacher.move(self.device)
        stop = [tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
        spec = RolloutSpec(
            self.network, stop, self.max_new_tokens, Sampler(temperature=self.temperature), encoder=prompts.encoder
        )
        lessons: Any = Lessons(  # makes rounds, if not those of a policy
            engine=self.engine(spec),
            teacher=self.teacher,
            student=self.network,
            topk=self.topk,
            asks=getattr(self.distillation, "mode", "") == "teacher_on_student",
            prompts=self.prompts_per_round,
            responses=self.responses,
            patch_size=prompts.encoder.cache.reader.geometry.patch_size,
            pack_tokens=self.pack_tokens,
            detector=self.detector,
            max_dropped=self.max_dropped,
            decode=tokenizer.decode,
            categories=TokenCategories(self.categories, tokenizer.decode) if self.categories else None,
            judge=None if self.reward is None else self.reward.score,
        )
        return LessonLoader(
            prompts,
            lessons,
            getattr(self.distillation, "normalisation", "token"),
            steps=self.steps_per_round,
            packs=self.trainer.accumulate_grad_batches,
            pack_tokens=self.pack_tokens,
            seed=self.seed,
        )

    def on_train_start(self) -> None:
        """Nothing is read ahead: a pack knows what its whole step counts as, and the next round needs the next weights.

        Raises:
            CheckpointError: If the network was built on meta and nothing gave it values.
        """
        self.check_values()
        self.teacher.move(self.device)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Responses are not divided among ranks."""
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one pack of responses."""
        assert isinstance(batch, Lesson)
        output = self.network(batch)
        learnt = self.distillation(
            Head(hidden=output.hidden, weight=self.network.decoder.lm_head.weight),
            batch.words,
            batch.labels,
            batch.num_targets,
            OnPolicy(segments=batch.segments, categories=batch.categories, collapse=batch.collapse),
            total=self._step_count(batch.step_count),
        )
        others, values = self._other_losses(output)
        loss = learnt.loss + others
        values = {f"train/{name}": value for name, value in learnt.meters.items()} | values
        self.log("train/loss", loss, prog_bar=True, batch_size=batch.num_targets or 1)
        self.log_dict(values, batch_size=batch.num_targets or 1)
        self.log_dict({f"rollout/{name}": value for name, value in batch.meters.items()}, batch_size=1)
        return loss

    def _step_count(self, own: float) -> Tensor:
        """What the packs of all ranks count as, over their number: the mean of all packs' losses is the loss of the step."""
        packs = self.trainer.accumulate_grad_batches * self.trainer.world_size
        total = torch.tensor(own, device=self.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(total)
        return total.clamp(min=1.0) / packs


def check_vocabularies(tokenizer: Any | None, teachers: dict[str, Teacher]) -> None:
    """Refuse teachers that mean something else by a token id.

    Args:
        tokenizer: The student's; without one nothing can be compared.
        teachers: Teachers by name.

    Raises:
        ValueError: With the name of the teacher and what differs.
    """
    if tokenizer is None:
        return
    own = Vocabulary.of(tokenizer)
    for name, teacher in teachers.items():
        found = teacher.vocabulary()
        problem = None if found is None else own.difference(found, repr(name))
        if problem is not None:
            raise ValueError(f"{problem}: a teacher has to read the student's token ids")


def _check_objective(objective: DistillationObjective, categories: dict[str, str]) -> None:
    if isinstance(objective, Matching) and objective.whose == "student":
        raise ValueError("whose='student' needs a teacher's hidden states, and here teachers send lists: leave it out")
    if not isinstance(objective, MOPD):
        if categories:
            raise ValueError(f"{type(objective).__name__} knows no categories of tokens; MOPD does")
        return
    if set(categories) != set(objective.category_factors):
        raise ValueError(
            f"categories name {sorted(categories)}, the objective has factors for {sorted(objective.category_factors)}: "
            "they need the same names"
        )
    if objective.credit == "sampled" and not objective.category_factors and not objective.repetition_penalty:
        rank_zero_warn(
            "MOPD with credit='sampled' is the formula as printed: on average it teaches nothing (docs/decisions/0008). Take "
            "credit='words', unless that is what you want to measure."
        )
