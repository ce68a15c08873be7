"""Asking, judging, keeping and summarising, with a model that says what it is told to."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from keyekit.data.errors import BadData
from keyekit.data.sample import Sample
from keyekit.evaluation.answer_log import LogError
from keyekit.evaluation.answering import Answer
from keyekit.evaluation.evaluate import LOG_NAME, RESULTS_NAME, evaluate, without_media
from keyekit.evaluation.long_video_bench import LongVideoBench
from keyekit.testing.benchmark_folders import write_long_video_bench


class Interrupted(BaseException):
    """As if the user pressed Ctrl-C."""


class Parrot:
    """Says one thing to everything; may break off or be unable to see a clip."""

    def __init__(self, text: str = "A", stop_after: int | None = None, unseen: str = "") -> None:
        self.text = text
        self.stop_after = stop_after
        self.unseen = unseen
        self.asked: list[Sample] = []

    def settings(self) -> dict:
        return {"text": self.text}

    def answers(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        for sample in samples:
            if len(self.asked) == self.stop_after:
                raise Interrupted
            self.asked.append(sample)
            broken = self.unseen and sample.id.startswith(self.unseen)
            error = BadData("broken_media", "cannot be decoded") if broken else None
            yield Answer(sample=sample, text="" if broken else self.text, tokens=1, error=error)


@pytest.fixture
def bench(tmp_path: Path) -> LongVideoBench:
    write_long_video_bench(tmp_path / "lvb", 6)  # the right answers are A, B, C, A, B, C
    return LongVideoBench(tmp_path / "lvb")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()]


def test_what_comes_out(bench, tmp_path):
    told = []
    found = evaluate(
        bench,
        Parrot("A"),
        tmp_path / "out",
        source="parrot",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(count, 6) for count in range(1, 7)]
    overall = found.report["accuracy"]["overall"]
    assert (found.questions, overall.count) == (6, 6)
    assert overall.value == pytest.approx(100 / 3)
    assert (found.errors, found.problems) == ({}, {})
    head, *records = lines(tmp_path / "out")
    assert head["settings"]["source"] == "parrot"
    assert head["settings"]["benchmark"] == "LongVideoBench"
    assert records[1] == {
        "id": "clip1_1",
        "task": "T3E",
        "question": bench.samples()[1].question,
        "answer": "B",
        "text": "A",
        "extracted": "A",
        "score": 0.0,
        "problem": None,
        "tokens": 1,
        "finish_reason": None,
    }
    results = json.loads((tmp_path / "out" / RESULTS_NAME).read_text(encoding="utf-8"))
    assert results == json.loads(json.dumps(found.as_dict()))
    assert results["scores"]["accuracy"]["overall"]["count"] == 6


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(bench, tmp_path):
    whole = evaluate(bench, Parrot(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        evaluate(bench, Parrot(stop_after=4), tmp_path / "cut")
    assert not (tmp_path / "cut" / RESULTS_NAME).exists()
    told = []
    rest = Parrot()
    again = evaluate(bench, rest, tmp_path / "cut", progress=lambda done, total: told.append(done))
    assert [sample.id for sample in rest.asked] == ["clip4_4", "clip5_5"]
    assert told == [5, 6]
    assert again == whole
    assert lines(tmp_path / "cut")[1:] == lines(tmp_path / "whole")[1:]
    nobody = Parrot()
    assert evaluate(bench, nobody, tmp_path / "cut") == whole
    assert nobody.asked == []


def test_what_cannot_be_decoded_is_counted_wrong_and_asked_again(bench, tmp_path):
    first = evaluate(bench, Parrot(unseen="clip0"), tmp_path / "out")
    assert first.errors == {"broken_media": 1}
    assert first.report["accuracy"]["overall"].count == 6
    assert first.report["accuracy"]["overall"].value == pytest.approx(100 / 6)
    assert lines(tmp_path / "out")[1]["error"] == {"reason": "broken_media", "message": "cannot be decoded"}
    mended = Parrot()
    second = evaluate(bench, mended, tmp_path / "out")
    assert [sample.id for sample in mended.asked] == ["clip0_0"]
    assert second.errors == {}
    assert second.report["accuracy"]["overall"].value == pytest.approx(100 / 3)


def test_a_limit_may_grow(bench, tmp_path):
    assert evaluate(bench, Parrot(), tmp_path / "out", limit=2).report["accuracy"]["overall"].count == 2
    more = Parrot()
    assert evaluate(bench, more, tmp_path / "out", limit=5).questions == 5
    assert len(more.asked) == 3
    assert evaluate(bench, Parrot(), tmp_path / "out", limit=1).questions == 1


@pytest.mark.parametrize("changes", [{"blind": True}, {"mode": "think"}, {"source": "other"}])
def test_answers_of_other_settings_are_not_mixed(bench, tmp_path, changes):
    evaluate(bench, Parrot(), tmp_path / "out")
    with pytest.raises(LogError, match=rf"{next(iter(changes))} was .*, is "):
        evaluate(bench, Parrot(), tmp_path / "out", **changes)
    with pytest.raises(LogError, match=r"answers\.text was 'A', is 'B'"):
        evaluate(bench, Parrot("B"), tmp_path / "out")


def test_answers_that_cannot_be_read_are_counted(bench, tmp_path):
    assert evaluate(bench, Parrot("hm"), tmp_path / "out").problems == {"no option named": 6}


def test_a_blind_model_gets_the_text_alone(bench, tmp_path):
    seeing, blind = Parrot(), Parrot()
    evaluate(bench, seeing, tmp_path / "seeing")
    evaluate(bench, blind, tmp_path / "blind", blind=True)
    assert all(sample.media for sample in seeing.asked)
    assert not any(sample.media for sample in blind.asked)
    assert [sample.question for sample in blind.asked] == [sample.question for sample in seeing.asked]
    assert without_media(seeing.asked[0]) == blind.asked[0]


class Guesser(Parrot):
    """Names any of the options that the text offers: all that one can do who sees nothing."""

    def answers(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        source = random.Random(0)
        for sample in samples:
            assert not sample.media
            offered = [line[0] for line in sample.question.splitlines() if line[1:2] == "."]
            yield Answer(sample=sample, text=source.choice(offered))


def test_guessing_is_at_chance(bench, tmp_path):
    path = bench.folder / "lvb_val.json"
    rows = json.loads(path.read_text())
    many = [
        row | {"id": f"{row['id']}-{copy}", "video_id": f"{row['id']}-{copy}"} for copy in range(150) for row in rows
    ]
    path.write_text(json.dumps(many))
    overall = evaluate(bench, Guesser(), tmp_path / "out", blind=True).report["accuracy"]["overall"]
    assert overall.count == 900
    assert overall.chance is not None
    assert overall.low is not None
    assert overall.high is not None
    assert overall.low < overall.chance < overall.high
    assert overall.high - overall.low < 8


def test_a_response_mode_reaches_every_question(bench, tmp_path):
    model = Parrot()
    evaluate(bench, model, tmp_path / "out", mode="no_think")
    assert {sample.meta["mode"] for sample in model.asked} == {"no_think"}
    with pytest.raises(ValueError, match="there is no response mode 'loud'"):
        evaluate(bench, model, tmp_path / "other", mode="loud")


def test_names_that_occur_twice_are_refused(bench, tmp_path):
    path = bench.folder / "lvb_val.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, rows[0]]))
    with pytest.raises(BadData, match="such as 'clip0_0'"):
        evaluate(bench, Parrot(), tmp_path / "out")


class Silent(Parrot):
    """Answers nothing."""

    def answers(self, samples: Sequence[Sample]) -> Iterator[Answer]:
        return iter(())


def test_questions_without_any_answer_are_no_result(bench, tmp_path):
    with pytest.raises(ValueError, match="Silent left 6 of 6 questions without an answer"):
        evaluate(bench, Silent(), tmp_path / "out")
