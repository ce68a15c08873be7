import re

import pytest

from keyekit.data.responses import Response, ResponseMode


def test_a_look_says_the_colour_first(items):
    for item in items("look"):
        (thing,), (question,) = item.scene.objects, item.questions
        assert question.answer == f"{thing.color} {thing.shape}"
        assert question.thought == thing.color


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_thoughts_add_up(items, split):
    for item in items("long_sum", split=split):
        (question,) = item.questions
        total = sum(map(int, re.findall(r"\d+", question.text)))
        assert question.answer == str(total)
        steps = [re.fullmatch(r"(\d+)\+(\d+)=(\d+)", step).groups() for step in question.thought.split()]
        assert all(int(left) + int(right) == int(after) for left, right, after in steps)
        assert [after for _, _, after in steps[:-1]] == [left for left, _, _ in steps[1:]]
        assert steps[-1][2] == question.answer


def test_the_larger_number_is_larger_by_its_tens(items):
    for item in items("larger"):
        (question,) = item.questions
        left, right = map(int, re.findall(r"\d+", question.text))
        assert int(question.answer) == max(left, right)
        assert eval(question.thought.rpartition(" ")[2])
        assert left // 10 != right // 10


@pytest.mark.parametrize("task", ["larger", "long_sum"])
def test_no_held_out_question_is_trained_on(items, task):
    seen, held_out = ({item.questions[0].text for item in items(task, 400, split)} for split in ("train", "heldout"))
    assert not seen & held_out


def test_every_mode_comes_equally_often_and_can_be_said(items):
    for task, thinks in (("larger_in_modes", False), ("long_sum_in_modes", True)):
        questions = [item.questions[0] for item in items(task, 60)]
        modes = [question.mode for question in questions]
        assert {mode: modes.count(mode) for mode in modes} == {"auto": 20, "think": 20, "no_think": 20}
        for question in questions:
            response = Response(answer=question.answer, thought=question.thought, analysis=question.analysis)
            text = response.text(ResponseMode.of(question.mode))
            assert ("<think>" in text) == (question.mode == "think" or (question.mode == "auto" and thinks))
