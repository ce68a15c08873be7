from __future__ import annotations

from pathlib import Path

import pytest

from keyekit.evaluation.answer_log import AnswerLog, LogError

SETTINGS = {"benchmark": "X", "answers": {"seed": 0, "stop": ["a", "b"]}}


def test_a_log_goes_on(tmp_path: Path):
    path = tmp_path / "deep" / "answers.jsonl"
    log = AnswerLog(path, SETTINGS)
    log.append({"id": "1", "text": "是"})
    log.append({"id": "2", "error": {"reason": "missing_media"}})
    again = AnswerLog(path, {"benchmark": "X", "answers": {"seed": 0, "stop": ("a", "b")}})
    assert again.answered == {"1"}
    assert again.records["1"]["text"] == "是"
    again.append({"id": "2", "text": "now"})
    last = AnswerLog(path, SETTINGS)
    assert last.answered == {"1", "2"}
    assert last.records["2"] == {"id": "2", "text": "now"}
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path, SETTINGS)
    log.append({"id": "1", "text": "x" * 50})
    log.append({"id": "2", "text": "y" * 50})
    whole = path.read_bytes()
    for cut in (whole[:-1], whole[:-30], whole[: whole.index(b"\n") - 3], b""):
        path.write_bytes(cut)
        log = AnswerLog(path, SETTINGS)
        assert log.answered == ({"1"} if cut.count(b"\n") == 2 else set())
        log.append({"id": "2", "text": "again"})
        assert "2" in AnswerLog(path, SETTINGS).answered


def test_other_settings_are_refused_and_named(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    AnswerLog(path, SETTINGS).append({"id": "1"})
    before = path.read_bytes()
    with pytest.raises(LogError, match=r"other settings \(answers\.seed was 0, is 1; benchmark was 'X', is 'Y'\)"):
        AnswerLog(path, {"benchmark": "Y", "answers": {"seed": 1, "stop": ["a", "b"]}})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text", ['{"id": "1"}\n', "hello\n", '{"settings": {}}\n[1]\n', '{"settings": {}}\n{"name": 1}\n']
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(LogError, match="choose another --output"):
        AnswerLog(path, {})
    assert path.read_text() == text
