"""What a benchmark gets from its base, on one written here as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keyekit.data.sample import Sample
from keyekit.evaluation.benchmark import Benchmark, Judged, Verdict, question, video


class Capitals(Benchmark):
    """Names of capitals.

    Args:
        folder: Where the file is.
        countries: Which to ask.
    """

    def __init__(self, folder: Path, countries: list[str]) -> None:
        self.folder = folder
        self.countries = countries

    def samples(self):
        return [
            Sample(
                id=name,
                task="europe" if name != "Peru" else "america",
                messages=question(f"Capital of {name}?"),
                answer="Lima",
                meta={"chance": 0.25},
            )
            for name in self.countries
        ]

    def judge(self, sample, text):
        return Verdict(score=float(text == sample.answer), extracted=text)


def test_the_report_has_all_questions_and_each_task():
    benchmark = Capitals(Path("x"), ["Peru", "France", "Spain"])
    judged = [
        Judged(sample=sample, verdict=benchmark.judge(sample, "Lima" if sample.id == "Peru" else "Rome"))
        for sample in benchmark.samples()
    ]
    report = benchmark.report(judged)["score"]
    assert report["overall"].value == pytest.approx(100 / 3)
    assert (report["america"].value, report["europe"].value, report["europe"].count) == (100, 0, 2)
    assert report["overall"].chance == 25


def test_verdicts_without_a_score_are_left_out_of_the_report():
    benchmark = Capitals(Path("x"), ["Peru", "Spain"])
    known, unknown = benchmark.samples()
    verdicts = [Judged(sample=known, verdict=Verdict(score=1.0)), Judged(sample=unknown, verdict=Verdict(score=None))]
    assert benchmark.report(verdicts)["score"]["overall"].count == 1
    assert benchmark.report(verdicts[1:])["score"] == {}


def test_settings_are_the_name_and_the_arguments():
    settings = Capitals(Path("a/b"), ["Peru"]).settings()
    assert settings == {"benchmark": "Capitals", "folder": "a/b", "countries": ["Peru"]}
    assert json.loads(json.dumps(settings)) == settings


def test_a_video_leaves_to_the_model_what_it_does_not_say():
    assert video(Path("a.mp4")).options == {}
    assert video(Path("a.mp4"), fps=4.0, max_frames=8).options == {"fps": 4.0, "max_frames": 8}
    (turn,) = question("Why?", [video(Path("a.mp4"))])
    assert [item.kind for item in turn.content] == ["video", "text"]
