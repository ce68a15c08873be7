"""Lessons: what teachers say about the answers of a round, in packs, and again after an interruption."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch

from keyekit.objectives.distillation.base import target_rows
from keyekit.rewards.base import RewardOutcome
from keyekit.rollout.categories import TokenCategories
from keyekit.rollout.collapse import CollapseDetector
from keyekit.rollout.engine import RolloutSpec
from keyekit.rollout.lessons import Lesson, LessonLoader, Lessons
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.teachers.local import LocalTeacher
from keyekit.testing.tiny import tiny_vision_language_model


class Prompts:
    """What the loader needs of a dataset of prompts."""

    def __init__(self, maker, count: int = 8) -> None:
        self.prompts = [maker(f"p{number}", 5 + number, number % 3 == 0, number) for number in range(count)]
        self.encoded = [prompt.encoded for prompt in self.prompts]
        reader = SimpleNamespace(geometry=SimpleNamespace(patch_size=14))
        self.encoder = SimpleNamespace(cache=SimpleNamespace(reader=reader))

    def __len__(self) -> int:
        return len(self.encoded)

    def pictures(self, index: int) -> list:
        return self.prompts[index].pictures


def network(seed: int):
    torch.manual_seed(seed)
    model = tiny_vision_language_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def spell(tokens: list[int]) -> str:
    return "".join("ab"[token % 2] for token in tokens)


def loader(maker, student, asks: bool = False, engine=NativeEngine, **settings) -> LessonLoader:
    lessons = Lessons(
        engine=engine(RolloutSpec(student, {1, 2, 3}, 9)),
        teacher=LocalTeacher.of(network(7)),
        student=student,
        topk=4,
        asks=asks,
        prompts=4,
        responses=2,
        patch_size=14,
        pack_tokens=40,
        detector=CollapseDetector(longest_block=2, repeats=1, tokens=1),
        max_dropped=0.0,
        decode=spell,
        categories=TokenCategories({"even": "a"}, spell),
        **settings,
    )
    return LessonLoader(Prompts(maker), lessons, "sequence", steps=2, packs=2)


@pytest.mark.parametrize("asks", [False, True], ids=["their best words", "those of the student"])
def test_a_lesson_holds_what_its_teacher_says_of_its_own_answers(prompt_maker, asks) -> None:
    student, teacher = network(3).eval(), network(7).eval()
    first = next(iter(loader(prompt_maker, student, asks)))
    assert isinstance(first, Lesson)
    rows = target_rows(first.labels, first.num_targets)
    with torch.no_grad():
        said = teacher.decoder.logits(teacher(first).hidden).log_softmax(-1)[rows]
        own = student.decoder.logits(student(first).hidden)[rows]
    words = (own if asks else said).topk(4).indices
    assert torch.equal(first.words.indices[rows], words)
    torch.testing.assert_close(first.words.log_probs[rows], said.gather(1, words), atol=1e-4, rtol=1e-4)
    assert first.categories[rows].tolist() == [0 if label % 2 == 0 else -1 for label in first.labels[rows].tolist()]
    assert len(first.collapse) == len(first.segments)
    for sample, point in zip(first.samples, first.collapse.tolist(), strict=False):
        labels = [label for label in first.labels[sample.start : sample.stop].tolist() if label >= 0]
        assert point == CollapseDetector(longest_block=2, repeats=1, tokens=1).point(labels)


def test_a_lesson_is_copied_with_all_it_holds(prompt_maker) -> None:
    lesson = next(iter(loader(prompt_maker, network(3))))
    moved = lesson.to("meta")
    assert isinstance(moved, Lesson)
    for tensor in (moved.words.indices, moved.words.log_probs, moved.categories, moved.collapse, moved.tokens):
        assert tensor.device.type == "meta"


@pytest.mark.parametrize("asks", [False, True], ids=["their best words", "those of the student"])
def test_a_round_goes_on_bit_equal_though_the_student_has_moved(prompt_maker, asks) -> None:
    student = network(3)
    made = loader(prompt_maker, student, asks)
    packs = iter(made)
    next(packs)
    stored = io.BytesIO()
    torch.save(made.state_dict(), stored)
    expected = next(packs)
    with torch.no_grad():
        student.decoder.lm_head.weight.neg_()
    again = loader(prompt_maker, student, asks)
    again.load_state_dict(torch.load(io.BytesIO(stored.getvalue()), weights_only=False))
    found = next(iter(again))
    for name in ("tokens", "labels", "old_log_probs", "categories", "collapse"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.words.indices, expected.words.indices)
    assert torch.equal(found.words.log_probs, expected.words.log_probs)
    assert found.step_count == expected.step_count


def test_a_judge_is_heard_for_the_log_alone(prompt_maker) -> None:
    def judge(samples, texts):
        outcomes = [RewardOutcome(float(len(text)), "counted") for text in texts]
        return [RewardOutcome.cannot_read("no word"), RewardOutcome.drop("no reply"), *outcomes[2:]]

    quiet = next(iter(loader(prompt_maker, network(3))))
    heard = next(iter(loader(prompt_maker, network(3), judge=judge)))
    assert heard.meters["reward"] > 0
    assert heard.meters["unreadable"] == heard.meters["broken_rewards"] == 1 / 8
    assert not {"reward", "unreadable", "broken_rewards", "lost_responses"} & set(quiet.meters)
    assert quiet.meters["unread"] == 0.0
    assert quiet.meters["response_tokens"] > 1
    assert torch.equal(heard.words.log_probs, quiet.words.log_probs)


class Shared(NativeEngine):
    """Servers that several ranks share: they have to be given the weights first, once a round, and lose a response of it."""

    prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

    def rollout(self, prompts, responses, seed):
        if not self.prepared:
            raise RuntimeError("call prepare() on all ranks")
        first, *rest = super().rollout(prompts, responses, seed)
        return [first[1:], *rest]


def test_the_engine_is_prepared_once_a_round_and_what_it_loses_is_counted(prompt_maker) -> None:
    made = loader(prompt_maker, network(3), engine=Shared)
    packs = list(made)
    assert made.lessons.engine.prepared == 2  # of eight packs
    assert [pack.meters["lost_responses"] for pack in packs[::4]] == [1 / 8] * 2
    assert sum(len(pack.samples) for pack in packs) == 2 * (8 - 1)
