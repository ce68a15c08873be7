"""Asking again where all went wrong, and what a reward is told about the turns before an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from keyekit.data.encode import SampleEncoder
from keyekit.data.errors import BadData
from keyekit.data.sample import Sample
from keyekit.rewards.base import Judgement
from keyekit.rewards.context_rl import MistakeReports
from keyekit.rewards.correction import FIRST_ANSWER
from keyekit.rollout.trajectory import Prompt, Trajectory

__all__ = ["SecondAttempts", "judged_sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondAttempts:
    """Prompts for second attempts, of the mistake reports of ContextRL.

    Args:
        reports: Has mistakes reported.
        encoder: Turns the conversations with the reports into tokens.
        longest: Prompts of more tokens are left out; ``None`` for no limit.
    """

    reports: MistakeReports
    encoder: SampleEncoder
    longest: int | None = None

    def prompts(self, groups: Sequence[Sequence[tuple[Sample, str, Judgement]]]) -> list[list[Prompt]]:
        """For each group in which all answers are wrong the prompts that ask again.

        A prompt is missing where there was no report, or one that cannot be shown.

        Args:
            groups: For each prompt its answers: the sample, the text, and what it is worth.
        """
        flat = [one for group in groups for one in group]
        attempts = self.reports.second_attempts(
            [sample for sample, _, _ in flat],
            [text for _, text, _ in flat],
            [outcome for _, _, outcome in flat],
            [len(group) for group in groups],
        )
        by_group: dict[int, list[Prompt]] = {}
        owners = [number for number, group in enumerate(groups) for _ in group]
        for attempt in attempts:
            try:
                prompt = Prompt.of(attempt.sample, self.encoder)
            except BadData:  # such as a report that holds a token of the template
                continue
            if self.longest is None or len(prompt) <= self.longest:
                by_group.setdefault(owners[attempt.place], []).append(prompt)
        return list(by_group.values())


def judged_sample(trajectory: Trajectory, decode: Callable[[list[int]], str]) -> Sample:
    """The sample that a response is rewarded against; after a turn of correction it knows the answer before.

    Args:
        trajectory: The response.
        decode: Turns tokens into text.
    """
    sample = trajectory.prompt.encoded.sample
    kinds = [read.kind for read in trajectory.interjections]
    if "correction" not in kinds:
        return sample
    first = decode(list(trajectory.turns[kinds.index("correction")]))
    return replace(sample, meta={**sample.meta, FIRST_ANSWER: first})
