"""A recording says what the teacher said, about the same answers and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from keyekit.rollout.teachers.base import Scores, TeacherRefused, whose_rows
from keyekit.rollout.teachers.local import LocalTeacher
from keyekit.rollout.teachers.recorded import RecordedTeacher, record
from keyekit.rollout.teachers.selection import select_samples


class Forgetful(LocalTeacher):
    """A teacher without an answer for the first sample of a pack, which counts what it is asked."""

    asked = 0

    def score(self, batch, topk, asked=None) -> Scores:
        Forgetful.asked += len(batch.samples)
        scores = super().score(batch, topk, asked)
        return replace(scores, answered=(False, *scores.answered[1:]))


@pytest.mark.parametrize("file_rows", [1, 1000], ids=["a file a pack", "one file"])
def test_a_recording_says_what_the_teacher_said(network, data, pack, tmp_path, file_rows) -> None:
    teacher = LocalTeacher.of(network, data.tokenizer)
    parts = [select_samples(pack, [4, 0, 2]), select_samples(pack, [1, 3, 5])]
    assert record(teacher, parts, tmp_path, 5, file_rows) == {"recorded": 6, "known": 0, "unread": 0}
    assert len(list(tmp_path.glob("words-*.safetensors"))) == (2 if file_rows == 1 else 1)
    rows, _ = whose_rows(pack)
    for topk in (5, 3, 9):
        found, expected = RecordedTeacher(str(tmp_path)).score(pack, topk), teacher.score(pack, min(topk, 5))
        assert torch.equal(found.words.indices[rows], expected.words.indices[rows])
        torch.testing.assert_close(found.words.log_probs[rows], expected.words.log_probs[rows], atol=2e-5, rtol=1e-4)
        assert found.answered == (True,) * 6
    assert RecordedTeacher(str(tmp_path)).vocabulary().difference(teacher.vocabulary(), "x") is None


def test_what_is_missing_is_refused_or_counted(network, pack, tmp_path) -> None:
    record(LocalTeacher.of(network), [select_samples(pack, [0, 1])], tmp_path, 5)
    with pytest.raises(TeacherRefused, match=f"has nothing about {pack.samples[2].id} and 3 more of 6 samples"):
        RecordedTeacher(str(tmp_path)).score(pack, 5)
    assert RecordedTeacher(str(tmp_path), strict=False).score(pack, 5).answered == (True, True, *(False,) * 4)
    changed = pack.tokens.clone()
    changed[pack.samples[0].start + 1] += 1  # other tokens than those that the teacher read
    found = RecordedTeacher(str(tmp_path), strict=False).score(replace(pack, tokens=changed), 5)
    assert found.answered[:2] == (False, True)
    with pytest.raises(TeacherRefused, match="knows no others"):
        RecordedTeacher(str(tmp_path)).score(pack, 5, asked=torch.zeros(len(pack.tokens), 2, dtype=torch.int64))


def test_a_recording_goes_on_where_it_was_cut(network, pack, tmp_path) -> None:
    Forgetful.asked = 0
    teacher = Forgetful.of(network)
    assert record(teacher, [pack], tmp_path, 4) == {"recorded": 5, "known": 0, "unread": 1}
    assert record(teacher, [select_samples(pack, [1, 2])], tmp_path, 4) == {"recorded": 0, "known": 2, "unread": 0}
    assert Forgetful.asked == 6
    with pytest.raises(ValueError, match="holds 4 words of each token, 6 are asked for"):
        record(teacher, [pack], tmp_path, 6)


def test_without_a_recording_the_command_is_named(pack, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="write it with keyekit record"):
        RecordedTeacher(str(tmp_path / "nothing")).score(pack, 2)
