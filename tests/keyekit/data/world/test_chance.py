import pytest

from keyekit.data.world.chance import constant_score


def test_exact_answers_count_the_most_frequent():
    assert constant_score("digits", ["10", "10", "11", "12"]) == 0.5
    assert constant_score("digits", []) == 0.0


def test_spans_are_scored_by_the_best_constant_span():
    assert constant_score("temporal", ["1.0 - 2.0"] * 5) == 1.0
    # Against [0, 1] and [0, 2] the guess [0, 1] scores (1 + 1/2) / 2, and so does [0, 2].
    assert constant_score("temporal", ["0.0 - 1.0", "0.0 - 2.0"]) == pytest.approx(0.75)


def test_boxes_are_scored_by_the_best_centred_square():
    boxes = ["<|box_start|>[[0, 0, 300, 300]]<|box_end|>", "<|box_start|>[[500, 500, 999, 999]]<|box_end|>"]
    assert 0.0 < constant_score("box", boxes) < 0.3
    assert constant_score("box", ["<|box_start|>[[400, 400, 600, 600]]<|box_end|>"]) == pytest.approx(1.0)
