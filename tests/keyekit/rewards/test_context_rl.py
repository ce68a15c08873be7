from __future__ import annotations

import pytest

from keyekit.rewards.base import RewardOutcome, example_sample
from keyekit.rewards.context_rl import ContextJudged
from keyekit.rewards.endpoints import ChatModel

SAMPLE = example_sample("What is 17 + 25?", "42", {"solution": "17 + 25 = 17 + 20 + 5 = 42"})
OTHER = example_sample("What is 1 + 1?", "2", {"solution": "1 + 1 = 2"})
RIGHT, WRONG, LOST = RewardOutcome(1.0, "right"), RewardOutcome(0.0, "wrong"), RewardOutcome.drop("lost")


class Scripted(ChatModel):
    def __init__(self, reply):
        self.reply, self.prompts = reply, []

    def ask(self, prompts):
        self.prompts += prompts
        return [self.reply(prompt) for prompt in prompts]


def test_the_judge_sees_the_solution_and_the_whole_response():
    judge = Scripted(lambda _: "Score: 1")
    (found,) = ContextJudged(judge).score([SAMPLE], ["<think>17 and 25</think><answer>42</answer>"])
    assert found.value == 1.0
    assert "<solution>\n17 + 25 = 17 + 20 + 5 = 42\n</solution>" in judge.prompts[0]
    assert "<think>17 and 25</think>" in judge.prompts[0]


def test_a_sample_without_a_solution_is_refused():
    with pytest.raises(ValueError, match="no verified solution"):
        ContextJudged(Scripted(str)).score([example_sample("?", "1")], ["1"])


def test_groups_in_which_all_is_wrong_are_answered_again_with_a_report():
    judge = Scripted(lambda prompt: " The carry is missing. " if "32" in prompt else None)
    answers = ["<think>x</think><answer>32</answer>", "33", "2", "3", "3", "4"]
    samples = [SAMPLE] * 2 + [OTHER] * 2 + [OTHER] * 2
    found = ContextJudged(judge).second_attempts(samples, answers, [WRONG, WRONG, RIGHT, WRONG, WRONG, LOST], group=2)
    assert len(judge.prompts) == 2  # not for the group with a right answer, nor for that with a lost one
    assert all("Score" not in prompt for prompt in judge.prompts)
    (attempt,) = found  # there was no report about the other
    assert attempt.place == 0
    turns = [(message.role, message.text) for message in attempt.sample.messages]
    assert turns[:2] == [("user", "What is 17 + 25?"), ("assistant", "32")]
    assert turns[2][0] == "user"
    assert "The carry is missing." in turns[2][1]
    assert attempt.sample.meta["attempt"] == 2
    assert attempt.sample.meta["first_answer"] == answers[0]
    assert SAMPLE.meta.get("attempt") is None
    assert attempt.sample.answer == "42"


def test_all_right_asks_nobody():
    judge = Scripted(str)
    assert ContextJudged(judge).second_attempts([SAMPLE], ["42"], [RIGHT], group=1) == []
    assert judge.prompts == []


def test_groups_that_are_none():
    reward = ContextJudged(Scripted(str))
    with pytest.raises(ValueError, match="no groups of 2"):
        reward.second_attempts([SAMPLE], ["1"], [WRONG], group=2)
    with pytest.raises(ValueError, match="several samples"):
        reward.second_attempts([SAMPLE, OTHER], ["1", "1"], [WRONG, WRONG], group=2)
