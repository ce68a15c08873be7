"""Rollouts as a source of data: a loader that answers prompts with the policy under training, and remembers where it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch.distributed as dist

from keyekit.data.dataset import ConversationDataset
from keyekit.data.loader import StatefulLoader, rank_and_world
from keyekit.objectives.sequences import Normalisation
from keyekit.rewards.context_rl import asked_again
from keyekit.rollout.experience import Experience, ScoredResponse, counted, pack_responses
from keyekit.rollout.rounds import RoundMaker, Rounds, divide, pack_length, packs_needed
from keyekit.rollout.stored import restored, stored
from keyekit.rollout.trajectory import Prompt

__all__ = ["RolloutLoader"]

_log = logging.getLogger(__name__)


class RolloutLoader(StatefulLoader):
    """Packs of responses, a few optimizer steps for each round of rollouts.

    At the first pack of a round the prompts are answered with the weights as they are; the packs of the round are then handed
    out one after the other. The state holds the round that is under way, so an interrupted run goes on bit-equal. On another
    number of ranks it goes on with a new round.

    Args:
        prompts: Conversations without their answers.
        rounds: Makes rounds.
        normalisation: Of the objective; decides what the packs of a step count as.
        steps: Optimizer steps of a round.
        packs: Packs of a step on this rank: the trainer's ``accumulate_grad_batches``.
        pack_tokens: Most tokens of a pack. Where the responses of a step do not fit its packs these are larger all the same,
            about equally: how much is logged (``rollout/pack_tokens_over``), and the first time there is a warning.
        seed: Seed of the order of prompts and of the responses.
        recorded: Whether packs bring the choices of routers and indexers, which the engine has to record.

    Raises:
        ValueError: If there are fewer prompts than a round takes on all ranks, a number is not positive, or there is a prompt
            that the engine cannot answer.
    """

    def __init__(
        self,
        prompts: ConversationDataset,
        rounds: RoundMaker,
        normalisation: Normalisation,
        steps: int = 1,
        packs: int = 1,
        pack_tokens: int = 8192,
        seed: int = 0,
        recorded: bool = False,
    ) -> None:
        super().__init__()
        for name, number in (("steps", steps), ("packs", packs), ("pack_tokens", pack_tokens)):
            if number < 1:
                raise ValueError(f"{name}={number}: give at least 1")
        self.prompts = prompts
        self.rounds = rounds
        self.normalisation: Normalisation = normalisation
        self.steps = steps
        self.packs = packs
        self.pack_tokens = pack_tokens
        self.seed = seed
        self.recorded = recorded
        self.patch_size = prompts.encoder.cache.reader.geometry.patch_size
        if len(prompts) < rounds.prompts * rank_and_world()[1]:
            raise ValueError(
                f"a round takes {rounds.prompts} prompts on each of {rank_and_world()[1]} ranks, there are {len(prompts)}"
            )
        for encoded in prompts.encoded:
            rounds.engine.check(encoded)
        self._places = {encoded.sample.id: place for place, encoded in enumerate(prompts.encoded)}
        self._drawn = 0  # prompts that this rank has asked
        self._made = 0  # rounds
        self._plan: list[list[list[ScoredResponse]]] | None = None
        self._meters: dict[str, float] = {}
        self._told = False  # that packs are too large

    def __len__(self) -> int:
        rounds = len(self.prompts) // (self.rounds.prompts * rank_and_world()[1])
        return rounds * self.steps * self.packs

    def batch(self, epoch: int, position: int) -> Experience:
        """The pack at a position of an epoch; the first of a round makes the round."""
        place = position % (self.steps * self.packs)
        if place == 0 or self._plan is None:
            made = self.rounds.make(self._draw(), self.seed + 1_000_003 * (self._made + 1))
            self._made += 1
            self._plan = divide(made.groups, self.steps, self.packs, self.pack_tokens)
            self._meters = made.meters | {"pack_tokens_over": self._tokens_over(self._plan)}
        step, pack = divmod(place, self.packs)
        experience = self._packs(self._plan[step])[pack]
        experience.meters = self._meters if place == 0 else {}
        return experience

    def state_dict(self) -> dict[str, Any]:
        """Position, and the round under way of every rank."""
        own = {
            "drawn": self._drawn,
            "made": self._made,
            "meters": self._meters,
            "plan": self._plan and [[[stored(r) for r in pack] for pack in step] for step in self._plan],
        }
        everyone: list[Any] = [own]
        if dist.is_available() and dist.is_initialized():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, own)
        return {**super().state_dict(), "rounds": everyone}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the round that was under way; see :class:`StatefulLoader`."""
        rank, world = rank_and_world()
        super().load_state_dict(state)
        if len(state["rounds"]) != world:
            whole = self.steps * self.packs
            self._position = self._position // whole * whole
            self._drawn = max(own["drawn"] for own in state["rounds"]) * len(state["rounds"]) // world
            self._made = state["rounds"][0]["made"]
            return
        own = state["rounds"][rank]
        self._drawn, self._made, self._meters = own["drawn"], own["made"], own["meters"]
        plan = own["plan"]
        self._plan = plan and [[[self._restored(r) for r in pack] for pack in step] for step in plan]

    def _draw(self) -> Iterator[Prompt]:
        """This rank's prompts, without end: every pass over all of them has its own order."""
        rank, world = rank_and_world()
        while True:
            place = self._drawn * world + rank
            passes, within = divmod(place, len(self.prompts))
            order = np.random.default_rng((self.seed, passes)).permutation(len(self.prompts))
            self._drawn += 1
            yield self._prompt(int(order[within]))

    def _prompt(self, index: int) -> Prompt:
        return Prompt(encoded=self.prompts.encoded[index], pictures=self.prompts.pictures(index))

    def _packs(self, step: list[list[ScoredResponse]]) -> list[Experience]:
        packs = [pack_responses(responses, self.patch_size, self.recorded) for responses in step]
        return counted(packs, self.normalisation)

    def _tokens_over(self, plan: list[list[list[ScoredResponse]]]) -> float:
        """Tokens of a round's largest pack beyond ``pack_tokens``; the first time it is told what to raise."""
        largest = max(pack_length(pack) for step in plan for pack in step)
        if largest > self.pack_tokens and not self._told:
            self._told = True
            longest = max(len(one.trajectory) for step in plan for pack in step for one in pack)
            alone = longest > self.pack_tokens
            _log.warning(
                "a pack of responses has %d tokens, pack_tokens=%d: it is learnt from all the same, and takes memory for them. "
                "Raise %s, or ask for fewer or shorter responses; rollout/pack_tokens_over says how it goes on",
                largest,
                self.pack_tokens,
                f"pack_tokens to {longest}, what a single response has"
                if alone
                else f"trainer.accumulate_grad_batches from {self.packs} to {packs_needed(plan, self.pack_tokens)}",
            )
        return float(max(largest - self.pack_tokens, 0))

    def _restored(self, response: dict[str, Any]) -> ScoredResponse:
        again = response["again"]
        prompt = self._prompt(self._places[response["prompt"]])
        if again is not None:
            prompt = Prompt.of(asked_again(prompt.encoded.sample, **again), self.prompts.encoder)
        if response["hint"] is not None:
            prompt = self._hinted(prompt, response["hint"])
        return restored(response, prompt)

    def _hinted(self, prompt: Prompt, level: int) -> Prompt:
        hint = self.rounds.hint if isinstance(self.rounds, Rounds) else None
        hinted = None if hint is None else hint(prompt, level)
        if hinted is None:
            raise ValueError(
                f"the round under way asked {prompt.name} with a hint that is not there any more: resume with the same hints"
            )
        return hinted
