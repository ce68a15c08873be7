"""The contract of policy objectives: log-probabilities of sampled tokens and advantages in, a loss and its meters out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.objectives.policy.advantages import Advantages, group_advantages
from keyekit.objectives.policy.kl import LARGEST_LOG_RATIO, KLForm, kl_estimate
from keyekit.objectives.sequences import Normalisation, average, effective_count, sequence_sums, spread

__all__ = ["PolicyObjective", "PolicyOutput", "PolicyTerms", "Rollouts"]


@dataclass(slots=True, kw_only=True)
class Rollouts:
    """Sampled answers of a pack, token by token.

    Args:
        log_probs: ``[T]`` log-probability of each sampled token under the policy that is trained.
        old_log_probs: ``[T]`` the same under the policy that sampled.
        advantages: ``[B]``, one a segment, or ``[T]``, one a token.
        mask: ``[T]`` bool, true for tokens that the policy chose itself; not for prompts, observations of tools and the tail.
        segments: One segment per answer with its prompt; others, such as the tail, have no masked token.
        reference_log_probs: ``[T]`` under the frozen reference, for an estimated divergence.
        reference_kl: ``[T]`` exact divergence from the reference, with its gradient, for the form ``full``; see
            :func:`~keyekit.objectives.policy.chunked_kl.chunked_kl`.
        entropies: ``[T]`` entropy of each prediction, for the meter or a bonus.

    Raises:
        ValueError: If a shape does not fit the segments.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    mask: Tensor
    segments: Segments
    reference_log_probs: Tensor | None = None
    reference_kl: Tensor | None = None
    entropies: Tensor | None = None

    def __post_init__(self) -> None:
        tokens = (self.segments.total,)
        for name in ("log_probs", "old_log_probs", "mask", "reference_log_probs", "reference_kl", "entropies"):
            value = getattr(self, name)
            if value is not None and value.shape != tokens:
                raise ValueError(f"{name} has the shape {tuple(value.shape)}, the segments hold {tokens[0]} tokens")
        if self.advantages.shape not in (tokens, (len(self.segments),)):
            raise ValueError(
                f"advantages have the shape {tuple(self.advantages.shape)}: give one for each of the {len(self.segments)} "
                f"segments or of the {tokens[0]} tokens"
            )

    @property
    def token_advantages(self) -> Tensor:
        """``[T]``."""
        if self.advantages.shape == (self.segments.total,):
            return self.advantages
        return spread(self.advantages, self.segments)

    def keep(self, sequences: Tensor) -> Rollouts:
        """Mask the answers that are not kept, such as those without an advantage.

        Args:
            sequences: ``[B]`` bool, one a segment.
        """
        return replace(self, mask=self.mask & spread(sequences, self.segments))

    def sound(self) -> Rollouts:
        """Mask every answer in which a recorded number is NaN or infinite, so that it cannot poison the others.

        The policy's own log-probabilities are not looked at: where they are no numbers, the model is broken, and an alarm shall
        ring.
        """
        good = self.old_log_probs.isfinite() & self.token_advantages.isfinite()
        if self.reference_log_probs is not None:
            good = good & self.reference_log_probs.isfinite()
        bad = sequence_sums((self.mask & ~good).float(), self.segments)
        return self.keep(bad == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTerms:
    """What an objective makes of each token.

    Args:
        losses: ``[T]``, differentiable.
        ratios: ``[T]`` importance ratios, whatever an objective takes for them.
        low: ``[T]`` bool, where the lower bound cut the gradient off.
        high: ``[T]`` bool, where the upper bound did.
    """

    losses: Tensor
    ratios: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOutput:
    """What a policy objective returns.

    Args:
        loss: Scalar.
        meters: Detached scalars: ``ratio`` (mean), ``clip_fraction`` with its parts ``clip_low`` and ``clip_high``,
            ``old_kl`` (of the sampling policy from this one, k3), ``sequences``, ``tokens``, ``dropped_sequences`` (a recorded
            number was none); ``kl`` and ``entropy`` where they are given.
    """

    loss: Tensor
    meters: dict[str, Tensor]


class PolicyObjective(nn.Module, ABC):
    """Base of the policy family.

    Args:
        normalisation: What a token's loss is divided by; see :data:`~keyekit.objectives.sequences.Normalisation`.
        fixed_length: The constant of the normalisation ``fixed``.
        kl_weight: Factor on the divergence from the reference; 0 needs no reference.
        kl_form: How it is taken; see :mod:`keyekit.objectives.policy.kl`.
        entropy_weight: Factor on the entropy, as a bonus.

    Raises:
        ValueError: If an argument is unknown.
    """

    def __init__(
        self,
        normalisation: Normalisation,
        fixed_length: int | None = None,
        kl_weight: float = 0.0,
        kl_form: KLForm = "k3",
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if kl_form not in ("k1", "k2", "k3", "full"):
            raise ValueError(f"kl_form={kl_form!r}: choose k1, k2, k3 or full")
        if normalisation not in ("token", "sequence", "fixed"):
            raise ValueError(f"normalisation={normalisation!r}: choose token, sequence or fixed")
        self.normalisation: Normalisation = normalisation
        self.fixed_length = fixed_length
        self.kl_weight = kl_weight
        self.kl_form: KLForm = kl_form
        self.entropy_weight = entropy_weight

    @property
    def needs_reference(self) -> bool:
        """Whether it compares the policy with a reference."""
        return self.kl_weight != 0

    @abstractmethod
    def terms(self, log_probs: Tensor, log_ratios: Tensor, advantages: Tensor, rollouts: Rollouts) -> PolicyTerms:
        """What each token costs.

        Args:
            log_probs: ``[T]`` under the policy, 0 outside the mask.
            log_ratios: ``[T]`` less those of the sampling policy, 0 outside the mask.
            advantages: ``[T]``, 0 outside the mask.
            rollouts: Mask and segments.
        """

    def advantages(self, rewards: Tensor, groups: Tensor) -> Advantages:
        """Advantages as this objective's paper takes them, of ``[R]`` rewards and the groups that they belong to."""
        return group_advantages(rewards, groups)

    def count(self, rollouts: Rollouts) -> Tensor:
        """What the loss is a mean over, to be added up over the packs and ranks of a step."""
        rollouts = rollouts.sound()
        return effective_count(rollouts.mask, rollouts.segments, self.normalisation)

    def forward(self, rollouts: Rollouts, total: Tensor | float | None = None) -> PolicyOutput:
        """Compute the loss.

        Args:
            rollouts: Answers of this pack.
            total: :meth:`count` of the whole step, so that the losses of its packs add up to that of the step; this pack's by
                default.

        Returns:
            The loss and its meters; a loss of 0, with a gradient of 0, if nothing is masked.

        Raises:
            ValueError: If a divergence or an entropy has a factor but is not given.
        """
        given, rollouts = rollouts, rollouts.sound()
        mask = rollouts.mask
        log_probs = torch.where(mask, rollouts.log_probs, 0)
        old = torch.where(mask, rollouts.old_log_probs.detach(), 0)
        log_ratios = (log_probs - old).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        advantages = torch.where(mask, rollouts.token_advantages.detach(), 0).to(log_probs.dtype)
        terms = self.terms(log_probs, log_ratios, advantages, rollouts)
        losses, extra = self._with_penalties(terms.losses, log_probs, rollouts)
        loss = average(losses, mask, rollouts.segments, self.normalisation, self.fixed_length, total)
        extra["old_kl"] = _mean(kl_estimate(old, log_probs.detach()), mask)
        return PolicyOutput(loss=loss, meters=_meters(terms, given, rollouts) | extra)

    def _with_penalties(
        self, losses: Tensor, log_probs: Tensor, rollouts: Rollouts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add divergence and entropy to the losses of tokens, and measure them wherever they are known."""
        meters = {}
        divergence = self._divergence(log_probs, rollouts)
        if divergence is not None:
            losses = losses + self.kl_weight * divergence
            meters["kl"] = _mean(divergence, rollouts.mask)
        if rollouts.entropies is not None:
            entropies = torch.where(rollouts.mask, rollouts.entropies, 0)
            if self.entropy_weight:  # otherwise there is no gradient, which would cost a pass over all logits
                losses = losses - self.entropy_weight * entropies
            meters["entropy"] = _mean(entropies, rollouts.mask)
        elif self.entropy_weight:
            raise ValueError(
                f"entropy_weight={self.entropy_weight} needs Rollouts.entropies: ask token_log_probs for them"
            )
        return losses, meters

    def _divergence(self, log_probs: Tensor, rollouts: Rollouts) -> Tensor | None:
        if self.kl_form == "full":
            given, name = rollouts.reference_kl, "reference_kl"
        else:
            given, name = rollouts.reference_log_probs, "reference_log_probs"
        if given is None:
            if self.kl_weight:
                raise ValueError(f"kl_weight={self.kl_weight} in the form {self.kl_form!r} needs Rollouts.{name}")
            return None
        given = torch.where(rollouts.mask, given, 0)
        return given if self.kl_form == "full" else kl_estimate(log_probs, given.detach(), self.kl_form)


def _meters(terms: PolicyTerms, given: Rollouts, rollouts: Rollouts) -> dict[str, Tensor]:
    mask = rollouts.mask
    low, high = _mean(terms.low.float(), mask), _mean(terms.high.float(), mask)
    kept = effective_count(mask, rollouts.segments, "sequence")
    return {
        "ratio": _mean(terms.ratios, mask),
        "clip_fraction": low + high,
        "clip_low": low,
        "clip_high": high,
        "sequences": kept,
        "tokens": mask.sum().float(),
        "dropped_sequences": effective_count(given.mask, given.segments, "sequence") - kept,
    }


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values.detach(), 0).sum() / mask.sum().clamp(min=1)
