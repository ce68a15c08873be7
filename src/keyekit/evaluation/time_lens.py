"""TimeLens-Bench (Keye-VL-2.0 sheet 12): when something happens, in seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keyekit.data.errors import BadData
from keyekit.data.sample import Sample
from keyekit.evaluation.benchmark import Benchmark, Judged, Report, Verdict, question, video
from keyekit.evaluation.files import field, first_existing, read_json
from keyekit.metrics.extraction import extract_answer
from keyekit.metrics.grounding import TemporalGroundingScores
from keyekit.metrics.spans import Span, find_span, temporal_iou

__all__ = ["TimeLens"]

SUBSETS = ("charades", "activitynet", "qvhighlights")
"""Parts of the benchmark, each with a file and a folder of videos."""

_INSTRUCTION = (
    'In which part of the video does this happen: "{query}"? Answer with the seconds at which it begins and ends, in the form '
    "'start - end seconds'."
)


class TimeLens(Benchmark):
    """TimeLens-Bench, arXiv:2512.14698: mIoU and R1 at 0.3, 0.5 and 0.7 of each subset.

    The folder is as the official archives unpack: ``charades-timelens.json`` and its like, ``videos/charades/`` and its like.

    Args:
        folder: The folder.
        subsets: Which of ``charades``, ``activitynet`` and ``qvhighlights``; by default those whose files are there.
        fps: Frames per second; 4 in Keye-VL-2.0's report, 2 in TimeLens' own (2.0 sheets 11.1 and 12). ``None`` for the
            model's own rate.
        max_frames: Most frames; ``None`` for the model's own limit.
        instruction: The question, with ``{query}`` where the event stands. The official wording is in TimeLens' repository, in
            ``evaluation/utils.py``.
        as_released: Round the answer to whole seconds, as the official script does.
    """

    max_new_tokens = 512

    def __init__(
        self,
        folder: Path | str,
        subsets: list[str] | None = None,
        fps: float | None = 4.0,
        max_frames: int | None = None,
        instruction: str = _INSTRUCTION,
        as_released: bool = False,
    ) -> None:
        unknown = sorted(set(subsets or ()) - set(SUBSETS))
        if unknown:
            raise ValueError(f"subsets={subsets}: there is no {', '.join(unknown)}; choose among {', '.join(SUBSETS)}")
        if "{query}" not in instruction:
            raise ValueError("the instruction must hold {query}, where the event stands")
        self.folder = Path(folder)
        self.subsets = subsets
        self.fps = fps
        self.max_frames = max_frames
        self.instruction = instruction
        self.as_released = as_released

    def samples(self) -> list[Sample]:
        """See :class:`~keyekit.evaluation.benchmark.Benchmark`."""
        wanted = self.subsets
        if wanted is None:
            first_existing(self.folder, [_file(subset) for subset in SUBSETS], "file of TimeLens-Bench")
            wanted = [subset for subset in SUBSETS if (self.folder / _file(subset)).is_file()]
        return [sample for subset in wanted for sample in self._subset(subset)]

    def judge(self, sample: Sample, text: str) -> Verdict:
        """Overlap of the first span in the answer with the true one."""
        found = find_span(extract_answer(text))
        if found is None:
            return Verdict(score=0.0, problem="no span named")
        if self.as_released:
            found = (float(round(found[0])), float(round(found[1])))
        return Verdict(score=temporal_iou(found, sample.meta["span"]), extracted=list(found))

    def report(self, judged: Sequence[Judged]) -> Report:
        """Mean overlap and R1 of each subset; overall as well, which the official scripts do not print."""
        subsets = {entry.sample.task for entry in judged}
        scores = TemporalGroundingScores([subset for subset in SUBSETS if subset in subsets])
        scores.update(
            [None if entry.verdict.extracted is None else tuple(entry.verdict.extracted) for entry in judged],
            [entry.sample.meta["span"] for entry in judged],
            [entry.sample.meta["unit"] for entry in judged],
            [[entry.sample.task] for entry in judged],
        )
        return scores.compute()

    def _subset(self, subset: str) -> list[Sample]:
        path = self.folder / _file(subset)
        videos = read_json(path)
        if not isinstance(videos, dict):
            raise BadData("bad_benchmark", f"{path}: expected an object of videos, got {type(videos).__name__}")
        found = []
        for name, row in videos.items():
            place = f"{path}, video {name}"
            spans, queries = field(row, "spans", place), field(row, "queries", place)
            if len(spans) != len(queries):
                raise BadData("bad_benchmark", f"{place}: {len(spans)} spans but {len(queries)} queries")
            file = self.folder / "videos" / subset / f"{name}.mp4"
            pairs = enumerate(zip(queries, spans, strict=True))
            found += [self._sample(f"{subset}/{name}/{at}", subset, file, *pair, place) for at, pair in pairs]
        return found

    def _sample(self, identity: str, subset: str, file: Path, query: str, span: Any, place: str) -> Sample:
        start, end = _span(span, place)
        text = self.instruction.replace("{query}", _cleaned(query))
        return Sample(
            id=identity,
            task=subset,
            messages=question(text, [video(file, self.fps, self.max_frames)]),
            answer=f"{start} - {end} seconds",
            meta={"unit": f"{subset}/{file.stem}", "span": (start, end)},
        )


def _file(subset: str) -> str:
    return f"{subset}-timelens.json"


def _cleaned(query: str) -> str:
    """A query without needless white space and without a period at its ends."""
    return re.sub(r"\s+", " ", query).strip().strip(".").strip()


def _span(value: Any, place: str) -> Span:
    try:
        start, end = (float(second) for second in value)
    except (TypeError, ValueError) as error:
        raise BadData("bad_benchmark", f"{place}: {value!r} is no span of two seconds") from error
    return start, end
