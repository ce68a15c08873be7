"""Each sample goes to the teacher of its kind, and to no other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from keyekit.batch import SampleInfo
from keyekit.data.vocabulary import Vocabulary
from keyekit.rollout.teachers.base import whose_rows
from keyekit.rollout.teachers.local import LocalTeacher
from keyekit.rollout.teachers.routing import RoutedTeachers, domain_of


def test_samples_are_read_by_the_teacher_of_their_kind(network, other, pack) -> None:
    one, two = LocalTeacher.of(network), LocalTeacher.of(other)
    routed = RoutedTeachers({"video/*": one, "digits, sum": two})
    routed.check(pack.samples)
    found = routed.score(pack, topk=4)
    rows, whose = whose_rows(pack)
    for number, sample in enumerate(pack.samples):
        teacher = one if domain_of(sample).startswith("video") else two
        own = rows[whose == number]
        expected = teacher.score(pack, topk=4).words
        assert torch.equal(found.words.indices[own], expected.indices[own])
        torch.testing.assert_close(found.words.log_probs[own], expected.log_probs[own], atol=2e-5, rtol=1e-4)
    assert all(found.answered)


def test_words_that_are_asked_for_reach_the_right_teacher(network, other, pack) -> None:
    asked = torch.randint(0, 320, (len(pack.tokens), 2))
    one, two = LocalTeacher.of(network), LocalTeacher.of(other)
    found = RoutedTeachers({"temporal": one, "*": two}).score(pack, 1, asked).words
    rows, whose = whose_rows(pack)
    assert torch.equal(found.indices[rows], asked[rows])
    video = torch.tensor([sample.task == "temporal" for sample in pack.samples])[whose]
    expected = one.score(pack, 1, asked).words.log_probs[rows[video]]
    torch.testing.assert_close(found.log_probs[rows[video]], expected, atol=2e-5, rtol=1e-4)


def test_the_first_pattern_that_matches_decides() -> None:
    routed = RoutedTeachers({"image/count": None, "count": None, "text/*": None})

    def route(task: str, **about) -> str | None:
        return routed.route(SampleInfo(id="", task=task, start=0, stop=1, **about))

    assert route("count", media=("a.png",)) == "image/count"
    assert route("count", media=("a.mp4",), timestamps=(0.0,)) == "count"
    assert route("sum") == "text/*"
    assert route("x", meta={"domain": "count"}) == "count"
    assert route("x", media=("a.png",)) is None


def test_a_sample_without_a_teacher_is_named_before_anything_runs(network, pack) -> None:
    routed = RoutedTeachers({"image/digits": LocalTeacher.of(network)})
    with pytest.raises(
        ValueError, match=r"no teacher for text/sum \(2 samples\), video/temporal \(2 samples\); the routes"
    ):
        routed.check(pack.samples)
    with pytest.raises(ValueError, match="no teacher for"):
        routed.score(pack, topk=2)
    with pytest.raises(ValueError, match="routes are empty"):
        RoutedTeachers({})


class Spoken(LocalTeacher):
    """A teacher that claims a vocabulary."""

    def __init__(self, *tokens: str) -> None:
        super().__init__("nowhere")
        self.tokens = tokens

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokens)


def test_teachers_of_different_vocabularies_are_refused() -> None:
    assert RoutedTeachers({"a": Spoken("x", "y"), "b": Spoken("x", "y")}).vocabulary().tokens == ("x", "y")
    with pytest.raises(
        ValueError, match=r"teacher 'b' has another vocabulary: 1 of the first 2 ids mean something else"
    ):
        RoutedTeachers({"a": Spoken("x", "y"), "b": Spoken("x", "z")}).vocabulary()


def test_a_pack_of_padding_has_no_words(network, pack) -> None:
    empty = replace(pack, samples=(), labels=torch.full_like(pack.labels, -100), num_targets=0)
    found = RoutedTeachers({"*": LocalTeacher.of(network)}).score(empty, topk=3)
    assert found.words.indices.shape == (len(pack.tokens), 3)
    assert found.answered == ()
