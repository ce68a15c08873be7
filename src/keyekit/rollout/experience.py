"""What a policy learns from: a pack of responses with their advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from keyekit.batch import IGNORED_LABEL, Batch
from keyekit.data.packing import collate
from keyekit.models.decoder import LayerSelection
from keyekit.objectives.sequences import Normalisation, effective_count
from keyekit.rollout.ledger import replayed
from keyekit.rollout.trajectory import Trajectory

__all__ = ["Experience", "ScoredResponse", "counted", "pack_responses"]

_EMPTY_PACK = 8  # tokens of a pack without a response, which keeps a rank in step with the others


class ScoredResponse(NamedTuple):
    """A response with what it was worth.

    Args:
        trajectory: The response.
        reward: Its reward.
        advantage: How much better it was than the others to the same prompt.
        parts: Its reward by parts, for the log.
    """

    trajectory: Trajectory
    reward: float
    advantage: float
    parts: dict[str, float]


@dataclass(slots=True, kw_only=True)
class Experience(Batch):
    """A pack of prompts with their responses; the labels are the tokens of the responses.

    Args:
        old_log_probs: ``[T]`` float32 log-probability of each label under the policy that drew it.
        advantages: ``[T]`` float32, of the response that a token belongs to.
        step_count: What this rank's packs of the optimizer step count as together, as the objective normalises.
        selections: Choices of routers and indexers in the rollout, if they were recorded.
        meters: Numbers about the round of rollouts, with its first pack alone.
    """

    old_log_probs: Tensor
    advantages: Tensor
    step_count: float
    selections: tuple[LayerSelection, ...] | None = None
    meters: dict[str, float] = field(default_factory=dict)

    @property
    def mask(self) -> Tensor:
        """``[T]`` bool, true where a token of a response is to be predicted."""
        return self.labels != IGNORED_LABEL

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Experience:
        """Copy every tensor to ``device``; Lightning calls this."""
        moved = Batch.to(self, device, non_blocking)
        assert isinstance(moved, Experience)
        chosen = None
        if self.selections is not None:
            chosen = tuple(
                LayerSelection(keys=_moved(layer.keys, device), experts=_moved(layer.experts, device))
                for layer in self.selections
            )
        return replace(
            moved,
            old_log_probs=self.old_log_probs.to(device, non_blocking=non_blocking),
            advantages=self.advantages.to(device, non_blocking=non_blocking),
            selections=chosen,
        )


def pack_responses(responses: Sequence[ScoredResponse], patch_size: int, replay: bool) -> Experience:
    """Put responses side by side, each behind its prompt.

    Args:
        responses: Of any prompts; none makes a small pack of padding.
        patch_size: Side of a patch in pixels.
        replay: Whether the recorded choices of routers and indexers come along, to be replayed or compared with.

    Returns:
        The pack; its :attr:`Experience.step_count` is still to be set.
    """
    trajectories = [response.trajectory for response in responses]
    pictures = [trajectory.pictures for trajectory in trajectories]
    samples = [trajectory.encoded() for trajectory in trajectories]
    batch = collate(samples, pictures, None if samples else _EMPTY_PACK, patch_size)
    targets = batch.labels != IGNORED_LABEL
    ledgers = [trajectory.ledger for trajectory in trajectories if trajectory.ledger is not None]
    if replay and len(ledgers) < len(trajectories):
        raise ValueError("the choices of every response are needed: let the engine record them (record=True)")
    total = batch.tokens.shape[0]
    return Experience(
        **{entry.name: getattr(batch, entry.name) for entry in fields(Batch)},
        old_log_probs=_at(targets, [value for t in trajectories for value in t.sampling_log_probabilities]),
        advantages=_at(targets, [response.advantage for response in responses for _ in response.trajectory.tokens]),
        step_count=0.0,
        selections=replayed(ledgers, total, "cpu") if replay and ledgers else None,
    )


def counted(packs: Sequence[Experience], normalisation: Normalisation) -> list[Experience]:
    """The packs of one optimizer step, knowing what they count as together."""
    total = sum(float(effective_count(pack.mask, pack.segments, normalisation)) for pack in packs)
    return [replace(pack, step_count=total) for pack in packs]


def _at(targets: Tensor, values: Sequence[float]) -> Tensor:
    spread = torch.zeros(len(targets))
    spread[targets] = torch.tensor(values, dtype=torch.float32)
    return spread


def _moved(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
