"""Pairs of a good and a bad answer to the same conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from keyekit.batch import IGNORED_LABEL
from keyekit.data.cost import SampleCost, SampleSize
from keyekit.data.dataset import ConversationDataset, Eyes
from keyekit.data.encode import EncodedSample, SampleEncoder
from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.long_samples import LongPolicy
from keyekit.data.packer import PackBudget
from keyekit.data.reference_log_probs import pair_digest
from keyekit.data.sample import ContentItem, Sample

__all__ = ["PAIR", "PreferenceDataset", "rejected_sample"]

PAIR = "pair_digest"
"""Where ``meta`` of a chosen answer's sample holds the digest of its pair."""


def rejected_sample(sample: Sample) -> Sample:
    """The conversation with the answer that was rejected: ``meta["rejected"]`` instead of the last assistant turn.

    Raises:
        BadData: With reason ``no_pair`` if there is no rejected answer, no answer to replace, or both are the same.
    """
    rejected = sample.meta.get("rejected")
    last = sample.messages[-1] if sample.messages else None
    if not isinstance(rejected, str) or last is None or last.role != "assistant":
        raise BadData(
            "no_pair",
            f"{sample.id}: a pair needs an assistant turn at the end (the chosen answer) and the rejected one as text "
            "under meta.rejected",
        )
    if rejected == last.text:
        raise BadData("no_pair", f"{sample.id}: the chosen and the rejected answer are the same")
    worse = replace(last, content=(ContentItem(kind="text", text=rejected),), thought=None, analysis=None)
    return replace(sample, id=f"{sample.id}/rejected", messages=(*sample.messages[:-1], worse))


class PreferenceDataset(ConversationDataset):
    """Pairs, encoded once; a pack holds every chosen answer with its conversation, followed by the rejected one.

    Only the tokens of the last turn are labels: earlier turns are the same in both.

    Args:
        samples: Conversations whose ``meta`` has the ``rejected`` answer.
        encoder: Encodes them.
        policy: What a sample that cannot be used does.
        max_tokens: Tokens that a pack holds, or a whole budget; a pair stays in one pack.
        cost: Measures encoded samples; tokens and patches alone by default.
        long_samples: What happens to a pair that no pack can hold; nothing is truncated.

    Attributes:
        encoded: Of each pair the conversation with the chosen answer.
        rejected: The same with the rejected answer.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        encoder: SampleEncoder,
        policy: ErrorPolicy,
        max_tokens: int | PackBudget,
        cost: SampleCost | None = None,
        long_samples: LongPolicy = "refuse",
    ) -> None:
        self.rejected: list[EncodedSample] = []
        super().__init__(samples, encoder, policy, max_tokens, cost=cost, long_samples=long_samples)

    @property
    def sizes(self) -> list[SampleSize]:
        """Measures of the pairs."""
        pairs = zip(self.encoded, self.rejected, strict=True)
        return [self.cost.of(chosen) + self.cost.of(rejected) for chosen, rejected in pairs]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Digest and name of every pair."""
        return [(encoded.sample.meta[PAIR], encoded.sample.id) for encoded in self.encoded]

    def members(self, index: int, eyes: Eyes = "open") -> list[tuple[EncodedSample, list[np.ndarray]]]:
        """The chosen answer, then the rejected one."""
        pictures = self.pictures(index, eyes)
        return [(self.encoded[index], pictures), (self.rejected[index], pictures)]

    def _add(self, sample: Sample, budget: PackBudget, long_samples: LongPolicy, with_answer: bool) -> None:
        start = len(self.encoder.encode(sample, with_answer=False)) - 1  # the prompt's last token predicts the first
        pair = [_from(self.encoder.encode(answer), start) for answer in (sample, rejected_sample(sample))]
        excess = budget.excess(self.cost.of(pair[0]) + self.cost.of(pair[1]))
        if excess is not None and long_samples != "alone":
            raise BadData("too_long", f"{sample.id}: chosen and rejected together have {excess}")
        meta = {**sample.meta, PAIR: pair_digest(*pair)}
        self.encoded.append(replace(pair[0], sample=replace(pair[0].sample, meta=meta)))
        self.rejected.append(pair[1])


def _from(encoded: EncodedSample, start: int) -> EncodedSample:
    """The sample with labels from a token on alone."""
    before = torch.arange(len(encoded)) < start
    return replace(encoded, labels=encoded.labels.masked_fill(before, IGNORED_LABEL))
