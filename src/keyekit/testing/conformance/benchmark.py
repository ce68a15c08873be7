"""What every benchmark has to fulfil."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keyekit.evaluation.benchmark import Judged
from keyekit.testing.benchmark_folders import FOLDERS
from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = (
    "check_questions_have_names_and_words",
    "check_right_answers_are_right",
    "check_no_answer_is_wrong",
    "check_the_report_counts_every_question",
    "check_settings_are_plain",
)
"""Functions of this module that make up the suite."""


@contextmanager
def _benchmark(cls: type) -> Iterator[Any]:
    """A benchmark on a small folder; a foreign one brings its own through ``tiny_arguments``."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = {}
        if cls.__name__ in FOLDERS:
            FOLDERS[cls.__name__](Path(folder))
            arguments = {"folder": Path(folder)}
        yield make(cls, **arguments)


def check_questions_have_names_and_words(cls: type) -> None:
    """There are questions, each with a name of its own and a text, the same at every call."""
    with _benchmark(cls) as benchmark:
        samples = benchmark.samples()
        assert samples, "the folder holds no question"
        names = [sample.id for sample in samples]
        assert len(set(names)) == len(names), (
            "names of questions occur twice: an interrupted evaluation could not go on"
        )
        assert all(sample.question.strip() for sample in samples), "a question has no text: it cannot be asked blindly"
        assert samples == benchmark.samples(), "reading the questions twice gave different ones"


def check_right_answers_are_right(cls: type) -> None:
    """A sample's answer, said by a model, scores 1."""
    with _benchmark(cls) as benchmark:
        known = [sample for sample in benchmark.samples() if sample.answer is not None]
        assert known, "no question has a known answer"
        for sample in known:
            for said in (sample.answer, f"<think>no idea</think><answer>{sample.answer}</answer>"):
                verdict = benchmark.judge(sample, said)
                assert verdict.score == 1, f"{said!r} to {sample.id} scores {verdict.score}, expected 1"
                json.dumps(verdict.extracted)


def check_no_answer_is_wrong(cls: type) -> None:
    """Saying nothing scores 0 and is told as a problem."""
    with _benchmark(cls) as benchmark:
        for sample in benchmark.samples():
            verdict = benchmark.judge(sample, "")
            assert not verdict.score, f"saying nothing to {sample.id} scores {verdict.score}"
            assert verdict.problem, f"saying nothing to {sample.id} is not told as a problem"


def check_the_report_counts_every_question(cls: type) -> None:
    """Right answers to everything are 100 in every row; one wrong answer is less in some."""
    with _benchmark(cls) as benchmark:
        samples = [sample for sample in benchmark.samples() if sample.answer is not None]
        judged = [Judged(sample=sample, verdict=benchmark.judge(sample, sample.answer)) for sample in samples]
        rows = [row for groups in benchmark.report(judged).values() for row in groups.values()]
        assert rows, "the report is empty"
        assert all(abs(row.value - 100) < 1e-9 for row in rows), "right answers to everything must be 100 in every row"
        wrong = Judged(sample=samples[-1], verdict=benchmark.judge(samples[-1], ""))
        rows = [row for groups in benchmark.report([*judged[:-1], wrong]).values() for row in groups.values()]
        assert any(row.value < 100 for row in rows), f"a wrong answer to {samples[-1].id} changes nothing"


def check_settings_are_plain(cls: type) -> None:
    """Settings survive JSON unchanged, so that a log can be compared with them."""
    with _benchmark(cls) as benchmark:
        settings = benchmark.settings()
        assert json.loads(json.dumps(settings)) == settings, f"{settings} is not what JSON gives back"
