"""Video-MME-v2 (Keye-VL-2.0 sheet 12): four questions of eight options about each video, scored together."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keyekit.data.errors import BadData
from keyekit.data.sample import Sample
from keyekit.evaluation.benchmark import Benchmark, Judged, Report, Verdict, add_scores, question, video
from keyekit.evaluation.files import field, first_existing, read_list, read_table
from keyekit.evaluation.multiple_choice import judge_choice, letters_of
from keyekit.metrics.means import GroupedMeans
from keyekit.metrics.non_linear import NonLinearScores, QuestionGroup, non_linear_score

__all__ = ["VideoMMEv2"]

_OPTIONS = 8
_CATEGORIES = ("level", "second_head", "third_head")


class VideoMMEv2(Benchmark):
    """Video-MME-v2, arXiv:2604.05015: the non-linear score of groups, and accuracy.

    The folder is as the official archives unpack: ``test.parquet`` (or the same table as ``Video-MME-v2.tsv``), videos in
    ``video/`` or ``videos/``, subtitles in ``subtitle/`` or ``subtitles/``. A group counts when all of its four questions were
    asked, for the level and heads that its last question tells.

    Args:
        folder: The folder.
        subtitles: Whether all words that are spoken stand before the question.
        fps: Frames per second; ``None`` for the model's own rate.
        max_frames: Most frames; 512 and 64 in Keye-VL-2.0's report (2.0 sheet 11.1). ``None`` for the model's own limit.
        instruction: What follows the options. The official wordings, also one that asks for reasoning first, are in the
            benchmark's README.
        as_released: Read and count as the official script does: the first capital letter of an answer is its option; an answer
            without one counts -1, which lets a chain go on, and is left out of the accuracy.
    """

    max_new_tokens = 4096

    def __init__(
        self,
        folder: Path | str,
        subtitles: bool = False,
        fps: float | None = None,
        max_frames: int | None = 512,
        instruction: str = "Choose the best option. Give only its letter (A to H).",
        as_released: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.subtitles = subtitles
        self.fps = fps
        self.max_frames = max_frames
        self.instruction = instruction
        self.as_released = as_released

    def samples(self) -> list[Sample]:
        """See :class:`~keyekit.evaluation.benchmark.Benchmark`."""
        table = first_existing(self.folder, ("test.parquet", "Video-MME-v2.tsv"), "table of Video-MME-v2")
        videos = first_existing(self.folder, ("video", "videos"), "folder of videos")
        rows = read_table(table)
        return [self._sample(row, videos, f"{table}, question {number}") for number, row in enumerate(rows, 1)]

    def judge(self, sample: Sample, text: str) -> Verdict:
        """See :class:`~keyekit.evaluation.benchmark.Benchmark`."""
        return judge_choice(sample, text, letters_of(_OPTIONS), self.as_released)

    def report(self, judged: Sequence[Judged]) -> Report:
        """``non_linear`` over whole groups and ``accuracy`` over questions.

        Both overall, by kind of group, by level and by the two heads.
        """
        groups = list(self._groups(judged))
        names = _sorted_names(groups)
        scores, accuracy = NonLinearScores(names), GroupedMeans(names)
        scores.update(groups)
        group_of = {group.unit: group.groups for group in groups}
        counted = [entry for entry in judged if not (self.as_released and entry.verdict.extracted is None)]
        add_scores(accuracy, counted, [group_of.get(entry.sample.meta["unit"], ()) for entry in counted])
        return {"non_linear": scores.compute(), "accuracy": accuracy.compute()}

    def _groups(self, judged: Sequence[Judged]) -> Iterator[QuestionGroup]:
        by_video: dict[str, list[Judged]] = defaultdict(list)
        for entry in judged:
            by_video[entry.sample.meta["unit"]].append(entry)
        for unit, entries in by_video.items():
            if len(entries) != 4:  # --limit cuts the last group
                continue
            entries.sort(key=lambda entry: entry.sample.meta["place"])
            first, second, third, fourth = (self._count(entry.verdict) for entry in entries)
            last = entries[-1].sample.meta
            categories = [f"{name} {last[name]}" for name in _CATEGORIES if last[name] is not None]
            yield QuestionGroup(
                structure=last["structure"],
                correct=(first, second, third, fourth),
                unit=unit,
                groups=(last["kind"], *categories),
                options=_OPTIONS,
            )

    def _count(self, verdict: Verdict) -> int:
        return -1 if self.as_released and verdict.extracted is None else int(verdict.score or 0)

    def _sample(self, row: dict[str, Any], videos: Path, place: str) -> Sample:
        name = str(field(row, "video_id", place)).zfill(3)
        identity = str(field(row, "question_id", place))
        options = field(row, "options", place)
        options = options if isinstance(options, str) else "\n".join(read_list(options, place))
        text = f"{field(row, 'question', place)}\n{options}\n{self.instruction}"
        if self.subtitles:
            text = f"{self._spoken(name)}\n{text}"
        answer = str(field(row, "answer", place)).strip()
        if answer not in letters_of(_OPTIONS):
            raise BadData("bad_benchmark", f"{place}: 'answer' is {answer!r}, no letter from A to H")
        structure = _structure(row, place)
        return Sample(
            id=identity,
            task="video_mme_v2",
            messages=question(text, [video(videos / f"{name}.mp4", self.fps, self.max_frames)]),
            answer=answer,
            meta={
                "unit": name,
                "chance": 1 / _OPTIONS,
                "place": _place(identity, place),
                "kind": str(row["group_type"]),
                "structure": structure,
                **{category: _category(row.get(category)) for category in _CATEGORIES},
            },
        )

    def _spoken(self, name: str) -> str:
        path = first_existing(self.folder, ("subtitle", "subtitles"), "folder of subtitles") / f"{name}.jsonl"
        if not path.is_file():  # a video in which nobody speaks
            return "Nothing is said in this video."
        try:
            words = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (ValueError, KeyError, TypeError) as error:
            raise BadData("bad_benchmark", f"{path}: every line must be a JSON object with 'text': {error}") from error
        return f"What is said in this video:\n{' '.join(words)}"


def _structure(row: dict[str, Any], place: str) -> str:
    """The group's structure as the score knows it; unknown ones are found before a model has run."""
    kind = str(field(row, "group_type", place))
    structure = str(field(row, "group_structure", place)) if kind == "logic" else kind
    try:
        non_linear_score(structure, (0, 0, 0, 0))
    except ValueError as error:
        raise BadData("bad_benchmark", f"{place}: {error}") from error
    return structure


def _place(identity: str, place: str) -> int:
    _, dash, number = identity.rpartition("-")
    if not dash or not number.isdigit():
        raise BadData("bad_benchmark", f"{place}: 'question_id' is {identity!r}, expected VIDEO-NUMBER such as 001-1")
    return int(number)


def _category(value: Any) -> str | None:
    """A category, without the words and the decimal that tables use for one that is missing or a number."""
    text = "" if value is None else str(value).strip().removesuffix(".0")
    return None if text.lower() in ("", "none", "nan") else text


def _sorted_names(groups: Sequence[QuestionGroup]) -> list[str]:
    """Kinds first, then levels, then heads, each in alphabetical order."""
    ranks = {name: rank for rank, name in enumerate(_CATEGORIES, 1)}
    names = {name for group in groups for name in group.groups}
    return sorted(names, key=lambda name: (ranks.get(name.partition(" ")[0], 0), name))
