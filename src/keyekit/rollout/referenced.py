"""Packs of responses that a reference has read before they are handed out, those of an optimizer step together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from keyekit.data.dataset import ConversationDataset
from keyekit.objectives.policy.advantages import whiten
from keyekit.objectives.policy.base import Rollouts
from keyekit.objectives.policy.reinforce import ReinforcePlusPlus
from keyekit.objectives.sequences import Normalisation, sequence_means
from keyekit.rollout.experience import Experience, ScoredResponse
from keyekit.rollout.loader import RolloutLoader
from keyekit.rollout.rounds import RoundMaker

__all__ = ["ReferencedExperience", "ReferencedLoader", "with_token_advantages"]


@dataclass(slots=True, kw_only=True)
class ReferencedExperience(Experience):
    """A pack of responses with what the reference says of them.

    Args:
        reference_log_probs: ``[T]`` log-probability of each label under the reference.
    """

    reference_log_probs: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ReferencedExperience:
        """Copy every tensor to ``device``; Lightning calls this."""
        moved = Experience.to(self, device, non_blocking)
        assert isinstance(moved, ReferencedExperience)
        return replace(moved, reference_log_probs=self.reference_log_probs.to(device, non_blocking=non_blocking))


class ReferencedLoader(RolloutLoader):
    """A :class:`~keyekit.rollout.loader.RolloutLoader` whose packs are looked through, all of a step at once, before the step.

    What is found is not saved: a resumed run looks through the packs again.

    Args:
        prompts: Conversations without their answers.
        rounds: Makes rounds.
        normalisation: Of the objective.
        look_through: From the packs of a step on this rank to those that are handed out; all ranks call it together.
        steps: Optimizer steps of a round.
        packs: Packs of a step on this rank.
        pack_tokens: Most tokens of a pack.
        seed: Seed of the order of prompts and of the responses.
        recorded: Whether packs bring the choices of routers and indexers.
    """

    def __init__(
        self,
        prompts: ConversationDataset,
        rounds: RoundMaker,
        normalisation: Normalisation,
        look_through: Callable[[Sequence[Experience]], list[Experience]],
        steps: int = 1,
        packs: int = 1,
        pack_tokens: int = 8192,
        seed: int = 0,
        recorded: bool = False,
    ) -> None:
        super().__init__(prompts, rounds, normalisation, steps, packs, pack_tokens, seed, recorded)
        self.look_through = look_through
        self._seen: tuple[list[list[ScoredResponse]], list[Experience]] | None = None

    def _packs(self, step: list[list[ScoredResponse]]) -> list[Experience]:
        if self._seen is None or self._seen[0] is not step:
            self._seen = step, self.look_through(super()._packs(step))
        return self._seen[1]


def with_token_advantages(
    packs: Sequence[Experience],
    said: Sequence[Tensor],
    objective: ReinforcePlusPlus,
    add_up: Callable[[Tensor], Tensor],
) -> list[Experience]:
    """Let every token's divergence from a reference cost reward, and whiten advantages over all packs of a step.

    Args:
        packs: Of a step, on this rank; the advantages of their tokens are rewards less the baseline.
        said: ``[T]`` log-probabilities of each pack's labels under the reference.
        objective: Knows what the divergence costs.
        add_up: Adds a number of this rank's to those of the others.
    """
    answers = [
        Rollouts(
            log_probs=pack.old_log_probs,
            old_log_probs=pack.old_log_probs,
            advantages=pack.advantages,
            mask=pack.mask,
            segments=pack.segments,
            reference_log_probs=known,
        ).sound()
        for pack, known in zip(packs, said, strict=True)
    ]
    returns = [objective.token_returns(_rewards(one), one) for one in answers]
    masks = torch.cat([one.mask for one in answers])
    advantages = whiten(torch.cat(returns), masks, add_up=add_up).split([len(each) for each in returns])
    changed: list[Experience] = []
    for pack, values, known in zip(packs, advantages, said, strict=True):
        kept: dict[str, Any] = {entry.name: getattr(pack, entry.name) for entry in fields(Experience)}
        kept["advantages"] = values
        changed.append(ReferencedExperience(**kept, reference_log_probs=known))
    return changed


def _rewards(answers: Rollouts) -> Tensor:
    """``[B]`` reward of each answer, of which every token has a copy."""
    return sequence_means(answers.token_advantages, answers.mask, answers.segments)
