from __future__ import annotations

import pytest

from keyekit.registry import load_target, parts
from keyekit.rollout.teachers.base import Teacher
from keyekit.testing.conformance import checks_for


@pytest.mark.parametrize("check", checks_for("teacher"), ids=lambda check: check.__name__)
@pytest.mark.parametrize("part", parts("teacher"), ids=lambda part: part.name)
def test_teacher(part, check):
    check(load_target(part))


@pytest.mark.parametrize("part", parts("teacher"), ids=lambda part: part.name)
def test_a_teacher_says_how_it_scores(part):
    assert issubclass(load_target(part), Teacher)
    assert load_target(part).score is not Teacher.score
