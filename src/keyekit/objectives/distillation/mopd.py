"""Multi-teacher on-policy distillation: the student's own answers, rewarded word by word by a teacher of their kind."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from keyekit.batch import IGNORED_LABEL
from keyekit.objectives.distillation.base import DistillationObjective, OnPolicy
from keyekit.objectives.distillation.topk import TopK
from keyekit.objectives.sequences import Normalisation, effective_count, sequence_ids, sequence_sums

__all__ = ["MOPD", "Credit", "TopKMode"]

TopKMode = Literal["overlap", "student", "teacher_on_student"]
"""Which words Omega the advantage is taken over (2.0 sheet 8.3 names the modes; the first alone has a formula, in 10.7).

- ``overlap``: the best words of the student that are best words of the teacher too.
- ``student``: the best words of the student. One that a teacher's list lacks gets an even share of the list's tail.
- ``teacher_on_student``: the words that the student sent and the teacher scored: a list must hold exactly those.

With a teacher's hidden states at hand, the last two are the same.
"""

Credit = Literal["sampled", "words"]
"""Which words an advantage makes likelier (docs/decisions/0008).

- ``sampled``: the word that was said, as 2.0 sheet 10.7 prints it. An advantage knows the state and not the word, so that over
  what the student might have said the gradient adds up to nothing; what is left is noise, category factors and the penalty.
- ``words``: each word of Omega by its own share of the expectation, ``pi'(v) * (gain(v) - A_t)``: the gradient of ``A_t``
  through ``pi'`` with the bracket held constant.
