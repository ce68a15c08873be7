"""Reinforcement learning on the policy's own rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from keyekit.batch import Batch
from keyekit.data.dataset import ConversationDataset
from keyekit.metrics.answers import Prediction
from keyekit.models.sampling import Sampler
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.objectives.policy.base import PolicyObjective, PolicyOutput
from keyekit.objectives.policy.base import Rollouts as SampledAnswers
from keyekit.objectives.policy.chunked_kl import chunked_kl
from keyekit.objectives.policy.gspo import GSPO
from keyekit.objectives.policy.reinforce import ReinforcePlusPlus
from keyekit.objectives.token_log_probs import token_log_probs
from keyekit.optim.groups import ParameterGroup
from keyekit.optim.optimizers import Optimizer
from keyekit.optim.schedules import Schedule
from keyekit.rewards.base import Reward
from keyekit.rewards.context_rl import MistakeReports
from keyekit.rollout.engine import RolloutEngine, RolloutSpec
from keyekit.rollout.environments import Environment
from keyekit.rollout.experience import Experience
from keyekit.rollout.hints import Hints
from keyekit.rollout.ledger import disagreement
from keyekit.rollout.loader import RolloutLoader
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.referenced import ReferencedExperience, ReferencedLoader, with_token_advantages
from keyekit.rollout.rounds import Rounds
from keyekit.rollout.second_attempts import SecondAttempts
from keyekit.rollout.shuffled import shuffled
from keyekit.rollout.trajectory import Prompt
from keyekit.rollout.turns import TurnEngine
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.tasks.reference import FrozenReference

__all__ = ["PolicyOptimization"]


class PolicyOptimization(LanguageModeling):
    """Answer prompts, reward the answers, and make the better ones more likely (8B sheet 5.5 and 5.8, 2.0 sheet 10).

    Rollouts are a source of data: the data module's prompts go through :class:`~keyekit.rollout.loader.RolloutLoader`, which
    answers them with the weights as they are and hands out packs of responses. The rest is a training step like any other, so
    trainer, callbacks, checkpoints and resume work as they do elsewhere. Validation and test answer held-out prompts greedily,
    with the environment if there is one.

    Args:
        network: The policy.
        reward: What an answer is worth.
        objective: How advantages become a loss; GSPO by default, as in every stage of Keye-VL-2.0 (2.0 sheet 10.1).
        prompts_per_round: Prompts that each rank asks in a round.
        responses: Responses to each prompt.
        steps_per_round: Optimizer steps of a round; the packs of a step are ``accumulate_grad_batches``.
        oversampling: Up to so many times ``prompts_per_round`` are asked, until enough groups have rewards that differ.
        keep_flat: Whether groups with equal rewards count in means.
        temperature: Of the rollouts and of the log-probabilities that are trained.
        engine: What draws responses; the native engine, in the process that trains, by default.
        environment: What replies between turns of a response, such as image tools; by default a response is one turn.
        turns: Most turns of a response.
        reports: Where every answer to a prompt is wrong, has mistakes reported and the prompt answered again (2.0 sheet 10.3).
        hints: Where every answer to a prompt is wrong, what part of its solution is told (8B sheet 5.8).
        pack_tokens: Most tokens of a pack of responses.
        replay: Whether choices of routers and indexers are recorded in rollouts and replayed in training.
        compare_choices: Whether they are recorded, though not replayed, to log on how many of them rollout and training differ.
        shuffle_rewards: Whether rewards are dealt to other prompts than they are for: the control that must learn nothing.
        seed: Seed of prompts and responses.
        learning_rate: Peak learning rate.
        weight_decay: Decay of matrices.
        betas: AdamW's averaging factors, where no optimizer is named.
        groups: Learning rates, decay and freezing by name pattern; the first match decides.
        schedule: Learning-rate schedule; warm-up and cosine by default.
        router_balance: Factor on the routers' balance loss.
        max_new_tokens: Longest answer, in rollouts and in evaluation.
        init_from: Folder with weights to start from; also the reference of the divergence, where the objective has one.
        optimizer: How gradients become steps; AdamW by default.

    Raises:
        ValueError: If the temperature is not positive: greedy responses of a group would all be the same.
    """

    learns_from = "prompts"

    def __init__(
        self,
        network: VisionLanguageModel,
        reward: Reward,
        objective: PolicyObjective | None = None,
        prompts_per_round: int = 16,
        responses: int = 8,
        steps_per_round: int = 1,
        oversampling: float = 1.0,
        keep_flat: bool = False,
        temperature: float = 1.0,
        engine: Callable[[RolloutSpec], RolloutEngine] = NativeEngine,
        environment: Environment | None = None,
        turns: int = 5,
        reports: MistakeReports | None = None,
        hints: Hints | None = None,
        pack_tokens: int = 8192,
        replay: bool = False,
        compare_choices: bool = False,
        shuffle_rewards: bool = False,
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
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: responses of a group have to differ, give a number above 0")
        self.reward = reward
        self.policy = objective or GSPO()
        self.prompts_per_round = prompts_per_round
        self.responses = responses
        self.steps_per_round = steps_per_round
        self.oversampling = oversampling
        self.keep_flat = keep_flat
        self.temperature = temperature
        self.engine = engine
        self.environment = environment
        self.turns = turns
        self.reports = reports
        self.hints = hints
        self.pack_tokens = pack_tokens
        self.replay = replay
        self.records = replay or compare_choices
        self.shuffle_rewards = shuffle_rewards
        self.seed = seed
        self._reference = FrozenReference()

    @property
    def keeps_reference(self) -> bool:
        """See :class:`~keyekit.tasks.base.Task`."""
        return self.policy.needs_reference

    def setup(self, stage: str) -> None:
        """See :class:`~keyekit.tasks.language_modeling.LanguageModeling`; and keep a frozen copy where a divergence needs one.

        Raises:
            ValueError: If there is a divergence from the reference but no ``init_from`` to take it from.
        """
        super().setup(stage)
        if stage == "fit" and self.keeps_reference:
            if self.init_from is None:
                name = "kl_weight" if self.policy.kl_weight else "reward_kl"
                raise ValueError(f"{name} needs a reference: give the folder that training starts from as init_from")
            self._reference.copy(self.network)

    def configure_model(self) -> None:
        """Spread the network over the ranks, and the reference in the same way."""
        super().configure_model()
        if self._reference:
            assert self.init_from is not None
            self._reference.place(self.trainer, self.init_from)

    def rollout_loader(self, prompts: ConversationDataset, tokenizer: Any) -> RolloutLoader:
        """The loader of a fit; the data module asks for it.

        Args:
            prompts: Conversations without their answers.
            tokenizer: Turns tokens into text, and knows which of them end an answer.
        """
        sampler = Sampler(temperature=self.temperature)
        spec = RolloutSpec(self.network, _stop(tokenizer), self.max_new_tokens, sampler, self.records, prompts.encoder)
        engine = self.engine(spec)
        longest = max(self.pack_tokens - self.max_new_tokens, 1)  # with a turn behind it, a sequence still fits a pack
        if self.environment is not None:
            engine = TurnEngine(spec, engine, self.environment, self.turns, longest)
        rounds = Rounds(
            engine=engine,
            judge=shuffled(self.reward.score, self.seed) if self.shuffle_rewards else self.reward.score,
            compare=self.policy.advantages,
            decode=tokenizer.decode,
            prompts=self.prompts_per_round,
            responses=self.responses,
            oversampling=self.oversampling,
            keep_flat=self.keep_flat,
            hint=self.hints and partial(self.hints.prompt, encoder=prompts.encoder),
            second=self.reports and SecondAttempts(reports=self.reports, encoder=prompts.encoder, longest=longest),
        )
        kind = partial(ReferencedLoader, look_through=self._with_token_advantages) if self._reward_kl else RolloutLoader
        return kind(
            prompts,
            rounds,
            self.policy.normalisation,
            steps=self.steps_per_round,
            packs=self.trainer.accumulate_grad_batches,
            pack_tokens=self.pack_tokens,
            seed=self.seed,
            recorded=self.records,
        )

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Prediction]]:
        """Answer every prompt of a pack, with the environment if there is one."""
        return self._answer_in_turns(batch) if dataloader_idx == 0 else self.answer(batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Prediction]]:
        """Answer every prompt of a pack, with the environment where the eyes are open: tools see the real pictures."""
        return self._answer_in_turns(batch) if dataloader_idx == 0 else self.answer(batch)

    def _answer_in_turns(self, batch: Batch) -> dict[str, list[Prediction]]:
        if self.environment is None:
            return self.answer(batch)
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        places = {encoded.sample.id: place for place, encoded in enumerate(data.heldout.encoded)}
        chosen = [places[sample.id] for sample in batch.samples]
        prompts = [Prompt(encoded=data.heldout.encoded[n], pictures=data.heldout.pictures(n)) for n in chosen]
        spec = RolloutSpec(self.network, _stop(data.tokenizer), self.max_new_tokens, Sampler(), encoder=data.encoder)
        engine = TurnEngine(spec, NativeEngine(spec), self.environment, self.turns)
        texts = [data.tokenizer.decode(list(response.answer)) for (response,) in engine.rollout(prompts, 1, self.seed)]
        return {"predictions": [Prediction(info=s, text=text) for s, text in zip(batch.samples, texts, strict=True)]}

    def on_train_start(self) -> None:
        """Nothing is read ahead: a pack knows what its whole step counts as, and the next round needs the next weights.

        Raises:
            CheckpointError: If the network was built on meta and nothing gave it values.
        """
        self.check_values()

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Responses are not divided among ranks."""
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one pack of responses."""
        assert isinstance(batch, Experience)
        output = self.network(batch, selections=batch.selections if self.replay else None)
        policy = self._policy_loss(batch, output.hidden)
        others, values = self._other_losses(output)
        loss = policy.loss + others
        if batch.selections is not None:
            real = batch.samples[-1].stop
            shares = disagreement(batch.selections, output.selections, real)
            self.log_dict({f"rollout/{name}": share for name, share in shares.items()}, batch_size=real)
        values = {f"train/{name}": value for name, value in policy.meters.items()} | values
        self.log("train/loss", loss, prog_bar=True, batch_size=batch.num_targets or 1)
        self.log_dict(values, batch_size=batch.num_targets or 1)
        self.log_dict({f"rollout/{name}": value for name, value in batch.meters.items()}, batch_size=1)
        return loss

    def _policy_loss(self, batch: Experience, hidden: Tensor) -> PolicyOutput:
        weight = self.network.decoder.lm_head.weight
        # Entropies of logits that are there anyway; they have a backward pass only where the objective rewards them.
        found = token_log_probs(hidden, weight, batch.labels, batch.num_targets, self.temperature, entropies=True)
        exact = bool(self._reference) and self.policy.kl_weight != 0 and self.policy.kl_form == "full"
        answers = SampledAnswers(
            log_probs=found.values,
            old_log_probs=batch.old_log_probs,
            advantages=batch.advantages,
            mask=batch.mask,
            segments=batch.segments,
            reference_log_probs=None if exact else self._reference_log_probs(batch),
            reference_kl=self._exact_kl(batch, hidden) if exact else None,
            entropies=found.entropies,
        )
        return self.policy(answers, self._step_count(batch.step_count))

    def _log_probs(self, batch: Batch, network: VisionLanguageModel, hidden: Tensor) -> Tensor:
        weight = network.decoder.lm_head.weight
        return token_log_probs(hidden, weight, batch.labels, batch.num_targets, self.temperature).values

    def _reference_log_probs(self, batch: Experience) -> Tensor | None:
        if isinstance(batch, ReferencedExperience):
            return batch.reference_log_probs
        return self._reference.ask(batch, self._log_probs) if self._reference else None

    def _exact_kl(self, batch: Experience, hidden: Tensor) -> Tensor:
        """``[T]`` divergence from the reference over the whole vocabulary."""
        known = self._reference.ask(batch, _kept_head)
        weight = self.network.decoder.lm_head.weight
        return chunked_kl(hidden, weight, *known, batch.labels, batch.num_targets, self.temperature)

    @property
    def _reward_kl(self) -> float:
        return self.policy.reward_kl if isinstance(self.policy, ReinforcePlusPlus) else 0.0

    def _with_token_advantages(self, packs: Sequence[Experience]) -> list[Experience]:
        """The packs of a step once the reference has read them; every rank asks it as often."""
        assert isinstance(self.policy, ReinforcePlusPlus)
        with self.trainer.precision_plugin.train_step_context():
            said = [self._reference.ask(pack.to(self.device), self._log_probs).cpu() for pack in packs]
        return with_token_advantages(packs, said, self.policy, self._over_ranks)

    def _step_count(self, own: float) -> Tensor | float:
        """What the packs of all ranks count as, over their number: the mean of all packs' losses is the loss of the step."""
        packs = self.trainer.accumulate_grad_batches * self.trainer.world_size
        if self.trainer.world_size == 1:
            return max(own, 1.0) / packs
        return self._over_ranks(torch.tensor(own, device=self.device)).clamp(min=1.0) / packs

    def _over_ranks(self, own: Tensor) -> Tensor:
        """The sum of a number of every rank, where it was."""
        if self.trainer.world_size == 1:
            return own
        total = own.to(self.device, copy=True)
        torch.distributed.all_reduce(total)
        return total.to(own.device)


def _kept_head(batch: Batch, network: VisionLanguageModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and output layer of a reference, as the backward pass needs them."""
    weight = network.decoder.lm_head.weight
    # Ranks that share a reference give back what they gathered as soon as it has answered.
    return hidden, weight.clone() if isinstance(network, FSDPModule) else weight


def _stop(tokenizer: Any) -> list[int]:
    """Tokens that end a turn."""
    return [tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
