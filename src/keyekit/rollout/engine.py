"""The contract of rollout engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from keyekit.rollout.trajectory import Prompt, Trajectory

__all__ = ["RolloutEngine"]


class RolloutEngine(ABC):
    """Base of the engines: answers prompts with the weights that are trained, several times each."""

    @abstractmethod
    def rollout(self, prompts: Sequence[Prompt], responses: int, seed: int) -> list[list[Trajectory]]:
        """Answer every prompt.

        Args:
            prompts: What is asked.
            responses: Responses to each.
            seed: Seed of the draws; give every call another one to draw anew.

        Returns:
            For each prompt its responses, in order.
        """
