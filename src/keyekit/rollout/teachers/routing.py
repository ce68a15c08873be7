"""Which teacher reads which sample: by modality and task, as a table says (2.0 sheet 10.7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from keyekit.batch import Batch, SampleInfo
from keyekit.data.vocabulary import Vocabulary
from keyekit.objectives.distillation.topk import TopK
from keyekit.rollout.teachers.base import Scores, Teacher
from keyekit.rollout.teachers.selection import select_samples

__all__ = ["RoutedTeachers", "domain_of"]


def domain_of(sample: SampleInfo) -> str:
    """``<modality>/<domain>`` of a sample: what its ``meta`` names as ``domain``, else its task.

    Example:
        >>> domain_of(SampleInfo(id="1", task="count", start=0, stop=4, media=("a.mp4",), timestamps=(0.0, 0.5)))
        'video/count'
        >>> domain_of(SampleInfo(id="2", task="", start=0, stop=4, meta={"domain": "safety"}))
        'text/safety'
    """
    modality = "video" if sample.timestamps else "image" if sample.media else "text"
    return f"{modality}/{sample.meta.get('domain') or sample.task}"


class RoutedTeachers(Teacher):
    """Several teachers, each for its domains.

    Args:
        routes: Teacher by pattern. A pattern is matched with ``<modality>/<domain>``, such as ``video/*`` or ``image/digits``;
            one without a slash with the domain alone. Several are separated by commas, and the first that matches decides. The
            modality is ``video``, ``image`` or ``text``; the domain what a sample's ``meta`` names as ``domain``, or its task.

    Raises:
        ValueError: If there is no route.
    """

    def __init__(self, routes: dict[str, Teacher]) -> None:
        if not routes:
            raise ValueError("routes are empty: give at least one, such as {'*': teacher}")
        self.routes = dict(routes)

    def route(self, sample: SampleInfo) -> str | None:
        """The pattern that a sample goes by; ``None`` if none fits."""
        whole = domain_of(sample)
        domain = whole.partition("/")[2]
        for pattern in self.routes:
            for part in pattern.split(","):
                if fnmatchcase(whole if "/" in part else domain, part.strip()):
                    return pattern
        return None

    def check(self, samples: Iterable[SampleInfo]) -> None:
        """See :class:`Teacher`."""
        lost: Counter[str] = Counter()
        routed: dict[str, list[SampleInfo]] = {pattern: [] for pattern in self.routes}
        for sample in samples:
            pattern = self.route(sample)
            if pattern is None:
                lost[domain_of(sample)] += 1
            else:
                routed[pattern].append(sample)
        if lost:
            named = ", ".join(f"{domain} ({count} samples)" for domain, count in sorted(lost.items()))
            routes = ", ".join(map(repr, self.routes))
            raise ValueError(f"no teacher for {named}; the routes are {routes}: add one, or leave those samples out")
        for pattern, teacher in self.routes.items():
            teacher.check(routed[pattern])

    def vocabulary(self) -> Vocabulary | None:
        """That of the first teacher that has one.

        Raises:
            ValueError: If two teachers have different ones.
        """
        known: tuple[str, Vocabulary] | None = None
        for pattern, teacher in self.routes.items():
            found = teacher.vocabulary()
            if found is None:
                continue
            if known is not None:
                problem = known[1].difference(found, repr(pattern))
                if problem is not None:
                    raise ValueError(
                        f"{problem} (the student stands for teacher {known[0]!r} here): all must share one"
                    )
            known = known or (pattern, found)
        return None if known is None else known[1]

    def move(self, device: torch.device | str) -> None:
        """See :class:`Teacher`."""
        for teacher in self._distinct():
            teacher.move(device)

    def score(self, batch: Batch, topk: int, asked: Tensor | None = None) -> Scores:
        """See :class:`Teacher`.

        Raises:
            ValueError: If a sample fits no route.
        """
        patterns = [self.route(sample) for sample in batch.samples]
        if None in patterns:
            self.check(batch.samples)
        answered = [False] * len(batch.samples)
        meters: dict[str, float] = {}
        whole: TopK | None = None
        for pattern, teacher in self.routes.items():
            chosen = [number for number, found in enumerate(patterns) if found == pattern]
            if not chosen:
                continue
            tokens = torch.cat([torch.arange(batch.samples[n].start, batch.samples[n].stop) for n in chosen])
            tokens = tokens.to(batch.tokens.device)
            scores = teacher.score(select_samples(batch, chosen), topk, None if asked is None else asked[tokens])
            whole = _merged(whole, scores.words, tokens, len(batch.tokens))
            for number, known in zip(chosen, scores.answered, strict=True):
                answered[number] = known
            for name, value in scores.meters.items():
                meters[name] = meters.get(name, 0.0) + value * len(chosen) / len(batch.samples)
        if whole is None:
            width = topk if asked is None else asked.shape[1]
            whole = TopK(
                indices=batch.tokens.new_zeros(len(batch.tokens), width),
                log_probs=torch.zeros(len(batch.tokens), width, device=batch.tokens.device),
            )
        return Scores(words=whole, answered=tuple(answered), meters=meters)

    def _distinct(self) -> list[Teacher]:
        return list({id(teacher): teacher for teacher in self.routes.values()}.values())


def _merged(whole: TopK | None, part: TopK, tokens: Tensor, total: int) -> TopK:
    """Words of some tokens put where they belong in the pack."""
    width = part.indices.shape[1]
    if whole is None:
        whole = TopK(
            indices=part.indices.new_zeros(total, width),
            log_probs=part.log_probs.new_zeros(total, width, dtype=torch.float32),
        )
    if whole.indices.shape[1] != width:
        raise ValueError(f"one teacher lists {whole.indices.shape[1]} words, another {width}: all must list as many")
    return TopK(
        indices=whole.indices.index_copy(0, tokens, part.indices),
        log_probs=whole.log_probs.index_copy(0, tokens, part.log_probs.float()),
        temperature=part.temperature,
    )
