"""ContextRL: a judge that knows the whole solution, and a second attempt where all went wrong (arXiv 2602.22623)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import isfinite

from keyekit.data.sample import ContentItem, Message, Sample
from keyekit.metrics.extraction import extract_answer
from keyekit.rewards.base import Example, Judgement, example_sample
from keyekit.rewards.correction import FIRST_ANSWER
from keyekit.rewards.endpoints import ChatModel
from keyekit.rewards.judging import Judged, judge_prompt
from keyekit.rewards.lost_samples import LostSamples

__all__ = ["ContextJudged", "MistakeReports", "SecondAttempt", "asked_again"]

_COMPARE = (
    "Compare the response with the verified solution step by step. A response is right if its final answer is that of the "
    "solution and was reached by sound steps; one that reaches it by luck or by wrong steps is not. Score 1 if it is right, "
    "0 if not."
)
_REPORT = (
    "The response is wrong. With the verified solution at hand, write a short report about its first mistake: where it is, and "
    "why it is one. Do not tell the solution or its final answer."
)
_AGAIN = "Your answer is wrong. A reviewer reports:\n\n{report}\n\nAnswer the question again."


_LONGEST_REPORT = 2000
"""Characters of a report that are kept: a judge that does not stop must not fill the policy's context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondAttempt:
    """A question to be answered again after a wrong answer.

    Args:
        place: Which answer it follows.
        sample: The conversation with the wrong answer and the report in it; see :func:`asked_again`.
    """

    place: int
    sample: Sample


class MistakeReports:
    """For groups in which every answer is wrong, a judge reports mistakes and the policy is asked again.

    That is in the paper of ContextRL; that Keye does so, too, is not confirmed (2.0 sheet 10.3). The judge sees the verified
    solution in ``meta["solution"]``, or where there is none the known answer, and is told not to give it away.

    Args:
        judge: The model that reports.
        wrong: Answers with at most this reward are wrong.
        max_lost_share: Largest share of reports among the last 256 that may be missing.
    """

    def __init__(self, judge: ChatModel, wrong: float = 0.0, max_lost_share: float = 0.2) -> None:
        self.judge = judge
        self.wrong = wrong
        self.lost = LostSamples(max_lost_share, what="a report")

    def second_attempts(
        self, samples: Sequence[Sample], answers: Sequence[str], outcomes: Sequence[Judgement], groups: Sequence[int]
    ) -> list[SecondAttempt]:
        """Questions for another turn, for every answer of the groups in which all are wrong.

        Args:
            samples: The samples, those of a group behind each other.
            answers: An answer to each.
            outcomes: Their rewards; a group with one that is no finite number is left alone.
            groups: Answers in each group.

        Returns:
            One attempt for each answer that a report could be had about.

        Raises:
            ValueError: If the groups do not add up, or a group mixes samples.
            JudgeUnavailable: If too many reports are missing.
        """
        if not len(samples) == len(answers) == len(outcomes) == sum(groups):
            raise ValueError(
                f"{len(samples)} samples, {len(answers)} answers, {len(outcomes)} outcomes: no groups of {list(groups)}"
            )
        places: list[int] = []
        for stop, size in zip(accumulate(groups), groups, strict=True):
            members = range(stop - size, stop)
            if len({samples[place].id for place in members}) > 1:
                raise ValueError(
                    f"the group from answer {stop - size} on holds several samples: put answers to one behind each other"
                )
            if all(isfinite(outcomes[place].value) and outcomes[place].value <= self.wrong for place in members):
                places += members
        prompts = [_report_prompt(samples[place], answers[place]) for place in places]
        reports = [report and report.strip() for report in (self.judge.ask(prompts) if prompts else [])]
        for report in reports:
            self.lost.count(not report)
        return [
            SecondAttempt(place=place, sample=asked_again(samples[place], answers[place], report, place))
            for place, report in zip(places, reports, strict=True)
            if report
        ]


class ContextJudged(Judged):
    """A judge that is shown the whole verified solution, to find out right answers from wrong steps (2.0 sheet 10.3).

    A sample has its solution in ``meta["solution"]``. :class:`MistakeReports` is the other half of ContextRL.

    Args:
        judge: The model.
        max_lost_share: Largest share of dropped answers among the last 256.
    """

    def __init__(self, judge: ChatModel, max_lost_share: float = 0.2) -> None:
        super().__init__(judge, instruction=_COMPARE, scores=(0.0, 1.0), max_lost_share=max_lost_share)

    def prompt(self, sample: Sample, answer: str) -> str:
        """What the judge is asked about an answer.

        Raises:
            ValueError: If the sample has no solution.
        """
        return judge_prompt(self.instruction, _case(sample, _solution(sample), answer))

    @classmethod
    def example(cls) -> Example:
        """A sum with its solution."""
        sample = example_sample("What is 17 + 25?", "42", {"solution": "17 + 25 = 17 + 20 + 5 = 42"})
        return Example(sample=sample, right="17 + 25 = 42", wrong="17 + 25 = 32")


def asked_again(sample: Sample, answer: str, report: str, number: int) -> Sample:
    """The conversation, its last answer replaced by the wrong one, and a turn that asks again.

    Args:
        sample: What was asked.
        answer: The wrong answer.
        report: What is wrong with it; cut after 2,000 characters.
        number: Tells attempts at one sample apart.

    Returns:
        A sample of its own name. Its ``meta`` has ``origin``, the name of the sample it comes from, ``report``, and
        ``first_answer``, which :class:`~keyekit.rewards.correction.SelfCorrection` compares with.
    """
    messages = list(sample.messages)
    while messages and messages[-1].role in ("assistant", "tool"):
        messages.pop()
    turns = (("assistant", extract_answer(answer)), ("user", _AGAIN.format(report=report[:_LONGEST_REPORT])))
    messages += [Message(role=role, content=(ContentItem(kind="text", text=text),)) for role, text in turns]
    added = {"attempt": 2, "number": number, "origin": sample.id, "report": report, FIRST_ANSWER: answer}
    return replace(sample, id=f"{sample.id}/again {number}", messages=tuple(messages), meta={**sample.meta, **added})


def _report_prompt(sample: Sample, answer: str) -> str:
    known = sample.answer if "solution" not in sample.meta and sample.answer is not None else _solution(sample)
    return judge_prompt(_REPORT, _case(sample, known, answer)).rpartition(" End with")[0]


def _case(sample: Sample, solution: str, answer: str) -> dict[str, str]:
    return {"question": sample.question, "solution": solution, "response": answer}


def _solution(sample: Sample) -> str:
    solution = sample.meta.get("solution")
    if not isinstance(solution, str) or not solution.strip():
        raise ValueError(f"sample {sample.id} has no verified solution: give its text as meta['solution']")
    return solution
