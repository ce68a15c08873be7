from __future__ import annotations

import json
from pathlib import Path

import pytest

from keyekit.data.errors import BadData
from keyekit.evaluation.benchmark import Judged, Verdict
from keyekit.evaluation.long_video_bench import LongVideoBench
from keyekit.testing.benchmark_folders import write_long_video_bench


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_long_video_bench(tmp_path, 4)
    return tmp_path


def rewritten(folder: Path, **changes) -> Path:
    path = folder / "lvb_val.json"
    rows = json.loads(path.read_text())
    rows[1] = {name: value for name, value in (rows[1] | changes).items() if value != "gone"}
    path.write_text(json.dumps(rows))
    return folder


def test_a_question_shows_the_clip_then_the_options(folder: Path):
    sample = LongVideoBench(folder, fps=1.0, max_frames=8, instruction="Letter only.").samples()[1]
    assert (sample.id, sample.task, sample.answer) == ("clip1_1", "T3E", "B")
    shown, text = sample.messages[0].content
    assert shown.path == folder / "videos" / "clip1.mp4"
    assert shown.options == {"fps": 1.0, "max_frames": 8}
    assert text.text == "Which colour has the square?\nA. red\nB. green\nC. blue\nLetter only."
    assert sample.meta["chance"] == pytest.approx(1 / 3)


def test_subtitles_of_both_forms_are_in_seconds_of_the_clip(folder: Path):
    first, second, *_ = LongVideoBench(folder, subtitles=True).samples()
    assert "0.5 - 1.2: look there" in first.question
    assert "0.5 - 1.0: it moves\n1.0 - 2.0: and goes" in second.question, "they began ten seconds into the film"


def test_the_report_has_lengths_categories_and_both(folder: Path):
    benchmark = LongVideoBench(folder)
    scores = (1.0, 0.0, 1.0, 1.0)
    judged = [
        Judged(sample=sample, verdict=Verdict(score=score))
        for sample, score in zip(benchmark.samples(), scores, strict=True)
    ]
    report = benchmark.report(judged)["accuracy"]
    assert list(report)[:7] == ["overall", "15 s", "60 s", "600 s", "3600 s", "S2A", "T3E"]
    assert report["overall"].value == 75
    assert (report["60 s"].value, report["T3E"].value, report["S2A"].value) == (0, 50, 100)
    assert report["60 s, T3E"].count == 1


def test_the_test_split_has_no_answers_and_no_score(folder: Path):
    rows = json.loads((folder / "lvb_val.json").read_text())
    for row in rows:
        del row["correct_choice"]
    (folder / "lvb_test_wo_gt.json").write_text(json.dumps(rows))
    benchmark = LongVideoBench(folder, split="test")
    judged = [Judged(sample=sample, verdict=benchmark.judge(sample, "A")) for sample in benchmark.samples()]
    assert judged[0].verdict.extracted == "A"
    assert benchmark.report(judged)["accuracy"] == {}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"correct_choice": "gone"}, "question 2: 'correct_choice' is missing"),
        ({"correct_choice": 7}, "'correct_choice' is 7, but there are 3 options"),
        ({"candidates": "red"}, "'candidates' must be a list"),
        ({"question_category": "gone"}, "'question_category' is missing"),
    ],
)
def test_broken_questions_are_named(folder: Path, changes, problem):
    with pytest.raises(BadData, match=problem):
        LongVideoBench(rewritten(folder, **changes)).samples()


def test_what_is_no_folder_of_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        LongVideoBench(tmp_path).samples()
    (tmp_path / "lvb_val.json").write_text("{}")
    with pytest.raises(BadData, match="expected a list of questions, got dict"):
        LongVideoBench(tmp_path).samples()
    with pytest.raises(ValueError, match="choose validation or test"):
        LongVideoBench(tmp_path, split="train")  # pyright: ignore[reportArgumentType]
