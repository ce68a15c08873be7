from __future__ import annotations

import pytest

from keyekit.rewards.base import RewardOutcome, example_sample
from keyekit.rewards.context_rl import ContextJudged, MistakeReports, asked_again
from keyekit.rewards.endpoints import ChatModel
from keyekit.rewards.lost_samples import JudgeUnavailable

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
    answers = ["<think>x</think><answer>32</answer>", "33", "2", "3", "3", "4", "5"]
    samples = [SAMPLE] * 2 + [OTHER] * 2 + [OTHER] * 3
    outcomes = [WRONG, WRONG, RIGHT, WRONG, WRONG, WRONG, LOST]
    found = MistakeReports(judge).second_attempts(samples, answers, outcomes, [2, 2, 3])
    assert len(judge.prompts) == 2  # not for the group with a right answer, nor for that with a lost one
    assert all("Score" not in prompt for prompt in judge.prompts)
    assert "<solution>\n17 + 25 = 17 + 20 + 5 = 42\n</solution>" in judge.prompts[0]
    (attempt,) = found  # there was no report about the other
    assert attempt.place == 0
    turns = [(message.role, message.text) for message in attempt.sample.messages]
    assert turns[:2] == [("user", "What is 17 + 25?"), ("assistant", "32")]
    assert turns[2][0] == "user"
    assert "The carry is missing." in turns[2][1]
    assert attempt.sample.id != SAMPLE.id
    assert attempt.sample.meta["origin"] == SAMPLE.id
    assert attempt.sample.meta["first_answer"] == answers[0]
    assert SAMPLE.meta.get("attempt") is None
    assert attempt.sample.answer == "42"
    meta = attempt.sample.meta
    assert asked_again(SAMPLE, meta["first_answer"], meta["report"], meta["number"]) == attempt.sample


def test_what_counts_as_wrong_is_said_and_a_known_answer_stands_for_a_solution():
    judge = Scripted(lambda prompt: "No.")
    sample = example_sample("What is 1 + 1?", "2")
    partly = [RewardOutcome(0.5, "format"), RewardOutcome(0.5, "format")]
    assert MistakeReports(judge).second_attempts([sample] * 2, ["3", "4"], partly, [2]) == []
    assert len(MistakeReports(judge, wrong=0.5).second_attempts([sample] * 2, ["3", "4"], partly, [2])) == 2
    assert "<solution>\n2\n</solution>" in judge.prompts[0]


def test_a_report_without_end_is_cut():
    again = asked_again(SAMPLE, "1", "x" * 9000, 0)
    assert len(again.messages[-1].text) < 2200


def test_all_right_asks_nobody():
    judge = Scripted(str)
    assert MistakeReports(judge).second_attempts([SAMPLE], ["42"], [RIGHT], [1]) == []
    assert judge.prompts == []


def test_a_judge_that_reports_nothing_stops_the_run():
    reports = MistakeReports(Scripted(lambda _: None), max_lost_share=0.5)
    with pytest.raises(JudgeUnavailable, match="gave a report too seldom"):
        reports.second_attempts([SAMPLE] * 40, ["1"] * 40, [WRONG] * 40, [8] * 5)


def test_groups_that_are_none():
    reports = MistakeReports(Scripted(str))
    with pytest.raises(ValueError, match=r"no groups of \[2\]"):
        reports.second_attempts([SAMPLE], ["1"], [WRONG], [2])
    with pytest.raises(ValueError, match="several samples"):
        reports.second_attempts([SAMPLE, OTHER], ["1", "1"], [WRONG, WRONG], [2])
