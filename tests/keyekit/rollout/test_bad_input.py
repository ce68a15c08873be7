"""What goes wrong in rounds, each by its name: it is told, counted, and never in a pack."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from keyekit.objectives.policy.advantages import group_advantages
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample
from keyekit.rewards.boxes import BoxMatching
from keyekit.rewards.compose import WeightedSum
from keyekit.rewards.counting import Counting
from keyekit.rewards.endpoints import ChatEndpoint, ChatModel
from keyekit.rewards.formats import ResponseFormat
from keyekit.rewards.judging import Judged
from keyekit.rewards.lost_samples import JudgeUnavailable, RewardBroken
from keyekit.rewards.mathematics import SymbolicMath
from keyekit.rewards.penalties import RepetitionPenalty
from keyekit.rewards.spans import TemporalOverlap
from keyekit.rollout.engine import RolloutSpec
from keyekit.rollout.environments import ImageTools
from keyekit.rollout.experience import pack_responses
from keyekit.rollout.native import NativeEngine
from keyekit.rollout.rounds import Rounds
from keyekit.rollout.trajectory import Prompt
from keyekit.rollout.turns import TurnEngine
from keyekit.sandbox.execution import available
from keyekit.sandbox.limits import Limits
from keyekit.testing.tiny import tiny_vision_language_model

END = "<|im_end|>"


def rounds(encoder, engine, judge, responses: int = 4) -> Rounds:
    return Rounds(
        engine=engine,
        judge=judge,
        compare=group_advantages,
        decode=encoder.tokenizer.decode,
        prompts=1,
        responses=responses,
    )


def lengths(samples, texts) -> list[RewardOutcome]:
    return [RewardOutcome(float(len(text)), "counted") for text in texts]


@pytest.mark.parametrize("reward", [Counting, SymbolicMath, BoxMatching, TemporalOverlap])
def test_an_answer_that_cannot_be_parsed_is_worth_nothing(reward) -> None:
    sample = reward.example().sample
    for answer in ("", "<think>never done", "[[1, 2", "\\frac{"):
        (outcome,) = reward().score([sample], [answer])
        assert outcome.value <= 0
        numbers = answer == "[[1, 2" and reward in (SymbolicMath, TemporalOverlap)  # for whom these are some
        assert outcome.unreadable != numbers
        assert not outcome.dropped


class Broken(AnswerReward):
    """1 for "one"; cannot compute what "two" is worth."""

    def __init__(self, worth: float) -> None:
        self.worth = worth

    def outcome(self, sample, answer) -> RewardOutcome:
        return RewardOutcome(self.worth if answer == "two" else float(answer == "one"), "computed")

    @classmethod
    def example(cls) -> Example:
        return Example(sample=example_sample("?"), right="one", wrong="what")


class Speechless(ChatModel):
    """A judge that dies of "two"."""

    def ask(self, prompts):
        answers = [prompt.split("<answer>\n")[1] for prompt in prompts]
        return [None if "two" in answer else f"Score: {int('one' in answer)}" for answer in answers]


@pytest.mark.parametrize("worth", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["no reward", "reward", "sum", "judge"])
def test_a_reward_that_is_no_number_is_left_out_and_counted(encoder, pictured, speaking, worth, kind) -> None:
    judges = {
        "no reward": Broken(worth).outcomes,
        "reward": Broken(worth).score,
        "sum": WeightedSum([Broken(worth), RepetitionPenalty()]).score,
        "judge": Judged(Speechless()).score,
    }
    said = ["one", "two", "what", "what"]
    engine = speaking(encoder, lambda name, number: said[number] + END)
    made = rounds(encoder, engine, judges[kind]).make(iter([Prompt.of(pictured, encoder)]), seed=0)
    ((first, *others),) = made.groups
    assert len(others) == 2
    assert made.meters["broken_rewards"] == 0.25
    pack = pack_responses([first, *others], 14, replay=False)
    assert pack.advantages.isfinite().all()
    assert first.advantage > 0 > others[0].advantage  # as if the broken one had never been
    assert math.isfinite(made.meters["reward"])


def test_a_group_of_one_teaches_nothing_and_is_counted(encoder, pictured, speaking) -> None:
    engine = speaking(encoder, lambda name, number: f"one{END}")
    made = rounds(encoder, engine, lengths, responses=1).make(iter([Prompt.of(pictured, encoder)]), seed=0)
    assert made.groups == []
    assert made.meters["lonely_groups"] == 1.0
    assert pack_responses([], 14, replay=False).num_targets == 0


def test_a_rollout_that_never_stops_is_cut_off_and_counted(encoder, prompt_maker) -> None:
    torch.manual_seed(0)
    engine = NativeEngine(RolloutSpec(tiny_vision_language_model(), (), 7))
    made = rounds(encoder, engine, lengths).make(iter([prompt_maker("p", 5)]), seed=0)
    assert made.meters["cut_off"] == 1.0
    assert made.meters["response_tokens"] == 7.0


@pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}")
def test_a_tool_call_that_tries_to_escape_is_told_and_counted(encoder, pictured, speaking) -> None:
    hostile = "<code>\nimport ctypes\nctypes.CDLL(None).ptrace(0, 0, 0, 0)\n</code>"
    engine = speaking(encoder, lambda name, number: f"one{END}" if "turn" in name else f"{hostile}{END}")
    spec = RolloutSpec(tiny_vision_language_model(), (), 8, encoder=encoder)
    turns = TurnEngine(spec, engine, ImageTools(limits=Limits(seconds=5.0)))
    made = rounds(encoder, turns, lengths, responses=2).make(iter([Prompt.of(pictured, encoder)]), seed=0)
    assert made.meters["calls/forbidden"] == 1.0
    assert made.meters["failed_calls"] == 1.0
    ((trajectory,), _) = turns.rollout([Prompt.of(pictured, encoder)] * 2, 1, seed=0)
    told = encoder.tokenizer.decode(list(trajectory.interjections[0].tokens))
    assert "Error: ended by the sandbox: forbidden" in told


def test_a_reward_that_keeps_computing_no_number_stops_the_run(encoder, pictured, speaking, caplog) -> None:
    said = ["one", "two", "what", "what"]
    engine = speaking(encoder, lambda name, number: said[number] + END)
    maker = rounds(encoder, engine, Broken(math.nan).score)
    prompt = Prompt.of(pictured, encoder)
    for _ in range(7):
        assert len(maker.make(iter([prompt]), seed=0).groups) == 1
        assert "Broken computed {'value': nan} for sample q (computed)" in caplog.messages[-1]
    with pytest.raises(
        RewardBroken, match="Broken computed no finite number for 25% of the last 32 answers, more than 20%"
    ):
        maker.make(iter([prompt]), seed=0)


@pytest.fixture
def nobody() -> Iterator[str]:
    """Where no server listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}/v1"


def test_answers_that_a_dead_judge_drops_are_counted_and_never_in_a_pack(encoder, pictured, speaking, nobody) -> None:
    judge = Judged(ChatEndpoint([nobody], "judge", tries=2, pause=0.0), max_lost_share=0.5)
    engine = speaking(encoder, lambda name, number: f"one{END}")
    maker = rounds(encoder, engine, WeightedSum([judge, ResponseFormat()]).score)
    made = maker.make(iter([Prompt.of(pictured, encoder)]), seed=0)
    assert made.groups == []
    assert made.meters["broken_rewards"] == made.meters["lonely_groups"] == 1.0
    assert made.meters["reward"] == 0.0
    assert judge.lost.total == 4
    with pytest.raises(JudgeUnavailable, match="more than 50%"):
        replace(maker, responses=40).make(iter([Prompt.of(pictured, encoder)]), seed=0)
