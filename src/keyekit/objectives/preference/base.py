"""The contract of preference objectives: log-probabilities of good and bad responses in, a loss and its meters out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.objectives.sequences import sequence_sums

__all__ = ["PreferenceObjective", "PreferenceOutput", "Preferences"]


@dataclass(slots=True, kw_only=True)
class Preferences:
    """Summed log-probabilities of responses, good ones (chosen) and bad ones (rejected).

    Most objectives compare the first chosen with the first rejected and so on; those that look at responses one by one
    (``KTO``) also take unequal numbers.

    Args:
        chosen: ``[B]`` log-probability of each good response under the model that is trained, summed over its tokens.
        rejected: ``[B]`` the same of the bad responses.
        chosen_lengths: ``[B]`` float number of tokens of each good response.
        rejected_lengths: ``[B]`` the same of the bad responses.
        reference_chosen: ``[B]`` log-probability of the good responses under the frozen reference; ``None`` without one.
        reference_rejected: ``[B]`` the same of the bad responses.
        mismatched: Log-probabilities, under model less reference, of responses to prompts that are not theirs; ``KTO`` alone
            may ask for them.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    mismatched: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("chosen", "rejected"):
            value, reference = getattr(self, name), getattr(self, f"reference_{name}")
            given = [value, getattr(self, f"{name}_lengths")] + ([] if reference is None else [reference])
            shapes = [tensor.shape for tensor in given]
            if len(set(shapes)) > 1 or value.dim() != 1:
                raise ValueError(
                    f"log-probabilities, lengths and reference of the {name} responses have the shapes "
                    f"{', '.join(str(tuple(shape)) for shape in shapes)}: give one number of each for every response"
                )

    @classmethod
    def of_pack(
        cls, log_probs: Tensor, mask: Tensor, segments: Segments, num_pairs: int, reference: Tensor | None = None
    ) -> Preferences:
        """Read pairs from a pack in which every chosen response is followed by its rejected one.

        Args:
            log_probs: ``[T]`` log-probability of every token's label under the model that is trained.
            mask: ``[T]`` bool, true for the tokens of responses.
            segments: Segments ``2 i`` and ``2 i + 1`` hold pair ``i``; others follow, such as the tail of the pack.
            num_pairs: Number of pairs.
            reference: ``[T]`` log-probabilities under the reference.

        Raises:
            ValueError: If there are fewer segments than the pairs need.

        Example:
            >>> log_probs, mask = -torch.arange(4.0), torch.tensor([False, True, True, True])
            >>> pair = Preferences.of_pack(log_probs, mask, Segments.of([2, 2]), num_pairs=1)
            >>> pair.chosen.item(), pair.rejected.item(), pair.rejected_lengths.item()
            (-1.0, -5.0, 2.0)
        """
        if len(segments) < 2 * num_pairs:
            raise ValueError(f"{num_pairs} pairs are {2 * num_pairs} segments, the pack has {len(segments)}")

        def sides(values: Tensor) -> tuple[Tensor, Tensor]:
            sums = sequence_sums(torch.where(mask, values, 0), segments)[: 2 * num_pairs]
            return sums[0::2], sums[1::2]

        chosen, rejected = sides(log_probs)
        chosen_lengths, rejected_lengths = sides(torch.ones_like(log_probs))
        references = (None, None) if reference is None else sides(reference)
        return cls(
            chosen=chosen,
            rejected=rejected,
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
            reference_chosen=references[0],
            reference_rejected=references[1],
        )

    def compared_with(self, chosen: Tensor, rejected: Tensor) -> Preferences:
        """The same with a reference whose log-probabilities are known already.

        Args:
            chosen: ``[B]`` log-probability of the good responses under the reference, summed over their tokens.
            rejected: ``[B]`` the same of the bad responses.
        """
        return replace(self, reference_chosen=chosen, reference_rejected=rejected)

    def likelier(self) -> dict[str, Tensor]:
        """Share of pairs whose chosen response is the likelier one; unlike ``accuracy`` also known of the reference.

        Returns:
            ``likelier`` under the model, and ``likelier_before`` under the reference, if there is one.
        """
        sides = {
            "likelier": (self.chosen, self.rejected),
            "likelier_before": (self.reference_chosen, self.reference_rejected),
        }
        return {
            name: (chosen > rejected).to(chosen.dtype).sum() / max(len(chosen), 1)
            for name, (chosen, rejected) in sides.items()
            if chosen is not None and rejected is not None
        }

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of chosen and rejected responses less those under the reference, ``[B]`` each.

        Raises:
            ValueError: If there is no reference.
        """
        if self.reference_chosen is None or self.reference_rejected is None:
            raise ValueError(
                "this objective compares with a reference model: give reference log-probabilities, or choose one without "
                "a reference (SimPO, SFT)"
            )
        return self.chosen - self.reference_chosen.detach(), self.rejected - self.reference_rejected.detach()

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean log-probability of a token of the chosen and rejected responses, ``[B]`` each; 0 for an empty response."""
        return self.chosen / self.chosen_lengths.clamp(min=1), self.rejected / self.rejected_lengths.clamp(min=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceOutput:
    """What a preference objective returns.

    Args:
        loss: Scalar.
        meters: Detached scalars. Every objective has ``accuracy`` (share of pairs whose chosen response has the larger
            reward), ``margin`` (mean difference of rewards), ``chosen_reward`` and ``rejected_reward``; a sum of terms has the
            terms too.
        chosen_rewards: ``[B]`` detached implicit rewards of the good responses.
        rejected_rewards: ``[B]`` the same of the bad responses.
    """

    loss: Tensor
    meters: dict[str, Tensor]
    chosen_rewards: Tensor
    rejected_rewards: Tensor


class PreferenceObjective(nn.Module, ABC):
    """Base of the preference family."""

    needs_reference = True
    """Whether reference log-probabilities must be given."""

    @abstractmethod
    def rewards(self, preferences: Preferences) -> tuple[Tensor, Tensor]:
        """Implicit rewards of chosen and rejected responses, ``[B]`` each, with their gradients."""

    @abstractmethod
    def terms(self, chosen: Tensor, rejected: Tensor, preferences: Preferences) -> dict[str, Tensor]:
        """The parts of the loss by name, ``[B]`` each, from the rewards; the loss is their sum."""

    def forward(self, preferences: Preferences, total: Tensor | float | None = None) -> PreferenceOutput:
        """Compute the loss.

        Args:
            preferences: Responses of this pack.
            total: :meth:`count` of the whole step, on all ranks, so that the losses of its packs add up to that of the step;
                this pack's by default.

        Returns:
            The loss and its meters; a loss of 0, with a gradient of 0, if there is no response.
        """
        chosen, rejected = self.rewards(preferences)
        terms = self.terms(chosen, rejected, preferences)
        divisor = max(self.count(preferences), 1) if total is None else total
        sums = {name: term.sum() / divisor for name, term in terms.items()}
        meters = preference_meters(chosen.detach(), rejected.detach())
        if len(sums) > 1:
            meters |= {name: value.detach() for name, value in sums.items()}
        return PreferenceOutput(
            loss=sum(sums.values(), start=chosen.new_zeros(())),
            meters=meters,
            chosen_rewards=chosen.detach(),
            rejected_rewards=rejected.detach(),
        )

    def count(self, preferences: Preferences) -> int:
        """What the loss is a mean over: pairs, unless an objective says otherwise."""
        return len(preferences.chosen)

    def update(self, rewards: Tensor) -> None:
        """Take note of the mean reward of a step, after its optimizer step; only ``BCO`` does.

        Args:
            rewards: Scalar mean of the rewards of all responses of the step, on all ranks.
        """


def preference_meters(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Accuracy, margin and mean rewards, scalars; of a response without a partner its reward alone counts.

    Args:
        chosen: ``[P]`` rewards of the chosen responses.
        rejected: ``[Q]`` those of the rejected ones, partners at the same place.
    """
    pairs = min(len(chosen), len(rejected))
    margins = chosen[:pairs] - rejected[:pairs]
    return {
        "accuracy": (margins > 0).to(chosen.dtype).sum() / max(pairs, 1),
        "margin": margins.sum() / max(pairs, 1),
        "chosen_reward": chosen.sum() / max(len(chosen), 1),
        "rejected_reward": rejected.sum() / max(len(rejected), 1),
    }
