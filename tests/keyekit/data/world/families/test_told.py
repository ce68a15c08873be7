import re
from collections import Counter

import pytest


@pytest.mark.parametrize("task", ["told_attribute", "told_count", "told_order", "told_captions"])
def test_a_told_scene_is_text_alone_and_begins_with_what_there_is(items, task):
    for item in items(task):
        assert item.scene is None
        assert all(re.match(r"Seen: .+[.]\n", question.text) for question in item.questions)


def _told(question) -> str:
    return question.text.partition(".\n")[0].removeprefix("Seen: ")


def test_what_is_told_answers_the_question(items):
    for item in items("told_count"):
        assert len(_told(item.questions[0]).split(", ")) == int(item.questions[0].answer)
    for item in items("told_order"):
        for question in item.questions:
            assert _told(question).split(", then ")[0] == question.answer
            assert set(_told(question).split(", then ")) == set(question.options)
    for item in items("told_attribute"):
        for question in item.questions:
            assert question.answer in _told(question).split()
    for item in items("told_captions"):
        phrase, place = re.fullmatch(r"an? (\w+ \w+) at the (.+)", item.questions[0].answer).groups()
        assert set(_told(item.questions[0]).split(", ")) == {phrase, place}


def test_objects_are_told_in_random_order(items):
    """The first object that is told is, as often as not, one that the caption names before the place."""
    first = Counter(_told(item.questions[0]).startswith(("top", "bottom")) for item in items("told_captions", 200))
    assert 60 < first[True] < 140
