"""The control of every reward: the same rewards, dealt to the wrong prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from keyekit.data.sample import Sample

__all__ = ["shuffled"]

Outcome = TypeVar("Outcome")


def shuffled(
    judge: Callable[[Sequence[Sample], Sequence[str]], Sequence[Outcome]], seed: int = 0
) -> Callable[[Sequence[Sample], Sequence[str]], Sequence[Outcome]]:
    """Deal what the answers to one prompt are worth to the answers to another one.

    Rewards are spread as before, groups have the same variance and gradients are as large, but nothing is to be learnt: a
    policy that gets better all the same was not taught by its reward.

    Args:
        judge: Rewards answers, those to a prompt side by side and equally many to each.
        seed: Decides to which prompts rewards go, together with the answers.

    Raises:
        ValueError: When called, if there is but one prompt, or prompts have different numbers of answers.

    Example:
        >>> from keyekit.rewards.base import example_sample
        >>> samples = [example_sample(question) for question in "aabb"]
        >>> shuffled(lambda samples, answers: answers)(samples, ["1", "2", "3", "4"])
        ['3', '4', '1', '2']
    """

    def dealt(samples: Sequence[Sample], answers: Sequence[str]) -> Sequence[Outcome]:
        outcomes = judge(samples, answers)
        names = [sample.id for sample in samples]
        prompts = len(set(names))
        size, rest = divmod(len(names), max(prompts, 1))
        blocks = [set(names[start : start + size]) for start in range(0, len(names), max(size, 1))]
        if prompts < 2 or rest or any(len(block) > 1 for block in blocks):
            raise ValueError(
                f"{len(names)} answers to {prompts} prompts: rewards can be dealt to other prompts where there are two or "
                "more, with equally many answers to each"
            )
        shift = size * Random(f"{seed}/{answers}").randrange(1, prompts)
        return [*outcomes[shift:], *outcomes[:shift]]

    return dealt
