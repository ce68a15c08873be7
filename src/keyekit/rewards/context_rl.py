"""ContextRL: a judge that knows the whole solution, and a second attempt where all went wrong (arXiv 2602.22623)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keyekit.data.sample import ContentItem, Message, Sample
from keyekit.metrics.extraction import extract_answer
from keyekit.rewards.base import Example, RewardOutcome, example_sample
from keyekit.rewards.correction import FIRST_ANSWER
from keyekit.rewards.endpoints import ChatModel
from keyekit.rewards.judging import Judged, judge_prompt

__all__ = ["ContextJudged", "SecondAttempt"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondAttempt:
    """A question to be answered again after a wrong answer.

    Args:
        place: Which answer it follows.
        sample: The conversation with the wrong answer and the report in it; its ``meta["attempt"]`` is 2, and
            ``meta["first_answer"]`` is what :class:`~keyekit.rewards.correction.SelfCorrection` compares with.
    """

    place: int
    sample: Sample


class ContextJudged(Judged):
    """A judge that is shown the whole verified solution, to find out right answers from wrong steps (2.0 sheet 10.3).

    A sample has its solution in ``meta["solution"]``. For groups in which every answer is wrong, :meth:`second_attempts` has
    the judge report mistakes and makes questions for another turn of the policy. That is in the paper of ContextRL; that Keye
    does so, too, is not confirmed.

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
        return judge_prompt(self.instruction, self._case(sample, answer))

    def second_attempts(
        self, samples: Sequence[Sample], answers: Sequence[str], outcomes: Sequence[RewardOutcome], group: int
    ) -> list[SecondAttempt]:
        """Questions for another turn, for every answer of the groups in which all are wrong.

        Args:
            samples: The samples, those of a group behind each other.
            answers: An answer to each.
            outcomes: Their rewards; groups with a dropped one are left alone.
            group: Answers in a group.

        Returns:
            One attempt for each answer that a report could be had about.

        Raises:
            ValueError: If there is not a whole number of groups, or a group mixes samples.
        """
        if not len(samples) == len(answers) == len(outcomes) or group < 1 or len(answers) % group:
            raise ValueError(
                f"{len(samples)} samples, {len(answers)} answers, {len(outcomes)} outcomes: no groups of {group}"
            )
        places: list[int] = []
        for start in range(0, len(answers), group):
            members = range(start, start + group)
            if len({samples[place].id for place in members}) > 1:
                raise ValueError(
                    f"the group from answer {start} on holds several samples: put answers to one behind each other"
                )
            if all(not outcomes[place].dropped and outcomes[place].value <= 0 for place in members):
                places += members
        prompts = [self._report_prompt(samples[place], answers[place]) for place in places]
        reports = self.judge.ask(prompts) if prompts else []
        return [
            SecondAttempt(place=place, sample=_again(samples[place], answers[place], report.strip()))
            for place, report in zip(places, reports, strict=True)
            if report is not None and report.strip()
        ]

    def _report_prompt(self, sample: Sample, answer: str) -> str:
        return judge_prompt(_REPORT, self._case(sample, answer)).rpartition(" End with")[0]

    def _case(self, sample: Sample, answer: str) -> dict[str, str]:
        solution = sample.meta.get("solution")
        if not isinstance(solution, str) or not solution.strip():
            raise ValueError(f"sample {sample.id} has no verified solution: give its text as meta['solution']")
        return {"question": sample.question, "solution": solution, "response": answer}

    @classmethod
    def example(cls) -> Example:
        """A sum with its solution."""
        sample = example_sample("What is 17 + 25?", "42", {"solution": "17 + 25 = 17 + 20 + 5 = 42"})
        return Example(sample=sample, right="17 + 25 = 42", wrong="17 + 25 = 32")


def _again(sample: Sample, answer: str, report: str) -> Sample:
    """The conversation, its last answer replaced by the wrong one, and a turn that asks again."""
    messages = list(sample.messages)
    while messages and messages[-1].role == "assistant":
        messages.pop()
    turns = (("assistant", extract_answer(answer)), ("user", _AGAIN.format(report=report)))
    messages += [Message(role=role, content=(ContentItem(kind="text", text=text),)) for role, text in turns]
    return replace(sample, messages=tuple(messages), meta={**sample.meta, "attempt": 2, FIRST_ANSWER: answer})
