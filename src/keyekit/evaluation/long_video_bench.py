"""LongVideoBench (Keye-VL-2.0 sheet 12): questions about videos of seconds to an hour, up to five options each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from keyekit.data.errors import BadData
from keyekit.data.sample import Sample
from keyekit.evaluation.benchmark import Benchmark, Judged, Report, Verdict, add_scores, question, video
from keyekit.evaluation.files import field, read_json
from keyekit.evaluation.multiple_choice import judge_choice, letters_of, listed
from keyekit.metrics.means import GroupedMeans

__all__ = ["LongVideoBench"]

_FILES = {"validation": "lvb_val.json", "test": "lvb_test_wo_gt.json"}


class LongVideoBench(Benchmark):
    """LongVideoBench, arXiv:2407.15754: accuracy, by duration, by category of question and by both.

    The folder is as the official archives unpack: ``lvb_val.json``, ``videos/``, ``subtitles/``.

    Args:
        folder: The folder.
        split: ``validation``, or ``test``, whose answers are not published: it gets answers and no score.
        subtitles: Whether the subtitles stand before the question, each with its seconds. The official loader puts each between
            two frames, which a video as one block has no place for.
        fps: Frames per second; 2 in Keye-VL-2.0's report (2.0 sheet 11.1). ``None`` for the model's own rate.
        max_frames: Most frames; ``None`` for the model's own limit.
        instruction: What follows the options. The official wording is in its repository's ``longvideobench_dataset.py``.
        as_released: Take the first capital letter of an answer for an option, as the official scripts do.
    """

    max_new_tokens = 32

    def __init__(
        self,
        folder: Path | str,
        split: Literal["validation", "test"] = "validation",
        subtitles: bool = False,
        fps: float | None = 2.0,
        max_frames: int | None = None,
        instruction: str = "Give only the letter of the right option.",
        as_released: bool = False,
    ) -> None:
        if split not in _FILES:
            raise ValueError(f"split={split!r}: choose {' or '.join(_FILES)}")
        self.folder = Path(folder)
        self.split = split
        self.subtitles = subtitles
        self.fps = fps
        self.max_frames = max_frames
        self.instruction = instruction
        self.as_released = as_released

    def samples(self) -> list[Sample]:
        """See :class:`~keyekit.evaluation.benchmark.Benchmark`."""
        path = self.folder / _FILES[self.split]
        rows = read_json(path)
        if not isinstance(rows, list):
            raise BadData("bad_benchmark", f"{path}: expected a list of questions, got {type(rows).__name__}")
        return [self._sample(row, f"{path}, question {number}") for number, row in enumerate(rows, 1)]

    def judge(self, sample: Sample, text: str) -> Verdict:
        """See :class:`~keyekit.evaluation.benchmark.Benchmark`."""
        return judge_choice(sample, text, letters_of(sample.meta["options"]), self.as_released)

    def report(self, judged: Sequence[Judged]) -> Report:
        """Accuracy overall, by ``duration_group``, by ``question_category`` and by both."""
        known = [entry for entry in judged if entry.verdict.score is not None]
        groups = []
        for entry in known:
            duration, category = entry.sample.meta["duration_group"], entry.sample.meta["question_category"]
            groups.append([f"{duration} s", category, f"{duration} s, {category}"])
        names = {name for group in groups for name in group}
        means = GroupedMeans(sorted(names, key=_by_duration))
        add_scores(means, known, groups)
        return {"accuracy": means.compute()}

    def _sample(self, row: Any, place: str) -> Sample:
        options = field(row, "candidates", place)
        if not isinstance(options, list) or not 2 <= len(options) <= 26:
            raise BadData("bad_benchmark", f"{place}: 'candidates' must be a list of 2 to 26 texts")
        right = row.get("correct_choice")
        if right is None and self.split == "validation":
            field(row, "correct_choice", place)
        if right is not None and right not in range(len(options)):
            raise BadData(
                "bad_benchmark", f"{place}: 'correct_choice' is {right!r}, but there are {len(options)} options"
            )
        text = f"{field(row, 'question', place)}\n{listed([str(option) for option in options])}\n{self.instruction}"
        if self.subtitles:
            text = f"{self._subtitles(row, place)}\n{text}"
        shown = video(self.folder / "videos" / field(row, "video_path", place), self.fps, self.max_frames)
        return Sample(
            id=str(field(row, "id", place)),
            task=str(field(row, "question_category", place)),
            messages=question(text, [shown]),
            answer=None if right is None else letters_of(26)[right],
            meta={
                "unit": str(row.get("video_id", row["video_path"])),
                "chance": 1 / len(options),
                "options": len(options),
                "duration_group": field(row, "duration_group", place),
                "question_category": row["question_category"],
            },
        )

    def _subtitles(self, row: dict[str, Any], place: str) -> str:
        """Subtitles in seconds of the clip, which the file tells in seconds of the film that it was cut from."""
        begin = float(row.get("starting_timestamp_for_subtitles") or 0.0)
        lines = ["Subtitles, with their seconds:"]
        for entry in read_json(self.folder / "subtitles" / field(row, "subtitle_path", place)):
            if "timestamp" in entry:
                start, end = entry["timestamp"]
                text = entry["text"]
            else:
                start, end, text = _seconds(entry["start"]), _seconds(entry["end"]), entry["line"]
            end = float(row["duration"]) + begin if end is None else end
            lines.append(f"{start - begin:.1f} - {end - begin:.1f}: {text}")
        return "\n".join(lines)


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _by_duration(name: str) -> tuple[int, int, str]:
    """Durations by length, then categories, then both together."""
    head, _, category = name.partition(" s")
    number = int(head) if head.isdigit() else 0
    return (1 if not number else 2 if category else 0), number, name
