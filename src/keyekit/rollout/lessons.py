"""What a student learns from on its own answers: packs of them with what the teachers said about every token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from keyekit.batch import Batch
from keyekit.data.loader import rank_and_world
from keyekit.data.sample import Sample
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.models.weights.network import is_sharded
from keyekit.objectives.distillation.topk import TopK, take_topk
from keyekit.rewards.base import Judgement
from keyekit.rollout.categories import TokenCategories
from keyekit.rollout.collapse import CollapseDetector
from keyekit.rollout.engine import RolloutEngine
from keyekit.rollout.experience import Experience, ScoredResponse, pack_responses
from keyekit.rollout.loader import RolloutLoader
from keyekit.rollout.meters import response_meters
from keyekit.rollout.rounds import Round, RoundMaker
from keyekit.rollout.teachers.base import Teacher, spread_rows, whose_rows
from keyekit.rollout.trajectory import Prompt, Trajectory

__all__ = ["Lesson", "LessonLoader", "Lessons", "Said", "TeachersFailed"]

_Name = tuple[str, tuple[int, ...]]
"""A response by its prompt's name and its tokens."""


class TeachersFailed(RuntimeError):
    """Too many answers were read by no teacher."""


class Said(NamedTuple):
    """What a teacher said about a response: ``[R, N]`` words of its R tokens, on the host."""

    indices: Tensor
    log_probs: Tensor


@dataclass(slots=True, kw_only=True)
class Lesson(Experience):
    """A pack of the student's answers with what their teachers say.

    Args:
        words: ``[T, N]`` of the teachers.
        categories: ``[T]`` int64 category of each target, or ``None``.
        collapse: ``[B]`` int64 token of the answer at which each sequence begins to repeat itself, -1 if it does not.
    """

    words: TopK
    categories: Tensor | None
    collapse: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Lesson:
        """Copy every tensor to ``device``; Lightning calls this."""
        moved = Experience.to(self, device, non_blocking)
        assert isinstance(moved, Lesson)
        words = TopK(
            indices=self.words.indices.to(device, non_blocking=non_blocking),
            log_probs=self.words.log_probs.to(device, non_blocking=non_blocking),
            temperature=self.words.temperature,
        )
        categories = None if self.categories is None else self.categories.to(device, non_blocking=non_blocking)
        return replace(moved, words=words, categories=categories, collapse=self.collapse.to(device))


