"""What happens to a sample that no pack can hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch

from keyekit.batch import IGNORED_LABEL
from keyekit.data.cost import SampleCost
from keyekit.data.encode import EncodedSample
from keyekit.data.errors import BadData
from keyekit.data.packer import PackBudget

__all__ = ["LongPolicy", "fitted"]

LongPolicy = Literal["refuse", "alone", "truncate"]
"""``refuse``: bad data, so ``on_error`` says whether it ends the run or is left out and counted. ``alone``: a pack of its own,
larger than the others. ``truncate``: text behind the last picture is cut."""


def fitted(sample: EncodedSample, cost: SampleCost, budget: PackBudget, policy: LongPolicy = "refuse") -> EncodedSample:
    """The sample as it is to be packed.

    Args:
        sample: Any sample; one that fits is returned as it is.
        cost: Measures it.
        budget: What a pack may hold.
        policy: What happens to a sample that exceeds it.

    Raises:
        BadData: With reason ``too_long``, if the policy is to refuse it, or truncation cannot help: media are never cut, and
            something has to be left to learn.
    """
    if policy not in get_args(LongPolicy):
        raise ValueError(f"long_samples={policy!r}: choose one of {', '.join(get_args(LongPolicy))}")
    excess = budget.excess(cost.of(sample))
    if excess is None or policy == "alone":
        return sample
    if policy == "refuse":
        raise BadData("too_long", f"{sample.sample.id} has {excess}")
    shorter = _truncated(sample, budget.tokens) if len(sample) > budget.tokens else sample
    still = budget.excess(cost.of(shorter))
    if still is not None:
        raise BadData("too_long", f"{sample.sample.id} has {still}, and only its text can be truncated")
    return shorter


def _truncated(sample: EncodedSample, tokens: int) -> EncodedSample:
    """The first tokens of a sample. What the last of them was to predict is gone, so it has no label."""
    if any(span.stop > tokens for span in sample.spans):
        message = f"{sample.sample.id} has {len(sample)} tokens, a pack holds {tokens}, and its media reach beyond"
        raise BadData("too_long", message)
    labels = torch.cat([sample.labels[: tokens - 1], sample.labels.new_full((1,), IGNORED_LABEL)])
    if (labels == IGNORED_LABEL).all():
        message = f"{sample.sample.id} has {len(sample)} tokens, a pack holds {tokens}, and what is learnt lies beyond"
        raise BadData("too_long", message)
    return replace(sample, tokens=sample.tokens[:tokens], labels=labels, positions=sample.positions[:, :tokens])
