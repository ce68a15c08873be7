"""Rounds: rewards become advantages within groups, groups that teach nothing go, and steps share what is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from keyekit.objectives.policy.advantages import group_advantages
from keyekit.rollout.engine import RolloutEngine
from keyekit.rollout.experience import ScoredResponse
from keyekit.rollout.rounds import Rounds, divide, pack_length, packs_needed
from keyekit.rollout.trajectory import Prompt, Trajectory


@dataclass
class Judged:
    value: float
    parts: dict[str, float] = field(default_factory=dict)
    unreadable: bool = False


class Counting(RolloutEngine):
    """Answers with the number of the response; remembers what it was asked."""

    def __init__(self) -> None:  # it needs no model
        self.asked: list[str] = []
        self.seeds: list[int] = []
        self.prepared = 0

    def prepare(self):
        self.prepared += 1

    def rollout(self, prompts, responses, seed):
        self.asked += [prompt.name for prompt in prompts]
        self.seeds.append(seed)
        return [
            [_trajectory(prompt, (4 + number,) * (number + 1)) for number in range(responses)] for prompt in prompts
        ]


def _trajectory(prompt: Prompt, tokens: tuple[int, ...]) -> Trajectory:
    logs = (-1.0,) * len(tokens)
    return Trajectory(
        prompt=prompt, tokens=tokens, log_probabilities=logs, sampling_log_probabilities=logs, end="length"
    )


def rounds(engine: RolloutEngine, judge, **settings) -> Rounds:
    settings = {"prompts": 2, "responses": 3} | settings
    return Rounds(
        engine=engine,
        judge=judge,
        compare=group_advantages,
        decode=lambda tokens: " ".join(map(str, tokens)),
        **settings,
    )


def endless(maker) -> Iterator[Prompt]:
    number = 0
    while True:
        yield maker(f"p{number}", 5)
        number += 1


def test_advantages_are_taken_within_the_group(prompt_maker) -> None:
    def judge(samples, texts):
        assert texts[:3] == ["4", "5 5", "6 6 6"]
        return [Judged(float(len(text)), {"length": float(len(text))}) for text in texts]

    made = rounds(Counting(), judge).make(endless(prompt_maker), seed=5)
    assert [[r.trajectory.prompt.name for r in group] for group in made.groups] == [["p0"] * 3, ["p1"] * 3]
    for group in made.groups:
        assert [r.reward for r in group] == [1.0, 3.0, 5.0]
        assert [r.advantage for r in group] == pytest.approx([-1.0, 0.0, 1.0], abs=1e-5)
    assert made.meters["reward"] == 3.0
    assert made.meters["reward_of/length"] == 3.0
    assert made.meters["response_tokens"] == 2.0
    assert made.meters["flat_groups"] == 0.0


def test_flat_groups_go_and_others_are_asked_for_within_a_limit(prompt_maker) -> None:
    def judge(samples, texts):  # every second prompt is always solved
        return [Judged(1.0 if int(s.id[1:]) % 2 else float(len(t))) for s, t in zip(samples, texts, strict=True)]

    engine = Counting()
    made = rounds(engine, judge, prompts=4, oversampling=3.0).make(endless(prompt_maker), seed=0)
    assert engine.prepared == 1  # ranks ask in numbers of their own, and take note of the weights together
    assert len(made.groups) == 4
    assert all(int(group[0].trajectory.prompt.name[1:]) % 2 == 0 for group in made.groups)
    assert len(set(engine.seeds)) == len(engine.seeds) > 1
    assert made.meters["flat_groups"] == pytest.approx(0.5, abs=0.15)
    engine = Counting()
    never = rounds(engine, lambda s, t: [Judged(0.0)] * len(t), prompts=4, oversampling=2.0)
    assert never.make(endless(prompt_maker), seed=0).groups == []
    assert len(engine.asked) == 8
    plain = rounds(Counting(), lambda s, t: [Judged(0.0)] * len(t), keep_flat=True).make(endless(prompt_maker), seed=0)
    assert [len(group) for group in plain.groups] == [3, 3]


def test_a_reward_that_is_no_number_takes_its_response_out_and_is_counted(prompt_maker) -> None:
    def judge(samples, texts):
        return [Judged(float("nan") if text == "4" else float(len(text))) for text in texts]

    made = rounds(Counting(), judge).make(endless(prompt_maker), seed=0)
    assert [[r.reward for r in group] for group in made.groups] == [[3.0, 5.0]] * 2
    assert made.meters["broken_rewards"] == pytest.approx(1 / 3)
    assert made.meters["reward"] == 4.0


def test_answers_that_cannot_be_read_are_counted_without_those_to_other_prompts(prompt_maker) -> None:
    def judge(samples, texts):  # all are wrong, and the longest cannot be read
        return [
            Judged(float("hint" in s.meta and t == "4"), unreadable="6" in t)
            for s, t in zip(samples, texts, strict=True)
        ]

    made = rounds(Counting(), judge, hint=hinted).make(endless(prompt_maker), seed=0)
    assert made.meters["helped_groups"] == 1.0
    assert made.meters["unreadable"] == pytest.approx(1 / 3)
    clear = rounds(Counting(), lambda s, t: [Judged(float(len(x))) for x in t]).make(endless(prompt_maker), seed=0)
    assert clear.meters["unreadable"] == 0.0


def test_steps_hold_whole_groups_and_packs_of_like_length(prompt_maker) -> None:
    made = rounds(Counting(), lambda s, t: [Judged(float(len(x))) for x in t], prompts=6, responses=4).make(
        endless(prompt_maker), seed=0
    )
    steps = divide(made.groups, steps=2, packs=2)
    seen = set()
    for step in steps:
        names = {r.trajectory.prompt.name for pack in step for r in pack}
        assert len(names) == 3
        assert not names & seen
        seen |= names
        loads = [sum(len(r.trajectory.tokens) + 4 for r in pack) for pack in step]
        assert max(loads) - min(loads) <= 4
    assert divide([], 2, 2) == [[[], []], [[], []]]


@pytest.mark.parametrize(("most", "lengths"), [(None, [50, 70]), (60, [60, 60]), (55, [50, 70])])
def test_packs_are_as_long_as_they_may_be_if_that_is_possible(prompt_maker, most, lengths) -> None:
    prompt = prompt_maker("p", 5)
    group = [ScoredResponse(_trajectory(prompt, (4,) * (length - 4)), 1.0, 0.0, {}) for length in (30, 30, 20, 20, 20)]
    (step,) = divide([group], 1, 2, most)
    assert sorted(map(pack_length, step)) == lengths
    assert sorted(map(id, group)) == sorted(id(one) for pack in step for one in pack)
    assert divide([group], 1, 4, 200)[0] == divide([group], 1, 4)[0]
    assert packs_needed([step], 60) == 2
    assert packs_needed([step], 55) == 3


def hinted(prompt, level):
    meta = {"hint": level, "origin": prompt.name}
    sample = replace(prompt.encoded.sample, id=f"{prompt.name}#{level}", meta=meta)
    return Prompt(encoded=replace(prompt.encoded, sample=sample), pictures=[]) if level < 3 else None


def test_hard_prompts_are_asked_with_hints_until_one_answer_is_right(prompt_maker) -> None:
    def judge(samples, texts):  # p0 is solved without a hint, p1 with the second, p2 never
        right = [sample.id == "p0" or (sample.meta.get("hint") == 1 and "p1" in sample.id) for sample in samples]
        return [Judged(float(is_right and text == "4")) for is_right, text in zip(right, texts, strict=True)]

    engine = Counting()
    made = rounds(engine, judge, prompts=3, hint=hinted).make(endless(prompt_maker), seed=0)
    assert engine.asked == ["p0", "p1", "p2", "p1#0", "p2#0", "p1#1", "p2#1", "p2#2"]
    assert [group[0].trajectory.prompt.name for group in made.groups] == ["p0", "p1#1"]
    assert made.meters["helped_groups"] == 0.5
    assert made.meters["reward"] == pytest.approx(1 / 9)  # of the prompts as they are