"""


class MOPD(DistillationObjective):
    """``-mean over answers of (1 / |M|) sum_t A_t * log pi(y_t)``, with advantages from a teacher (2.0 sheet 10.7).

    ``A_t = sum over v in Omega of pi'(v) * (log pi_T(v) - log pi(v))``, where ``pi'`` is the student renormalised on Omega and
    the logarithms are those of the whole vocabulary; 0 where Omega is empty. Then ``A_t * factor(category)``, less
    ``repetition_penalty`` from the token on at which the answer begins to repeat itself. Advantages are constants: only
    ``log pi(y_t)`` has a gradient (2.0 sheet 10.7, inferred); no ratio is clipped. This formula teaches nothing on average;
    ``credit="words"`` does (see :data:`Credit`).

    Which teacher an answer has is decided before: hand over the lists or hidden states of the right one, token by token.

    Args:
        topk: Words that student and teacher list (2.0 sheet 15: 32 to 64; Keye's is not published).
        mode: Which words count.
        category_factors: Factor on the advantage of each category of tokens, in the order that
            :attr:`~keyekit.objectives.distillation.base.OnPolicy.categories` counts them (2.0 sheet 10.7: formatting down,
            perception and reasoning up; the factors are not published). All are 1 by default.
        repetition_penalty: Taken off the advantage from the collapse on (2.0 sheet 15: 0 until tuned).
        credit: Which words an advantage makes likelier: ``sampled`` is the formula as printed, ``words`` is what learns.
        normalisation: ``sequence`` is the formula; ``token`` lets long answers weigh more.
        chunk_size: Positions whose logits exist at a time.

    Raises:
        ValueError: If an argument is out of range or unknown.
    """

    meter_names = ("advantage", "overlap", "empty", "log_prob")

    def __init__(
        self,
        topk: int = 32,
        mode: TopKMode = "overlap",
        category_factors: dict[str, float] | None = None,
        repetition_penalty: float = 0.0,
        credit: Credit = "sampled",
        normalisation: Literal["sequence", "token"] = "sequence",
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if topk < 1:
            raise ValueError(f"topk={topk} must be at least 1")
        if mode not in ("overlap", "student", "teacher_on_student"):
            raise ValueError(f"mode={mode!r}: choose overlap, student or teacher_on_student")
        if credit not in ("sampled", "words"):
            raise ValueError(f"credit={credit!r}: choose sampled or words")
        if normalisation not in ("sequence", "token"):
            raise ValueError(f"normalisation={normalisation!r}: choose sequence or token")
        if repetition_penalty < 0:
            raise ValueError(f"repetition_penalty={repetition_penalty} must not be negative: it is taken off")
        self.topk = topk
        self.mode: TopKMode = mode
        self.category_factors = dict(category_factors or {})
        self.repetition_penalty = repetition_penalty
        self.credit: Credit = credit
        self.normalisation: Normalisation = normalisation
        self.chunk_size = chunk_size

    def count(self, labels: Tensor, num_targets: int, on_policy: OnPolicy | None = None) -> Tensor | int:
        """Answers, or tokens if the normalisation says so."""
        return effective_count(labels != IGNORED_LABEL, _required(on_policy).segments, self.normalisation)

    def prepare(self, labels: Tensor, rows: Tensor, on_policy: OnPolicy | None) -> Tensor:
        """Factor, penalty and weight of each token, ``[rows, 3]``."""
        given, mask = _required(on_policy), labels != IGNORED_LABEL
        ids = sequence_ids(given.segments)
        # In float64, so that no rounding is added to that of the logits.
        lengths = sequence_sums(mask.double(), given.segments)
        weights = torch.ones_like(lengths) if self.normalisation == "token" else lengths.clamp(min=1).reciprocal()
        # The factor of no category stands last, where -1 finds it.
        factors = torch.tensor([*self.category_factors.values(), 1.0], dtype=torch.float64, device=labels.device)
        factor = factors[-1].expand(len(labels)) if given.categories is None else factors[given.categories]
        penalty = torch.zeros_like(factor)
        if given.collapse is not None:
            seen = mask.long().cumsum(0)
            earlier = lengths.long().cumsum(0) - lengths.long()  # answer tokens of the sequences before
            place, point = seen - 1 - earlier[ids], given.collapse[ids]
            penalty = self.repetition_penalty * ((point >= 0) & (place >= point)).double()
        return torch.stack([factor, penalty, weights[ids]], dim=1)[rows]

    def row_losses(
        self, logits: Tensor, teacher: TopK | Tensor, labels: Tensor, prepared: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`~keyekit.objectives.distillation.base.DistillationObjective`."""
        scores = logits.log_softmax(-1)
        chosen = scores.gather(-1, labels[:, None])[:, 0]
        with torch.no_grad():
            ids, known, inside, sound = self._words(scores, teacher)
            student = scores.gather(-1, ids)
            gains = torch.where(inside, known - student, 0)
            # The student on Omega; a row without any word has no distribution, and its gains are 0 all the same.
            shares = torch.where(inside, student, -torch.inf).softmax(-1).nan_to_num(0.0)
            factor, penalty, weights = prepared.to(scores.dtype).unbind(1)
            expected = (shares * gains).sum(-1)
            advantages = expected * factor - penalty
            found = inside.to(scores.dtype).mean(-1)
            meters = torch.stack([advantages, found, (found == 0).to(scores.dtype), chosen], dim=1)
            # Derivatives of the expectation by log-probabilities, with the bracket held constant.
            by_word = shares * (gains - expected[:, None])
        if self.credit == "sampled":
            return -weights * torch.where(sound, advantages, 0) * chosen, meters, sound
        learnt = scores.gather(-1, ids)
        value = expected + (by_word * (learnt - learnt.detach())).sum(-1)  # A_t, with the gradient that is wanted
        return -weights * torch.where(sound, factor * value - penalty * chosen, 0), meters, sound

    def _words(self, scores: Tensor, teacher: TopK | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids of the words ``[rows, words]``, the teacher's log-probabilities, which are in Omega, and the sound rows."""
        if isinstance(teacher, Tensor):
            return self._words_of_logits(scores, teacher)
        if teacher.temperature != 1:
            raise ValueError(
                f"the teacher's words were taken at temperature {teacher.temperature}: MOPD compares at temperature 1"
            )
        sound = teacher.log_probs.isfinite().all(-1)
        listed = TopK(
            indices=torch.where(sound[:, None], teacher.indices, 0),
            log_probs=torch.where(sound[:, None], teacher.log_probs, -1).to(scores.dtype),
            tail=None if teacher.tail is None else torch.where(sound, teacher.tail, -1).to(scores.dtype),
        )
        return *self._words_of_list(scores, listed), sound

    def _words_of_logits(self, scores: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        whole = teacher.log_softmax(-1)
        sound = whole.isfinite().all(-1)
        whole = torch.where(sound[:, None], whole, 0)
        ids = scores.topk(min(self.topk, scores.shape[-1]), dim=-1).indices
        inside = torch.ones_like(ids, dtype=torch.bool)
        if self.mode == "overlap":
            inside = _same(ids, whole.topk(ids.shape[-1], dim=-1).indices).any(-1)
        return ids, whole.gather(-1, ids), inside, sound

    def _words_of_list(self, scores: Tensor, teacher: TopK) -> tuple[Tensor, Tensor, Tensor]:
        if self.mode == "teacher_on_student":
            everything = torch.ones_like(teacher.indices, dtype=torch.bool)
            return teacher.indices, teacher.log_probs, everything
        if self.mode == "overlap":
            teacher = teacher.best(self.topk)
        ids = scores.topk(min(self.topk, scores.shape[-1]), dim=-1).indices
        same = _same(ids, teacher.indices)
        inside = same.any(-1)
        known = teacher.log_probs.gather(-1, same.to(torch.uint8).argmax(-1))
        if self.mode == "overlap":
            return ids, known, inside
        unlisted = max(scores.shape[-1] - teacher.indices.shape[-1], 1)
        share = teacher.tail_log_probs() - math.log(unlisted)
        return ids, torch.where(inside, known, share[:, None]), torch.ones_like(inside)


def _same(ids: Tensor, others: Tensor) -> Tensor:
    """Where words of two lists are equal, ``[rows, words, other words]``."""
    return ids[:, :, None] == others[:, None, :]


def _required(on_policy: OnPolicy | None) -> OnPolicy:
    if on_policy is None:
        raise ValueError("MOPD is taken over whole answers: give on_policy=OnPolicy(segments=...)")
    return on_policy
