"""A benchmark: questions in somebody else's files, and how answers to them are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from keyekit.data.sample import ContentItem, Message, Sample
from keyekit.metrics.means import Estimate, GroupedMeans
from keyekit.registry import constructor_parameters

__all__ = ["Benchmark", "Judged", "Report", "Verdict", "add_scores", "question", "video"]

Report = dict[str, dict[str, Estimate]]
"""For each measure, such as ``accuracy``, the estimate of each group, such as ``overall``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an answer is worth.

    Args:
        score: Between 0 and 1; ``None`` where the right answer is not published.
        extracted: What was read out of the answer, as JSON can hold it; ``None`` if nothing was.
        problem: Why an answer could not be read, in a few words that answers with the same problem share.
    """

    score: float | None
    extracted: Any = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A question with the verdict on its answer.

    Args:
        sample: The question.
        verdict: The verdict.
    """

    sample: Sample
    verdict: Verdict


class Benchmark(ABC):
    """Base of the benchmarks.

    A sub-class takes the folder with its files and says which questions are in them (:meth:`samples`) and what an answer is
    worth (:meth:`judge`). One that reports more than the mean score of all questions and of each task overrides
    :meth:`report`, too. Constructor arguments are kept as attributes of the same name: they are part of :meth:`settings`.

    A sample's ``answer`` is a response that :meth:`judge` finds right, where one is known; ``meta["unit"]`` names what
    questions share, such as their video, and ``meta["chance"]`` what guessing would score.
    """

    max_new_tokens: ClassVar[int] = 64
    """Longest answer in tokens, unless the user says otherwise."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the results has to know."""
        return ()

    @abstractmethod
    def samples(self) -> list[Sample]:
        """All questions in the order of the files; their media need not exist.

        Raises:
            FileNotFoundError: If a file with questions is missing.
            BadData: If one does not hold what it should.
        """

    @abstractmethod
    def judge(self, sample: Sample, text: str) -> Verdict:
        """Score the response to a question.

        Args:
            sample: One of :meth:`samples`.
            text: All that the model said.
        """

    def report(self, judged: Sequence[Judged]) -> Report:
        """Summarise verdicts: here the mean score of all questions and of each task."""
        known = [entry for entry in judged if entry.verdict.score is not None]
        means = GroupedMeans(sorted({entry.sample.task for entry in known}))
        add_scores(means, known, [[entry.sample.task] for entry in known])
        return {"score": means.compute()}

    def settings(self) -> dict[str, Any]:
        """Name and arguments, as JSON can hold them: two runs with other settings are not comparable."""
        arguments = {name: getattr(self, name, None) for name in constructor_parameters(type(self))}
        return {"benchmark": type(self).__name__} | {name: _plain(value) for name, value in arguments.items()}


def add_scores(means: GroupedMeans, judged: Sequence[Judged], groups: Sequence[Sequence[str]]) -> None:
    """Hand known scores over, with the unit and chance of each question."""
    means.update(
        [float(entry.verdict.score or 0.0) for entry in judged],
        [str(entry.sample.meta.get("unit", entry.sample.id)) for entry in judged],
        groups,
        [entry.sample.meta.get("chance") for entry in judged],
    )


def question(text: str, media: Sequence[ContentItem] = ()) -> tuple[Message, ...]:
    """The conversation that asks one question: media first, then the text."""
    return (Message(role="user", content=(*media, ContentItem(kind="text", text=text))),)


def video(path: Path, fps: float | None = None, max_frames: int | None = None) -> ContentItem:
    """A video; what is ``None`` is left to the model's own settings."""
    options = {name: value for name, value in (("fps", fps), ("max_frames", max_frames)) if value is not None}
    return ContentItem(kind="video", path=path, options=options)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return {type(value).__name__: {name: _plain(entry) for name, entry in vars(value).items()}}