@dataclass(slots=True, kw_only=True)
class Lessons(RoundMaker):
    """Makes rounds: the student answers, its teachers read the answers.

    Args:
        engine: Answers prompts.
        teacher: Reads answers.
        student: The network under training.
        topk: Words that teachers list.
        asks: Whether teachers score the student's best words instead of listing their own.
        prompts: Prompts of a round on this rank.
        responses: Responses to each.
        patch_size: Side of a patch in pixels.
        pack_tokens: Tokens that teachers read at a time, if no answer is longer.
        detector: Finds answers that begin to repeat themselves.
        categories: Says which category each token of an answer has; ``None`` where there are none.
        max_dropped: Largest share of a round's answers that may go unread, because a teacher is dead or slow.
        judge: Rewards answers for the log, given their samples and texts; nothing is learnt from it.
        decode: Turns tokens into text, for the judge.
        said: What teachers said about the answers of the round under way.

    Raises:
        TeachersFailed: By :meth:`make`, if more than ``max_dropped`` of the answers were read by no teacher.
    """

    engine: RolloutEngine
    teacher: Teacher
    student: VisionLanguageModel
    topk: int
    asks: bool
    prompts: int
    responses: int
    patch_size: int
    pack_tokens: int
    detector: CollapseDetector
    max_dropped: float
    decode: Callable[[list[int]], str]
    categories: TokenCategories | None = None
    judge: Callable[[Sequence[Sample], Sequence[str]], Sequence[Judgement]] | None = None
    said: dict[_Name, Said] = field(default_factory=dict)

    def _made(self, draw: Iterator[Prompt], seed: int) -> Round:
        asked = self._drawn(draw, self.prompts)
        groups = self.engine.rollout(asked, self.responses, seed)
        flat = [trajectory for group in groups for trajectory in group]
        meters = self._answer_meters(flat, len(asked) * self.responses - len(flat))
        self.said = self._read(flat, meters)
        dropped = sum(_name(trajectory) not in self.said for trajectory in flat)
        meters["unread"] = dropped / max(len(flat), 1)
        if meters["unread"] > self.max_dropped:
            raise TeachersFailed(
                f"{dropped} of {len(flat)} answers of a round were read by no teacher, {self.max_dropped:.0%} are allowed "
                "(max_dropped): see the warnings above for which server is dead or slow"
            )
        kept = [[ScoredResponse(one, 0.0, 0.0, {}) for one in group if _name(one) in self.said] for group in groups]
        return Round(groups=[group for group in kept if group], meters=meters)

    def _read(self, flat: Sequence[Trajectory], meters: dict[str, float]) -> dict[_Name, Said]:
        """What teachers say, pack by pack; answers that nobody read are missing."""
        said: dict[_Name, Said] = {}
        packs = list(_side_by_side(flat, self.pack_tokens))
        passes = self._passes(len(packs))
        for group in packs:
            batch = self._batch(group)
            scores = self.teacher.score(batch, self.topk, self._asked(batch) if self.asks else None)
            rows, whose = whose_rows(batch)
            words = scores.words.rows(rows)
            for number, (one, answered) in enumerate(zip(group, scores.answered, strict=True)):
                if answered:
                    own = words.rows(whose == number)
                    said[_name(one)] = Said(own.indices.cpu(), own.log_probs.float().cpu())
            for name, value in scores.meters.items():
                meters[name] = meters.get(name, 0.0) + value * len(group) / len(flat)
        for _ in range(passes - len(packs)):
            self._asked(self._batch([]))
        return said

    def _batch(self, group: Sequence[Trajectory]) -> Batch:
        """A pack as a teacher and the student read it; of no answer it is padding."""
        pack = pack_responses([ScoredResponse(one, 0.0, 0.0, {}) for one in group], self.patch_size, False)
        plain = Batch(**{entry.name: getattr(pack, entry.name) for entry in fields(Batch)})
        return plain.to(self.student.decoder.lm_head.weight.device)

    def _passes(self, own: int) -> int:
        """Forward passes of the student in this round; ranks that divide its weights take as many as any of them needs."""
        if not (self.asks and dist.is_initialized() and is_sharded(self.student)):
            return own
        most = torch.tensor(own, device=self.student.decoder.lm_head.weight.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return int(most)

    @torch.no_grad()
    def _asked(self, batch: Batch) -> Tensor:
        """The student's best words at every target, ``[T, N]``."""
        was_training = self.student.training
        self.student.eval()
        try:
            hidden = self.student(batch).hidden
        finally:
            self.student.train(was_training)
        rows, _ = whose_rows(batch)
        own = take_topk(hidden[rows], self.student.decoder.lm_head.weight, self.topk)
        return spread_rows(own, rows, len(batch.tokens)).indices

    def _answer_meters(self, flat: Sequence[Trajectory], lost: int) -> dict[str, float]:
        meters = response_meters(flat, lost)
        meters["repetitive"] = sum(self.detector.collapsed(one.tokens) for one in flat) / max(len(flat), 1)
        if self.judge is not None and flat:
            texts = [self.decode(list(one.answer)) for one in flat]
            judged = self.judge([one.prompt.encoded.sample for one in flat], texts)
            values = [float(one.value) for one in judged if isfinite(one.value)]
            meters["reward"] = sum(values) / max(len(values), 1)
            meters["broken_rewards"] = 1 - len(values) / len(judged)
            meters["unreadable"] = sum(one.unreadable for one in judged) / len(judged)
        return meters


class LessonLoader(RolloutLoader):
    """A loader of rollouts whose rounds are :class:`Lessons`: packs bring what teachers said, and the state keeps it."""

    @property
    def lessons(self) -> Lessons:
        """What makes the rounds."""
        assert isinstance(self.rounds, Lessons)
        return self.rounds

    def state_dict(self) -> dict[str, Any]:
        """See :class:`RolloutLoader`."""
        own = [(*name, said.indices, said.log_probs) for name, said in self.lessons.said.items()]
        everyone: list[Any] = [own]
        if dist.is_available() and dist.is_initialized():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, own)
        return {**super().state_dict(), "said": everyone}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`RolloutLoader`."""
        super().load_state_dict(state)
        rank, world = rank_and_world()
        if len(state["said"]) == world:  # on another number of ranks a new round begins
            self.lessons.said = {(p, tuple(t)): Said(ids, values) for p, t, ids, values in state["said"][rank]}

    def _packs(self, step: list[list[ScoredResponse]]) -> list[Experience]:
        packs = super()._packs(step)
        return [self._lesson(pack, responses) for pack, responses in zip(packs, step, strict=True)]

    def _lesson(self, pack: Experience, responses: Sequence[ScoredResponse]) -> Lesson:
        trajectories = [response.trajectory for response in responses]
        said = [self.lessons.said[_name(one)] for one in trajectories]
        rows, _ = whose_rows(pack)
        width = said[0].indices.shape[1] if said else 1
        words = TopK(
            indices=torch.cat([one.indices for one in said]) if said else torch.zeros(0, width, dtype=torch.int64),
            log_probs=torch.cat([one.log_probs for one in said]) if said else torch.zeros(0, width),
        )
        categories = None
        categorise = self.lessons.categories
        if categorise is not None:
            found = [place for one in trajectories for place in categorise.of(one.tokens)]
            categories = torch.full((len(pack.tokens),), -1)
            categories[rows] = torch.tensor(found, dtype=torch.int64)
        collapse = [self.lessons.detector.point(one.tokens) for one in trajectories]
        collapse += [-1] * (len(pack.segments) - len(collapse))
        return Lesson(
            **{entry.name: getattr(pack, entry.name) for entry in fields(Experience)},
            words=spread_rows(words, rows, len(pack.tokens)),
            categories=categories,
            collapse=torch.tensor(collapse, dtype=torch.int64),
        )


def _name(trajectory: Trajectory) -> _Name:
    return trajectory.prompt.name, tuple(trajectory.tokens)


def _side_by_side(flat: Sequence[Trajectory], tokens: int) -> Iterator[list[Trajectory]]:
    """Answers in packs of at most so many tokens."""
    group: list[Trajectory] = []
    room = tokens
    for one in flat:
        if group and len(one) > room:
            yield group
            group, room = [], tokens
        group.append(one)
        room -= len(one)
    if group:
        yield group
