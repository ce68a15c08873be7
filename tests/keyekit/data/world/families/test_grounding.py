import re


def test_digits_are_two_and_lie_inside(items):
    for item in items("digits"):
        assert re.fullmatch(r"[1-9]\d", item.questions[0].answer)
        assert item.scene.label.text == item.questions[0].answer


def test_boxes_are_integers_below_a_thousand(items):
    for item in items("box"):
        match = re.fullmatch(
            r"<\|box_start\|>\[\[(\d+), (\d+), (\d+), (\d+)\]\]<\|box_end\|>", item.questions[0].answer
        )
        left, top, right, bottom = map(int, match.groups())
        assert 0 <= left < right <= 999
        assert 0 <= top < bottom <= 999
