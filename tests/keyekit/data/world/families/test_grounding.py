import re


def test_digits_are_one_or_two_equally_often(items):
    answers = [item.questions[0].answer for item in items("digits")]
    assert all(re.fullmatch(r"\d|[1-9]\d", answer) for answer in answers)
    assert 0.3 < sum(len(answer) == 1 for answer in answers) / len(answers) < 0.7
    assert [item.scene.label.text for item in items("digits")] == answers


def test_boxes_are_integers_below_a_thousand(items):
    for item in items("box"):
        match = re.fullmatch(
            r"<\|box_start\|>\[\[(\d+), (\d+), (\d+), (\d+)\]\]<\|box_end\|>", item.questions[0].answer
        )
        left, top, right, bottom = map(int, match.groups())
        assert 0 <= left < right <= 999
        assert 0 <= top < bottom <= 999
