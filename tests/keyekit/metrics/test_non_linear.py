"""The score of Video-MME-v2 against the sheet's vectors, one by one, and against a recursive definition of chains."""

from __future__ import annotations

from itertools import product

import pytest

from keyekit.metrics.non_linear import (
    CHAINS,
    RELEVANCE,
    NonLinearScores,
    QuestionGroup,
    guessing_score,
    non_linear_score,
)


@pytest.mark.parametrize(
    ("structure", "correct", "percent"),
    [  # Keye-VL-2.0 sheet 12, the edge cases of its check 10
        (RELEVANCE, (0, 0, 0, 0), 0),
        (RELEVANCE, (0, 0, 0, 1), 6.25),
        (RELEVANCE, (1, 0, 0, 1), 25),
        (RELEVANCE, (0, 1, 1, 1), 56.25),
        (RELEVANCE, (1, 1, 1, 1), 100),
        ("[1, 2, 3, 4]", (0, 1, 1, 1), 0),
        ("[1, 2, 3, 4]", (1, 0, 1, 1), 6.25),
        ("[1, 2, 3, 4]", (1, 1, 0, 1), 25),
        ("[1, 2, 3, 4]", (1, 1, 1, 0), 56.25),
        ("[1, 2, 3, 4]", (1, 1, 1, 1), 100),
        ("[1, [2, 3], 4]", (0, 1, 1, 1), 0),
        ("[1, [2, 3], 4]", (1, 0, 0, 1), 100 / 12),
        ("[1, [2, 3], 4]", (1, 0, 1, 1), 400 / 12),  # first and third right, second wrong: a beginning of two
        ("[1, [2, 3], 4]", (1, 1, 0, 1), 400 / 12),
        ("[1, [2, 3], 4]", (1, 1, 1, 0), 700 / 12),
        ("[1, [2, 3], 4]", (1, 1, 1, 1), 100),
        ("[[1, 2], 3, 4]", (0, 0, 1, 1), 0),
        ("[[1, 2], 3, 4]", (0, 1, 1, 1), 10),  # first wrong, second right: a beginning of one
        ("[[1, 2], 3, 4]", (1, 0, 1, 1), 10),
        ("[[1, 2], 3, 4]", (1, 1, 0, 1), 20),
        ("[[1, 2], 3, 4]", (1, 1, 1, 0), 50),
        ("[[1, 2], 3, 4]", (1, 1, 1, 1), 100),
    ],
)
def test_vectors_of_the_sheet(structure, correct, percent):
    assert 100 * non_linear_score(structure, correct) == pytest.approx(percent)
    assert non_linear_score(structure.replace(" ", ""), correct) == non_linear_score(structure, correct)


def beginning(structure: list, correct: tuple[int, ...]) -> int:
    """Right questions from the start: a wrong one, or a pair that is not wholly right, ends the chain."""
    length = 0
    for step in structure:
        questions = step if isinstance(step, list) else [step]
        right = sum(correct[question - 1] for question in questions)
        length += right
        if right < len(questions):
            break
    return length


@pytest.mark.parametrize(
    ("name", "structure"),
    [("[1,2,3,4]", [1, 2, 3, 4]), ("[1,[2,3],4]", [1, [2, 3], 4]), ("[[1,2],3,4]", [[1, 2], 3, 4])],
)
def test_every_outcome_of_a_chain_against_its_definition(name, structure):
    for correct in product((0, 1), repeat=4):
        assert non_linear_score(name, correct) == CHAINS[name][beginning(structure, correct)]


def test_an_answer_without_a_letter_counts_as_the_official_script_counts_it():
    assert non_linear_score(RELEVANCE, (1, 1, 1, -1)) == 4 / 16
    assert non_linear_score(RELEVANCE, (-1, -1, 0, 1)) == 0
    assert non_linear_score("[1,2,3,4]", (1, -1, 1, 0)) == 9 / 16


@pytest.mark.parametrize(
    ("structure", "correct"), [("[4,3,2,1]", (1, 1, 1, 1)), ("", (0, 0, 0, 0)), (RELEVANCE, (1, 1))]
)
def test_what_is_no_group_is_refused(structure, correct):
    with pytest.raises(ValueError, match=r"structure|four"):
        non_linear_score(structure, correct)


@pytest.mark.parametrize("structure", [RELEVANCE, *CHAINS])
def test_guessing_among_eight_is_below_an_eighth(structure):
    odds = {1: 1 / 8, 0: 7 / 8}
    expected = 0.0
    for first, second, third, fourth in product((0, 1), repeat=4):
        weight = odds[first] * odds[second] * odds[third] * odds[fourth]
        expected += weight * non_linear_score(structure, (first, second, third, fourth))
    assert guessing_score(structure, 8) == pytest.approx(expected)
    assert 0 < guessing_score(structure, 8) < 1 / 8
    assert guessing_score(structure, 1) == 1


def test_the_mean_over_groups_and_categories():
    scores = NonLinearScores(["level 1", "level 2"])
    scores.update(
        [
            QuestionGroup(structure=RELEVANCE, correct=(1, 1, 0, 0), unit="001", groups=("level 1",), options=8),
            QuestionGroup(structure="[[1, 2], 3, 4]", correct=(1, 1, 1, 0), unit="002", groups=("level 2",), options=8),
        ]
    )
    found = scores.compute()
    assert found["overall"].value == pytest.approx((25 + 50) / 2)
    assert found["level 2"].value == pytest.approx(50)
    assert found["level 1"].chance == pytest.approx(100 * guessing_score(RELEVANCE, 8))
    scores.reset()
    scores.update([QuestionGroup(structure=RELEVANCE, correct=(1, 0, 0, 0), unit="001")])
    assert (scores.compute()["overall"].value, scores.compute()["overall"].count) == (6.25, 1)
