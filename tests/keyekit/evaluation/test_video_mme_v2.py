from __future__ import annotations

from pathlib import Path

import pytest

from keyekit.data.errors import BadData
from keyekit.evaluation.benchmark import Judged
from keyekit.evaluation.files import read_table
from keyekit.evaluation.video_mme_v2 import VideoMMEv2
from keyekit.testing.benchmark_folders import write_video_mme_v2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_video_mme_v2(tmp_path, 4)
    return tmp_path


def judged(benchmark: VideoMMEv2, right: dict[str, str], count: int | None = None) -> list[Judged]:
    """Answers by group: ``1`` right, ``0`` wrong, ``-`` without a letter."""
    entries = []
    for sample in benchmark.samples()[:count]:
        mark = right[sample.meta["unit"]][sample.meta["place"] - 1]
        assert sample.answer is not None
        said = {"1": sample.answer, "0": "A" if sample.answer != "A" else "B", "-": "nothing"}[mark]
        entries.append(Judged(sample=sample, verdict=benchmark.judge(sample, said)))
    return entries


RIGHT = {"001": "1101", "002": "1101", "003": "1010", "004": "0110"}


def test_groups_are_scored_by_their_kind(folder: Path):
    benchmark = VideoMMEv2(folder)
    report = benchmark.report(judged(benchmark, RIGHT)[::-1])  # whatever the order of the answers
    by_hand = [56.25, 25, 400 / 12, 10]  # relevance, chain, middle pair, first pair: 2.0 sheet 12
    non_linear = report["non_linear"]
    assert non_linear["overall"].value == pytest.approx(sum(by_hand) / 4)
    assert non_linear["relevance"].value == pytest.approx(56.25)
    assert non_linear["logic"].value == pytest.approx(sum(by_hand[1:]) / 3)
    assert non_linear["level 1"].value == pytest.approx((by_hand[0] + by_hand[3]) / 2), (
        "first and fourth are of level 1"
    )
    assert non_linear["second_head Temporal Order"].count == 4
    assert list(non_linear)[:3] == ["overall", "logic", "relevance"]
    assert report["accuracy"]["overall"].value == pytest.approx(100 * 10 / 16)
    assert report["accuracy"]["relevance"].value == 75
    assert report["accuracy"]["overall"].chance == 12.5


def test_a_group_that_a_limit_cuts_is_no_group(folder: Path):
    benchmark = VideoMMEv2(folder)
    report = benchmark.report(judged(benchmark, RIGHT, 6))
    assert (report["non_linear"]["overall"].count, report["accuracy"]["overall"].count) == (1, 6)


def test_the_official_script_counts_an_answer_without_a_letter_as_minus_one(folder: Path):
    right = {"001": "11-1", "002": "1-10", "003": "0000", "004": "0000"}
    clean, released = VideoMMEv2(folder), VideoMMEv2(folder, as_released=True)
    by_rule = clean.report(judged(clean, right))
    as_shipped = released.report(judged(released, right))
    assert by_rule["non_linear"]["overall"].value == pytest.approx((56.25 + 6.25) / 4)
    assert as_shipped["non_linear"]["overall"].value == pytest.approx((25 + 56.25) / 4)
    assert by_rule["accuracy"]["overall"].count == 16
    assert as_shipped["accuracy"]["overall"].count == 14
    assert as_shipped["accuracy"]["overall"].value == pytest.approx(100 * 5 / 14)


def test_a_question_shows_the_video_then_the_eight_options(folder: Path):
    sample = VideoMMEv2(folder, subtitles=True, max_frames=64).samples()[5]
    shown, text = sample.messages[0].content
    assert (sample.id, shown.path) == ("002-2", folder / "video" / "002.mp4")
    assert shown.options == {"max_frames": 64}
    assert text.text.startswith("What is said in this video:\nhello there\nWhat is seen at place 2?\nA. one square\n")
    assert "\nH. nothing\n" in text.text
    (folder / "subtitle" / "002.jsonl").unlink()
    assert VideoMMEv2(folder, subtitles=True).samples()[5].question.startswith("Nothing is said")


def test_the_published_table_in_parquet(folder: Path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    before = VideoMMEv2(folder).samples()
    rows = [
        row | {"level": int(row["level"]) if row["level"] else None} for row in read_table(folder / "Video-MME-v2.tsv")
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "test.parquet")
    (folder / "Video-MME-v2.tsv").unlink()
    assert VideoMMEv2(folder).samples() == before


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[1, 2, 3, 4]", "[2, 1]", r"question 5: there is no structure '\[2, 1\]'"),
        ("logic", "magic", "question 5: there is no structure 'magic'"),
        ("002-1", "first", "expected VIDEO-NUMBER"),
    ],
)
def test_broken_tables_are_found_before_a_model_runs(folder: Path, old, new, problem):
    table = folder / "Video-MME-v2.tsv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(BadData, match=problem):
        VideoMMEv2(folder).samples()


def test_what_is_no_folder_of_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"test\.parquet or Video-MME-v2\.tsv"):
        VideoMMEv2(tmp_path).samples()
