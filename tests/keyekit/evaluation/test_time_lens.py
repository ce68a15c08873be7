from __future__ import annotations

import json
from pathlib import Path

import pytest

from keyekit.data.errors import BadData
from keyekit.evaluation.benchmark import Judged
from keyekit.evaluation.time_lens import TimeLens
from keyekit.testing.benchmark_folders import write_time_lens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_time_lens(tmp_path)
    return tmp_path


def test_every_query_of_a_video_is_a_question(folder: Path):
    samples = TimeLens(folder, instruction="When: {query}?").samples()
    assert [sample.id for sample in samples] == [
        f"{subset}/{name}" for subset in ("charades", "qvhighlights") for name in ("AB1/0", "AB1/1", "v_C-2/0")
    ]
    assert [sample.question for sample in samples[:3]] == [
        "When: A square comes in?",
        "When: it leaves?",
        "When: the square crosses?",
    ], "white space and periods at the ends are taken away"
    assert samples[1].meta["span"] == (1.25, 2.0)
    assert samples[5].media[0].path == folder / "videos" / "qvhighlights" / "v_C-2.mp4"
    assert samples[0].media[0].options == {"fps": 4.0}


def test_scores_by_hand(folder: Path):
    benchmark = TimeLens(folder)
    said = [
        "The event happens in 0.5 - 1.0 seconds.",  # half of 0 - 1
        "1.25 to 2",  # all
        "never",
        "<think>0 - 9</think><answer>0 - 1</answer>",  # all
        "2 - 1.25",  # backwards
        "0.5 - 1.5",  # half of 0.5 - 2.5
    ]
    judged = [
        Judged(sample=sample, verdict=benchmark.judge(sample, text))
        for sample, text in zip(benchmark.samples(), said, strict=True)
    ]
    report = benchmark.report(judged)
    assert report["mIoU"]["charades"].value == pytest.approx(100 * (0.5 + 1 + 0) / 3)
    assert report["mIoU"]["qvhighlights"].value == pytest.approx(100 * (1 + 0 + 0.5) / 3)
    assert report["R1@0.5"]["overall"].value == pytest.approx(100 * 4 / 6)
    assert report["R1@0.7"]["overall"].value == pytest.approx(100 * 2 / 6)
    assert [entry.verdict.problem for entry in judged].count("no span named") == 1
    assert judged[0].verdict.extracted == [0.5, 1.0]


def test_the_official_script_rounds_to_whole_seconds(folder: Path):
    sample = TimeLens(folder).samples()[0]
    assert TimeLens(folder).judge(sample, "0.4 - 1.4").score == pytest.approx(0.6 / 1.4)
    assert TimeLens(folder, as_released=True).judge(sample, "0.4 - 1.4").score == 1


def test_subsets(folder: Path):
    assert {sample.task for sample in TimeLens(folder, subsets=["qvhighlights"]).samples()} == {"qvhighlights"}
    with pytest.raises(ValueError, match="there is no movies; choose among charades"):
        TimeLens(folder, subsets=["movies"])
    with pytest.raises(FileNotFoundError):
        TimeLens(folder, subsets=["activitynet"]).samples()
    with pytest.raises(FileNotFoundError, match="charades-timelens"):
        TimeLens(folder / "videos").samples()
    with pytest.raises(ValueError, match=r"must hold \{query\}"):
        TimeLens(folder, instruction="When?")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "expected an object of videos, got list"),
        ({"a": {"queries": ["x"]}}, "video a: 'spans' is missing"),
        ({"a": {"spans": [], "queries": ["x"]}}, "video a: 0 spans but 1 queries"),
        ({"a": {"spans": [[1]], "queries": ["x"]}}, "no span of two seconds"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content, problem):
    (tmp_path / "charades-timelens.json").write_text(json.dumps(content))
    with pytest.raises(BadData, match=problem):
        TimeLens(tmp_path).samples()
