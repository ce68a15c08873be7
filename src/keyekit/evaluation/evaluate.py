"""Running a model on a benchmark: ask, judge, keep, summarise."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keyekit.data.errors import BadData
from keyekit.data.responses import ResponseMode
from keyekit.data.sample import Message, Sample
from keyekit.evaluation.answer_log import AnswerLog
from keyekit.evaluation.answering import Answer, Answerer
from keyekit.evaluation.benchmark import Benchmark, Judged, Report, Verdict

__all__ = ["LOG_NAME", "RESULTS_NAME", "Evaluation", "evaluate", "without_media"]

LOG_NAME = "answers.jsonl"
"""Name of the file with one line for each question."""

RESULTS_NAME = "results.json"
"""Name of the file with the scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came out.

    Args:
        settings: Benchmark, model and everything else that decides the answers.
        questions: How many questions there are, within the limit.
        report: The scores. A question that could not be asked counts as answered wrongly.
        errors: Questions that could not be asked, by reason.
        problems: Answers in which nothing was found to score, by problem.
        remarks: What a reader has to know.
    """

    settings: dict[str, Any]
    questions: int
    report: Report
    errors: dict[str, int]
    problems: dict[str, int]
    remarks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        scores = {
            measure: {group: estimate._asdict() for group, estimate in groups.items()}
            for measure, groups in self.report.items()
        }
        counts = {"questions": self.questions, "errors": self.errors, "problems": self.problems}
        return {"settings": self.settings, **counts, "remarks": list(self.remarks), "scores": scores}


def evaluate(
    benchmark: Benchmark,
    answerer: Answerer,
    folder: Path,
    *,
    source: str = "",
    limit: int | None = None,
    blind: bool = False,
    mode: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Ask a model the questions of a benchmark that it has not answered yet, and score all answers.

    Args:
        benchmark: The benchmark.
        answerer: The model.
        folder: Where :data:`LOG_NAME` and :data:`RESULTS_NAME` go. If it holds a log of the same evaluation, that goes on:
            answered questions are not asked again, questions whose media could not be read are.
        source: What the model is called in the settings.
        limit: Ask only the first so many questions; a later call may raise it.
        blind: Ask without images and videos. What a model scores then, it owes to guessing and to the questions' wording.
        mode: Response mode of every question; ``None`` for the model's own.
        progress: Called with the numbers of finished and of all questions, after each one.

    Raises:
        LogError: If the folder holds the log of an evaluation with other settings.
        BadData: If the benchmark's files are broken.
        FileNotFoundError: If they are missing.
    """
    samples = _checked(benchmark.samples())[:limit]
    asked = [_as_asked(sample, blind, mode) for sample in samples]
    settings = {
        "source": source,
        **benchmark.settings(),
        "blind": blind,
        "mode": mode,
        "answers": answerer.settings(),
    }
    log = AnswerLog(folder / LOG_NAME, settings)
    done = log.answered
    _ask(benchmark, answerer, log, samples, [sample for sample in asked if sample.id not in done], progress)
    records = [log.records[sample.id] for sample in samples]
    judged = [Judged(sample=sample, verdict=_verdict(record)) for sample, record in zip(samples, records, strict=True)]
    evaluation = Evaluation(
        settings=settings,
        questions=len(samples),
        report=benchmark.report(judged) if judged else {},
        errors=dict(Counter(record["error"]["reason"] for record in records if "error" in record)),
        problems=dict(Counter(record["problem"] for record in records if "error" not in record and record["problem"])),
        remarks=benchmark.remarks,
    )
    _write(folder / RESULTS_NAME, evaluation.as_dict())
    return evaluation


def without_media(sample: Sample) -> Sample:
    """The same conversation with its text alone."""

    def text_of(message: Message) -> Message:
        return replace(message, content=tuple(item for item in message.content if item.kind == "text"))

    return replace(sample, messages=tuple(text_of(message) for message in sample.messages))


def _checked(samples: list[Sample]) -> list[Sample]:
    twice = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        raise BadData("bad_benchmark", f"{len(twice)} names of questions occur more than once, such as {twice[0]!r}")
    return samples


def _as_asked(sample: Sample, blind: bool, mode: str | None) -> Sample:
    shown = without_media(sample) if blind else sample
    return shown if mode is None else replace(shown, meta={**shown.meta, "mode": ResponseMode.of(mode).value})


def _ask(
    benchmark: Benchmark,
    answerer: Answerer,
    log: AnswerLog,
    samples: Sequence[Sample],
    pending: Sequence[Sample],
    progress: Callable[[int, int], None] | None,
) -> None:
    by_name = {sample.id: sample for sample in samples}
    waiting = {sample.id for sample in pending}
    for answer in answerer.answers(pending):
        sample = by_name[answer.sample.id]
        waiting.discard(sample.id)
        verdict = benchmark.judge(sample, answer.text) if answer.error is None else _unasked(sample)
        log.append(_record(sample, answer, verdict))
        if progress is not None:
            progress(len(samples) - len(waiting), len(samples))
    if waiting:
        raise ValueError(f"{type(answerer).__name__} left {len(waiting)} of {len(pending)} questions without an answer")


def _unasked(sample: Sample) -> Verdict:
    """Wrong, so that every model is measured on all questions; unknown where no answer could be scored anyway."""
    return Verdict(score=None if sample.answer is None else 0.0)


def _record(sample: Sample, answer: Answer, verdict: Verdict) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": sample.id,
        "task": sample.task,
        "question": sample.question,
        "answer": sample.answer,
        "text": answer.text,
        "extracted": verdict.extracted,
        "score": verdict.score,
        "problem": verdict.problem,
        "tokens": answer.tokens,
        "finish_reason": answer.finish_reason,
    }
    if answer.error is not None:
        record["error"] = {"reason": answer.error.reason, "message": str(answer.error)}
    return record


def _verdict(record: dict[str, Any]) -> Verdict:
    return Verdict(score=record["score"], extracted=record["extracted"], problem=record["problem"])


def _write(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
