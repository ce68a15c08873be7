"""Verdicts of KC-MMBench, case by case, with and without a judge."""

from __future__ import annotations

import pytest

from keyekit.evaluation.judges import Judge
from keyekit.evaluation.kc_mmbench_verdicts import judge_open, judge_yes_no


class Scripted(Judge):
    """Gives its replies one after the other and keeps what it was asked."""

    def __init__(self, *replies: str | None) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[str, float]] = []

    def ask(self, prompt, temperature):
        self.asked.append((prompt, temperature))
        return self.replies.pop(0)


@pytest.mark.parametrize(
    ("kind", "gold", "response", "score"),
    [  # Keye-VL 8B sheet 8.4, as far as a rule can follow it
        ("topics", "是_否_是", "[是, 否, 是]", 1),
        ("topics", "是_否_是", "先看[否]，最后[是，否，是]", 1),
        ("topics", "是_否_是", "[是, 否]", 0),
        ("topics", "是_否_是", "[是, 否, 是, 是]", 0),
        ("topics", "是_否_是", "[是, 是, 否]", 0),
        ("topics", "是_否_是", "是, 否, 是", 0),
        ("order", "[Video 3, Video 1, Video 2]", "So it is [video 3, video 1, video 2].", 1),
        ("order", "[Video 3, Video 1, Video 2]", "[3, 1, 2]", 1),
        ("order", "[Video 3, Video 1, Video 2]", "[3, 2, 1]", 0),
        ("order", "[Video 3, Video 1, Video 2]", "3, 1, 2", 0),
        ("attributes", '{"颜色": ["红", "蓝"], "尺寸": "大"}', "{'尺寸': ['大'], '颜色': ['蓝', '红']}", 1),
        ("attributes", '{"颜色": "红"}', '答案：{"颜色": "红"}。', 1),
        ("attributes", '{"颜色": "红"}', '{"颜色": "红", "尺寸": "大"}', 0),
        ("attributes", '{"颜色": "红"}', '{"颜色": "绿"}', 0),
        ("attributes", '{"颜色": "红"}', "红", 0),
        ("attributes", '{"颜色": "红"}', '{"颜色": ', 0),
    ],
)
def test_rules(kind, gold, response, score):
    assert judge_open(kind, response, gold, None).score == score
    assert judge_open(kind, f"<think>{gold}</think>{response}", gold, None).score == score


def test_the_judge_takes_the_list_and_the_rule_compares_it():
    judge = Scripted("分析[否]，结论[是, 否, 是]")
    assert judge_open("topics", "<think>hm</think>yes no yes", "是_否_是", judge).score == 1
    prompt, temperature = judge.asked[0]
    assert "yes no yes" in prompt
    assert "hm" not in prompt
    assert temperature == 0
    assert judge_open("topics", "x", "是_否_是", Scripted("[是, 否]")).score == 0


def test_the_judge_compares_orders_and_attributes():
    judge = Scripted(None, None, "回答正确")
    assert judge_open("order", "first the third", "[Video 3, Video 1]", judge).score == 1
    assert [temperature for _, temperature in judge.asked] == [0.0, 0.5, 1.0], (
        "again while there is no reply, more at random"
    )
    assert "[Video 3, Video 1]" in judge.asked[0][0]
    assert judge_open("attributes", "{}", "{}", Scripted("回答错误")).score == 0


def test_five_silences_are_wrong_and_told():
    judge = Scripted(*[None] * 5)
    verdict = judge_open("order", "[3, 1]", "[Video 3, Video 1]", judge)
    assert (verdict.score, verdict.problem, len(judge.asked)) == (0, "no usable reply of the judge", 5)


def test_yes_and_no_ask_the_judge_only_if_the_rule_finds_neither():
    judge = Scripted("Unknown", "否")
    assert judge_yes_no("是", "是", "?", judge, False).score == 1
    assert judge.asked == []
    verdict = judge_yes_no("大概不会", "否", "会红吗", judge, False)
    assert (verdict.score, verdict.extracted) == (1, "否")
    assert "会红吗" in judge.asked[0][0]
    unknown = judge_yes_no("x", "否", "?", Scripted(*["Unknown"] * 5), False)
    assert (unknown.score, unknown.problem) == (0, "neither yes nor no")
